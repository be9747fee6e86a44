"""Small pictures of scans for the audit's page: a coronal and an axial view, or what a refused file holds."""

import struct
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  the library's own abbreviation
from jaxtyping import Shaped, UInt8
from pydicom import dcmread

from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.scan import Scan

SIDE = 128
"""Pixels of the longer side of a view."""
WINDOW_HU = (-1000.0, 500.0)
NOT_SHOWN = frozenset(["not_ct", "left_out", "missing_file", "no_such_series", "worker_killed"])
"""Refused kinds without a picture. What is not CT has none because screens and dose reports show burnt-in names."""

_NO_DICOM = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
_GREYS = 32
_GROUND = 16


def scan_picture(scan: Scan) -> bytes:
    """PNG of the middle coronal and axial planes, the patient's right on the left and the head up."""
    volume, spacing = scan.image_hu, scan.grid.spacing_mm
    coronal = _view(volume[::-1, volume.shape[1] // 2, ::-1], (spacing[0], spacing[2]), WINDOW_HU)
    axial = _view(volume[volume.shape[0] // 2, ::-1, ::-1], (spacing[1], spacing[2]), WINDOW_HU)
    return _png(_beside(coronal, axial))


def refused_picture(path: Path, series: int | None, kind: str) -> bytes:
    """PNG of what a refused file or folder holds, from its lowest to its highest value; empty if nothing can be read.

    Args:
        path: The file or folder.
        series: Series number.
        kind: Why it was refused.
    """
    if kind in NOT_SHOWN:
        return b""
    try:
        values, steps = _whole(path, series)
    except Exception:  # what is wrong has been said in the verdict; here it only means to try with less
        try:
            values, steps = _piece(path, series), (1.0, 1.0, 1.0)
        except Exception:
            return b""
    values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
    window = float(np.percentile(values, 1)), float(np.percentile(values, 99))
    axial = _view(values[len(values) // 2], steps[1:], window)
    if len(values) == 1:
        return _png(axial)
    return _png(_beside(_view(values[::-1, values.shape[1] // 2], (steps[0], steps[2]), window), axial))


def _whole(path: Path, series: int | None) -> tuple[Shaped[np.ndarray, "k j i"], tuple[float, float, float]]:
    source = open_source(path, series)
    across, down, along = (float(length) for length in np.linalg.norm(source.affine[:3, :3], axis=0))
    return source.load().values, (along, down, across)


def _piece(path: Path, series: int | None) -> Shaped[np.ndarray, "k j i"]:
    """The voxels of a file whose header says too little, or one original CT slice of DICOM that is no volume."""
    if path.is_dir() or not path.name.lower().endswith(_NO_DICOM):
        path = next(
            entry
            for entry in (sorted(path.rglob("*")) if path.is_dir() else [path])
            if entry.is_file()
            and (tags := dcmread(entry, stop_before_pixels=True)).get("Modality") == "CT"
            and "ORIGINAL" in tags.get("ImageType", ())
            and series in (None, tags.get("SeriesNumber"))
        )
    values: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return values


def _view(
    plane: Shaped[np.ndarray, "a b"], steps_mm: tuple[float, float], window: tuple[float, float]
) -> UInt8[np.ndarray, "c d"]:
    """A plane in true proportions, its longer side :data:`SIDE` pixels, in few greys so that it stays small."""
    extents = np.array(plane.shape) * steps_mm
    sizes = np.maximum(1, np.rint(extents / extents.max() * SIDE)).astype(int)
    rows, columns = (np.arange(size) * length // size for size, length in zip(sizes, plane.shape, strict=True))
    low, high = window
    shares = np.clip((plane[np.ix_(rows, columns)] - low) / max(high - low, 1e-6), 0, 1)
    return (np.rint(shares * (_GREYS - 1)) * (255 // (_GREYS - 1))).astype(np.uint8)


def _beside(left: UInt8[np.ndarray, "a b"], right: UInt8[np.ndarray, "c d"]) -> UInt8[np.ndarray, "e f"]:
    canvas = np.full((SIDE, 2 * SIDE + 4), _GROUND, np.uint8)
    for view, start in ((left, 0), (right, SIDE + 4)):
        top, side = ((SIDE - size) // 2 for size in view.shape)
        canvas[top : top + view.shape[0], start + side : start + side + view.shape[1]] = view
    return canvas


def _png(pixels: UInt8[np.ndarray, "rows columns"]) -> bytes:
    """An 8-bit grey PNG: signature, header, one compressed block of unfiltered rows, end."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 0)
    rows = np.pad(pixels, ((0, 0), (1, 0))).tobytes()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
