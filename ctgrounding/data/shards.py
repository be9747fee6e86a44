"""Shards: the HDF5 files that hold scans. The only module that imports h5py.

Layout of one file, format version 1::

    /                       attributes: format, format_version, orientation, axes, spacing_mm, value_rule,
                            codec, classes (JSON), dataset, provenance (JSON), places, content_sha256
    /scans/00000            attribute record: a ScanRecord as JSON
    /scans/00000/image      int16 HU, (D, H, W)
    /scans/00000/organs     uint8 label map on the same grid, optional
    /scans/00001            attribute quarantined: why this place is empty

Compressed arrays are cut in chunks of (32, 64, 64) voxels, each with a checksum of its own, so that a crop
reads and checks only the chunks that it touches. The same input gives the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt
from jaxtyping import Int16, UInt8

from ctgrounding.data.handles import Handles
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shard_format import (
    CHUNK,
    FORMAT,
    FORMAT_VERSION,
    HU_RANGE,
    SUFFIX,
    Codec,
    Triple,
    Voxels,
    as_json,
    box_slices,
    check_hashes,
    find_shards,
    sha256,
)
from ctgrounding.errors import ShardError

__all__ = ["CHUNK", "Codec", "HU_RANGE", "Shard", "ShardWriter", "check_hashes", "find_shards"]

_ATTRIBUTES = ("orientation", "axes", "value_rule", "codec", "dataset", "content_sha256")
_LAYOUT = ("v110", "v110")  # pinned: a newer HDF5 writes the same bytes, and attributes may pass 64 KiB


def codec_works() -> bool:
    """Whether HDF5 finds the compression that shards use by default."""
    return bool(h5py.h5z.filter_avail(hdf5plugin.Blosc.filter_id))


class ShardWriter:
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
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != SUFFIX:
            raise ShardError(f"Shard name '{self.path.name}' does not end in {SUFFIX}. Rename the output.")
        if codec not in get_args(Codec):
            raise ShardError(f"Codec '{codec}' is not known. Use one of {', '.join(get_args(Codec))}.")
        if any(not 0 < label < 256 for label in classes):
            raise ShardError(f"Class ids must lie in 1..255, got {sorted(classes)}. Merge or drop classes.")
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._spacing_mm = tuple(float(value) for value in spacing_mm)
        self._classes = {int(label): name for label, name in sorted(classes.items())}
        self._dataset = dataset
        self._codec: Codec = codec
        self._provenance = dict(provenance or {})
        self._next_place = 0
        self._places: list[int] = []
        self._content = hashlib.sha256()
        self._file: h5py.File | None = None

    def __enter__(self) -> "ShardWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self._partial, "w", libver=_LAYOUT, meta_block_size=1 << 20)
        except OSError as error:
            raise ShardError(f"Cannot write {self._partial}: {error}. Check the folder and its free space.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None
            with suppress(FileNotFoundError):
                self._partial.unlink()

    def write(
        self, record: ScanRecord, image_hu: Int16[np.ndarray, "D H W"], organs: UInt8[np.ndarray, "D H W"] | None = None
    ) -> None:
        """Append a scan at the next place. Hashes and organ sizes of the record are filled in here.

        Args:
            record: What is known of the scan; shape and spacing must fit.
            image_hu: HU in [-1024, 3071].
            organs: Label map with ids of ``classes`` on the same grid.

        Raises:
            ShardError: If arrays, record and shard do not fit each other.
        """
        self._check(record, image_hu, organs)
        group = self._open_file().create_group(self._claim_place())
        self._places.append(self._next_place - 1)
        _write_array(group, "image", image_hu, self._codec)
        filled = replace(record, sha256=sha256(image_hu))
        if organs is not None:
            _write_array(group, "organs", organs, self._codec)
            counts = np.bincount(organs.ravel(), minlength=256)
            voxels = {name: int(counts[label]) for label, name in self._classes.items() if counts[label]}
            filled = replace(filled, organs_sha256=sha256(organs), organ_voxels=voxels)
        described = as_json(filled.to_json())
        group.attrs["record"] = np.bytes_(described)
        self._content.update(described)

    def leave_empty(self, reason: str) -> None:
        """Leave the next place empty because its scan was put aside.

        Args:
            reason: Why, for people.
        """
        group = self._open_file().create_group(self._claim_place())
        group.attrs["quarantined"] = np.bytes_(reason.encode())
        self._content.update(reason.encode())

    def _open_file(self) -> h5py.File:
        if self._file is None:
            raise ShardError(f"Shard {self.path} is not open for writing. Use ShardWriter in a with block.")
        return self._file

    def _claim_place(self) -> str:
        self._next_place += 1
        return _group_name(self._next_place - 1)

    def _check(self, record: ScanRecord, image_hu: npt.NDArray[Any], organs: npt.NDArray[Any] | None) -> None:
        where = f"scan {record.scan_id} for {self.path.name}"
        if image_hu.dtype != np.int16 or image_hu.ndim != 3 or not image_hu.size:
            raise ShardError(f"The image of {where} is {image_hu.dtype} {image_hu.shape}; int16 (D, H, W) is needed.")
        if tuple(record.shape) != image_hu.shape or not np.allclose(record.spacing_mm, self._spacing_mm, rtol=1e-6):
            raise ShardError(
                f"The record of {where} says shape {record.shape} at {record.spacing_mm} mm, but the image has "
                f"{image_hu.shape} and the shard {self._spacing_mm} mm. Resample before writing."
            )
        low, high = int(image_hu.min()), int(image_hu.max())
        if low < HU_RANGE[0] or high > HU_RANGE[1]:
            raise ShardError(f"The image of {where} has {low}..{high} HU. Clip it to {HU_RANGE[0]}..{HU_RANGE[1]}.")
        if organs is None:
            return
        if organs.dtype != np.uint8 or organs.shape != image_hu.shape:
            raise ShardError(f"The organ map of {where} is {organs.dtype} {organs.shape}; uint8 on the image's grid.")
        unknown = set(np.unique(organs).tolist()) - set(self._classes) - {0}
        if unknown:
            raise ShardError(
                f"The organ map of {where} has ids {sorted(unknown)} that no class names. Fix the class map."
            )

    def _finish(self) -> None:
        file = self._open_file()
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
        for key, text in texts.items():
            file.attrs[key] = np.bytes_(text.encode())
            self._content.update(text.encode())
        file.attrs["content_sha256"] = np.bytes_(self._content.hexdigest())
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["spacing_mm"] = np.asarray(self._spacing_mm, np.float64)
        file.attrs["places"] = np.asarray(self._places, np.int64)
        file.close()
        self._file = None
        self._verify()
        with self._partial.open("rb") as written:
            os.fsync(written.fileno())
        _handles.drop(self.path.resolve())
        self._partial.replace(self.path)

    def _verify(self) -> None:
        written = Shard(self._partial)
        try:
            for row in range(len(written.records)):
                written.verify(row)
            with _handles.borrow(written.path) as file:
                file.visititems(_check_stored)
        finally:
            _handles.drop(written.path)


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
        """Forget what was read and open the file anew, because another file may have taken its name."""
        _handles.drop(self.path)
        self._records, self._attributes = None, None

    @property
    def attributes(self) -> dict[str, Any]:
        """Root attributes: texts, ``classes`` and ``provenance`` as dicts, ``spacing_mm`` and ``places`` as tuples."""
        if self._attributes is None:
            with _handles.borrow(self.path) as file:
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
            self._records = [ScanRecord.from_json(json.loads(text)) for text in self.record_texts()]
        return self._records

    def record_texts(self) -> list[bytes]:
        """The records as the JSON that is stored, by row."""
        with _handles.borrow(self.path) as file:
            return [bytes(file[_group_name(place)].attrs["record"]) for place in self.attributes["places"]]

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

    def verify(self, row: int) -> None:
        """Read a whole scan and compare it with the hashes of its record.

        Raises:
            ShardError: If image or organ map differ; names the scan.
        """
        check_hashes(self.records[row], self.read_image(row), self.read_organs(row), self.path)

    def _read(self, row: int, name: str, start: Triple, shape: Triple | None) -> Voxels | None:
        place = self.attributes["places"][row]
        with _handles.borrow(self.path) as file:
            try:
                group = file[_group_name(place)]
                if name not in group:
                    return None
                stored = group[name]
                box = box_slices(stored.shape, start, shape, f"row {row} of {self.path}")
                voxels: Voxels = np.empty([side.stop - side.start for side in box], stored.dtype)
                stored.read_direct(voxels, source_sel=box)
            except (OSError, KeyError, RuntimeError) as error:
                if isinstance(error, ShardError):
                    raise
                raise ShardError(
                    f"Cannot read {name} of row {row} in {self.path}: {error}. The file is damaged: copy it again "
                    "or ingest it again."
                ) from error
        return voxels


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
    except ShardError:
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


def _group_name(place: int) -> str:
    return f"scans/{place:05d}"


def _write_array(group: h5py.Group, name: str, voxels: Voxels, codec: Codec) -> None:
    options: dict[str, Any] = {}
    if codec != "none":
        cname, shuffle = (codec, "BITSHUFFLE") if name == "image" else ("zstd", "NOSHUFFLE")
        options = dict(hdf5plugin.Blosc(cname=cname, clevel=5, shuffle=getattr(hdf5plugin.Blosc, shuffle)))
        options["chunks"] = tuple(min(c, s) for c, s in zip(CHUNK, voxels.shape, strict=True))
        options["fletcher32"] = True
    group.create_dataset(name, data=np.ascontiguousarray(voxels), **options)


def _check_stored(name: str, stored: object) -> None:
    """HDF5 skips a filter that fails without a word: a chunk stored raw is wrong unless it cannot shrink."""
    import zlib

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
