"""Areas under ROC and precision-recall curves for many weightings of the same cases at once.

A bootstrap resample is a weight for each case: how often it was drawn. The order of the scores does not
change from one resample to the next, so one sort per label serves them all, and what remains are
cumulative sums. With integer weights every sum is exact, so the areas equal scikit-learn's on the
resampled cases to rounding. Ties count half in the ROC area; average precision takes one step per
distinct score, as scikit-learn does.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import NDArray

from ctgrounding.errors import BatchError

UNKNOWN = -1
_RESAMPLE_CHUNK = 64


@dataclass(frozen=True)
class SortedCases:
    """Known cases of one label, sorted once.

    Attributes:
        negatives: Case numbers of the negatives, by rising score.
        positives: Case numbers of the positives, by rising score.
        below: For each positive, how many negatives score lower.
        level_or_below: For each positive, how many negatives score lower or the same.
        run_start: For each positive, the place of the first positive of the same score.
    """

    negatives: NDArray[np.int64]
    positives: NDArray[np.int64]
    below: NDArray[np.int64]
    level_or_below: NDArray[np.int64]
    run_start: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> "SortedCases":
        """Sort the cases with label 0 or 1; any other label is unknown and takes no part.

        Raises:
            BatchError: If a known case has a score that is no number.
        """
        known = (labels == 0) | (labels == 1)
        if np.isnan(scores[known]).any():
            case = int(np.flatnonzero(known & np.isnan(scores))[0])
            raise BatchError(
                f"Case {case} has a label but its score is NaN. Mark its label unknown (-1) to leave it out."
            )
        order = np.argsort(scores, kind="stable")
        positives, negatives = order[labels[order] == 1], order[labels[order] == 0]
        rising = scores[positives]
        return cls(
            negatives,
            positives,
            np.searchsorted(scores[negatives], rising, side="left"),
            np.searchsorted(scores[negatives], rising, side="right"),
            np.searchsorted(rising, rising, side="left"),
        )

    def auroc(self, weights: Float64[np.ndarray, "R n"]) -> Float64[np.ndarray, "R"]:
        """Area under the ROC curve of each weighting; NaN where one class has no weight."""
        positive, below = weights[:, self.positives].T, _leading(weights[:, self.negatives].T)
        wins = positive * (below[self.below] + below[self.level_or_below])
        with np.errstate(invalid="ignore"):
            area: NDArray[np.float64] = wins.sum(0) / (2.0 * positive.sum(0) * below[-1])
        return area

    def average_precision(self, weights: Float64[np.ndarray, "R n"]) -> Float64[np.ndarray, "R"]:
        """Average precision of each weighting; NaN where there is no positive or no negative weight."""
        positive, hits = weights[:, self.positives].T, _leading(weights[:, self.positives].T)
        misses = _leading(weights[:, self.negatives].T)
        taken = hits[-1] - hits[self.run_start]
        called = taken + misses[-1] - misses[self.below]
        with np.errstate(invalid="ignore"):
            precision = np.where(positive > 0, taken / called, 0.0)
            area: NDArray[np.float64] = (positive * precision).sum(0) / np.where(misses[-1] > 0, hits[-1], np.nan)
        return area


def _leading(rows: Float64[np.ndarray, "n R"]) -> Float64[np.ndarray, "n+1 R"]:
    """Sums of the first 0, 1, ..., n rows."""
    sums = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=sums[1:])
    return sums


def auroc(
    scores: Float[np.ndarray, "n Q"], labels: Int[np.ndarray, "n Q"], weights: Float64[np.ndarray, "R n"] | None = None
) -> Float64[np.ndarray, "R Q"]:
    """Area under the ROC curve of every label under every weighting of the cases.

    The area is the chance that a positive scores higher than a negative, a tie counting half
    (Hanley and McNeil 1982), with cases drawn in proportion to their weights.

    Args:
        scores: Higher means more likely positive. May be NaN where the label is unknown.
        labels: 1, 0, or -1 where unknown; unknown cases take no part in that label.
        weights: Weight of each case, not negative; by default one weighting of ones.

    Returns:
        Areas in [0, 1]; NaN where a class has no weight.

    Raises:
        BatchError: If the shapes do not fit, a label is something else, or a known case has no score.

    Examples:
        >>> auroc(np.array([[0.1], [0.4], [0.4], [0.8]]), np.array([[0], [0], [1], [1]])).tolist()
        [[0.875]]
    """
    return _areas(scores, labels, weights, SortedCases.auroc)


def average_precision(
    scores: Float[np.ndarray, "n Q"], labels: Int[np.ndarray, "n Q"], weights: Float64[np.ndarray, "R n"] | None = None
) -> Float64[np.ndarray, "R Q"]:
    """Average precision of every label under every weighting of the cases.

    The sum over falling thresholds of precision times the gain in recall. Unlike scikit-learn, which
    returns 0 without positives and 1 without negatives, both are NaN here: neither says anything.

    Args:
        scores: As for :func:`auroc`.
        labels: As for :func:`auroc`.
        weights: As for :func:`auroc`.

    Raises:
        BatchError: As :func:`auroc` does.
    """
    return _areas(scores, labels, weights, SortedCases.average_precision)


def _areas(
    scores: Float[np.ndarray, "n Q"],
    labels: Int[np.ndarray, "n Q"],
    weights: Float64[np.ndarray, "R n"] | None,
    area: Callable[[SortedCases, Float64[np.ndarray, "R n"]], Float64[np.ndarray, "R"]],
) -> Float64[np.ndarray, "R Q"]:
    if weights is None:
        weights = np.ones((1, len(scores)))
    _check(scores, labels, weights)
    columns = [SortedCases.of(scores[:, label], labels[:, label]) for label in range(scores.shape[1])]
    result = np.full((len(weights), len(columns)), np.nan)
    for start in range(0, len(weights), _RESAMPLE_CHUNK):
        # Contiguous in the cases' direction of the transpose: rows of few resamples stay in cache.
        chunk = np.asfortranarray(weights[start : start + _RESAMPLE_CHUNK], dtype=np.float64)
        for label, cases in enumerate(columns):
            result[start : start + len(chunk), label] = area(cases, chunk)
    return result


def _check(
    scores: Float[np.ndarray, "n Q"], labels: Int[np.ndarray, "n Q"], weights: Float64[np.ndarray, "R n"]
) -> None:
    if scores.shape != labels.shape or scores.ndim != 2 or weights.shape[1:] != scores.shape[:1]:
        raise BatchError(
            f"Scores {scores.shape}, labels {labels.shape} and weights {weights.shape} do not fit. "
            "They are (cases, labels) twice and (resamples, cases)."
        )
    strange: Bool[np.ndarray, "n Q"] = ~np.isin(labels, (0, 1, UNKNOWN))
    if strange.any():
        raise BatchError(f"Label {labels[strange][0]} is none of 1, 0 and -1 (unknown).")


def roc_curve(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]]:
    """False and true positive rates at every distinct score, from none called positive to all.

    Args:
        scores: Higher means more likely positive.
        labels: 1, 0, or -1 where unknown.

    Returns:
        False positive rate, true positive rate, and the threshold at or above which a case is called
        positive; the first threshold is infinite. Rates of a class without cases are NaN.
    """
    called, hits = _calls(scores, labels)
    misses = called[1] - hits
    with np.errstate(invalid="ignore"):
        return misses / misses[-1:], hits / hits[-1:], called[0]


def precision_recall_curve(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]]:
    """Precision and recall at every distinct score, from the highest threshold to the lowest.

    Args:
        scores: Higher means more likely positive.
        labels: 1, 0, or -1 where unknown.

    Returns:
        Precision, recall and thresholds.
    """
    (thresholds, called), hits = _calls(scores, labels)
    with np.errstate(invalid="ignore"):
        return hits[1:] / called[1:], hits[1:] / hits[-1:], thresholds[1:]


def _calls(
    scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]
) -> tuple[tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]], Float64[np.ndarray, "k"]]:
    """Thresholds, cases called positive and positives among them, one entry per distinct score."""
    known = (labels == 0) | (labels == 1)
    order = np.argsort(-scores[known], kind="stable")
    falling, positive = scores[known][order], labels[known][order].astype(np.float64)
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.zeros(0, np.int64)
    thresholds = np.append(np.inf, falling[last]).astype(np.float64)
    called = np.append(0.0, last + 1.0)
    return (thresholds, called), np.append(0.0, np.cumsum(positive)[last])
