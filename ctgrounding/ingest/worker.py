"""What one worker does: fill one shard, putting aside what cannot be used and saying why."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from ctgrounding import label_sets
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import Codec, ShardWriter
from ctgrounding.errors import CTGroundingError, ScanError
from ctgrounding.geometry import Grid, TripleMm
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.plan import ShardPlan
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.scan import Scan, bring, bring_organs
from ctgrounding.ingest.snippets import resolve
from ctgrounding.ingest.supervision import StudySlices, organ_sentences, read_report

Read = TypeVar("Read")

NOTES = ".ingest"
"""Folder in the output for notes of finished shards and progress; may be deleted, then all is done again."""


@dataclass(frozen=True)
class Job:
    """What is the same for every shard of an ingest.

    Attributes:
        output: Folder of the shards.
        dataset: Name of the card.
        card_digest: Hash of the card's rules, for the shard's provenance.
        class_map: Label set of the organ maps.
        spacing_mm: Grid of the shards along ``D H W``.
        codec: How voxels are compressed.
        hu: The card's HU rule.
        shared_frame: Whether NIfTI scans of a study share one world frame.
        expects_reports: Whether the card names reports, so that a study without one is worth a word.
        identity: How ids are written.
    """

    output: Path
    dataset: str
    card_digest: str
    class_map: str
    spacing_mm: TripleMm
    codec: Codec
    hu: str
    shared_frame: bool
    expects_reports: bool
    identity: Identity = field(repr=False)


@dataclass(frozen=True)
class PutAside:
    """Something that could not be used.

    Attributes:
        scan_id: The scan, as ids are written.
        part: ``scan``, ``organs`` or ``report``; without the last two a scan goes in all the same.
        reason: Why, without anything that identifies.
    """

    scan_id: str
    part: str
    reason: str


@dataclass
class ShardNote:
    """What is left to say of a finished shard; kept beside it so that a rerun need not do it again.

    Attributes:
        name: File name.
        digest: Of its plan.
        planned: Scans planned.
        ingested: Scans written.
        with_organs: Of them, those with organ map.
        with_report: Of them, those with report.
        snippets: Snippets resolved, counted once for every scan that carries them.
        organ_sentences: Likewise.
        flags: Audit flags and how many scans have them.
        refused: Study, as ids are written, to reasons and how many of its snippets were refused for each.
        put_aside: What could not be used.
    """

    name: str
    digest: str
    planned: int = 0
    ingested: int = 0
    with_organs: int = 0
    with_report: int = 0
    snippets: int = 0
    organ_sentences: int = 0
    flags: dict[str, int] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    put_aside: list[PutAside] = field(default_factory=list)

    @classmethod
    def of(cls, plan: ShardPlan, output: Path) -> "ShardNote | None":
        """The note of a shard that is finished and still fits its plan, else None."""
        path = note_path(output, plan.name)
        if not path.is_file() or not (output / plan.name).is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            values["put_aside"] = [PutAside(**entry) for entry in values["put_aside"]]
            note = cls(**values)
        except (ValueError, TypeError, KeyError):
            return None
        return note if note.digest == plan.digest else None

    def keep(self, output: Path) -> None:
        """Write the note, last of all, so that it vouches for a finished shard."""
        path = note_path(output, self.name)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), ensure_ascii=False, sort_keys=True), encoding="utf-8")
        partial.replace(path)


def note_path(output: Path, shard: str) -> Path:
    """Where the note of a shard lies."""
    return output / NOTES / f"{Path(shard).stem}.json"


def progress_path(output: Path, shard: str) -> Path:
    """A file that grows by one byte for every scan that is done."""
    return output / NOTES / f"{Path(shard).stem}.progress"


def fill_shard(plan: ShardPlan, job: Job) -> ShardNote:
    """Ingest the scans of one shard.

    Args:
        plan: Which scans, in which rows.
        job: How.

    Raises:
        ShardError: If the shard cannot be written or does not read back.
    """
    note = ShardNote(plan.name, plan.digest, planned=len(plan.scans))
    classes = label_sets.load(job.class_map)
    studies = {study: StudySlices(scans, job.identity, job.shared_frame) for study, scans in plan.studies.items()}
    note_path(job.output, plan.name).unlink(missing_ok=True)
    writer = ShardWriter(
        job.output / plan.name,
        spacing_mm=job.spacing_mm,
        classes=classes,
        dataset=job.dataset,
        codec=job.codec,
        provenance={"card": job.card_digest, "classes": job.class_map},
    )
    with writer, progress_path(job.output, plan.name).open("wb", buffering=0) as progress:
        for planned in plan.scans:
            written_id = job.identity.write("scan", planned.scan_id)
            try:
                scan = _read(planned, job)
            except CTGroundingError as error:
                note.put_aside.append(PutAside(written_id, "scan", str(error)))
                writer.leave_empty(str(error))
            else:
                organs = _organs(planned, scan.grid, classes, written_id, note)
                record = _record(planned, scan, job, frozenset(classes.values()), studies[planned.study_id], note)
                writer.write(record, scan.image_hu, organs)
                note.ingested += 1
                note.with_organs += organs is not None
            progress.write(b".")
    note.keep(job.output)
    return note


def _read(planned: PlannedScan, job: Job) -> Scan:
    if planned.known_bad:
        raise ScanError(f"The card leaves it out: {planned.known_bad}")
    return _guarded(lambda: bring(open_source(planned.path, planned.series), job.spacing_mm, job.hu))


def _guarded(read: Callable[[], Read]) -> Read:
    """Run a reader; what a library throws at a broken file becomes a named reason without its details."""
    try:
        return read()
    except CTGroundingError:
        raise
    except Exception as error:
        raise ScanError(f"It cannot be read ({type(error).__name__}).") from error


def _organs(
    planned: PlannedScan, grid: Grid, classes: Mapping[int, str], written_id: str, note: ShardNote
) -> UInt8[np.ndarray, "D H W"] | None:
    path = planned.organs_path
    if path is None:
        return None
    labels = np.array(sorted(classes))
    try:
        organs: np.ndarray = _guarded(lambda: bring_organs(open_source(path), grid, labels))
    except CTGroundingError as error:
        note.put_aside.append(PutAside(written_id, "organs", str(error)))
        return None
    return organs


def _record(
    planned: PlannedScan, scan: Scan, job: Job, organs: frozenset[str], study: StudySlices, note: ShardNote
) -> ScanRecord:
    write = job.identity.write
    verdict = scan.verdict.to_json()
    note.flags = dict(Counter(note.flags) + Counter(verdict["flags"]))
    record = ScanRecord(
        scan_id=write("scan", planned.scan_id),
        study_id=write("study", planned.study_id),
        patient_id=write("patient", planned.patient_id),
        dataset=job.dataset,
        split=planned.split,
        shape=scan.grid.shape,
        spacing_mm=scan.grid.spacing_mm,
        origin_mm=scan.grid.origin_mm,
        valid_box=scan.valid_box,
        labels=planned.labels,
        verdict=verdict,
    )
    if not job.expects_reports:
        return record
    try:
        report = _guarded(lambda: read_report(planned.report))
    except CTGroundingError as error:
        note.put_aside.append(PutAside(record.scan_id, "report", str(error)))
        return record
    own, numbered = study.around(planned, scan)
    snippets, refused = resolve(report.content.snippets, own, numbered, scan.grid.field_mm, organs)
    sentences = organ_sentences(report.content, organs)
    note.refused.setdefault(record.study_id, dict(refused))
    note.with_report += 1
    note.snippets += len(snippets)
    note.organ_sentences += len(sentences)
    return replace(record, report=report.sections, snippets=snippets, organ_sentences=sentences)
