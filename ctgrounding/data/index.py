"""What all shards of a run hold, without opening them: ``index.parquet`` beside the shards, a cache and no more.

A shard whose size and time stamp are as noted is taken from the cache. Any other one is opened; if its content
hash is as noted it was only copied, else its rows are read anew. A folder that cannot be written is read
each time.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ctgrounding.data.keys import stable_hash
from ctgrounding.data.records import ScanRecord, Split
from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.errors import ConfigError, ShardError

INDEX_NAME = "index.parquet"
_INDEX_VERSION = "1"
_KEYS = ("scan_id", "study_id", "patient_id", "dataset", "split")
_SCHEMA = pa.schema(
    [("shard", pa.string()), ("row", pa.int64()), *((key, pa.string()) for key in _KEYS), ("record", pa.large_binary())]
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScanIndex:
    """Scans of several shards in a fixed order. Records stay packed, so it is small and quick to send to workers.

    Attributes:
        shards: The shards.
        classes: Label id to organ name, the same in all of them.
        label_names: Every label that a record of theirs states, sorted.
        shard_of: For each scan, its shard.
        row_of: For each scan, its row there.
        columns: ``scan_id``, ``study_id``, ``patient_id``, ``dataset`` and ``split`` of each scan.
        packed_records: Each scan's record as JSON.
    """

    shards: tuple[Shard, ...]
    classes: Mapping[int, str]
    label_names: tuple[str, ...]
    shard_of: npt.NDArray[np.int64]
    row_of: npt.NDArray[np.int64]
    columns: Mapping[str, tuple[str, ...]]
    packed_records: Any

    def __len__(self) -> int:
        return len(self.shard_of)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size of the shards along ``D H W``.

        Raises:
            ConfigError: If the shards differ in it.
        """
        found = {shard.spacing_mm for shard in self.shards}
        if len(found) != 1:
            raise ConfigError(f"data.shards mixes voxel sizes {sorted(found)} mm. Ingest all of them at one.")
        return found.pop()

    def record(self, position: int) -> ScanRecord:
        """The record of one scan."""
        return ScanRecord.from_json(json.loads(self.packed_records[position].as_py()))

    def shard(self, position: int) -> tuple[Shard, int]:
        """The shard of one scan and the row there."""
        return self.shards[self.shard_of[position]], int(self.row_of[position])

    def take(self, positions: Sequence[int]) -> "ScanIndex":
        """The index of some scans, in the order given."""
        chosen = np.asarray(positions, np.int64)
        columns = {key: tuple(values[position] for position in chosen) for key, values in self.columns.items()}
        packed = self.packed_records.take(pa.array(chosen))
        return replace(
            self,
            shard_of=self.shard_of[chosen],
            row_of=self.row_of[chosen],
            columns=columns,
            packed_records=packed,
        )

    def with_dev(self, fraction: float) -> "ScanIndex":
        """The same scans with a share of the training patients as split ``dev``.

        A patient's side depends on the id alone, so it is the same in every run, whatever else is trained on, and
        in data sets that are built on each other.

        Args:
            fraction: Share of the training patients, in [0, 1).
        """
        pairs = zip(self.columns["split"], self.columns["patient_id"], strict=True)
        splits = tuple(
            "dev" if split == "train" and stable_hash("dev", patient) < fraction * 2**63 else split
            for split, patient in pairs
        )
        return replace(self, columns={**self.columns, "split": splits})

    def with_train_fraction(self, fraction: float, seed: int) -> "ScanIndex":
        """The same scans with the other training patients as split ``unused``.

        Patients are put in an order by a hash of seed and id, and the first ones are taken: so the patients of a
        smaller share are among those of a larger one.

        Args:
            fraction: Share of the training patients, in (0, 1]; at least one is taken.
            seed: Of the order.
        """
        rows = list(zip(self.columns["split"], self.columns["dataset"], self.columns["patient_id"], strict=True))
        patients = {(dataset, patient) for split, dataset, patient in rows if split == "train"}
        order = sorted(patients, key=lambda key: (stable_hash("train fraction", seed, *key), key))
        taken = set(order[: max(1, round(fraction * len(order)))])
        splits = tuple(
            "unused" if split == "train" and (dataset, patient) not in taken else split
            for split, dataset, patient in rows
        )
        return replace(self, columns={**self.columns, "split": splits})

    def of_split(self, split: Split | Literal["dev", "all"]) -> "ScanIndex":
        """The scans of one split, or all."""
        return self.take([i for i, name in enumerate(self.columns["split"]) if split in (name, "all")])

    def of_studies(self) -> list[tuple[int, ...]]:
        """Positions grouped by study, in order of first appearance."""
        groups: dict[tuple[str, str], list[int]] = {}
        for position, key in enumerate(zip(self.columns["dataset"], self.columns["study_id"], strict=True)):
            groups.setdefault(key, []).append(position)
        return [tuple(positions) for positions in groups.values()]


