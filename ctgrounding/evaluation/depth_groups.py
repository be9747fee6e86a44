"""Localization errors of groups of snippets, and the prior that an organ's name gives."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from ctgrounding import label_sets
from ctgrounding.evaluation.base import Resampling, bounds
from ctgrounding.evaluation.rows import Table
from ctgrounding.functional.bootstrap import weighted_means

ANY_ORGAN = 0
"""Label id that stands for no organ or any."""

NAMELESS = ("middle", "random", "untrained")
"""Answers that do not read what organ a sentence names."""

LONG_SCAN_MM = 300.0
SMALL_LESION_MM = 20.0


def depth_prior(rows: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Mean place of each organ's snippets in their scans, from training data.

    Args:
        rows: For each training snippet the label id of the organ that it names (0 for none) and its
            depth as a fraction of the scan: 0 at the lower edge of the lowest real voxel, 1 at the upper edge of
            the highest.

    Returns:
        Mean fraction by label id; id 0 holds the mean of all snippets.
    """
    fractions: dict[int, list[float]] = {}
    for organ, fraction in rows:
        for label in {organ, ANY_ORGAN}:
            fractions.setdefault(label, []).append(fraction)
    return {label: float(np.mean(values)) for label, values in fractions.items()}


def over_best_baseline(
    errors: Float64[np.ndarray, "R A"], names: Sequence[str], patients: NDArray[np.int64], resampling: Resampling
) -> dict[str, float]:
    """The model's mean error as a fraction of the best of middle, random and untrained.

    Args:
        errors: Absolute errors, one column an answer, the model's first.
        names: Of the columns.
        patients: Of the rows.
        resampling: Of the interval.
    """
    means = weighted_means(errors)
    rivals = [names.index(name) for name in NAMELESS if name in names]

    def ratio(weights: Float64[np.ndarray, "r R"]) -> Float64[np.ndarray, "r 1"]:
        found = means(weights)
        result: NDArray[np.float64] = found[:, :1] / found[:, rivals].min(1, keepdims=True)
        return result

    with np.errstate(invalid="ignore", divide="ignore"):
        interval = resampling.interval(ratio, patients)
    name = "snippet_localization/mae_over_best_baseline"
    return {name: float(interval.estimate[0]), **bounds(name, interval)}


def small_lesions(errors: Mapping[str, NDArray[np.float64]], size_mm: NDArray[np.float64]) -> dict[str, float]:
    """Errors of the snippets that state a size under 20 mm."""
    small = size_mm < SMALL_LESION_MM
    numbers = {"snippet_localization/small_snippets": float(small.sum())}
    if small.any():
        numbers |= {
            f"snippet_localization/small_{'' if name == 'model' else name + '_'}mae_mm": float(values[small].mean())
            for name, values in errors.items()
        }
    return numbers


def groups(table: Table, names: Mapping[int, str]) -> dict[str, NDArray[np.bool_]]:
    """Groups of snippets by name: by stated size, length of the scan, and organ named; empty ones left out."""
    length, size, organ = (
        table.array("high_mm") - table.array("low_mm"),
        table.array("size_mm"),
        table.array("organ"),
    )
    found = {
        "All snippets": np.ones(len(table), dtype=bool),
        "Stated size under 20 mm": size < SMALL_LESION_MM,
        "Stated size from 20 mm": size >= SMALL_LESION_MM,
        "Scan up to 300 mm long": length <= LONG_SCAN_MM,
        "Scan over 300 mm long": length > LONG_SCAN_MM,
        "No organ named": organ == ANY_ORGAN,
    }
    found |= {
        label_sets.spoken(names.get(label, f"label {label}")).capitalize(): organ == label
        for label in sorted(set(organ.tolist()) - {ANY_ORGAN})
    }
    return {name: chosen for name, chosen in found.items() if chosen.any()}


def strata(table: Table, errors: Mapping[str, NDArray[np.float64]], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Errors of each group of snippets."""
    return [
        {
            "name": name,
            "snippets": int(chosen.sum()),
            "scans": len({key for key, is_in in zip(table.keys, chosen.tolist(), strict=True) if is_in}),
            "median_mm": float(np.median(errors["model"][chosen])),
            "within_12_mm": float((errors["model"][chosen] <= 12.0).mean()),
            "within_24_mm": float((errors["model"][chosen] <= 24.0).mean()),
            "mae_mm": {answer: float(values[chosen].mean()) for answer, values in errors.items()},
        }
        for name, chosen in groups(table, names).items()
    ]


def rows_by_scan(table: Table, inside: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Rows of each scan among the snippets inside."""
    names = np.array(table.keys)[inside]
    return [np.flatnonzero(names == name) for name in np.unique(names)]


def fraction_of_scan(table: Table) -> NDArray[np.float64]:
    """Place of each target in its scan, 0 at the lower edge and 1 at the upper."""
    low, high = table.array("low_mm"), table.array("high_mm")
    fraction: NDArray[np.float64] = (table.array("target_mm") - low) / (high - low)
    return fraction
