"""What reports teach about scans: rows of a supervision file, and the tally of what was found and refused."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from ctgrounding.data.records import SnippetRecord
from ctgrounding.data.supervision import RefusedSnippet, ScanSupervision, report_sha256
from ctgrounding.ingest.snippets import PRIOR, NumberedScan, resolve
from ctgrounding.ingest.study_tables import OrganSentence
from ctgrounding.ingest.supervision import given_sentences, organ_sentences
from ctgrounding.reports import Report, Snippet

NO_SCAN = "stands in a text without a scan"
OUTSIDE = "lies outside the field of its scan"


@dataclass(frozen=True)
class ReadScan:
    """A scan with its report read and the slices that the report may cite.

    Attributes:
        scan_id: The scan, as ids are written.
        study_id: Its study; a report is counted once in it.
        sections: The report as shards hold it.
        content: What was read from it.
        own: The scan's slices, None where there is no scan.
        study: The slices of all scans of the study.
        field_mm: Lowest and highest world z of the scan.
        given: Organ sentences that the dataset itself gives, None where it gives none.
        unknown: Reason to give for every slice that is not found; empty for the particular one.
    """

    scan_id: str
    study_id: str
    sections: Mapping[str, str]
    content: Report
    own: NumberedScan | None = None
    study: Sequence[NumberedScan] = ()
    field_mm: tuple[float, float] = (0.0, 0.0)
    given: tuple[OrganSentence, ...] | None = None
    unknown: str = ""


@dataclass(frozen=True)
class MiningRule:
    """What is the same for every scan of a dataset.

    Attributes:
        dataset: Name of the dataset.
        organs: Organs of the shards' class table.
        with_labels: Whether the labels that reports state go in.
    """

    dataset: str
    organs: frozenset[str]
    with_labels: bool


@dataclass
class Tally:
    """What was found, resolved and refused; a report counts once, however many scans share it.

    Attributes:
        reports: Reports read.
        citing: Of them, those with an image reference.
        references: Image references.
        prior: Of them, those into an earlier examination.
        unnumbered: Of them, those of this examination without a series number.
        snippets: Snippets of this examination.
        resolved: Of them, those with a depth in a scan.
        refused: Why the others have none, and how many.
        statuses: Statements about organs, by status.
        labels: Labels stated, by ``present`` and ``absent``.
        scans: Rows of the file.
        put_aside: Why scans or texts have no row, and how many.
    """

    reports: int = 0
    citing: int = 0
    references: int = 0
    prior: int = 0
    unnumbered: int = 0
    snippets: int = 0
    resolved: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    scans: int = 0
    put_aside: Counter[str] = field(default_factory=Counter)

    def count(self, report: Report) -> None:
        """Take in what one report says."""
        current = [reference for reference in report.references if not reference.is_prior]
        self.reports += 1
        self.citing += bool(report.references)
        self.references += len(report.references)
        self.prior += len(report.references) - len(current)
        self.unnumbered += sum(reference.series is None for reference in current)
        self.statuses.update(statement.status for statement in report.organ_statements)
        told = [value for value in report.ct_rate_labels.values() if value is not None]
        self.labels.update("present" if value else "absent" for value in told)

    def settle(self, outcomes: Mapping[Snippet, str]) -> None:
        """Take in what became of a report's snippets: empty where resolved, else why not."""
        current = [why for snippet, why in outcomes.items() if not snippet.is_prior]
        self.snippets += len(current)
        self.resolved += current.count("")
        self.refused.update(why for why in current if why)

    def add(self, other: Self) -> None:
        """Take in another tally."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class Mined:
    """Rows for a supervision file, and their tally."""

    rows: list[ScanSupervision] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def mine_scans(scans: Iterable[ReadScan | str], rule: MiningRule) -> Mined:
    """Rows of scans, whole studies at a time.

    Args:
        scans: Scans, or the reason why one has no row.
        rule: What is the same for all.
    """
    mined = Mined()
    outcomes: dict[tuple[str, str], dict[Snippet, str]] = {}
    for scan in scans:
        if isinstance(scan, str):
            mined.tally.put_aside[scan] += 1
            continue
        digest = report_sha256(scan.sections)
        found = {snippet: _look_up(snippet, scan, rule) for snippet in scan.content.snippets}
        mined.rows.append(_row(scan, digest, found, rule))
        mined.tally.scans += 1
        if (scan.study_id, digest) not in outcomes:
            mined.tally.count(scan.content)
        known = outcomes.setdefault((scan.study_id, digest), {})
        for snippet, (records, why) in found.items():
            known[snippet] = "" if records else known.get(snippet, why or OUTSIDE)
    for outcome in outcomes.values():
        mined.tally.settle(outcome)
    return mined


def _look_up(snippet: Snippet, scan: ReadScan, rule: MiningRule) -> tuple[tuple[SnippetRecord, ...], str]:
    """Records of a snippet for a scan, and why it was refused; neither where it belongs to another scan."""
    if scan.own is None:
        return (), PRIOR if snippet.is_prior else NO_SCAN
    records, refused = resolve([snippet], scan.own, scan.study, scan.field_mm, rule.organs)
    why = next(iter(refused), "")
    return records, scan.unknown if scan.unknown and why not in ("", PRIOR) else why


def _row(
    scan: ReadScan, digest: str, found: Mapping[Snippet, tuple[tuple[SnippetRecord, ...], str]], rule: MiningRule
) -> ScanSupervision:
    return ScanSupervision(
        rule.dataset,
        scan.scan_id,
        digest,
        tuple(record for records, _ in found.values() for record in records),
        organ_sentences(scan.content, rule.organs)
        if scan.given is None
        else given_sentences(scan.given, scan.sections, rule.organs),
        scan.content.ct_rate_labels if rule.with_labels else {},
        tuple(
            RefusedSnippet(one.text, one.series, one.images, one.start, one.end, one.section, why)
            for one, (_, why) in found.items()
            if why
        ),
    )