def load_index(paths: Iterable[str | Path]) -> ScanIndex:
    """The index of all shards named by files or folders, from the caches where they are right.

    Args:
        paths: Shards, or folders of shards.

    Raises:
        ShardError: If a path is missing, a shard is damaged, or a scan is there twice.
        ConfigError: If shards have different class tables.
    """
    found = find_shards(list(paths))
    folders = dict.fromkeys(path.parent for path in found)
    entries: dict[Path, _Entry] = {}
    for folder in folders:
        entries.update(_folder_entries(folder, [path for path in found if path.parent == folder]))
    chosen = [entries[path] for path in found]
    classes = _same_classes(found, chosen)
    table = pa.concat_tables([entry.rows for entry in chosen]).combine_chunks()
    columns = {key: tuple(table[key].to_pylist()) for key in _KEYS}
    _refuse_duplicates(columns)
    return ScanIndex(
        tuple(Shard(path) for path in found),
        classes,
        tuple(sorted({name for entry in chosen for name in entry.label_names})),
        np.repeat(np.arange(len(found)), [len(entry.rows) for entry in chosen]),
        np.asarray(table["row"].to_pylist(), np.int64),
        columns,
        pa.array(table["record"].to_pylist(), pa.large_binary()),
    )


@dataclass
class _Entry:
    size: int
    mtime_ns: int
    content_sha256: str
    classes: dict[str, str]
    label_names: list[str]
    rows: pa.Table

    def noted(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("size", "mtime_ns", "content_sha256", "classes", "label_names")}


def _folder_entries(folder: Path, shards: Sequence[Path]) -> dict[Path, _Entry]:
    cached = _read_cache(folder)
    entries, is_current = {}, True
    for path in shards:
        old, stat = cached.get(path), path.stat()
        if old is not None and (old.size, old.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            entries[path] = old
            continue
        is_current = False
        shard = Shard(path)
        shard.reopen()
        if old is not None and old.content_sha256 == shard.attributes["content_sha256"]:
            entries[path] = replace(old, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
        else:
            entries[path] = _read_entry(shard, stat)
    if not is_current:
        others = {path: entry for path, entry in cached.items() if path not in entries and path.exists()}
        _write_cache(folder, {**others, **entries})
    return entries


def _read_entry(shard: Shard, stat: os.stat_result) -> _Entry:
    texts = shard.record_texts()
    values = [json.loads(text) for text in texts]
    columns: dict[str, list[Any]] = {key: [value[key] for value in values] for key in _KEYS}
    names = [shard.path.name] * len(texts)
    return _Entry(
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        content_sha256=shard.attributes["content_sha256"],
        classes={str(label): name for label, name in shard.classes.items()},
        label_names=sorted({name for value in values for name in value["labels"]}),
        rows=pa.table({"shard": names, "row": list(range(len(texts))), **columns, "record": texts}, _SCHEMA),
    )


def _read_cache(folder: Path) -> dict[Path, _Entry]:
    try:
        table = pq.read_table(folder / INDEX_NAME)
        notes = table.schema.metadata
        if notes[b"version"].decode() != _INDEX_VERSION:
            return {}
        shards, table = json.loads(notes[b"shards"]), table.replace_schema_metadata(None)
        by_shard = np.asarray(table["shard"].to_pylist(), object)
        return {
            folder / name: _Entry(**note, rows=table.take(pa.array(np.flatnonzero(by_shard == name))))
            for name, note in shards.items()
        }
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}


def _write_cache(folder: Path, entries: Mapping[Path, _Entry]) -> None:
    ordered = dict(sorted(entries.items()))
    notes = {"version": _INDEX_VERSION, "shards": json.dumps({p.name: entry.noted() for p, entry in ordered.items()})}
    table = pa.concat_tables([entry.rows for entry in ordered.values()]).replace_schema_metadata(notes)
    partial = folder / f".{INDEX_NAME}.{os.getpid()}"
    try:
        pq.write_table(table, partial, compression="zstd")
        partial.replace(folder / INDEX_NAME)
    except OSError as error:
        _log.info("Cannot keep %s: %s. Shards in %s are read at every start.", INDEX_NAME, error, folder)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _same_classes(paths: Sequence[Path], entries: Sequence[_Entry]) -> dict[int, str]:
    first = entries[0].classes
    for path, entry in zip(paths, entries, strict=True):
        if entry.classes != first:
            raise ConfigError(
                f"{path} and {paths[0]} have different organ classes, so a label id would mean two organs. "
                "Ingest both with one label set."
            )
    return {int(label): name for label, name in first.items()}


def _refuse_duplicates(columns: Mapping[str, Sequence[str]]) -> None:
    seen: set[tuple[str, str]] = set()
    for key in zip(columns["dataset"], columns["scan_id"], strict=True):
        if key in seen:
            raise ShardError(f"Scan {key[1]} of dataset {key[0]} is in the shards twice. Name each shard folder once.")
        seen.add(key)
