"""What one worker does: fill one shard, putting aside what cannot be used and saying why."""

from collections import Counter
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from ctgrounding import label_sets
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import Codec, ShardWriter
from ctgrounding.errors import CTGroundingError, ShardError
from ctgrounding.geometry import TripleMm
from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.audit.rule import AuditRule
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.examination import Rules, examine, guarded
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.notes import NOTES, PutAside, ShardNote, locked, note_path, progress_path
from ctgrounding.ingest.plan import ShardPlan
from ctgrounding.ingest.scan import Scan
from ctgrounding.ingest.snippets import resolve
from ctgrounding.ingest.supervision import StudySlices, given_sentences, organ_sentences, read_report

KILLED = (
    "Its worker was killed twice while reading it, most likely because memory ran out. Delete this shard and run "
    "again with fewer workers or more memory, or leave the scan out."
)


@dataclass(frozen=True)
class Job:
    """What is the same for every shard of an ingest.

    Attributes:
        output: Folder of the shards.
        dataset: Name of the card.
        class_map: Label set of the organ maps.
        spacing_mm: Grid of the shards along ``D H W``.
        codec: How voxels are compressed.
        hu: The card's HU rule.
        shared_frame: Whether NIfTI scans of a study share one world frame.
        expects_reports: Whether the card names reports, so that a study without one is worth a word.
        audit: The card's audit rule.
        version: Of the ctgrounding that ingests; workers elsewhere must have the same.
        identity: How ids are written.
    """

    output: Path
    dataset: str
    class_map: str
    spacing_mm: TripleMm
    codec: Codec
    hu: str
    shared_frame: bool
    expects_reports: bool
    audit: AuditRule
    version: str
    identity: Identity = field(repr=False)

    @property
    def rules(self) -> Rules:
        """What decides about one scan."""
        return Rules(self.spacing_mm, self.hu, self.class_map, self.audit)


def fill_shard(plan: ShardPlan, job: Job, killers: frozenset[int] = frozenset()) -> ShardNote:
    """Ingest the scans of one shard, unless another process has just done so.

    Args:
        plan: Which scans, in which rows.
        job: How.
        killers: Rows whose reading has killed a worker more than once; they are put aside.

    Raises:
        ShardError: If the shard cannot be written or does not read back.
    """
    _check_place(job)
    with locked(job.output, plan.name):
        finished = ShardNote.of(job.output, plan.name)
        if finished is not None and finished.causes == plan.causes:
            return finished
        note_path(job.output, plan.name).unlink(missing_ok=True)
        note = _fill(plan, job, killers)
        note.keep(job.output)
    return note


def _check_place(job: Job) -> None:
    if job.version != version("ctgrounding"):
        raise ShardError(
            f"A worker has version {version('ctgrounding')}, but {job.version} is ingesting. Install that one."
        )
    if not (job.output / NOTES).is_dir():
        raise ShardError(f"A worker does not see the output folder {job.output}. Give one that all machines share.")


def _fill(plan: ShardPlan, job: Job, killers: frozenset[int]) -> ShardNote:
    note = ShardNote(plan.name, plan.causes, planned=len(plan.scans))
    studies = {study: StudySlices(scans, job.identity, job.shared_frame) for study, scans in plan.studies.items()}
    writer = ShardWriter(
        job.output / plan.name,
        spacing_mm=job.spacing_mm,
        classes=label_sets.load(job.class_map),
        dataset=job.dataset,
        codec=job.codec,
        provenance={"card": plan.causes["card"], "classes": job.class_map},
    )
    with progress_path(job.output, plan.name).open("wb", buffering=0) as progress, writer:
        for row, planned in enumerate(plan.scans):
            if row in killers:
                _put_aside(planned, Remark("worker_killed", KILLED), job, writer, note)
            elif planned.scan_id in plan.copies:
                _put_aside(planned, plan.copies[planned.scan_id], job, writer, note)
            else:
                _take_in(planned, job, studies[planned.study_id], writer, note)
            progress.write(b".")
    return note


def _take_in(planned: PlannedScan, job: Job, study: StudySlices, writer: ShardWriter, note: ShardNote) -> None:
    found = examine(planned, job.rules)
    if found.mask_refusal:
        written_id = job.identity.write("scan", planned.scan_id)
        note.put_aside.append(PutAside.of(written_id, "organs", found.mask_refusal))
    if found.refusal:
        _put_aside(planned, found.refusal, job, writer, note)
    if found.scan:
        record = _record(planned, found.scan, job, study, note)
        writer.write(record, found.scan.image_hu, found.organs)
        note.ingested += 1
        note.with_organs += found.organs is not None


def _put_aside(planned: PlannedScan, remark: Remark, job: Job, writer: ShardWriter, note: ShardNote) -> None:
    note.put_aside.append(PutAside.of(job.identity.write("scan", planned.scan_id), "scan", remark))
    writer.leave_empty(remark.reason)


def _record(planned: PlannedScan, scan: Scan, job: Job, study: StudySlices, note: ShardNote) -> ScanRecord:
    write = job.identity.write
    organs = frozenset(label_sets.load(job.class_map).values())
    verdict = {**scan.verdict.to_json(), "series": write("series", scan.source.uid)}
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
        report = guarded(lambda: read_report(planned.report))
    except CTGroundingError as error:
        note.put_aside.append(PutAside(record.scan_id, "report", "no_report", str(error)))
        return record
    own, numbered = study.around(planned, scan)
    snippets, refused = resolve(report.content.snippets, own, numbered, scan.grid.field_mm, organs)
    told = planned.sentences
    sentences = (
        organ_sentences(report.content, organs) if told is None else given_sentences(told, report.sections, organs)
    )
    note.refused.setdefault(record.study_id, dict(refused))
    note.with_report += 1
    note.snippets += len(snippets)
    note.organ_sentences += len(sentences)
    return replace(record, report=report.sections, snippets=snippets, organ_sentences=sentences)
