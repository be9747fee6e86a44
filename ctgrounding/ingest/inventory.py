"""What is in shards, counted."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import Shard
from ctgrounding.geometry import Triple, TripleMm
from ctgrounding.ingest.text_checks import suspicious_texts


@dataclass(frozen=True)
class Inspection:
    """What is in shards.

    Attributes:
        shards: How many there are.
        bytes_on_disk: Their size.
        codecs: Codec to shards.
        datasets: Dataset to scans.
        splits: Split to scans.
        patients: Distinct patients.
        studies: Distinct studies.
        scans: Scans.
        put_aside: Why places are empty, and how many.
        spacing_mm: Grids found, along ``D H W``, and their scans.
        shapes: Voxels of every scan, along ``D H W``.
        extents_mm: Extent of every scan, along ``D H W``.
        source_slice_mm: Slice distance of every source, where the verdict says it.
        organs: Organ to scans that show it.
        with_organs: Scans with an organ map.
        reports: Scans with a report.
        snippets: Snippets over all scans.
        cited: Scans with a snippet.
        organ_sentences: Organ sentences.
        abnormal_sentences: Of them, those that say abnormal.
        labels: Question to how many scans have 1, 0 and nothing.
        hu_rules: How values became HU, and how many scans.
        flags: Audit flags and their scans.
        problems: What is unsound, in words; empty if nothing is.
        suspicious: Kind of text that may identify a person, and the scans whose report has it.
        verified: Scans re-hashed, all well.
    """

    shards: int
    bytes_on_disk: int
    codecs: dict[str, int]
    datasets: dict[str, int]
    splits: dict[str, int]
    patients: int
    studies: int
    scans: int
    put_aside: dict[str, int]
    spacing_mm: dict[TripleMm, int]
    shapes: tuple[Triple, ...]
    extents_mm: tuple[TripleMm, ...]
    source_slice_mm: tuple[float, ...]
    organs: dict[str, int]
    with_organs: int
    reports: int
    snippets: int
    cited: int
    organ_sentences: int
    abnormal_sentences: int
    labels: dict[str, tuple[int, int, int]]
    hu_rules: dict[str, int]
    flags: dict[str, int]
    problems: tuple[str, ...]
    suspicious: dict[str, tuple[str, ...]]
    verified: int


def look(shards: Sequence[Shard], verified: int = 0) -> Inspection:
    """Count what is in shards.

    Args:
        shards: The shards.
        verified: How many of their scans were compared with their hashes.
    """
    records = [record for shard in shards for record in shard.records]
    sentences = [sentence for record in records for sentence in record.organ_sentences]
    extents = [tuple(n * mm for n, mm in zip(record.shape, record.spacing_mm, strict=True)) for record in records]
    return Inspection(
        shards=len(shards),
        bytes_on_disk=sum(shard.path.stat().st_size for shard in shards),
        codecs=dict(Counter(str(shard.attributes["codec"]) for shard in shards)),
        datasets=dict(Counter(record.dataset for record in records)),
        splits=dict(Counter(record.split for record in records)),
        patients=len({record.patient_id for record in records}),
        studies=len({record.study_id for record in records}),
        scans=len(records),
        put_aside=dict(Counter(reason for shard in shards for reason in shard.empty_places.values())),
        spacing_mm=dict(Counter(record.spacing_mm for record in records)),
        shapes=tuple(record.shape for record in records),
        extents_mm=tuple((d, h, w) for d, h, w in extents),
        source_slice_mm=tuple(mm for record in records if (mm := _slice_mm(record)) is not None),
        organs=dict(Counter(organ for record in records for organ in record.organ_voxels or ())),
        with_organs=sum(record.organ_voxels is not None for record in records),
        reports=sum(bool(record.report) for record in records),
        snippets=sum(len(record.snippets) for record in records),
        cited=sum(bool(record.snippets) for record in records),
        organ_sentences=len(sentences),
        abnormal_sentences=sum(sentence.status == "abnormal" for sentence in sentences),
        labels=_prevalence(records),
        hu_rules=dict(Counter(str(record.verdict.get("hu", {}).get("rule", "unknown")) for record in records)),
        flags=dict(Counter(flag for record in records for flag in record.verdict.get("flags", ()))),
        problems=tuple(_problems(shards, records)),
        suspicious=suspicious_texts(records),
        verified=verified,
    )


def _problems(shards: Sequence[Shard], records: Sequence[ScanRecord]) -> list[str]:
    """What no set of shards should have."""
    scans = Counter((record.dataset, record.scan_id) for record in records)
    images = Counter(record.sha256 for record in records)
    found = {
        "scan ids occur more than once": sum(count > 1 for count in scans.values()),
        "images occur more than once": sum(count > 1 for count in images.values()),
        "patients are in more than one split": _with_several(records, "patient_id", "split"),
        "studies belong to more than one patient": _with_several(records, "study_id", "patient_id"),
        "tables of organ classes": len({tuple(shard.classes.items()) for shard in shards}) - 1,
    }
    return [f"{count} {what}" for what, count in found.items() if count]


def _with_several(records: Sequence[ScanRecord], one: str, other: str) -> int:
    pairs = {(record.dataset, getattr(record, one), getattr(record, other)) for record in records}
    return sum(count > 1 for count in Counter(pair[:2] for pair in pairs).values())


def _slice_mm(record: ScanRecord) -> float | None:
    spacing, axis = record.verdict.get("source_spacing_ijk_mm"), record.verdict.get("slice_axis")
    return float(spacing[axis]) if isinstance(spacing, list) and isinstance(axis, int) else None


def _prevalence(records: Sequence[ScanRecord]) -> dict[str, tuple[int, int, int]]:
    questions = {question: None for record in records for question in record.labels}
    counts = {question: Counter(record.labels.get(question) for record in records) for question in questions}
    return {question: (count[1], count[0], count[None]) for question, count in counts.items()}
