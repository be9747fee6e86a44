"""Reading shards: lazily opened, a box at a time, checked."""

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from jaxtyping import Int16, UInt8

from ctgrounding.data.handles import Handles
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shard_format import (
    CHUNK,
    FORMAT,
    FORMAT_VERSION,
    Triple,
    Voxels,
    box_slices,
    differs,
    group_name,
    little_endian,
)
from ctgrounding.errors import ShardError

_ATTRIBUTES = ("orientation", "axes", "value_rule", "codec", "dataset", "content_sha256")
_PLANES = CHUNK[0]
_BROKEN = (OSError, KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError)
"""What h5py and json throw at a damaged file."""


def codec_works() -> bool:
    """Whether HDF5 finds the compression that shards use by default."""
    return bool(h5py.h5z.filter_avail(hdf5plugin.Blosc.filter_id))


class Shard:
    """One shard for reading. Opens nothing until something is read; pickles as its path.

    Rows count the scans that are there; quarantined places are left out.

    Args:
        path: A finished shard.

    Raises:
        ShardError: On first use, if the file is missing, damaged, foreign or of a newer format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        self._records: list[ScanRecord] | None = None
        self._attributes: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_records": None, "_attributes": None}

    def __repr__(self) -> str:
        return f"Shard({str(self.path)!r})"

    def reopen(self) -> None:
        """Forget what was read, because another file may have taken the name."""
        _handles.drop(self.path)
        self._records, self._attributes = None, None

    @property
    def attributes(self) -> dict[str, Any]:
        """Root attributes: texts, ``classes`` and ``provenance`` as dicts, ``spacing_mm`` and ``places`` as tuples."""
        if self._attributes is None:
            with self._open("attributes") as file:
                self._attributes = _root_attributes(file)
        return self._attributes

    @property
    def classes(self) -> dict[int, str]:
        """Label id to organ name."""
        return dict(self.attributes["classes"])

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing of every scan along ``D H W``."""
        d, h, w = self.attributes["spacing_mm"]
        return d, h, w

    @property
    def records(self) -> list[ScanRecord]:
        """What is known of each scan, by row."""
        if self._records is None:
            texts = self.record_texts()
            with self._naming("records"):
                self._records = [ScanRecord.from_json(json.loads(text)) for text in texts]
        return self._records

    @property
    def empty_places(self) -> dict[int, str]:
        """Places whose scan was put aside, and why."""
        with self._open("empty places") as file:
            found = {int(name): group.attrs.get("quarantined") for name, group in file["scans"].items()}
            return {place: bytes(reason).decode() for place, reason in found.items() if reason is not None}

    def record_texts(self) -> list[bytes]:
        """The records as the JSON that is stored, by row."""
        with self._open("records") as file:
            return [bytes(file[group_name(place)].attrs["record"]) for place in self.attributes["places"]]

    def read_image(
        self, row: int, start: Triple = (0, 0, 0), shape: Triple | None = None
    ) -> Int16[np.ndarray, "d h w"]:
        """HU of a scan or of a box in it; decodes only the chunks that the box touches.

        Args:
            row: Which scan.
            start: First voxel of the box.
            shape: Its extent; to the end of the scan if None.

        Raises:
            ShardError: If the box leaves the scan, or the file is damaged there.
        """
        voxels = self._read(row, "image", start, shape)
        if voxels is None:
            raise ShardError(f"Row {row} of {self.path} has no image. The shard is damaged; ingest it again.")
        return voxels.astype(np.int16, copy=False)

    def read_organs(
        self, row: int, start: Triple = (0, 0, 0), shape: Triple | None = None
    ) -> UInt8[np.ndarray, "d h w"] | None:
        """Organ label map of the same box, None where the scan has none. See :meth:`read_image`."""
        voxels = self._read(row, "organs", start, shape)
        return None if voxels is None else voxels.astype(np.uint8, copy=False)

    def chunk(self, row: int) -> Triple | None:
        """Voxels of a scan along ``D H W`` that are compressed together; None where nothing is compressed."""
        place = self.attributes["places"][row]
        with self._open(f"image of row {row}") as file:
            chunk: Triple | None = file[group_name(place)]["image"].chunks
        return chunk

    def verify(self, row: int) -> None:
        """Read a whole scan, some planes at a time, and compare it with the hashes of its record.

        Raises:
            ShardError: If image or organ map differ or cannot be read; names the scan.
        """
        record = self.records[row]
        if self._hash(row, "image") != record.sha256 or self._hash(row, "organs") != record.organs_sha256:
            raise differs(record, self.path)

    def _hash(self, row: int, name: str) -> str:
        """Hash of an array in C order; empty where there is none."""
        depth, *plane = self.records[row].shape
        digest = hashlib.sha256()
        for first in range(0, depth, _PLANES):
            box = (min(_PLANES, depth - first), plane[0], plane[1])
            voxels = self._read(row, name, (first, 0, 0), box)
            if voxels is None:
                return ""
            digest.update(little_endian(voxels).data)
        return digest.hexdigest()

    def _read(self, row: int, name: str, start: Triple, shape: Triple | None) -> Voxels | None:
        place = self.attributes["places"][row]
        with self._open(f"{name} of row {row}") as file:
            group = file[group_name(place)]
            if name not in group:
                return None
            stored = group[name]
            box = box_slices(stored.shape, start, shape, f"row {row} of {self.path}")
            voxels: Voxels = np.empty([side.stop - side.start for side in box], stored.dtype)
            stored.read_direct(voxels, source_sel=box)
        return voxels

    @contextmanager
    def _open(self, what: str) -> Iterator[h5py.File]:
        with self._naming(what), _handles.borrow(self.path) as file:
            yield file

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Say in one sentence what could not be read."""
        try:
            yield
        except ShardError:
            raise
        except _BROKEN as error:
            raise ShardError(
                f"Cannot read {what} in {self.path}: {error}. The file is damaged: copy it again or ingest it again."
            ) from error


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        raise ShardError(f"There is no shard at {path}. Check the path, or run ctgrounding ingest first.")
    try:
        file = h5py.File(path, "r", rdcc_nbytes=1 << 20)
    except OSError as error:
        raise ShardError(
            f"Cannot open {path} as a shard: {error}. It is cut short or no HDF5 file: "
            "copy it again or ingest it again."
        ) from error
    try:
        _root_attributes(file)
    except Exception:
        file.close()
        raise
    return file


_handles: Handles[h5py.File] = Handles(_open, limit=16)


def _root_attributes(file: h5py.File) -> dict[str, Any]:
    stored = file.attrs
    if bytes(stored.get("format", b"")).decode(errors="replace") != FORMAT:
        raise ShardError(f"{file.filename} is an HDF5 file but no {FORMAT}. Name files that ctgrounding ingest wrote.")
    if int(stored["format_version"]) > FORMAT_VERSION:
        raise ShardError(
            f"{file.filename} has shard format {int(stored['format_version'])}; this version reads up to "
            f"{FORMAT_VERSION}. Update ctgrounding."
        )
    values: dict[str, Any] = {key: bytes(stored[key]).decode() for key in _ATTRIBUTES}
    values["format"], values["format_version"] = FORMAT, int(stored["format_version"])
    values["classes"] = {int(label): name for label, name in json.loads(bytes(stored["classes"])).items()}
    values["provenance"] = json.loads(bytes(stored["provenance"]))
    values["spacing_mm"] = tuple(map(float, stored["spacing_mm"]))
    values["places"] = tuple(map(int, stored["places"]))
    return values


def check_storage(path: Path) -> None:
    """See that every array of a shard takes the room that its codec should need.

    Raises:
        ShardError: If compression was left out or an array takes nothing.
    """
    with h5py.File(path) as file:
        file.visititems(_check_stored)


def _check_stored(name: str, stored: object) -> None:
    """HDF5 skips a filter that fails without a word: a chunk stored raw is wrong unless it cannot shrink."""
    if not isinstance(stored, h5py.Dataset) or stored.chunks is None:
        return
    raw_bytes = stored.size * stored.dtype.itemsize
    for index in range(stored.id.get_num_chunks()):
        chunk = stored.id.get_chunk_info(index)
        if chunk.filter_mask:
            box = tuple(slice(o, o + c) for o, c in zip(chunk.chunk_offset, stored.chunks, strict=True))
            data = np.ascontiguousarray(stored[box]).tobytes()
            if len(zlib.compress(data, 1)) < 0.8 * len(data):
                raise ShardError(
                    f"HDF5 left out the compression of {name} in {stored.file.filename}. Reinstall hdf5plugin."
                )
    if not 0 < stored.id.get_storage_size() <= 1.5 * raw_bytes + 65536 * stored.id.get_num_chunks():
        raise ShardError(f"{name} in {stored.file.filename} takes {stored.id.get_storage_size()} of {raw_bytes} bytes.")
