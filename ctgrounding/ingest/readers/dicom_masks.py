"""Organ masks that DICOM holds: SEG through highdicom, RTSTRUCT contours through :mod:`.contours`.

Messages name structures by their number, never by their label, which may say anything.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from ctgrounding.errors import ScanError
from ctgrounding.geometry import LPS_TO_RAS
from ctgrounding.ingest.readers import Source
from ctgrounding.ingest.readers.contours import Contour, fill_contours
from ctgrounding.ingest.readers.masks import Labels, MaskSource, Structure

_BROKEN = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError)
_REVERSED = np.eye(4)[[2, 1, 0, 3]]
"""highdicom counts slice, row, column; an affine here counts column, row, slice."""


def find_dicom_masks(path: Path, labels: Labels, image: Source) -> MaskSource:
    """Open the one SEG or RTSTRUCT object of a file or folder.

    Args:
        path: The file or folder.
        labels: What names mean.
        image: The scan, on whose grid contours are filled.

    Raises:
        ScanError: If there is none or several, it cannot be read, names no organ, or was drawn in another frame of
            reference than the scan.
    """
    entries = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    found = [(entry, kind) for entry in entries if (kind := _modality(entry)) in ("SEG", "RTSTRUCT")]
    if len(found) != 1:
        raise ScanError(
            f"There are {len(found)} DICOM SEG or RTSTRUCT objects where one set of masks is needed. Name its file, or "
            "give a label map or a folder with a file a class.",
            "mask_unreadable",
        )
    entry, kind = found[0]
    try:
        return _segments(entry, labels, image) if kind == "SEG" else _structures(entry, labels, image)
    except _BROKEN as error:
        if isinstance(error, ScanError):
            raise
        raise ScanError(f"The DICOM {kind} cannot be read ({type(error).__name__}).", "mask_unreadable") from error


def _modality(path: Path) -> str:
    try:
        return str(pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True).get("Modality", ""))
    except (InvalidDicomError, *_BROKEN):
        return ""


def _segments(path: Path, labels: Labels, image: Source) -> MaskSource:
    from highdicom.seg import segread

    seg = segread(path)
    names = {number: str(seg.get_segment_description(number).segment_label) for number in seg.segment_numbers}
    named = labels.named(names.values())
    numbers = {name: number for number, name in names.items()}
    _check_frame(str(seg.get("FrameOfReferenceUID", "")), image)
    geometry = seg.get_volume_geometry()
    if geometry is None:
        raise ScanError("The frames of the DICOM SEG do not lie on one grid.", "mask_unreadable")
    depth, rows, columns = (int(size) for size in geometry.spatial_shape)

    def structures() -> Iterator[Structure]:
        for name, label in named.items():
            volume = seg.get_volume(segment_numbers=[numbers[name]], combine_segments=False)
            yield label, np.asarray(volume.array)[..., 0] > 0.5

    return MaskSource(
        affine=LPS_TO_RAS @ np.asarray(geometry.affine) @ _REVERSED,
        shape_ijk=(columns, rows, depth),
        structures=structures,
        facts={"reader": "dicom seg", "structures": len(named), "left_out": len(names) - len(named)},
    )


def _structures(path: Path, labels: Labels, image: Source) -> MaskSource:
    tags = pydicom.dcmread(path)
    regions = {int(region.ROINumber): region for region in tags.StructureSetROISequence}
    named = labels.named(str(region.ROIName) for region in regions.values())
    drawn = {int(item.ReferencedROINumber): item for item in tags.get("ROIContourSequence", [])}
    chosen = {number: named[str(region.ROIName)] for number, region in regions.items() if str(region.ROIName) in named}
    for number in chosen:
        _check_frame(str(regions[number].get("ReferencedFrameOfReferenceUID", "")), image)
    contours = {label: _contours(drawn[number], image) for number, label in chosen.items() if number in drawn}

    def structures() -> Iterator[Structure]:
        for label, closed in contours.items():
            yield label, fill_contours(closed, image.shape_ijk)

    return MaskSource(
        affine=image.affine,
        shape_ijk=image.shape_ijk,
        structures=structures,
        facts={"reader": "dicom rtstruct", "structures": len(named), "left_out": len(regions) - len(named)},
    )


def _contours(item: Dataset, image: Source) -> list[Contour]:
    """The closed contours of a structure, in index coordinates of the scan."""
    to_index = np.linalg.inv(image.affine) @ LPS_TO_RAS
    found = []
    for contour in item.get("ContourSequence", []):
        if str(contour.ContourGeometricType) in ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR"):
            points = np.asarray(contour.ContourData, dtype=np.float64).reshape(-1, 3)
            found.append(points @ to_index[:3, :3].T + to_index[:3, 3])
    return found


def _check_frame(frame: str, image: Source) -> None:
    if frame and image.frame and frame != image.frame:
        raise ScanError(
            "The masks were drawn in another frame of reference than the scan's (FrameOfReferenceUID differs). Take "
            "those of this series.",
            "mask_outside",
        )
