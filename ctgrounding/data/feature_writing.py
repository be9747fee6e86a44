"""Writing feature shards: what a frozen part of a model made of each scan of one shard."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from ctgrounding.data.feature_format import (
    FORMAT,
    FORMAT_VERSION,
    Arrays,
    FeatureAbout,
    FeatureEntry,
    Triple,
    packed,
    sha256_of,
)
from ctgrounding.data.feature_reading import FeatureShard
from ctgrounding.data.partial_file import PartialFile
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shard_format import group_name

_CHUNK_WORDS = 2**18


class FeatureWriter(PartialFile):
    """Writes one feature shard beside its name, verifies it by reading back, and only then gives it its name.

    Args:
        path: Name of the finished file, ending in ``.h5``; by custom that of the shard that the scans come from.
        about: What the features are.

    Raises:
        ShardError: If the name has another ending, or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> record = ScanRecord("s1", "e1", "p1", "demo", "train", (4, 6, 8), (3.0, 1.5, 1.5), (0.0, 0.0, 0.0),
        ...                     ((0, 4), (0, 6), (0, 8)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with FeatureWriter(f"{folder}/a.h5", FeatureAbout("map", "float32", "", "ViT")) as writer:
        ...         writer.write(record, (0, 0, 0), (4, 6, 8), {"map": np.ones((2, 1, 1, 1), np.float32)})
        ...     FeatureShard(f"{folder}/a.h5").read(0)["map"].shape
        (2, 1, 1, 1)
    """

    def __init__(self, path: str | Path, about: FeatureAbout) -> None:
        super().__init__(path)
        self._about = about
        self._entries: list[FeatureEntry] = []

    def write(self, record: ScanRecord, start: Triple, shape: Triple, arrays: Arrays) -> None:
        """Append a scan.

        Args:
            record: The scan, as in its shard.
            start: First voxel of the box that was encoded.
            shape: Extent of that box.
            arrays: What was made of it, by name.
        """
        words, places = packed(arrays)
        codec: dict[str, Any] = dict(hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.BITSHUFFLE))
        with self._writing():
            group = self._open_file().create_group(group_name(len(self._entries)))
            chunk = (min(_CHUNK_WORDS, max(1, len(words))),)
            self._store(group, "features", words, chunks=chunk, fletcher32=True, **codec)
        self._entries.append(
            FeatureEntry(
                record.dataset,
                record.scan_id,
                record.sha256,
                record.organs_sha256,
                start,
                shape,
                places,
                sha256_of(words),
            )
        )

    def _describe(self, file: h5py.File) -> None:
        entries = [entry.to_json() for entry in self._entries]
        texts = {"format": FORMAT, "about": json.dumps(asdict(self._about)), "entries": json.dumps(entries)}
        for key, text in texts.items():
            file.attrs[key] = np.bytes_(text.encode())
        file.attrs["format_version"] = FORMAT_VERSION

    def _verify(self, partial: Path) -> None:
        written = FeatureShard(partial)
        try:
            for row in range(len(written.entries)):
                written.verify(row)
        finally:
            written.close()
        FeatureShard(self.path).close()
