"""Writing shards: beside their name, verified by reading back, only then named."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import h5py
import hdf5plugin
import numpy as np
from jaxtyping import Int16, UInt8

from ctgrounding.data.partial_file import PartialFile
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shard_format import (
    CHUNK,
    FORMAT,
    FORMAT_VERSION,
    HU_RANGE,
    Codec,
    Triple,
    Voxels,
    as_json,
    check_image,
    check_organs,
    group_name,
    sha256,
)
from ctgrounding.data.shard_reading import Shard, check_storage
from ctgrounding.errors import ShardError

_MAX_CHUNK = 2**26


class ShardWriter(PartialFile):
    """Writes one shard beside its name, verifies it by reading back, and only then gives it its name.

    Leaving the ``with`` block by an exception removes what was written. Same calls, same bytes: no time,
    host or user is stored.

    Args:
        path: Name of the finished shard, ending in ``.h5``.
        spacing_mm: Spacing of every scan, along ``D H W``.
        classes: Label id to organ name, for the organ maps; 0 is background and not listed.
        dataset: Name of the dataset card.
        codec: ``zstd`` (Blosc zstd 5 with bitshuffle; smallest), ``lz4`` (quickest compressed) or ``none``
            (contiguous; quickest where the set fits memory or a fast disk). Organ maps are always zstd
            without shuffle unless nothing is compressed.
        chunk: Voxels along ``D H W`` that are compressed, read and checked together.
        provenance: Versions and hashes of what made the scans; never a time or host.

    Raises:
        ShardError: If an argument is out of range or the folder cannot be written.

    Examples:
        >>> import tempfile, numpy as np
        >>> folder = tempfile.TemporaryDirectory()
        >>> record = ScanRecord("s1", "e1", "p1", "demo", "train", (4, 6, 8), (3.0, 1.5, 1.5), (0.0, 0.0, 0.0),
        ...                     ((0, 4), (0, 6), (0, 8)))
        >>> with ShardWriter(f"{folder.name}/shard-00000.h5", spacing_mm=(3.0, 1.5, 1.5), classes={},
        ...                  dataset="demo") as writer:
        ...     writer.write(record, np.full((4, 6, 8), 40, np.int16))
        >>> shard = Shard(f"{folder.name}/shard-00000.h5")
        >>> shard.records[0].scan_id, shard.read_image(0, start=(1, 0, 0), shape=(2, 6, 8)).shape
        ('s1', (2, 6, 8))
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | Path,
        *,
        spacing_mm: tuple[float, float, float],
        classes: Mapping[int, str],
        dataset: str,
        codec: Codec = "zstd",
        chunk: Triple = CHUNK,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(path)
        if codec not in get_args(Codec):
            raise ShardError(f"Codec '{codec}' is not known. Use one of {', '.join(get_args(Codec))}.")
        if len(chunk) != 3 or min(chunk) < 1 or math.prod(chunk) > _MAX_CHUNK:
            raise ShardError(
                f"Chunk {tuple(chunk)} must be three positive sizes of at most {_MAX_CHUNK} voxels in all."
            )
        if any(not 0 < label < 256 for label in classes):
            raise ShardError(f"Class ids must lie in 1..255, got {sorted(classes)}. Merge or drop classes.")
        self._spacing_mm = tuple(float(value) for value in spacing_mm)
        self._classes = {int(label): name for label, name in sorted(classes.items())}
        self._dataset = dataset
        self._codec: Codec = codec
        self._chunk = tuple(chunk)
        self._provenance = dict(provenance or {})
        self._next_place = 0
        self._places: list[int] = []
        self._content = hashlib.sha256()

    def write(
        self, record: ScanRecord, image_hu: Int16[np.ndarray, "D H W"], organs: UInt8[np.ndarray, "D H W"] | None = None
    ) -> None:
        """Append a scan at the next place, and fill in hashes and organ sizes of its record.

        Args:
            record: What is known of the scan; shape and spacing must fit.
            image_hu: HU in [-1024, 3071].
            organs: Label map with ids of ``classes`` on the same grid.

        Raises:
            ShardError: If arrays, record and shard do not fit each other.
        """
        where = f"scan {record.scan_id} for {self.path.name}"
        check_image(record, image_hu, self._spacing_mm, where)
        if organs is not None:
            check_organs(organs, image_hu.shape, self._classes, where)
        filled = replace(record, sha256=sha256(image_hu), organs_sha256="", organ_voxels=None)
        if organs is not None:
            counts = np.bincount(organs.ravel(), minlength=256)
            voxels = {name: int(counts[label]) for label, name in self._classes.items() if counts[label]}
            filled = replace(filled, organs_sha256=sha256(organs), organ_voxels=voxels)
        described = as_json(filled.to_json())
        with self._writing():
            group = self._new_group()
            self._write_array(group, "image", image_hu)
            if organs is not None:
                self._write_array(group, "organs", organs)
            group.attrs["record"] = np.bytes_(described)
        self._places.append(self._next_place - 1)
        self._content.update(described)

    def leave_empty(self, reason: str) -> None:
        """Leave the next place empty because its scan was put aside, for a reason that people can read."""
        with self._writing():
            group = self._new_group()
            group.attrs["quarantined"] = np.bytes_(reason.encode())
        self._content.update(reason.encode())

    def _new_group(self) -> h5py.Group:
        self._next_place += 1
        return self._open_file().create_group(group_name(self._next_place - 1))

    def _describe(self, file: h5py.File) -> None:
        library = {name: version(name) for name in ("ctgrounding", "h5py", "hdf5plugin", "numpy")}
        texts = {
            "format": FORMAT,
            "orientation": "RAS",
            "axes": "DHW",
            "value_rule": f"int16 HU clipped to [{HU_RANGE[0]}, {HU_RANGE[1]}]",
            "codec": self._codec,
            "dataset": self._dataset,
            "classes": json.dumps({str(label): name for label, name in self._classes.items()}),
            "provenance": json.dumps({**library, **self._provenance}, sort_keys=True),
        }
        for text in texts.values():
            self._content.update(text.encode())
        texts["content_sha256"] = self._content.hexdigest()
        for key, text in texts.items():
            file.attrs[key] = np.bytes_(text.encode())
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["spacing_mm"] = np.asarray(self._spacing_mm, np.float64)
        file.attrs["places"] = np.asarray(self._places, np.int64)

    def _verify(self, partial: Path) -> None:
        written = Shard(partial)
        try:
            for row in range(len(written.records)):
                written.verify(row)
        finally:
            written.reopen()
        check_storage(partial)
        Shard(self.path).reopen()

    def _write_array(self, group: h5py.Group, name: str, voxels: Voxels) -> None:
        options: dict[str, Any] = {}
        if self._codec != "none":
            cname, shuffle = (self._codec, "BITSHUFFLE") if name == "image" else ("zstd", "NOSHUFFLE")
            options = dict(hdf5plugin.Blosc(cname=cname, clevel=5, shuffle=getattr(hdf5plugin.Blosc, shuffle)))
            options["chunks"] = tuple(min(c, s) for c, s in zip(self._chunk, voxels.shape, strict=True))
            options["fletcher32"] = True
        self._store(group, name, np.ascontiguousarray(voxels), **options)
