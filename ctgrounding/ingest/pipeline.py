"""``ctgrounding ingest``: a dataset card in, shards out, and an account of every scan."""

import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ctgrounding.data.shards import Codec, Shard
from ctgrounding.errors import CardError, CTGroundingError, ShardError
from ctgrounding.geometry import TripleMm
from ctgrounding.ingest.account import IngestSummary, account, summarize, write_quarantine
from ctgrounding.ingest.audit.copies import Seen, find_copies
from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.card_files import check_spacing, load_card
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.catalog import strangers
from ctgrounding.ingest.crew import fill_shards
from ctgrounding.ingest.identity import Identity, load_identity, write_private_map
from ctgrounding.ingest.notes import NOTES, ShardNote, note_path, progress_path
from ctgrounding.ingest.outlook import check_redo, finished, outlook
from ctgrounding.ingest.plan import ShardPlan, expected_bytes, plan_shards, write_plan
from ctgrounding.ingest.worker import Job

PLAN = "plan.csv"
__all__ = ["IngestSummary", "ingest"]


def ingest(
    *,
    card: str,
    output: Path,
    root: Path | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    codec: Codec = "zstd",
    workers: int = -1,
    cluster: str | None = None,
    scans_per_shard: int = 64,
    limit: int | None = None,
    redo: bool = False,
    dry_run: bool = False,
) -> IngestSummary:
    """Turn hospital files into audited shards, by a dataset card.

    The plan, which says which scan goes where, is written first, to ``plan.csv``. Shards that an earlier run
    finished are kept if nothing that decides their content has changed, so an interrupted ingest goes on where it
    was. A scan that cannot be used leaves its place empty and is named with its reason in ``quarantine.csv``.

    Args:
        card: YAML file of the dataset, or the name of a packaged card.
        output: Folder for the shards. Where ids are hashed, their salt is kept beside it, not in it.
        root: Folder of the dataset; takes the place of the card's.
        spacing_mm: Grid along D, H, W; takes the place of the card's.
        codec: zstd is smallest, lz4 quicker to read, none quickest where the set fits memory.
        workers: Processes; -1 takes every core, 1 works without further ones.
        cluster: Address of a Dask scheduler, ``tcp://host:port``, whose workers take the place of processes here.
        scans_per_shard: Places of a shard.
        limit: Take only so many scans.
        redo: Write finished shards again where the card, the settings or the version of ctgrounding have changed.
        dry_run: Say what would be done, and do nothing.

    Returns:
        The account of it.

    Raises:
        CardError: If the card does not fit the files, the output holds shards of something else, or finished
            shards would have to be written again and ``redo`` does not say so.
        ShardError: If a shard cannot be written, as on a full disk; finished shards stay.
        ConfigError: If the cluster does not answer.
    """
    started, console = time.monotonic(), Console()
    loaded = load_card(card, root)
    spacing: TripleMm = spacing_mm or loaded.spacing_mm
    check_spacing(spacing)
    if workers == 0:
        raise CardError("workers is 0. Give at least 1, or -1 for every core.")
    with _disk_said(output):
        _check_folder(output)
        identity = load_identity(loaded.ids, output, keep=not dry_run)
        plans = plan_shards(loaded, _settings(spacing, codec, identity), scans_per_shard, limit)
        _check_foreign(output, plans)
        kept, changed = finished(plans, output)
        to_do = [plan for plan in plans if plan.name not in kept]
        scans = sum(len(plan.scans) for plan in plans)
        if limit is None and (unknown := strangers(loaded, [scan for plan in plans for scan in plan.scans])):
            console.print(unknown, markup=False)
        console.print(outlook(plans, to_do, changed, expected_bytes(to_do, spacing, codec), output))
        if dry_run:
            return summarize(list(kept.values()), output, scans, len(kept), 0, time.monotonic() - started)
        check_redo(changed, redo)
        (output / NOTES).mkdir(parents=True, exist_ok=True)
        _write_ids(plans, output, identity)
        job = _job(loaded, output, spacing, codec, identity)
        written = _run(to_do, job, workers, cluster)
        copies = _copies(plans, job)
        if copies and "duplicate" in loaded.audit.quarantine:
            written |= _run(_without(copies, plans, job), job, workers, cluster)
            copies = {}
        notes = [written.get(plan.name) or kept[plan.name] for plan in plans]
        summary = summarize(notes, output, scans, len(kept), len(written), time.monotonic() - started)
        if copies:
            summary = replace(summary, flags={**summary.flags, "duplicate": len(copies)})
        write_quarantine(output, loaded.name, summary.put_aside)
    console.print(account(summary))
    return summary


