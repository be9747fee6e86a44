"""What the shard format is, apart from HDF5: names, limits, hashes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from jaxtyping import Int16, UInt8

from ctgrounding.data.records import ScanRecord
from ctgrounding.errors import ShardError

Codec = Literal["zstd", "lz4", "none"]
Triple = tuple[int, int, int]
Voxels = npt.NDArray[np.int16] | npt.NDArray[np.uint8]

FORMAT = "ctgrounding.shard"
FORMAT_VERSION = 1
CHUNK: Triple = (32, 64, 64)
HU_RANGE = (-1024, 3071)
SUFFIX = ".h5"


def find_shards(paths: Sequence[str | Path]) -> list[Path]:
    """All shards named by files or folders, each once, in order of name within a folder.

    Args:
        paths: Shard files, or folders that hold some.

    Raises:
        ShardError: If a path does not exist, or a folder holds no shard.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise ShardError(f"There is no shard or folder at {path}. Check the path, or run ctgrounding ingest first.")
        shards = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not shards:
            raise ShardError(f"Folder {path} holds no shard (*{SUFFIX}). Run ctgrounding ingest with --output {path}.")
        found.update(dict.fromkeys(shard.resolve() for shard in shards))
    return list(found)


def check_hashes(
    record: ScanRecord, image_hu: Int16[np.ndarray, "D H W"], organs: UInt8[np.ndarray, "D H W"] | None, path: Path
) -> None:
    """Compare a whole scan with the hashes of its record.

    Args:
        record: The scan's record.
        image_hu: Its voxels as read.
        organs: Its label map; None where it has none or none was read.
        path: Where it was read, for the message.

    Raises:
        ShardError: If image or label map differ; names the scan.
    """
    if sha256(image_hu) != record.sha256 or (organs is not None and sha256(organs) != record.organs_sha256):
        raise differs(record, path)


def differs(record: ScanRecord, path: Path) -> ShardError:
    """The error of a scan that differs from its hash."""
    return ShardError(
        f"Scan {record.scan_id} in {path} differs from its hash. The file was changed or damaged: "
        "copy it again or ingest it again."
    )


def as_json(values: dict[str, Any]) -> bytes:
    """JSON with sorted keys, so that equal values are equal bytes."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def sha256(voxels: Voxels) -> str:
    """Hash of voxels in C order, little-endian on every machine."""
    return hashlib.sha256(little_endian(voxels).data).hexdigest()


def little_endian(voxels: Voxels) -> npt.NDArray[Any]:
    """The voxels in C order and little-endian; themselves where they already are."""
    ordered: npt.NDArray[Any] = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    return ordered


def box_slices(full: Sequence[int], start: Triple, shape: Triple | None, where: str) -> tuple[slice, ...]:
    """Slices of a box.

    Args:
        full: Voxels of the scan along each axis.
        start: First voxel of the box.
        shape: Its extent; to the end of the scan if None.
        where: Which scan, for the message.

    Raises:
        ShardError: If the box is empty or leaves the scan.
    """
    extent = shape if shape is not None else tuple(side - first for side, first in zip(full, start, strict=True))
    if any(s < 0 or n < 1 or s + n > side for s, n, side in zip(start, extent, full, strict=True)):
        raise ShardError(f"A box of {tuple(extent)} voxels at {start} leaves {where}, which has {tuple(full)} voxels.")
    return tuple(slice(s, s + n) for s, n in zip(start, extent, strict=True))


def group_name(place: int) -> str:
    """HDF5 group of a place."""
    return f"scans/{place:05d}"


def check_image(record: ScanRecord, image_hu: npt.NDArray[Any], spacing_mm: Sequence[float], where: str) -> None:
    """See that an image fits its record and its shard.

    Args:
        record: What is known of the scan.
        image_hu: The image, of whatever type.
        spacing_mm: Of the shard.
        where: Which scan and shard, for the message.

    Raises:
        ShardError: If it does not.
    """
    if image_hu.dtype != np.int16 or image_hu.ndim != 3 or not image_hu.size:
        raise ShardError(f"The image of {where} is {image_hu.dtype} {image_hu.shape}; int16 (D, H, W) is needed.")
    if tuple(record.shape) != image_hu.shape or not np.allclose(record.spacing_mm, spacing_mm, rtol=1e-6):
        raise ShardError(
            f"The record of {where} says shape {record.shape} at {record.spacing_mm} mm, but the image has "
            f"{image_hu.shape} and the shard {tuple(spacing_mm)} mm. Resample before writing."
        )
    low, high = int(image_hu.min()), int(image_hu.max())
    if low < HU_RANGE[0] or high > HU_RANGE[1]:
        raise ShardError(f"The image of {where} has {low}..{high} HU. Clip it to {HU_RANGE[0]}..{HU_RANGE[1]}.")


def check_organs(organs: npt.NDArray[Any], shape: Sequence[int], classes: Mapping[int, str], where: str) -> None:
    """See that an organ map lies on its image's grid and holds ids of the shard's classes.

    Args:
        organs: The organ map, of whatever type.
        shape: Of the image.
        classes: Of the shard.
        where: Which scan and shard, for the message.

    Raises:
        ShardError: If it does not.
    """
    if organs.dtype != np.uint8 or organs.shape != tuple(shape):
        raise ShardError(f"The organ map of {where} is {organs.dtype} {organs.shape}; uint8 on the image's grid.")
    unknown = set(np.flatnonzero(np.bincount(organs.ravel(), minlength=256)).tolist()) - set(classes) - {0}
    if unknown:
        raise ShardError(f"The organ map of {where} has ids {sorted(unknown)} that no class names. Fix the class map.")
