"""The 18 classes of CT-RATE from what a report says, unknown kept apart from absent."""

from collections.abc import Iterable

from ctgrounding.reports.draft import Fact

CT_RATE_LABELS = (
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)
"""Names as in the published label tables."""


def ct_rate_labels(facts: Iterable[Fact]) -> dict[str, int | None]:
    """1 where the report affirms a class anywhere, 0 where it only denies it, None where it is silent or in doubt.

    Args:
        facts: What the clauses settle, as :func:`~ctgrounding.reports.statements.find_statements` collects it.
    """
    labels: dict[str, int | None] = dict.fromkeys(CT_RATE_LABELS)
    for label, present in facts:
        labels[label] = 1 if present or labels[label] else 0
    return labels
