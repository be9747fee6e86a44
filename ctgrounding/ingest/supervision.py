"""What a report teaches about a scan: its sections, organ sentences and cited slices."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ctgrounding import reports
from ctgrounding.data.records import OrganSentenceRecord
from ctgrounding.errors import CTGroundingError, ReportError, ScanError
from ctgrounding.geometry import bounding_box
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.examination import guarded
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.readers import Source, open_source
from ctgrounding.ingest.readers.source import ListedSeries, SeriesKind
from ctgrounding.ingest.scan import Scan
from ctgrounding.ingest.snippets import NumberedScan, SlicePosition, plane_positions
from ctgrounding.ingest.study_tables import OrganSentence
from ctgrounding.reports import Report


@dataclass(frozen=True)
class ReadReport:
    """A report, read.

    Attributes:
        sections: Section name to text as given; spans of the records count in it.
        content: What was read from it.
    """

    sections: dict[str, str]
    content: Report


def read_report(report: Mapping[str, str]) -> ReadReport:
    """Read a report given in sections or, under the key ``""``, as a whole.

    Raises:
        ReportError: If there is no text.
    """
    if not any(text.strip() for text in report.values()):
        raise ReportError("The study has no report text.")
    return _read_cached(tuple(report.items()))


@lru_cache(maxsize=64)
def _read_cached(items: tuple[tuple[str, str], ...]) -> ReadReport:
    given = dict(items)
    content = reports.read(_split(given[""]) if "" in given else given)
    return ReadReport({name: content.text[start:end] for name, (start, end) in content.sections.items()}, content)


def _split(text: str) -> dict[str, str]:
    """A whole report in its sections; one without headings is all findings."""
    found = {name: text[start:end].strip() for name, (start, end) in reports.read(text).sections.items()}
    return {name: part for name, part in found.items() if part} or {"findings": text}


def organ_sentences(content: Report, organs: frozenset[str]) -> tuple[OrganSentenceRecord, ...]:
    """The report's statements about organs of the class table; statements about other places are left out."""
    records = []
    for statement in content.organ_statements:
        named = tuple(organ for organ in statement.masks if organ in organs)
        if named:
            records.append(
                OrganSentenceRecord(
                    text=statement.text,
                    organs=named,
                    status=statement.status,
                    finding=statement.finding,
                    start=statement.start,
                    end=statement.end,
                    section=statement.section,
                )
            )
    return tuple(records)


def given_sentences(
    given: Sequence[OrganSentence], sections: Mapping[str, str], organs: frozenset[str]
) -> tuple[OrganSentenceRecord, ...]:
    """Sentences that the dataset itself gives for organs; those for other places are left out.

    Whether one says normal or abnormal is read from it; ``uncertain`` where that is not understood. Its span is where
    it stands in the report; an empty one, in no section, where it does not stand there word for word.

    Args:
        given: Rows of the ``sentences`` table.
        sections: The report's sections.
        organs: Organs of the class table.
    """
    records = []
    for sentence in given:
        if sentence.organ not in organs:
            continue
        statements = reports.read({"findings": sentence.text}).organ_statements
        told = {statement.status for statement in statements}
        found = {statement.finding for statement in statements if statement.finding}
        section = next((name for name, text in sections.items() if sentence.text in text), "")
        start = sections[section].index(sentence.text) if section else 0
        records.append(
            OrganSentenceRecord(
                text=sentence.text,
                organs=(sentence.organ,),
                status="abnormal" if "abnormal" in told else "normal" if told == {"normal"} else "uncertain",
                finding=found.pop() if len(found) == 1 else "",
                start=start,
                end=start + len(sentence.text) if section else 0,
                section=section,
            )
        )
    return tuple(records)


