"""NRRD and MetaImage files through ITK, which hold values without slope and intercept."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  the library's own abbreviation

from ctgrounding.errors import ScanError
from ctgrounding.geometry import LPS_TO_RAS
from ctgrounding.ingest.readers.source import ArrayFile, Stored

SPACES = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior")
"""Spaces of NRRD that ITK understands; it takes all else, and nothing at all, for the first."""

_AXES = re.compile(r"\s*AnatomicalOrientation\s*[=:]\s*([RLAPSI]{3})\s*$", re.IGNORECASE)
_DATA_FILE = re.compile(r"\s*(?:ElementDataFile\s*[=:]|data ?file:(?!=))\s*(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class ItkSource(ArrayFile):
    """A three-dimensional file that ITK reads, opened by :func:`open_itk`."""

    def load(self) -> Stored:
        """See :meth:`ctgrounding.ingest.readers.source.Source.load`."""
        try:
            return Stored(sitk.GetArrayFromImage(sitk.ReadImage(str(self.path))).reshape(self.shape_ijk[::-1]))
        except RuntimeError as error:
            raise ScanError("The file is cut short or damaged. Copy it again.") from error


def open_itk(path: Path, series: int | None = None) -> ItkSource:
    """Read the header of a NRRD or MetaImage file.

    The matrix places it, in MetaImage the identity (LPS) where there is none; ``facts`` tells the axes that a MetaImage
    header names beside it.

    Args:
        path: The file.
        series: Series number that reports cite it by, if any.

    Raises:
        ScanError: If it cannot be read, is not one three-dimensional scan, names voxels outside its folder, or is a
            NRRD file that does not say where left and right are.
    """
    _check_data_files(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ScanError("The header cannot be read. Copy the file again.") from error
    size = reader.GetSize()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ScanError(f"The file has size {size} and {reader.GetNumberOfComponents()} values a voxel, not one scan.")
    if path.suffix.lower() == ".nrrd" and _space(reader) not in SPACES:
        raise ScanError(
            "The NRRD header names no space such as left-posterior-superior, so left and right are unknown. Convert "
            "the scan from its DICOM files again.",
            "no_header",
        )
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    lps[:3, 3] = reader.GetOrigin()
    shape = int(size[0]), int(size[1]), int(size[2])
    axes = "" if path.suffix.lower() == ".nrrd" else _named_axes(path)
    facts = {"reader": "itk", "anatomical_orientation": axes} if axes else {"reader": "itk"}
    return ItkSource(path, LPS_TO_RAS @ lps, shape, facts, series)


def _space(reader: sitk.ImageFileReader) -> str:
    return str(reader.GetMetaData("NRRD_space")) if reader.HasMetaDataKey("NRRD_space") else ""


def _named_axes(path: Path) -> str:
    """The letters of a MetaImage header's AnatomicalOrientation, which ITK passes over; empty where it has none."""
    with path.open("rb") as stream:
        for line in (raw.decode("latin-1").rstrip() for raw in stream):
            if found := _AXES.match(line):
                return found[1].upper()
            if _DATA_FILE.match(line):
                break
    return ""


def _check_data_files(path: Path) -> None:
    """Voxels that a header leaves to other files must lie in its folder, lest a card reach out of its root."""
    folder = path.resolve().parent
    try:
        names = list(_data_files(path))
        leaves = any(not (folder / name).resolve().is_relative_to(folder) for name in names)
    except (OSError, RuntimeError, ValueError) as error:
        raise ScanError(f"The header cannot be read ({type(error).__name__}). Copy the file again.") from error
    if leaves:
        raise ScanError("The header names voxels outside its own folder. Keep header and voxels in one folder.")


def _data_files(path: Path) -> Iterator[str]:
    """Files that a header names: one, several by a pattern, or those listed on the lines after it."""
    is_list = False
    with path.open("rb") as stream:
        for line in (raw.decode("latin-1").strip() for raw in stream):
            if not line and path.suffix.lower() == ".nrrd":
                return
            found = _DATA_FILE.match(line)
            if is_list:
                yield line
            elif found is not None and found[1].upper().startswith("LIST"):
                is_list = True
            elif found is not None and found[1].upper() != "LOCAL":
                yield found[1]
            if found is not None and found[1].upper() == "LOCAL":
                return
