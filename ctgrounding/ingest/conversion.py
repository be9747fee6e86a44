"""Shards in another codec or chunking: the same scans in the same places, every one verified."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress, TaskID

from ctgrounding.data.shards import CHUNK, Codec, Shard, ShardWriter
from ctgrounding.errors import ShardError
from ctgrounding.geometry import Triple


def convert_shards(shards: Sequence[Shard], folder: Path, codec: Codec | None, chunk: Triple | None) -> list[Shard]:
    """Write shards anew, in another folder and under their names.

    An interrupted conversion goes on with the shards that are missing.

    Args:
        shards: What to convert.
        folder: Where to write; no folder of ``shards``.
        codec: Codec to write; each shard's own if None.
        chunk: Voxels along ``D H W`` to compress together; the usual if None.

    Returns:
        The converted shards.

    Raises:
        ShardError: If names clash, the folder holds other shards, or a scan is damaged before or after.
    """
    _check_names(shards, folder)
    written = []
    with Progress() as bar:
        task = bar.add_task("Converting scans", total=sum(len(shard.records) for shard in shards))
        for shard in shards:
            target = folder / shard.path.name
            wanted: Codec = codec or shard.attributes["codec"]
            if target.exists():
                _check_same(shard, Shard(target), wanted, chunk)
                bar.advance(task, len(shard.records))
            else:
                _convert(shard, target, wanted, chunk or CHUNK, bar, task)
            written.append(Shard(target))
    return written


def _convert(shard: Shard, target: Path, codec: Codec, chunk: Triple, bar: Progress, task: TaskID) -> None:
    rows = {place: row for row, place in enumerate(shard.attributes["places"])}
    empty = shard.empty_places
    writer = ShardWriter(
        target,
        spacing_mm=shard.spacing_mm,
        classes=shard.classes,
        dataset=shard.attributes["dataset"],
        codec=codec,
        chunk=chunk,
        provenance=shard.attributes["provenance"],
    )
    with writer:
        for place in range(len(rows) + len(empty)):
            if place in empty:
                writer.leave_empty(empty[place])
                continue
            row = rows[place]
            shard.verify(row)
            writer.write(shard.records[row], shard.read_image(row), shard.read_organs(row))
            bar.advance(task)
    if Shard(target).records != shard.records:
        raise ShardError(f"{target} does not hold what {shard.path} holds. Remove it and convert again.")


def _check_names(shards: Sequence[Shard], folder: Path) -> None:
    if any(shard.path.parent == folder.resolve() for shard in shards):
        raise ShardError(f"{folder} is where the shards lie. Give another folder to convert them to.")
    names = Counter(shard.path.name for shard in shards)
    repeated = sorted(name for name, count in names.items() if count > 1)
    if repeated:
        raise ShardError(f"Several shards are called {repeated[0]}. Convert one folder at a time.")
    foreign = sorted({path.name for path in folder.glob("*.h5")} - set(names)) if folder.is_dir() else []
    if foreign:
        raise ShardError(f"{folder} already holds other shards ({foreign[0]}, ...). Give an empty folder.")


def _check_same(shard: Shard, found: Shard, codec: Codec, chunk: Triple | None) -> None:
    is_same = found.records == shard.records and found.attributes["codec"] == codec
    if not is_same or not _is_chunked(found, chunk or CHUNK):
        raise ShardError(f"{found.path} is there already and holds something else. Remove it or give another folder.")


def _is_chunked(found: Shard, chunk: Triple) -> bool:
    """Whether a shard's scans are in such chunks: a small scan has smaller ones, one without a codec none."""
    return all(
        found.chunk(row) in (None, tuple(min(side, whole) for side, whole in zip(chunk, record.shape, strict=True)))
        for row, record in enumerate(found.records)
    )
