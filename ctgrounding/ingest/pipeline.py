"""``ctgrounding ingest``: a dataset card in, shards out, and an account of every scan."""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread

from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ctgrounding.data.shards import Codec
from ctgrounding.errors import CardError
from ctgrounding.geometry import TripleMm
from ctgrounding.ingest.card_files import load_card
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.identity import load_identity, write_private_map
from ctgrounding.ingest.plan import ShardPlan, plan_shards, rule_digest
from ctgrounding.ingest.worker import NOTES, Job, PutAside, ShardNote, fill_shard, progress_path

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
        return self.planned - self.ingested


def ingest(
    *,
    card: str,
    output: Path,
    root: Path | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    codec: Codec = "zstd",
    workers: int = -1,
    scans_per_shard: int = 64,
    limit: int | None = None,
) -> IngestSummary:
    """Turn hospital files into audited shards, by a dataset card.

    Shards that an earlier run finished are kept if nothing that decides their content has changed. A scan
    that cannot be used leaves its place empty and is named with its reason in ``quarantine.csv``.

    Args:
        card: YAML file of the dataset, or the name of a packaged card.
        output: Folder for the shards. Where ids are hashed, their salt is kept beside it, not in it.
        root: Folder of the dataset; takes the place of the card's.
        spacing_mm: Grid along D, H, W; takes the place of the card's.
        codec: zstd is smallest, lz4 quicker to read, none quickest where the set fits memory.
        workers: Processes; -1 takes every core.
        scans_per_shard: Places of a shard.
        limit: Take only so many scans.

    Returns:
        The account of it.

    Raises:
        CardError: If the card does not fit the files, or the output holds shards of something else.
        ShardError: If a shard cannot be written.
    """
    started = time.monotonic()
    loaded = load_card(card, root)
    spacing = spacing_mm or loaded.spacing_mm
    settings = {"spacing_mm": tuple(spacing), "codec": codec, "version": version("ctgrounding")}
    plans = plan_shards(loaded, settings, scans_per_shard, limit)
    _check_output(output, plans)
    (output / NOTES).mkdir(parents=True, exist_ok=True)
    job = _job(loaded, output, spacing, codec)
    kept = {plan.name: note for plan in plans if (note := ShardNote.of(plan, output)) is not None}
    to_do = [plan for plan in plans if plan.name not in kept]
    written = _run(to_do, job, workers)
    notes = [kept.get(plan.name) or written[plan.name] for plan in plans]
    summary = _summary(notes, output, len(kept), time.monotonic() - started)
    _write_quarantine(output, loaded.name, summary.put_aside)
    scans = [scan for plan in plans for scan in plan.scans]
    ids = {("scan", scan.scan_id) for scan in scans} | {("study", scan.study_id) for scan in scans}
    write_private_map(output, job.identity, ids | {("patient", scan.patient_id) for scan in scans})
    Console().print(account(summary))
    return summary


def account(summary: IngestSummary) -> Table:
    """The summary as a table for the terminal."""
    table = Table(title=f"Ingested into {summary.output}", show_header=False, title_justify="left")
    rows = {
        "scans planned": summary.planned,
        "scans ingested": summary.ingested,
        "scans put aside": summary.quarantined,
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


def _job(card: Card, output: Path, spacing_mm: TripleMm, codec: Codec) -> Job:
    return Job(
        output=output,
        dataset=card.name,
        card_digest=rule_digest(card),
        class_map=card.organs.classes,
        spacing_mm=spacing_mm,
        codec=codec,
        hu=card.hu,
        shared_frame=card.shared_frame,
        expects_reports=card.reports is not None,
        audit=card.audit,
        identity=load_identity(card.ids, output),
    )


def _check_output(output: Path, plans: Sequence[ShardPlan]) -> None:
    if output.exists() and not output.is_dir():
        raise CardError(f"The output {output} is a file. Give a folder.")
    foreign = sorted({path.name for path in output.glob("*.h5")} - {plan.name for plan in plans})
    if foreign:
        raise CardError(
            f"The output {output} holds {len(foreign)} shards that this card does not plan ({foreign[0]}, ...). "
            "Give another folder or remove them."
        )


def _run(plans: Sequence[ShardPlan], job: Job, workers: int) -> dict[str, ShardNote]:
    for plan in plans:
        progress_path(job.output, plan.name).unlink(missing_ok=True)
    with _progress(plans, job.output):
        parallel = Parallel(n_jobs=workers if len(plans) > 1 else 1, return_as="generator_unordered")
        return {note.name: note for note in parallel(delayed(fill_shard)(plan, job) for plan in plans)}


@contextmanager
def _progress(plans: Sequence[ShardPlan], output: Path) -> Iterator[None]:
    """A bar over all workers, which tell their progress by the size of a file each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stop = Event()
    with Progress(*columns) as bar:
        task = bar.add_task("Ingesting scans", total=sum(len(plan.scans) for plan in plans))
        paths = [progress_path(output, plan.name) for plan in plans]

        def refresh() -> None:
            while not stop.wait(0.25):
                bar.update(task, completed=sum(path.stat().st_size for path in paths if path.exists()))

        watcher = Thread(target=refresh, daemon=True)
        watcher.start()
        try:
            yield
            bar.update(task, completed=sum(len(plan.scans) for plan in plans))
        finally:
            stop.set()
            watcher.join()
            for path in paths:
                path.unlink(missing_ok=True)


def _summary(notes: Sequence[ShardNote], output: Path, kept: int, seconds: float) -> IngestSummary:
    refused_by_study = {study: reasons for note in notes for study, reasons in note.refused.items()}
    refused: Counter[str] = Counter()
    for reasons in refused_by_study.values():
        refused.update(reasons)
    flags: Counter[str] = Counter()
    for note in notes:
        flags.update(note.flags)
    return IngestSummary(
        output=output,
        planned=sum(note.planned for note in notes),
        ingested=sum(note.ingested for note in notes),
        with_organs=sum(note.with_organs for note in notes),
        with_report=sum(note.with_report for note in notes),
        snippets=sum(note.snippets for note in notes),
        organ_sentences=sum(note.organ_sentences for note in notes),
        refused=dict(refused),
        flags=dict(flags),
        put_aside=tuple(entry for note in notes for entry in note.put_aside),
        shards_kept=kept,
        shards_written=len(notes) - kept,
        seconds=seconds,
    )


def _write_quarantine(output: Path, dataset: str, put_aside: Sequence[PutAside]) -> None:
    with (output / QUARANTINE).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["dataset", "scan_id", "part", "kind", "reason"])
        writer.writerows([dataset, entry.scan_id, entry.part, entry.kind, entry.reason] for entry in put_aside)
