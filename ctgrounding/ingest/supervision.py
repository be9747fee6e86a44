"""What a report teaches about a scan: its sections, organ sentences and cited slices."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ctgrounding import reports
from ctgrounding.data.records import OrganSentenceRecord
from ctgrounding.errors import ReportError, ScanError
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.readers import Source, open_source
from ctgrounding.ingest.scan import Scan
from ctgrounding.ingest.snippets import NumberedScan, SlicePosition, plane_positions
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

    def _other(self, scan_id: str) -> NumberedScan | None:
        if scan_id not in self._numbered:
            planned = self._scans[scan_id]
            try:
                source = None if planned.slices else open_source(planned.path, planned.series)
            except ScanError:
                return None
            self._numbered[scan_id] = self._number(planned, source, None)
        return self._numbered[scan_id]

    def _number(self, planned: PlannedScan, source: Source | None, scan: Scan | None) -> NumberedScan:
        frame = (source.frame if source else "") or (f"study {planned.study_id}" if self._shared_frame else "")
        if planned.slices:
            return NumberedScan(planned.scan_id, frame, self._by_table(planned, scan))
        return NumberedScan(planned.scan_id, frame, self._by_header(planned, source, scan) if source else {})

    def _by_header(
        self, planned: PlannedScan, source: Source, scan: Scan | None
    ) -> dict[tuple[int | None, int], SlicePosition]:
        planes = {entry.index: self._identity.write("slice", entry.slice_id) for entry in source.slices.values()}
        body = scan.body if scan else None
        positions = plane_positions(source.affine, source.shape_ijk, planes, body)
        series = source.series if source.series is not None else planned.series
        return {(series, image): positions[entry.index] for image, entry in source.slices.items()}

    def _by_table(self, planned: PlannedScan, scan: Scan | None) -> dict[tuple[int | None, int], SlicePosition]:
        """The table's depth; where the scan is tilted, the range of the slice whose centre lies there."""
        counts = Counter((row.series, row.image) for row in planned.slices)
        found = {}
        for row in planned.slices:
            series = row.series if row.series is not None else planned.series
            if counts[row.series, row.image] > 1:
                continue
            slice_id = self._identity.write("slice", f"{planned.scan_id}/{series}/{row.image}")
            position = SlicePosition(slice_id, row.z_mm, row.z_mm)
            if scan is not None and scan.body is not None:
                index = scan.slice_at(row.z_mm).index
                source = scan.source
                position = plane_positions(source.affine, source.shape_ijk, {index: slice_id}, scan.body)[index]
            found[series, row.image] = position
        return found
