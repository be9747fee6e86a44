"""From "series 2, image 60" to millimetres: which scan, which slice, which depth.

A reference goes through slice positions (DICOM tags or the card's ``slices`` table), never through an image
number as such. What cannot be settled is refused with a reason and counted.

A snippet belongs to the scan whose series its author named. Other scans of the study carry it too if they
lie in the same world frame and the depth lies inside their field: the finding is there as well, and a
training step may draw any of them. Images that do not follow each other ("images 44, 123 and 139") are
several places, so they become several records of one text.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from ctgrounding.data.records import SnippetRecord
from ctgrounding.geometry import Affine, slice_axis, slice_interval
from ctgrounding.ingest.readers.source import ListedSeries, SeriesKind
from ctgrounding.reports import Snippet

PRIOR = "points into an earlier examination"
NO_NUMBERS = "names an image, but no scan of the study says where its images lie"
LOCALIZER = "names a localizer"
NOT_AXIAL = "names a coronal or sagittal reformat"
DERIVED = "names a derived series that is no scan of the study"
NO_SERIES = "names a series that is no scan of the study"
SAME_NUMBER = "names a series number that several scans of the study have"
NO_IMAGE = "names an image that its series does not have"
NOWHERE = "names an image alone that no scan of the study has"
SEVERAL = "names an image alone that several scans of the study have"
ELSEWHERE = "names an image alone that another axial series of the study has too"
OUTSIDE = "names an image outside the field of its scan"

_REFUSED_KINDS: dict[SeriesKind, str] = {"localizer": LOCALIZER, "not axial": NOT_AXIAL, "derived": DERIVED}


@dataclass(frozen=True)
class SlicePosition:
    """Where a slice lies.

    Attributes:
        slice_id: Stable identifier of the slice.
        low_mm: Lowest world z of its pixels.
        high_mm: Highest.
    """

    slice_id: str
    low_mm: float
    high_mm: float


@dataclass(frozen=True)
class NumberedScan:
    """The slices of one scan of a study, by the numbers that reports cite.

    Attributes:
        scan_id: The scan.
        frame: World frame; scans of equal, non-empty frames share their depths.
        positions: ``(series, image)`` to position; series is None where the scan has no series number.
        field_mm: Lowest and highest world z of the scan.
        listed: Series number to the series that lie beside the scan, itself perhaps among them.
    """

    scan_id: str
    frame: str
    positions: Mapping[tuple[int | None, int], SlicePosition]
    field_mm: tuple[float, float] = (-np.inf, np.inf)
    listed: Mapping[int, ListedSeries] = field(default_factory=dict)
    _series: frozenset[int | None] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_series", frozenset(series for series, _ in self.positions))

    def has_series(self, series: int) -> bool:
        """Whether a slice of this scan is cited by that series number."""
        return series in self._series

    def position(self, series: int | None, image: int) -> SlicePosition | None:
        """Where an image lies; of any series of this scan if ``series`` is None."""
        if series is not None:
            return self.positions.get((series, image))
        found = {self.positions[number, image] for number in self._series if (number, image) in self.positions}
        return found.pop() if len(found) == 1 else None


def plane_positions(
    affine: Affine,
    shape_ijk: tuple[int, int, int],
    planes: Mapping[int, str],
    body: Bool[np.ndarray, "k j i"] | None = None,
) -> dict[int, SlicePosition]:
    """World z of slices of a source, inside the body where it is known.

    Args:
        affine: Source affine.
        shape_ijk: Size of the source.
        planes: Index along the slice axis to slice id.
        body: Pixels of the source inside the body; the whole slice counts without.

    Returns:
        Index to position.
    """
    axis = slice_axis(affine)
    first, second = (size for index, size in enumerate(shape_ijk) if index != axis)
    whole = (0.0, first - 1.0), (0.0, second - 1.0)
    slices = None if body is None else np.moveaxis(body.T, axis, 0)
    found = {}
    for index, slice_id in planes.items():
        box = whole if slices is None else _body_box(slices[index]) or whole
        found[index] = SlicePosition(slice_id, *slice_interval(affine, axis, index, box))
    return found


def resolve(
    snippets: Sequence[Snippet],
    own: NumberedScan,
    study: Sequence[NumberedScan],
    field_mm: tuple[float, float],
    organs: frozenset[str],
) -> tuple[tuple[SnippetRecord, ...], Counter[str]]:
    """The records of a study's snippets that one of its scans carries.

    Args:
        snippets: What the study's report cites.
        own: The scan.
        study: All scans of the study, ``own`` among them.
        field_mm: Lowest and highest world z of the scan.
        organs: Organs of the shard's class table.

    Returns:
        Records, and how many snippets of the study were refused for which reason. A snippet that belongs to
        another scan is in neither.
    """
    records: list[SnippetRecord] = []
    refused: Counter[str] = Counter()
    for snippet in snippets:
        cited = _cited(snippet, study)
        if isinstance(cited, str):
            refused[cited] += 1
        elif cited is own or (own.frame and cited.frame == own.frame):
            records += _records(snippet, cited, field_mm, organs)
    return tuple(records), refused


def _cited(snippet: Snippet, study: Sequence[NumberedScan]) -> NumberedScan | str:
    """The scan that a snippet cites, or why there is none."""
    if snippet.is_prior:
        return PRIOR
    if snippet.series is None:
        return _by_image(snippet.images, study)
    within = [scan for scan in study if scan.has_series(snippet.series)]
    if not within:
        return _no_scan(snippet.series, study)
    complete = _with_images(within, snippet.series, snippet.images)
    if len(complete) != 1:
        return SAME_NUMBER if complete else NO_IMAGE
    return _inside(complete[0], snippet.series, snippet.images)


def _by_image(images: Sequence[int], study: Sequence[NumberedScan]) -> NumberedScan | str:
    """The scan of the only axial series that has some images; series that are no scans count too."""
    complete = _with_images(study, None, images)
    if len(complete) != 1:
        numbered = any(scan.positions for scan in study)
        return SEVERAL if complete else NOWHERE if numbered else NO_NUMBERS
    others = {number: series for scan in study for number, series in scan.listed.items()}
    if any(
        series.kind in ("axial", "derived") and series.images.issuperset(images)
        for number, series in others.items()
        if not any(scan.has_series(number) for scan in study)
    ):
        return ELSEWHERE
    return _inside(complete[0], None, images)


def _no_scan(number: int, study: Sequence[NumberedScan]) -> str:
    """Why a series that is no scan of the study gives no depth."""
    kinds = [scan.listed[number].kind for scan in study if number in scan.listed]
    if kinds:
        return _REFUSED_KINDS.get(kinds[0], NO_SERIES)
    return NO_SERIES if any(scan.positions for scan in study) else NO_NUMBERS


def _with_images(scans: Sequence[NumberedScan], series: int | None, images: Sequence[int]) -> list[NumberedScan]:
    return [scan for scan in scans if all(scan.position(series, image) is not None for image in images)]


def _inside(scan: NumberedScan, series: int | None, images: Sequence[int]) -> NumberedScan | str:
    low, high = scan.field_mm
    positions = [scan.position(series, image) for image in images]
    return scan if all(p is None or (low <= p.low_mm and p.high_mm <= high) for p in positions) else OUTSIDE


def _records(
    snippet: Snippet, cited: NumberedScan, field_mm: tuple[float, float], organs: frozenset[str]
) -> list[SnippetRecord]:
    made = []
    for run in _runs(snippet.images):
        positions = [cited.position(snippet.series, image) for image in run]
        known = [position for position in positions if position is not None]
        depth = min(position.low_mm for position in known), max(position.high_mm for position in known)
        if depth[0] < field_mm[0] or depth[1] > field_mm[1]:
            continue
        made.append(
            SnippetRecord(
                text=snippet.text,
                series=snippet.series,
                images=run,
                slice_id=known[0].slice_id,
                depth_mm=depth,
                start=snippet.start,
                end=snippet.end,
                section=snippet.section,
                organ=next((organ for organ in snippet.masks if organ in organs), ""),
                size_mm=snippet.size_mm,
            )
        )
    return made


def _runs(images: Sequence[int]) -> list[tuple[int, ...]]:
    """Numbers grouped into runs without gaps, in ascending order."""
    runs: list[list[int]] = []
    for image in sorted(set(images)):
        if runs and image == runs[-1][-1] + 1:
            runs[-1].append(image)
        else:
            runs.append([image])
    return [tuple(run) for run in runs]


def _body_box(body: Bool[np.ndarray, "a b"]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    if not len(rows):
        return None
    return (float(rows[0]), float(rows[-1])), (float(columns[0]), float(columns[-1]))
