"""DICOM series in folders, mixed or not. Slices are placed by their tags, never by file name or number.

Messages name slices by their place, never by file name or tag, because both may identify a patient.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Affine, Triple
from ctgrounding.ingest.readers.dicom_headers import SliceHeader, read_headers
from ctgrounding.ingest.readers.dicom_pixels import read_pixels
from ctgrounding.ingest.readers.dicom_stack import MIN_SLICES, is_axial, numbered, stack
from ctgrounding.ingest.readers.source import ListedSeries, SeriesKind, SourceSlice, Stored

_DESCRIPTIONS = frozenset(
    [
        "ORIGINAL",
        "DERIVED",
        "PRIMARY",
        "SECONDARY",
        "AXIAL",
        "HELIX",
        "VOLUME",
        "REFORMATTED",
        "MPR",
        "HFS",
        "HFP",
        "HFDL",
        "HFDR",
        "FFS",
        "FFP",
        "FFDL",
        "FFDR",
    ]
)
"""Header words that verdicts keep; anything else might identify."""


@dataclass(frozen=True)
class DicomSource:
    """One axial series of a DICOM folder, sorted along its normal; opened by :func:`open_dicom`."""

    files: tuple[SliceHeader, ...]
    affine: Affine
    shape_ijk: Triple
    series: int | None
    frame: str
    uid: str
    slices: Mapping[int, SourceSlice]
    facts: Mapping[str, Any]

    def load(self) -> Stored:
        """See :meth:`ctgrounding.ingest.readers.source.Source.load`.

        Slices that do not share one slope and intercept are brought to HU each by its own.
        """
        return read_pixels(self.files)


def open_dicom(folder: Path, series: int | None = None) -> DicomSource:
    """Find a series in a folder, nested or mixed, and place its slices.

    Args:
        folder: Folder with DICOM files, with or without extension, of one slice or of many frames each.
        series: Series number wanted; None if the folder holds only one axial CT volume, derived ones aside.

    Raises:
        ScanError: If there is no such series, several fit, it is no axial CT volume, slices are missing or
            repeated, or their headers contradict each other.
    """
    ordered, affine = stack(_chosen(_by_series(folder), series))
    first = ordered[0]
    kept = [*first.kind, first.patient_position]
    facts = {"reader": "dicom", "described_as": [word for word in kept if word in _DESCRIPTIONS]}
    return DicomSource(
        files=tuple(ordered),
        affine=affine,
        shape_ijk=(first.size[1], first.size[0], len(ordered)),
        series=first.series,
        frame=first.frame,
        uid=first.uid,
        slices=numbered(ordered),
        facts=facts,
    )


def list_series(folder: Path) -> dict[int, ListedSeries]:
    """The numbered CT series of a folder.

    Args:
        folder: Folder with DICOM files.

    Returns:
        Series number to what it is; numbers that several series have are left out.

    Raises:
        ScanError: If the folder holds no DICOM image that can be read.
    """
    groups = [group for group in _by_series(folder) if group[0].modality == "CT"]
    counts = Counter(group[0].series for group in groups)
    return {
        group[0].series: ListedSeries(_kind(group), frozenset(h.image for h in group if h.image is not None))
        for group in groups
        if group[0].series is not None and counts[group[0].series] == 1
    }


def _by_series(folder: Path) -> list[list[SliceHeader]]:
    groups: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in read_headers(folder):
        groups[header.uid].append(header)
    return list(groups.values())


def _kind(group: Sequence[SliceHeader]) -> SeriesKind:
    first = group[0]
    if "LOCALIZER" in first.kind:
        return "localizer"
    if len(first.orientation) == 6 and not is_axial(first):
        return "not axial"
    return "axial" if first.orientation and "DERIVED" not in first.kind else "derived"


def _chosen(groups: list[list[SliceHeader]], series: int | None) -> list[SliceHeader]:
    numbers = ", ".join(sorted({"none" if group[0].series is None else str(group[0].series) for group in groups}))
    asked = [group for group in groups if series is None or group[0].series == series]
    if not asked:
        raise ScanError(f"The folder has no series {series}; it has series numbers {numbers}.", "no_such_series")
    volumes = [group for group in asked if _is_volume(group)]
    originals = [group for group in volumes if _kind(group) == "axial"]
    fitting = originals or volumes or (asked if series is not None else [])
    if not fitting:
        raise ScanError(f"No series of the folder is a CT volume of at least {MIN_SLICES} axial slices.", "not_ct")
    if len(fitting) > 1:
        raise ScanError(
            f"{len(fitting)} series of the folder fit (series numbers {numbers}). Name one in the card.",
            "no_such_series",
        )
    return fitting[0]


def _is_volume(group: Sequence[SliceHeader]) -> bool:
    first = group[0]
    return first.modality == "CT" and len(group) >= MIN_SLICES and is_axial(first) and "LOCALIZER" not in first.kind
