"""Reading feature shards, one by one and a folder of them as what is known of each scan."""

import json
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 (registers the codecs)
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctgrounding.data.feature_format import (
    FORMAT,
    FORMAT_VERSION,
    TEXT_FOLDER,
    FeatureAbout,
    FeatureEntry,
    Key,
    Triple,
    sha256_of,
    unpacked,
)
from ctgrounding.data.handles import Handles
from ctgrounding.data.index import ScanIndex
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shard_format import SUFFIX, group_name
from ctgrounding.errors import ConfigError, ShardError

_BROKEN = (OSError, KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError)
"""What h5py and json throw at a damaged file."""

_KEPT_BYTES = 2**29
"""Features that a process keeps in memory once they were read."""


class FeatureShard:
    """One feature shard for reading; opens nothing until something is read.

    Args:
        path: A finished feature shard.

    Raises:
        ShardError: On first use, if the file is missing, damaged, foreign or of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._head: tuple[FeatureAbout, tuple[FeatureEntry, ...]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_head": self._head}

    @property
    def about(self) -> FeatureAbout:
        """What the features are."""
        return self._read_head()[0]

    @property
    def entries(self) -> tuple[FeatureEntry, ...]:
        """What is known of each scan, by row."""
        return self._read_head()[1]

    def read(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one scan.

        Raises:
            ShardError: If the file is damaged there.
        """
        return unpacked(self._words(row), self.entries[row].arrays)

    def verify(self, row: int) -> None:
        """Read a scan and compare it with its hash.

        Raises:
            ShardError: If it differs or cannot be read.
        """
        entry = self.entries[row]
        if sha256_of(self._words(row)) != entry.features_sha256:
            raise ShardError(
                f"The features of scan {entry.scan_id} in {self.path} differ from their hash. Remove the file and run "
                "ctgrounding embed again."
            )

    def close(self) -> None:
        """Let go of the file, which another one may replace."""
        _handles.drop(self.path)
        self._head = None

    def _words(self, row: int) -> npt.NDArray[np.uint32]:
        try:
            with _handles.borrow(self.path) as file:
                stored = file[group_name(row)]["features"]
                words = np.empty(stored.shape, "<u4")
                if len(words):
                    stored.read_direct(words)
                return words
        except ShardError:
            raise
        except _BROKEN as error:
            raise _damaged(self.path, error) from error

    def _read_head(self) -> tuple[FeatureAbout, tuple[FeatureEntry, ...]]:
        if self._head is None:
            try:
                with _handles.borrow(self.path) as file:
                    about = FeatureAbout(**json.loads(bytes(file.attrs["about"])))
                    entries = json.loads(bytes(file.attrs["entries"]))
                self._head = about, tuple(FeatureEntry.from_json(entry) for entry in entries)
            except ShardError:
                raise
            except _BROKEN as error:
                raise _damaged(self.path, error) from error
        return self._head


class StoredFeatures:
    """All feature shards of a folder, by scan. Small to send to workers; keeps what it has read, up to 512 MiB.

    Args:
        folder: Folder that ``ctgrounding embed`` wrote.

    Attributes:
        about: What the features are.
        text_folder: Folder beside them for the vectors of texts.

    Raises:
        ConfigError: If there are none, or shards of several encoders.
        ShardError: If a shard is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        shards = [FeatureShard(path) for path in sorted(self.folder.glob(f"*{SUFFIX}"))]
        if not shards:
            raise ConfigError(f"data.features names {folder}, which holds no features. Write them: ctgrounding embed.")
        self.about = shards[0].about
        for shard in shards:
            if shard.about != self.about:
                raise ConfigError(
                    f"{shard.path} and {shards[0].path} hold features of different encoders. Embed to two folders."
                )
        self.text_folder = self.folder / TEXT_FOLDER
        self._shards = shards
        self._place: dict[Key, tuple[int, int]] = {
            entry.key: (number, row) for number, shard in enumerate(shards) for row, entry in enumerate(shard.entries)
        }
        self._kept: dict[Key, dict[str, Tensor]] = {}
        self._room = _KEPT_BYTES

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}, "_room": _KEPT_BYTES}

    def check_holds(self, scans: ScanIndex, split: str) -> None:
        """See that every scan of an index has features.

        Raises:
            ConfigError: If some have none.
        """
        keys = zip(scans.columns["dataset"], scans.columns["scan_id"], strict=True)
        missing = [scan_id for dataset, scan_id in keys if (dataset, scan_id) not in self._place]
        if missing:
            raise ConfigError(
                f"{len(missing)} scans of split {split} have no features in {self.folder}, {missing[0]} for one. Run "
                f"ctgrounding embed again with {split} among its --splits."
            )

    def read(self, record: ScanRecord, start: Triple, shape: Triple) -> dict[str, Tensor]:
        """What is stored of a scan.

        Args:
            record: The scan.
            start: First voxel of the box that a sample shows.
            shape: Extent of that box.

        Raises:
            ShardError: If there is nothing, it is of other voxels or another box, or it is damaged.
        """
        key = record.dataset, record.scan_id
        if key not in self._place:
            raise ShardError(f"Scan {record.scan_id} has no features in {self.folder}. Run ctgrounding embed again.")
        number, row = self._place[key]
        shard = self._shards[number]
        shard.entries[row].check(record, start, shape, self.folder)
        if key in self._kept:
            return self._kept[key]
        found = {name: torch.from_numpy(array) for name, array in shard.read(row).items()}
        size = sum(tensor.nbytes for tensor in found.values())
        if size <= self._room:
            self._kept[key], self._room = found, self._room - size
        return found


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise ShardError(f"There is no feature shard at {path}. Check the path, or run ctgrounding embed first.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise _damaged(path, error) from error
    kind, version = bytes(file.attrs.get("format", b"")).decode(errors="replace"), file.attrs.get("format_version", 0)
    if kind != FORMAT or int(version) > FORMAT_VERSION:
        file.close()
        raise ShardError(
            f"{path} has format '{kind}' {version}; features are '{FORMAT}' up to {FORMAT_VERSION}. Name a folder that "
            "ctgrounding embed wrote with this version."
        )
    return file


def _damaged(path: Path, error: Exception) -> ShardError:
    return ShardError(
        f"Cannot read features in {path}: {error}. The file is damaged: remove it and run ctgrounding embed again."
    )


_handles: Handles[h5py.File] = Handles(_open, limit=16)
