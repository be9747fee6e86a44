"""Scans and organ maps as compressed NIfTI files, in any axis order and with HU as the file's header says."""

import zlib
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float64, Int16, Integer, UInt8
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from ctgrounding.phantom.acquisition import Storage

GZIP_WINDOW = 16 + zlib.MAX_WBITS


def stored_values(image_hu: Int16[np.ndarray, "*shape"], storage: Storage) -> Integer[np.ndarray, "*shape"]:
    """The numbers a file holds for these HU."""
    stored = (image_hu.astype(np.int32) - int(storage.intercept)) * round(1 / storage.slope)
    return stored.astype(storage.dtype)


def write_image(
    path: Path,
    image_hu: Int16[np.ndarray, "d h w"],
    affine: Float64[np.ndarray, "4 4"],
    code: str,
    storage: Storage,
) -> None:
    """Write HU.

    Args:
        path: File to write, ending in ``.nii.gz``.
        image_hu: Values on the scanner's grid.
        affine: Maps ``(w, h, d, 1)`` of that grid to world mm (RAS).
        code: Axis codes that the file's array shall have, such as ``LPS``.
        storage: Type, slope and intercept of the file.
    """
    file = _image(stored_values(image_hu, storage), affine, code)
    file.header.set_slope_inter(storage.slope, storage.intercept)
    _save(path, file)


def write_organs(
    path: Path, organs: UInt8[np.ndarray, "d h w"], affine: Float64[np.ndarray, "4 4"], code: str = "RAS"
) -> None:
    """Write an organ map on the same grid; arguments as in :func:`write_image`."""
    _save(path, _image(organs, affine, code))


def _image(
    array: Integer[np.ndarray, "d h w"], affine: Float64[np.ndarray, "4 4"], code: str
) -> nibabel.nifti1.Nifti1Image:
    """The array with axes and directions as the code says; the affine follows."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code))
    columns_first = array.transpose(2, 1, 0)
    moved = affine @ inv_ornt_aff(turn, columns_first.shape)
    image = nibabel.nifti1.Nifti1Image(apply_orientation(columns_first, turn), moved, dtype=array.dtype)
    image.set_qform(moved, code=1)
    image.set_sform(moved, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _save(path: Path, image: nibabel.nifti1.Nifti1Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # No time stamp: same seed, same bytes. Noise has no repeats to look for, so runs alone take half the time.
    packer = zlib.compressobj(1, zlib.DEFLATED, GZIP_WINDOW, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    path.write_bytes(packer.compress(image.to_bytes()) + packer.flush())
