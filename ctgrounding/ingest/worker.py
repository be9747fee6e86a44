"""What one worker does: fill one shard, putting aside what cannot be used and saying why."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ctgrounding import label_sets
from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import Codec, ShardWriter
from ctgrounding.errors import CTGroundingError
from ctgrounding.geometry import TripleMm
from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.audit.rule import AuditRule
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.examination import Rules, examine, guarded
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.plan import ShardPlan
from ctgrounding.ingest.scan import Scan
from ctgrounding.ingest.snippets import resolve
from ctgrounding.ingest.supervision import StudySlices, organ_sentences, read_report

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
        audit: The card's audit rule.
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
    audit: AuditRule
    identity: Identity = field(repr=False)

    @property
    def rules(self) -> Rules:
        """What decides about one scan."""
        return Rules(self.spacing_mm, self.hu, self.class_map, self.audit)


@dataclass(frozen=True)
class PutAside:
    """Something that could not be used.

    Attributes:
        scan_id: The scan, as ids are written.
        part: ``scan``, ``organs`` or ``report``; without the last two a scan goes in all the same.
        kind: Name of the audit's finding.
        reason: Why, without anything that identifies.
    """

    scan_id: str
    part: str
    kind: str
    reason: str

    @classmethod
    def of(cls, scan_id: str, part: str, remark: Remark) -> "PutAside":
        """What a finding of the audit put aside."""
        return cls(scan_id, part, remark.kind, remark.reason)


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
            found = examine(planned, job.rules)
            if found.mask_refusal:
                note.put_aside.append(PutAside.of(written_id, "organs", found.mask_refusal))
            if found.refusal:
                note.put_aside.append(PutAside.of(written_id, "scan", found.refusal))
                writer.leave_empty(found.refusal.reason)
            if found.scan:
                study = studies[planned.study_id]
                record = _record(planned, found.scan, job, frozenset(classes.values()), study, note)
                writer.write(record, found.scan.image_hu, found.organs)
                note.ingested += 1
                note.with_organs += found.organs is not None
            progress.write(b".")
    note.keep(job.output)
    return note


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
        report = guarded(lambda: read_report(planned.report))
    except CTGroundingError as error:
        note.put_aside.append(PutAside(record.scan_id, "report", "no_report", str(error)))
        return record
    own, numbered = study.around(planned, scan)
    snippets, refused = resolve(report.content.snippets, own, numbered, scan.grid.field_mm, organs)
    sentences = organ_sentences(report.content, organs)
    note.refused.setdefault(record.study_id, dict(refused))
    note.with_report += 1
    note.snippets += len(snippets)
    note.organ_sentences += len(sentences)
    return replace(record, report=report.sections, snippets=snippets, organ_sentences=sentences)
