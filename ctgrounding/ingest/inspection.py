"""``ctgrounding inspect``: what is in shards."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import Shard, find_shards

HISTOGRAM_BINS = 6


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
        spacing_mm: Grids found, along ``D H W``, and their scans.
        coverage_mm: z extent of every scan.
        organs: Organ to scans that show it.
        reports: Scans with a report.
        snippets: Snippets over all scans.
        abnormal_sentences: Organ sentences that say abnormal.
        organ_sentences: Organ sentences.
        labels: Question to how many scans have 1, 0 and nothing.
        hu_rules: How values became HU, and how many scans.
        flags: Audit flags and their scans.
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
    spacing_mm: dict[tuple[float, float, float], int]
    coverage_mm: tuple[float, ...]
    organs: dict[str, int]
    reports: int
    snippets: int
    organ_sentences: int
    abnormal_sentences: int
    labels: dict[str, tuple[int, int, int]]
    hu_rules: dict[str, int]
    flags: dict[str, int]
    verified: int


def inspect(shards: str | list[str], verify: bool = False) -> Inspection:
    """Say what is in shards.

    Args:
        shards: A shard or a folder that holds some, or a list of them.
        verify: Read every scan and compare it with its hash.

    Returns:
        The numbers that are printed.

    Raises:
        ShardError: If there is none, one is damaged, or a scan differs from its hash.
    """
    paths = [shards] if isinstance(shards, str) else shards
    opened = [Shard(path) for path in find_shards(paths)]
    verified = sum(_verify(shard) for shard in track(opened, "Verifying shards")) if verify else 0
    inspection = _look(opened, verified)
    console = Console()
    for table in tables(inspection):
        console.print(table)
    return inspection


def tables(inspection: Inspection) -> list[Table]:
    """The inspection as tables for the terminal."""
    return [_counts(inspection), _shares("organ", inspection.organs, inspection.scans), _label_table(inspection)]


def _verify(shard: Shard) -> int:
    for row in range(len(shard.records)):
        shard.verify(row)
    return len(shard.records)


def _look(shards: Sequence[Shard], verified: int) -> Inspection:
    records = [record for shard in shards for record in shard.records]
    sentences = [sentence for record in records for sentence in record.organ_sentences]
    return Inspection(
        shards=len(shards),
        bytes_on_disk=sum(Path(shard.path).stat().st_size for shard in shards),
        codecs=dict(Counter(str(shard.attributes["codec"]) for shard in shards)),
        datasets=dict(Counter(record.dataset for record in records)),
        splits=dict(Counter(record.split for record in records)),
        patients=len({record.patient_id for record in records}),
        studies=len({record.study_id for record in records}),
        scans=len(records),
        spacing_mm=dict(Counter(record.spacing_mm for record in records)),
        coverage_mm=tuple(record.shape[0] * record.spacing_mm[0] for record in records),
        organs=dict(Counter(organ for record in records for organ in record.organ_voxels or ())),
        reports=sum(bool(record.report) for record in records),
        snippets=sum(len(record.snippets) for record in records),
        organ_sentences=len(sentences),
        abnormal_sentences=sum(sentence.status == "abnormal" for sentence in sentences),
        labels=_prevalence(records),
        hu_rules=dict(Counter(str(record.verdict.get("hu", {}).get("rule", "unknown")) for record in records)),
        flags=dict(Counter(flag for record in records for flag in record.verdict.get("flags", ()))),
        verified=verified,
    )


def _prevalence(records: Sequence[ScanRecord]) -> dict[str, tuple[int, int, int]]:
    questions = {question: None for record in records for question in record.labels}
    counts = {question: Counter(record.labels.get(question) for record in records) for question in questions}
    return {question: (count[1], count[0], count[None]) for question, count in counts.items()}


def _counts(inspection: Inspection) -> Table:
    table = Table(title="Shards", show_header=False, title_justify="left")
    rows = {
        "shards": f"{inspection.shards} ({inspection.bytes_on_disk / 1e6:.1f} MB, {_listed(inspection.codecs)})",
        "datasets": _listed(inspection.datasets),
        "patients / studies / scans": f"{inspection.patients} / {inspection.studies} / {inspection.scans}",
        "splits": _listed(inspection.splits),
        "spacing D, H, W mm": _listed(inspection.spacing_mm),
        "z extent mm": _histogram(inspection.coverage_mm),
        "scans with report": str(inspection.reports),
        "snippets with a depth": str(inspection.snippets),
        "organ sentences": f"{inspection.organ_sentences}, {inspection.abnormal_sentences} abnormal",
        "values became HU by": _listed(inspection.hu_rules),
        "audit flags": _listed(inspection.flags) or "none",
        "scans verified": str(inspection.verified) if inspection.verified else "not asked for (--verify)",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _shares(name: str, counts: dict[str, int], scans: int) -> Table:
    table = Table(name, "scans", "share", title=f"Visible {name}s", title_justify="left")
    for key, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        table.add_row(key, str(count), f"{count / scans:.0%}")
    return table


def _label_table(inspection: Inspection) -> Table:
    table = Table("label", "1", "0", "unknown", "prevalence", title="Labels", title_justify="left")
    for question, (positive, negative, unknown) in inspection.labels.items():
        known = positive + negative
        table.add_row(question, str(positive), str(negative), str(unknown), f"{positive / known:.1%}" if known else "")
    return table


def _listed(counts: dict[str, int] | dict[tuple[float, float, float], int]) -> str:
    shown = {key if isinstance(key, str) else " x ".join(f"{mm:g}" for mm in key): n for key, n in counts.items()}
    return ", ".join(f"{key} {count}" for key, count in sorted(shown.items(), key=lambda pair: -pair[1]))


def _histogram(values: Sequence[float]) -> str:
    if not values:
        return "none"
    counts, edges = np.histogram(values, bins=HISTOGRAM_BINS)
    parts = zip(edges[:-1], edges[1:], counts, strict=True)
    return ", ".join(f"{low:.0f}-{high:.0f}: {count}" for low, high, count in parts if count)