def _settings(spacing_mm: TripleMm, codec: Codec, identity: Identity) -> dict[str, str]:
    spacing = " x ".join(f"{step:g}" for step in spacing_mm)
    return {"spacing_mm": spacing, "codec": codec, "version": version("ctgrounding"), "salt": identity.mark}


def _job(card: Card, output: Path, spacing_mm: TripleMm, codec: Codec, identity: Identity) -> Job:
    return Job(
        output=output.resolve(),
        dataset=card.name,
        class_map=card.organs.classes,
        spacing_mm=spacing_mm,
        codec=codec,
        hu=card.hu,
        shared_frame=card.shared_frame,
        expects_reports=card.reports is not None,
        audit=card.audit,
        version=version("ctgrounding"),
        identity=identity,
    )


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise CardError(f"The output {output} is a file. Give a folder.")


def _check_foreign(output: Path, plans: Sequence[ShardPlan]) -> None:
    foreign = sorted({path.name for path in output.glob("*.h5")} - {plan.name for plan in plans})
    if foreign:
        raise CardError(
            f"The output {output} holds {len(foreign)} shards that this card does not plan ({foreign[0]}, ...). "
            "Give another folder or remove them."
        )


def _copies(plans: Sequence[ShardPlan], job: Job) -> dict[str, Remark]:
    """Scans that repeat an earlier one, ids as they are written; known when all shards are finished."""
    return find_copies(
        Seen(record.scan_id, record.patient_id, record.split, record.sha256, record.verdict.get("series", ""))
        for plan in plans
        for record in Shard(job.output / plan.name).records
    )


def _without(copies: Mapping[str, Remark], plans: Sequence[ShardPlan], job: Job) -> list[ShardPlan]:
    """Shards that hold copies, to be written again without; their notes go, lest a kill leaves it half-done."""
    again = []
    for plan in plans:
        written = {scan.scan_id: job.identity.write("scan", scan.scan_id) for scan in plan.scans}
        found = {given: copies[scan_id] for given, scan_id in written.items() if scan_id in copies}
        if found:
            note_path(job.output, plan.name).unlink(missing_ok=True)
            again.append(replace(plan, copies=found))
    return again


def _write_ids(plans: Sequence[ShardPlan], output: Path, identity: Identity) -> None:
    write_plan(plans, output / PLAN, identity)
    scans = [scan for plan in plans for scan in plan.scans]
    ids = {(kind, getattr(scan, f"{kind}_id")) for scan in scans for kind in ("scan", "study", "patient")}
    write_private_map(output, identity, ids)


def _run(plans: Sequence[ShardPlan], job: Job, workers: int, cluster: str | None) -> dict[str, ShardNote]:
    for plan in plans:
        progress_path(job.output, plan.name).unlink(missing_ok=True)
    notes: dict[str, ShardNote] = {}
    try:
        with _progress(plans, job.output):
            notes.update((note.name, note) for note in fill_shards(plans, job, workers, cluster))
    except ShardError as error:
        raise ShardError(
            f"{error} {len(notes)} of {len(plans)} shards were finished and stay; the same command goes on from there."
        ) from error
    return notes


@contextmanager
def _disk_said(output: Path) -> Iterator[None]:
    """What the disk of the output refuses becomes one sentence."""
    try:
        yield
    except CTGroundingError:
        raise
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        raise ShardError(f"Cannot write below {output}: {what}. Check the folder and its free space.") from error


@contextmanager
def _progress(plans: Sequence[ShardPlan], output: Path) -> Iterator[None]:
    """A bar over all workers, which tell their progress by the size of a file each."""
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    stop = Event()
    with Progress(*shown, TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn()) as bar:
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
