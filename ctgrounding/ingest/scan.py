"""One scan from disk to its RAS grid: what ingest does with each, and what a trained model does with one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16, Shaped, UInt8

from ctgrounding import label_sets
from ctgrounding.errors import GeometryError, ScanError
from ctgrounding.geometry import Grid, TripleMm, slice_axis
from ctgrounding.ingest.audit.hu import to_hu
from ctgrounding.ingest.audit.organs import of_other_version
from ctgrounding.ingest.audit.verdict import Verdict, judge
from ctgrounding.ingest.readers import Source, open_source
from ctgrounding.ingest.resample import ValidBox, resample_image, resample_labels, valid_box

BODY_HU = -300
"""Above it a pixel belongs to the body (or the table)."""


@dataclass(frozen=True)
class OriginalSlice:
    """A slice of the file that a scan came from.

    Attributes:
        index: Its place along the file's slice axis, from 0.
        image: Its image number, as a report would cite it; None where the file numbers none.
        depth_mm: World z of its centre.
    """

    index: int
    image: int | None
    depth_mm: float


@dataclass(frozen=True)
class Scan:
    """A scan on its RAS grid, with the way back to its file.

    Attributes:
        image_hu: HU in [-1024, 3071].
        grid: Where the voxels lie.
        valid_box: Half-open box of voxels inside the source, along ``D H W``.
        verdict: What the audit found.
        source: Header of the file or series.
        body: Pixels of the source inside the body, ``body[k, j, i]``; made only for tilted sources.
    """

    image_hu: Int16[np.ndarray, "D H W"]
    grid: Grid
    valid_box: ValidBox
    verdict: Verdict
    source: Source
    body: Bool[np.ndarray, "k j i"] | None = None

    def slice_at(self, depth_mm: float) -> OriginalSlice:
        """The original slice whose centre lies nearest to a depth; the first or last one beyond the field."""
        axis, affine = slice_axis(self.source.affine), self.source.affine
        middle = [(size - 1) / 2 for size in self.source.shape_ijk]
        middle[axis] = 0.0
        first_mm = float(affine[2, :3] @ middle + affine[2, 3])
        step_mm = float(affine[2, axis])
        last = self.source.shape_ijk[axis] - 1
        index = min(max(round((depth_mm - first_mm) / step_mm), 0), last)
        images = {entry.index: image for image, entry in self.source.slices.items()}
        return OriginalSlice(index, images.get(index), first_mm + index * step_mm)


def read_scan(path: str | Path, spacing_mm: TripleMm, series: int | None = None, hu: str = "auto") -> Scan:
    """Read, audit and resample one scan.

    Args:
        path: A NIfTI file or the folder of a DICOM series.
        spacing_mm: Grid to resample to, along ``D H W``.
        series: Which series of a mixed folder.
        hu: ``auto`` lets the audit decide how values become HU; ``stored`` trusts the header.

    Raises:
        ScanError: If it cannot be used; the message names ``path``.

    Examples:
        >>> import nibabel, numpy, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> values = numpy.full((16, 16, 8), -1000, numpy.int16)
        >>> values[4:12, 4:12] = 40
        >>> nibabel.save(nibabel.Nifti1Image(values, numpy.diag([2.0, 2.0, 5.0, 1.0])), f"{folder.name}/ct.nii.gz")
        >>> scan = read_scan(f"{folder.name}/ct.nii.gz", spacing_mm=(5.0, 4.0, 4.0))
        >>> scan.image_hu.shape, scan.slice_at(21.0)
        ((8, 8, 8), OriginalSlice(index=4, image=None, depth_mm=20.0))
        >>> folder.cleanup()
    """
    try:
        return bring(open_source(Path(path), series), spacing_mm, hu)
    except (ScanError, GeometryError) as error:
        raise ScanError(f"{path}: {error}") from error


def bring(source: Source, spacing_mm: TripleMm, hu: str = "auto") -> Scan:
    """Bring an opened source to its grid.

    Raises:
        ScanError: If the audit refuses it.
        GeometryError: If its affine is degenerate.
    """
    grid = Grid.covering(source.affine, source.shape_ijk, spacing_mm)
    values, verdict = _in_hu(source, hu)
    return Scan(
        image_hu=resample_image(values, source.affine, grid),
        grid=grid,
        valid_box=valid_box(source.affine, source.shape_ijk, grid),
        verdict=verdict,
        source=source,
        body=values > BODY_HU if "tilt" in verdict.flags else None,
    )


def _in_hu(source: Source, hu: str) -> tuple[Shaped[np.ndarray, "k j i"], Verdict]:
    stored = source.load()
    verdict = judge(source, stored, hu)
    return to_hu(stored.values, verdict.rule), verdict


def bring_organs(source: Source, grid: Grid, class_map: str) -> UInt8[np.ndarray, "D H W"]:
    """Bring an organ label map, on its own grid, to the grid of its scan.

    Args:
        source: The label map.
        grid: The scan's grid.
        class_map: Label set of the map.

    Raises:
        ScanError: If it holds values that are no label of the class map, nothing at all, or nothing inside
            the scan.
    """
    values = source.load().scaled
    small = values.dtype == np.uint8
    found = np.flatnonzero(np.bincount(values.reshape(-1), minlength=256)) if small else np.unique(values)
    _check_labels(found, class_map)
    organs = resample_labels(values.astype(np.uint8), source.affine, grid)
    if not organs.any():
        raise ScanError("The organ map lies outside its scan: no organ voxel falls on the scan's grid.", "mask_outside")
    return organs


def _check_labels(found: Shaped[np.ndarray, "n"], class_map: str) -> None:
    unknown = found[~np.isin(found, [0, *label_sets.load(class_map)])]
    shown = ", ".join(f"{value:g}" for value in unknown[:5])
    if not found.any():
        raise ScanError("The organ map is empty.", "mask_empty")
    other = of_other_version(map(float, found), class_map) if len(unknown) else None
    if other is not None:
        raise ScanError(
            f"The organ map holds {shown}, which {class_map} does not name but {other} does.", "mask_version"
        )
    if len(unknown):
        raise ScanError(
            f"The organ map holds {shown}, which the class map does not name. Is organs.classes right?", "mask_labels"
        )