class StudySlices:
    """The numbered slices of a study's scans, each opened once.

    Args:
        scans: All scans of the study.
        identity: How slice ids are written.
        shared_frame: Whether NIfTI scans of a study share one world frame.
    """

    def __init__(self, scans: Sequence[PlannedScan], identity: Identity, shared_frame: bool) -> None:
        self._identity = identity
        self._shared_frame = shared_frame
        self._scans = {planned.scan_id: planned for planned in scans}
        self._numbered: dict[str, NumberedScan] = {}

    def around(self, planned: PlannedScan, scan: Scan) -> tuple[NumberedScan, list[NumberedScan]]:
        """The slices of one scan, whose voxels are known, and those of all scans of the study.

        Scans whose headers cannot be read are left out: no snippet can be resolved to them.
        """
        own = self._number(planned, scan.source, scan)
        others = [self._other(scan_id) for scan_id in self._scans if scan_id != planned.scan_id]
        return own, [own, *(other for other in others if other is not None)]

    def by_headers(self, planned: PlannedScan, source: Source) -> tuple[NumberedScan, list[NumberedScan]]:
        """The same from headers alone, for a scan that is not tilted."""
        own = self._numbered[planned.scan_id] = self._number(planned, source, None)
        others = [self._other(scan_id) for scan_id in self._scans if scan_id != planned.scan_id]
        return own, [own, *(other for other in others if other is not None)]

    def _other(self, scan_id: str) -> NumberedScan | None:
        if scan_id not in self._numbered:
            planned = self._scans[scan_id]
            try:
                self._numbered[scan_id] = guarded(
                    lambda: self._number(planned, open_source(planned.path, planned.series), None)
                )
            except CTGroundingError:
                return None
        return self._numbered[scan_id]

    def _number(self, planned: PlannedScan, source: Source, scan: Scan | None) -> NumberedScan:
        shared = f"study {planned.study_id}" if self._shared_frame else ""
        low, high = bounding_box(source.affine, source.shape_ijk)
        by_table = bool(planned.slices)
        return NumberedScan(
            planned.scan_id,
            source.frame or shared,
            self._by_table(planned, source, scan) if by_table else self._by_header(planned, source, scan),
            field_mm=(float(low[2]), float(high[2])),
            listed=_listed_by_table(planned) if by_table else _listed_beside(planned),
        )

    def _by_header(
        self, planned: PlannedScan, source: Source, scan: Scan | None
    ) -> dict[tuple[int | None, int], SlicePosition]:
        planes = {entry.index: self._identity.write("slice", entry.slice_id) for entry in source.slices.values()}
        positions = plane_positions(source.affine, source.shape_ijk, planes, scan.body if scan else None)
        series = source.series if source.series is not None else planned.series
        return {(series, image): positions[entry.index] for image, entry in source.slices.items()}

    def _by_table(
        self, planned: PlannedScan, source: Source, scan: Scan | None
    ) -> dict[tuple[int | None, int], SlicePosition]:
        """The table's depth; where the scan is tilted, the range of the slice whose centre lies there."""
        numbered = [(planned.series if row.series is None else row.series, row) for row in planned.slices]
        counts = Counter((series, row.image) for series, row in numbered)
        found = {}
        for series, row in numbered:
            if counts[series, row.image] > 1 or row.kind != "axial":
                continue
            slice_id = self._identity.write("slice", f"{planned.scan_id}/{series}/{row.image}")
            position = SlicePosition(slice_id, row.z_mm, row.z_mm)
            if scan is not None and scan.body is not None:
                index = scan.slice_at(row.z_mm).index
                position = plane_positions(source.affine, source.shape_ijk, {index: slice_id}, scan.body)[index]
            found[series, row.image] = position
        return found


def _listed_by_table(planned: PlannedScan) -> dict[int, ListedSeries]:
    """Series of the table that are not axial."""
    images: dict[int, set[int]] = defaultdict(set)
    kinds: dict[int, SeriesKind] = {}
    for row in planned.slices:
        if row.series is not None and row.kind != "axial":
            images[row.series].add(row.image)
            kinds[row.series] = row.kind
    return {series: ListedSeries(kinds[series], frozenset(found)) for series, found in images.items()}


def _listed_beside(planned: PlannedScan) -> dict[int, ListedSeries]:
    """Series in the scan's DICOM folder."""
    if not planned.path.is_dir():
        return {}
    from ctgrounding.ingest.readers.dicom import list_series

    try:
        return list_series(planned.path)
    except ScanError:
        return {}
