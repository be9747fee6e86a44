"""What the scans of a run say before the first step: labels and their counts, where organs are named, who they are."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from ctgrounding import label_sets, questions
from ctgrounding.data.index import ScanIndex
from ctgrounding.errors import ConfigError


def label_columns(scans: ScanIndex, asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """Label columns of a batch: names asked for, those of a question list, or all that the shards have.

    Raises:
        ConfigError: If a name asked for is no label of the shards.
    """
    known = scans.label_names
    if asked is None:
        return known
    names = tuple(asked if not isinstance(asked, str) else (question.name for question in questions.load(asked)))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"data.label_names has '{unknown[0]}', which no scan of the shards states. They have: {list(known)}."
        )
    return names


def check_sections(scans: ScanIndex, sections: Sequence[str]) -> None:
    """Refuse report sections that no scan has: every report would count as absent, and no loss would say so.

    Raises:
        ConfigError: With the sections that there are, where there are some.
    """
    known: set[str] = set()
    for place in range(len(scans)):
        known.update(name for name, text in scans.record(place).report.items() if text.strip())
        if not known.isdisjoint(sections):
            return
    if known:
        raise ConfigError(
            f"data.report_text.sections are {list(sections)}, which no report of the shards has. They have: "
            f"{sorted(known)}."
        )


def label_counts(scans: ScanIndex, label_names: Sequence[str]) -> Int64[Tensor, "Q 2"]:
    """Number of negatives and positives of each label column; unknown ones count for neither."""
    counts = torch.zeros((len(label_names), 2), dtype=torch.int64)
    for place in range(len(scans)):
        labels = scans.record(place).labels
        for column, name in enumerate(label_names):
            value = labels.get(name)
            if value is not None:
                counts[column, value] += 1
    return counts


def organ_depths(scans: ScanIndex, label_set: str = "total_v2") -> Iterator[tuple[int, float]]:
    """For each snippet the label id of the organ that it names (0 for none) and where in its scan it lies.

    The place is a fraction of the scan: 0 at the lower edge of the lowest real voxel, 1 at the upper edge of
    the highest.
    """
    label_of = {organ: label for label, organ in label_sets.load(label_set).items()}
    for place in range(len(scans)):
        record = scans.record(place)
        (low, high), step_mm = record.valid_box[0], record.spacing_mm[0]
        bottom_mm = record.origin_mm[2] + (low - 0.5) * step_mm
        for snippet in record.snippets:
            middle_mm = sum(snippet.depth_mm) / 2
            yield label_of.get(snippet.organ, 0), (middle_mm - bottom_mm) / ((high - low) * step_mm)


def identities(scans: ScanIndex) -> Iterator[tuple[str, str, str, str, str]]:
    """For each scan its id, dataset, patient, hash of voxels and report text, for a search for leaks."""
    for place in range(len(scans)):
        record = scans.record(place)
        report = "\n".join(record.report.values())
        yield record.scan_id, record.dataset, record.patient_id, record.sha256, report
