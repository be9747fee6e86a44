"""NIfTI files. nibabel reads the header faithfully and leaves slope and intercept to us."""

import math
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from jaxtyping import Shaped
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ctgrounding.errors import ScanError
from ctgrounding.ingest.readers.source import ArrayFile, Stored

SUFFIXES = (".nii", ".nii.gz")
_BROKEN: tuple[Any, ...] = (  # Any: the stub of isal says that its error is an instance
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    isal_zlib.error,
    ImageFileError,
)
_PIECE = 4 << 20
_UNIT_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


@dataclass(frozen=True)
class NiftiSource(ArrayFile):
    """A three-dimensional NIfTI file, opened by :func:`open_nifti`."""

    def load(self) -> Stored:
        """See :meth:`ctgrounding.ingest.readers.source.Source.load`."""
        try:
            image = nib.load(self.path)
            values = _values(self.path, image.dataobj)
        except _BROKEN as error:
            raise ScanError(
                f"The NIfTI file is cut short or damaged ({type(error).__name__}). Copy it again."
            ) from error
        slope, intercept = image.dataobj.slope, image.dataobj.inter
        return Stored(values.reshape(self.shape_ijk, order="F").T, float(slope), float(intercept))


def _values(path: Path, proxy: ArrayProxy) -> Shaped[np.ndarray, "..."]:
    """Values as stored. ISA-L inflates a file in a third of zlib's time, here straight into the array."""
    if not path.name.lower().endswith(".gz"):
        stored: np.ndarray = np.asanyarray(proxy.get_unscaled())
        return stored
    values = np.empty(math.prod(proxy.shape), proxy.dtype)
    room, filled = values.data.cast("B"), 0
    with igzip.open(path) as stream:
        stream.seek(proxy.offset)
        while filled < len(room):
            count = stream.readinto(room[filled : filled + _PIECE])
            if not count:
                raise EOFError(f"{filled} of {len(room)} bytes")
            filled += count
        while stream.read(_PIECE):  # to the end, where the checksum is
            pass
    return values


def open_nifti(path: Path, series: int | None = None) -> NiftiSource:
    """Read the header of a NIfTI file; one in metres or microns is brought to mm.

    Where both sform and qform are there, the sform places the scan, and ``facts`` tells how far the qform is off.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file.
        series: Series number that reports cite it by, if any.

    Raises:
        ScanError: If it is no NIfTI file, not three-dimensional, not of numbers, or says nothing of its
            orientation.
    """
    try:
        image = nib.load(path)
        affine = np.asarray(image.affine, dtype=np.float64)
    except _BROKEN as error:
        raise ScanError(f"The NIfTI header cannot be read ({type(error).__name__}). Copy the file again.") from error
    if not isinstance(image, nib.Nifti1Image):
        raise ScanError(f"The file is a {type(image).__name__}, not NIfTI. Convert it.")
    shape = image.shape
    if len(shape) < 3 or any(size != 1 for size in shape[3:]) or min(shape) < 1:
        raise ScanError(f"The NIfTI file has shape {shape}. One three-dimensional scan is needed.")
    if image.get_data_dtype().fields is not None or image.get_data_dtype().kind not in "iuf":
        raise ScanError(f"The NIfTI file holds values of type {image.get_data_dtype()}. CT needs one number a voxel.")
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    if codes == (0, 0):
        raise ScanError(
            "The NIfTI header says nothing of orientation (sform and qform codes are 0), so left and right "
            "are unknown. Convert the scan from its DICOM files again.",
            "no_header",
        )
    unit_mm = _UNIT_MM.get(image.header.get_xyzt_units()[0], 1.0)
    affine[:3] *= unit_mm
    facts: dict[str, Any] = {"reader": "nifti", "dtype": str(image.get_data_dtype()), "sform_qform": list(codes)}
    off_mm = _qform_off(image) * unit_mm if min(codes) > 0 else math.nan
    if math.isfinite(off_mm):
        facts["qform_off_mm"] = round(off_mm, 1)
    return NiftiSource(path, affine, (int(shape[0]), int(shape[1]), int(shape[2])), facts, series)


def _qform_off(image: nib.Nifti1Image) -> float:
    """How far the qform puts a corner voxel from where the sform does, in the header's unit.

    A qform holds no shear, so it is compared with the qform that comes nearest to the sform. NaN where its quaternion
    is none, so that it says nothing.
    """
    nearest = image.header.copy()
    corners = product(*((0, size - 1) for size in image.shape[:3]))
    with np.errstate(all="ignore"):
        try:
            nearest.set_qform(image.get_sform())
            between = image.get_qform() - nearest.get_qform()
        except (ValueError, HeaderDataError):
            return math.nan
        return max(float(np.linalg.norm(between[:3] @ [*corner, 1])) for corner in corners)
