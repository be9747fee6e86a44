"""NRRD and MetaImage files through ITK, which hold values without slope and intercept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813  the library's own abbreviation

from ctgrounding.errors import ScanError
from ctgrounding.geometry import LPS_TO_RAS
from ctgrounding.ingest.readers.source import ArrayFile, Stored


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

    Args:
        path: The file.
        series: Series number that reports cite it by, if any.

    Raises:
        ScanError: If it cannot be read or is not one three-dimensional scan.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ScanError("The header cannot be read. Copy the file again.") from error
    size = reader.GetSize()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise ScanError(f"The file has size {size} and {reader.GetNumberOfComponents()} values a voxel, not one scan.")
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * reader.GetSpacing()
    lps[:3, 3] = reader.GetOrigin()
    shape = int(size[0]), int(size[1]), int(size[2])
    return ItkSource(path, LPS_TO_RAS @ lps, shape, {"reader": "itk"}, series)
