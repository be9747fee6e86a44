"""Arrays in npz files, as Rad-ChestCT is published: one array of HU, without a header.

What its publishers say holds where a file says nothing itself: 0.8 mm in all directions, and axes that run to
inferior, posterior and left. A file may hold ``spacing_mm`` and ``axes`` (three letters of LRAPIS, both in the order
of the array's axes) and ``origin_mm`` (RAS position of the first voxel's centre) beside the array; then these hold.
Nothing is unpickled.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Affine
from ctgrounding.ingest.readers.source import ArrayFile, Stored

ARRAY = "ct"
AXES = "IPL"
SPACING_MM = (0.8, 0.8, 0.8)

_DIRECTIONS = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
_BROKEN = (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class NpzSource(ArrayFile):
    """The array of an npz file, opened by :func:`open_npz`."""

    array: str = ""

    def load(self) -> Stored:
        """See :meth:`ctgrounding.ingest.readers.source.Source.load`."""
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                return Stored(archive[self.array])
        except _BROKEN as error:
            raise ScanError(f"The npz file is cut short or damaged ({type(error).__name__}). Copy it again.") from error


def open_npz(path: Path, series: int | None = None) -> NpzSource:
    """Read the header of the array in an npz file.

    Args:
        path: The file.
        series: Series number that reports cite it by, if any.

    Raises:
        ScanError: If it cannot be read, holds no array ``ct`` and more than one other, or what it says of its axes
            cannot be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            array = _array(names)
            with archive.open(f"{array}.npy") as stream:
                shape, dtype = _header(stream)
        said = _said(path, names)
    except ScanError:
        raise
    except _BROKEN as error:
        raise ScanError(f"The npz file cannot be read ({type(error).__name__}). Copy it again.") from error
    if len(shape) != 3 or min(shape) < 1 or dtype.kind not in "iuf":
        raise ScanError(f"The npz file's array has shape {shape} and type {dtype}. One scan of numbers is needed.")
    affine = _affine(*said)
    facts = {"reader": "npz", "dtype": str(dtype)}
    return NpzSource(path, affine, (shape[2], shape[1], shape[0]), facts, series, array=array)


def _array(names: list[str]) -> str:
    volumes = [name for name in names if name not in ("spacing_mm", "axes", "origin_mm")]
    if ARRAY not in volumes and len(volumes) != 1:
        raise ScanError(f"The npz file holds {len(volumes)} arrays, none of them '{ARRAY}'. Which is the scan?")
    return ARRAY if ARRAY in volumes else volumes[0]


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = reader(stream)
    return shape, dtype


def _said(path: Path, names: list[str]) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Axes, spacing and origin: the file's own, else those of Rad-ChestCT."""
    with np.load(path, allow_pickle=False) as archive:
        axes = str(archive["axes"]) if "axes" in names else AXES
        spacing = archive["spacing_mm"] if "spacing_mm" in names else SPACING_MM
        origin = archive["origin_mm"] if "origin_mm" in names else (0.0, 0.0, 0.0)
        return axes, tuple(map(float, np.ravel(spacing))), tuple(map(float, np.ravel(origin)))


def _affine(axes: str, spacing_mm: tuple[float, ...], origin_mm: tuple[float, ...]) -> Affine:
    is_told = len(axes) == len(spacing_mm) == len(origin_mm) == 3
    if not is_told or any(letter not in _DIRECTIONS for letter in axes):
        raise ScanError(
            f"The npz file says axes '{axes}', spacing_mm {list(spacing_mm)} and origin_mm {list(origin_mm)}. Give "
            "three letters such as IPL and three numbers each, in the order of the array's axes (origin_mm: x, y, z)."
        )
    affine = np.eye(4)
    for column, (letter, step) in enumerate(zip(axes[::-1], spacing_mm[::-1], strict=True)):
        affine[:3, column] = np.multiply(_DIRECTIONS[letter], step)
    affine[:3, 3] = origin_mm
    return affine
