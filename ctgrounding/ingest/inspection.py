"""``ctgrounding inspect``: what is in shards, whether it is sound, and the same in another codec."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ctgrounding.data.shards import Codec, Shard, find_shards
from ctgrounding.errors import ShardError
from ctgrounding.geometry import Triple
from ctgrounding.ingest.conversion import convert_shards
from ctgrounding.ingest.inspection_tables import tables
from ctgrounding.ingest.inventory import Inspection, look


def inspect(
    shards: str | list[str],
    *,
    verify: bool = False,
    convert: Path | None = None,
    codec: Codec | None = None,
    chunk: Triple | None = None,
) -> Inspection:
    """Say what is in shards.

    Args:
        shards: A shard or a folder that holds some, or a list of them.
        verify: Read every scan and compare it with its hash.
        convert: Folder to write the same scans to, in another codec or chunking; every scan is verified.
        codec: Codec of the converted shards; that of the shards if None.
        chunk: Voxels along ``D, H, W`` that converted shards compress together; 32, 64, 64 if None.

    Returns:
        The numbers that are printed; of the converted shards where ``convert`` is given.

    Raises:
        ShardError: If there is no shard, one is damaged, or a scan differs from its hash.
    """
    if convert is None and (codec is not None or chunk is not None):
        raise ShardError("codec and chunk are for converted shards. Say with --convert FOLDER where to write them.")
    opened = [Shard(path) for path in find_shards([shards] if isinstance(shards, str) else shards)]
    if convert is not None:
        opened = convert_shards(opened, convert, codec, chunk)
    verified = _verify(opened) if verify else 0
    inspection = look(opened, verified)
    console = Console()
    for table in tables(inspection):
        console.print(table)
    return inspection


def _verify(shards: Sequence[Shard]) -> int:
    """Compare every scan with its hash; all are read before the failures are told."""
    rows = [(shard, row) for shard in shards for row in range(len(shard.records))]
    failures = []
    for shard, row in track(rows, "Verifying scans"):
        try:
            shard.verify(row)
        except ShardError as error:
            failures.append(str(error))
    if failures:
        raise ShardError(f"{len(failures)} of {len(rows)} scans are damaged. The first: {failures[0]}")
    return len(rows)
