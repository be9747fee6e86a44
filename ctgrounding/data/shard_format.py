"""What the shard format is, apart from HDF5: names, limits, hashes."""

import hashlib
import json
from collections.abc import Sequence
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
        raise ShardError(
            f"Scan {record.scan_id} in {path} differs from its hash. The file was changed or damaged: "
            "copy it again or ingest it again."
        )


def as_json(values: dict[str, Any]) -> bytes:
    """JSON with sorted keys, so that equal values are equal bytes."""
    return json.dumps(values, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def sha256(voxels: Voxels) -> str:
    """Hash of voxels in C order, little-endian on every machine."""
    little_endian = np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("<"))
    return hashlib.sha256(little_endian.data).hexdigest()


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
