"""What a feature shard is, apart from HDF5: what is said of each scan, and its arrays as one run of bytes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt32
from torch import Tensor

from ctgrounding.data.records import ScanRecord
from ctgrounding.errors import ShardError

FORMAT = "ctgrounding.features"
FORMAT_VERSION = 1
TEXT_FOLDER = "texts"
"""Folder beside feature shards that holds the vectors of texts."""

_WORD = 8
"""Bytes that the start of each array is a multiple of."""

Triple = tuple[int, int, int]
Key = tuple[str, str]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class FeatureAbout:
    """What the features of a folder are; the same in all of its shards.

    Attributes:
        keep: Where the image path was cut: ``map``, ``windows`` or ``readouts``.
        precision: ``float32`` or ``float16``.
        weights_sha256: Of the weights that made them, see :func:`ctgrounding.encoders.stems.stem_digest`.
        encoder: Name of the image encoder, for messages.
    """

    keep: str
    precision: str
    weights_sha256: str
    encoder: str


@dataclass(frozen=True)
class FeatureEntry:
    """One scan of a feature shard: which voxels its features are of, and how its bytes are cut into arrays.

    Attributes:
        dataset: Of the scan.
        scan_id: Of the scan.
        sha256: Hash of the scan's voxels in its own shard.
        organs_sha256: Hash of its label map, empty where it has none.
        start: First voxel of the box that was encoded.
        shape: Extent of that box.
        arrays: Name, type and shape of each array, in the order of the bytes.
        features_sha256: Hash of the bytes.
    """

    dataset: str
    scan_id: str
    sha256: str
    organs_sha256: str
    start: Triple
    shape: Triple
    arrays: tuple[tuple[str, str, tuple[int, ...]], ...]
    features_sha256: str

    @property
    def key(self) -> Key:
        """What tells the scan from all others."""
        return self.dataset, self.scan_id

    def to_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FeatureEntry":
        """The entry that :meth:`to_json` described."""
        arrays = tuple((name, kind, tuple(shape)) for name, kind, shape in values["arrays"])
        triples = {key: tuple(values[key]) for key in ("start", "shape")}
        return cls(**{**values, **triples, "arrays": arrays})

    def check(self, record: ScanRecord, start: Triple, shape: Triple, folder: object) -> None:
        """See that these are the features of what a sample shows.

        Raises:
            ShardError: If the scan, its label map or the box is another one.
        """
        if (self.sha256, self.organs_sha256) != (record.sha256, record.organs_sha256):
            raise ShardError(
                f"The features in {folder} were made of other voxels or another label map of scan {record.scan_id} "
                "than its shard holds. Run ctgrounding embed again, to another folder."
            )
        if (self.start, self.shape) != (start, shape):
            raise ShardError(
                f"The features in {folder} show the box {self.shape} at {self.start} of scan {record.scan_id}, but a "
                f"sample would show {shape} at {start}. Set data.crop and data.evaluation_crop as they were embedded."
            )


def packed(arrays: Arrays) -> tuple[UInt32[np.ndarray, "words"], tuple[tuple[str, str, tuple[int, ...]], ...]]:
    """Arrays as one run of words, and how to find them in it."""
    pieces: list[bytes] = []
    for array in arrays.values():
        raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        pieces += [raw, bytes(-len(raw) % _WORD)]
    places = tuple((name, array.dtype.str.replace(">", "<"), tuple(array.shape)) for name, array in arrays.items())
    return np.frombuffer(b"".join(pieces), "<u4"), places


def unpacked(
    words: UInt32[np.ndarray, "words"], places: Sequence[tuple[str, str, tuple[int, ...]]]
) -> dict[str, npt.NDArray[Any]]:
    """The arrays that :func:`packed` joined, as views of the words."""
    raw, start, found = words.view(np.uint8), 0, {}
    for name, kind, shape in places:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        found[name] = raw[start : start + size].view(kind).reshape(shape)
        start += size + -size % _WORD
    return found


def sha256_of(words: UInt32[np.ndarray, "words"]) -> str:
    """Hash of packed arrays."""
    return hashlib.sha256(np.ascontiguousarray(words, "<u4").data).hexdigest()


def padded_stack(scans: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The arrays of several scans side by side, each filled up with zeros at the far ends to the largest.

    Args:
        scans: Arrays of each scan by the same names.
    """
    if not scans:
        return {}
    return {name: _stacked([scan[name] for scan in scans]) for name in scans[0]}


def _stacked(arrays: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(array.shape) for array in arrays}
    if len(shapes) == 1:
        return torch.stack(list(arrays))
    largest = tuple(max(sides) for sides in zip(*shapes, strict=True))
    stacked = arrays[0].new_zeros((len(arrays), *largest))
    for target, array in zip(stacked, arrays, strict=True):
        target[tuple(slice(side) for side in array.shape)] = array
    return stacked
