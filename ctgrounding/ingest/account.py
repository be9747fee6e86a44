"""The account of an ingest: every planned scan is ingested, put aside or still to do, and the numbers say so."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from ctgrounding.errors import ShardError
from ctgrounding.ingest.notes import PutAside, ShardNote
from ctgrounding.ingest.whole_files import whole_file

QUARANTINE = "quarantine.csv"


@dataclass(frozen=True)
class IngestSummary:
    """The account of an ingest: every planned scan is either ingested or put aside.

    Attributes:
        output: Folder of the shards.
        planned: Scans that the card names.
        ingested: Scans in the shards.
        with_organs: Of them, those with organ map.
        with_report: Of them, those with report.
        snippets: Snippets resolved to a depth.
        organ_sentences: Organ sentences.
        refused: Why snippets were refused, and how many; counted once a study.
        flags: Audit flags and how many scans have them.
        put_aside: What could not be used; also in ``quarantine.csv``.
        shards_kept: Shards that an earlier run had finished.
        shards_written: Shards of this run.
        seconds: How long it took.
    """

    output: Path
    planned: int
    ingested: int
    with_organs: int
    with_report: int
    snippets: int
    organ_sentences: int
    refused: dict[str, int]
    flags: dict[str, int]
    put_aside: tuple[PutAside, ...]
    shards_kept: int
    shards_written: int
    seconds: float

    @property
    def quarantined(self) -> int:
        """Scans whose place is empty."""
        return sum(entry.part == "scan" for entry in self.put_aside)

    @property
    def pending(self) -> int:
        """Scans of shards that are not finished; there are some only where nothing was to be written."""
        return self.planned - self.ingested - self.quarantined


def account(summary: IngestSummary) -> Table:
    """The summary as a table for the terminal."""
    table = Table(title=f"Ingested into {summary.output}", show_header=False, title_justify="left")
    rows = {
        "scans planned": summary.planned,
        "scans ingested": summary.ingested,
        "scans put aside": summary.quarantined,
        "scans to do": summary.pending,
        "with organ map": summary.with_organs,
        "with report": summary.with_report,
        "snippets with a depth": summary.snippets,
        "organ sentences": summary.organ_sentences,
        "shards written / kept": f"{summary.shards_written} / {summary.shards_kept}",
        "seconds": f"{summary.seconds:.1f}",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    for reason, count in sorted(summary.refused.items()):
        table.add_row("snippet " + reason, str(count))
    for flag, count in sorted(summary.flags.items()):
        table.add_row(f"audit flag {flag}", str(count))
    for (part, reason), count in Counter((entry.part, entry.reason) for entry in summary.put_aside).most_common(8):
        table.add_row(f"{part} put aside: {reason}", str(count))
    if summary.put_aside:
        table.add_row("all that was put aside", str(summary.output / QUARANTINE))
    return table


def summarize(
    notes: Sequence[ShardNote], output: Path, planned: int, kept: int, written: int, seconds: float
) -> IngestSummary:
    """Add up the notes of an ingest.

    Args:
        notes: Of every finished shard.
        output: Folder of the shards.
        planned: Scans of the plan.
        kept: Shards that an earlier run had finished.
        written: Shards of this run.
        seconds: How long it took.

    Raises:
        ShardError: If a scan of a finished shard is neither ingested nor put aside, or is both.
    """
    for note in notes:
        aside = sum(entry.part == "scan" for entry in note.put_aside)
        if note.ingested + aside != note.planned:
            raise ShardError(
                f"The account of {note.name} does not add up: of {note.planned} scans {note.ingested} went in and "
                f"{aside} were put aside. Delete it and run again."
            )
    refused_by_study = {study: reasons for note in notes for study, reasons in note.refused.items()}
    refused: Counter[str] = Counter()
    for reasons in refused_by_study.values():
        refused.update(reasons)
    flags: Counter[str] = Counter()
    for note in notes:
        flags.update(note.flags)
    return IngestSummary(
        output=output,
        planned=planned,
        ingested=sum(note.ingested for note in notes),
        with_organs=sum(note.with_organs for note in notes),
        with_report=sum(note.with_report for note in notes),
        snippets=sum(note.snippets for note in notes),
        organ_sentences=sum(note.organ_sentences for note in notes),
        refused=dict(refused),
        flags=dict(flags),
        put_aside=tuple(entry for note in notes for entry in note.put_aside),
        shards_kept=kept,
        shards_written=written,
        seconds=seconds,
    )


def write_quarantine(output: Path, dataset: str, put_aside: Sequence[PutAside]) -> None:
    """List what was put aside.

    Args:
        output: Folder of the shards.
        dataset: Name of the card.
        put_aside: What to list.
    """
    with whole_file(output / QUARANTINE) as stream:
        writer = csv.writer(stream)
        writer.writerow(["dataset", "scan_id", "part", "kind", "reason"])
        writer.writerows([dataset, entry.scan_id, entry.part, entry.kind, entry.reason] for entry in put_aside)
