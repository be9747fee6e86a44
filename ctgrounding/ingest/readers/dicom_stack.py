"""From the slice headers of one series to a volume's affine; what is no volume is refused with its reason."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from ctgrounding.errors import ScanError
from ctgrounding.geometry import LPS_TO_RAS, Affine
from ctgrounding.ingest.readers.dicom_headers import SliceHeader
from ctgrounding.ingest.readers.source import SourceSlice

MIN_SLICES = 3
GAP_TOLERANCE = 0.05
"""Share of the slice distance by which a gap may differ from it, besides :data:`ROUNDING_MM`."""
ROUNDING_MM = 0.05
"""What positions written with few decimals may be off by."""
AXIAL_COSINE = 0.5**0.5
"""Slices whose normal is within 45 degrees of the body's axis are axial; others are coronal or sagittal reformats."""


def is_axial(header: SliceHeader) -> bool:
    """Whether a slice is axial, by its orientation; False where its header does not say."""
    if len(header.orientation) != 6:
        return False
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    return bool(abs(normal[2]) > AXIAL_COSINE)


def stack(group: Sequence[SliceHeader]) -> tuple[list[SliceHeader], Affine]:
    """The slices of a series from the first to the last along their normal, and the affine of their volume.

    Raises:
        ScanError: If it is no axial CT volume, slices are missing or repeated, or headers contradict each other.
    """
    first = group[0]
    _check_alike(group)
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(along_row, along_column)
    positions = np.array([header.position for header in group])
    order = np.argsort(positions @ normal, kind="stable")
    placed = positions[order]
    lps = np.eye(4)
    lps[:3, 0] = along_row * first.pixel_mm[1]
    lps[:3, 1] = along_column * first.pixel_mm[0]
    lps[:3, 2] = _slice_step(placed, normal)
    lps[:3, 3] = placed[0]
    return [group[index] for index in order], LPS_TO_RAS @ lps


def numbered(ordered: Sequence[SliceHeader]) -> dict[int, SourceSlice]:
    """Image number to slice; numbers that occur twice are left out, for they name no slice."""
    counts = Counter(header.image for header in ordered)
    return {
        header.image: SourceSlice(index, header.sop)
        for index, header in enumerate(ordered)
        if header.image is not None and counts[header.image] == 1
    }


def _check_alike(group: Sequence[SliceHeader]) -> None:
    first = group[0]
    if first.modality != "CT":
        raise ScanError(f"The series is {first.modality or 'of no modality'}, not CT.", "not_ct")
    if "LOCALIZER" in first.kind:
        raise ScanError("The series is a localizer, not a volume.", "not_ct")
    if len(group) < MIN_SLICES:
        raise ScanError(f"The series has {len(group)} slices; at least {MIN_SLICES} are needed.", "too_few_slices")
    if any((len(h.position), len(h.orientation), len(h.pixel_mm)) != (3, 6, 2) or min(h.size) < 1 for h in group):
        raise ScanError("A slice has no position, orientation, pixel spacing or size in its header.", "no_header")
    if not np.isfinite([(*h.position, *h.orientation, *h.pixel_mm) for h in group]).all():
        raise ScanError("A slice has a position, orientation or pixel spacing that is no finite number.", "bad_affine")
    if not is_axial(first):
        raise ScanError(
            "The slices of the series are not axial. Name the axial series that it was made from.", "not_ct"
        )
    turned = np.ptp([header.orientation for header in group], axis=0).max()
    scaled = np.ptp([header.pixel_mm for header in group], axis=0).max()
    if turned > 1e-3 or scaled > 1e-3 or len({header.size for header in group}) > 1:
        raise ScanError(
            "The slices of the series differ in orientation, pixel spacing or size, so they are no volume.",
            "uneven_slices",
        )


def _slice_step(placed: Float64[np.ndarray, "slices 3"], normal: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    """Vector from one slice to the next, from the first and last position; refuses uneven stacks."""
    gaps = np.diff(placed @ normal)
    usual = float(np.median(gaps))
    repeated = int((gaps < 1e-3).sum())
    if repeated:
        raise ScanError(
            f"{repeated} slices repeat the position of another one. Keep one series a folder or number.",
            "repeated_slices",
        )
    off = np.abs(gaps - usual) > GAP_TOLERANCE * usual + ROUNDING_MM
    if off.any():
        raise _uneven(gaps, usual, off)
    step: np.ndarray = (placed[-1] - placed[0]) / (len(placed) - 1)
    drift = float(np.abs(placed - placed[0] - np.arange(len(placed))[:, None] * step).max())
    if drift > GAP_TOLERANCE * usual + ROUNDING_MM:
        raise ScanError(f"The slices do not lie on one line: one is {drift:.2f} mm beside it.", "uneven_slices")
    return step


def _uneven(gaps: np.ndarray, usual: float, off: np.ndarray) -> ScanError:
    """Slices are missing where every odd gap is a multiple of the usual one; else the gaps are just uneven."""
    place = int(off.argmax())
    where = f"The gap after slice {place + 1} of {len(gaps) + 1} is {gaps[place]:.2f} mm, elsewhere {usual:.2f} mm"
    steps = np.rint(gaps[off] / usual)
    if (steps >= 2).all() and (np.abs(gaps[off] - steps * usual) <= GAP_TOLERANCE * usual + ROUNDING_MM).all():
        return ScanError(f"{where}: {int((steps - 1).sum())} slices are missing.", "missing_slices")
    return ScanError(f"{where}; {int(off.sum())} of {len(gaps)} gaps are uneven.", "uneven_slices")
