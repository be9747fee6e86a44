"""Do probabilities mean what they say? Fitted on validation patients, judged on others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray

from ctgrounding.errors import BatchError

_STEPS = 100
_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Platt:
    """A logistic map from scores to probabilities.

    Attributes:
        slope: Of the log odds per unit of score.
        intercept: Log odds at score 0.

    Examples:
        >>> Platt(slope=2.0, intercept=0.0).probability(np.array([0.0])).tolist()
        [0.5]
    """

    slope: float
    intercept: float

    def probability(self, scores: Float[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """Probability in (0, 1) of each score; NaN stays."""
        return _logistic(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept)


def fit_platt(scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"]) -> Platt | None:
    """Fit by maximum likelihood with Platt's smoothed targets (Platt 1999), by damped Newton steps.

    The smoothing, (N+ + 1) / (N+ + 2) for positives and 1 / (N- + 2) for negatives, keeps the slope finite
    where the classes are parted.

    Args:
        scores: May be NaN where the label is unknown.
        labels: 1, 0, or -1 where unknown.

    Returns:
        The map; None where a class has no case.
    """
    known = (labels == 0) | (labels == 1)
    truth, values = labels[known] == 1, np.asarray(scores, dtype=np.float64)[known]
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return None
    centre, spread = float(values.mean()), float(values.std()) or 1.0
    design = np.stack([(values - centre) / spread, np.ones(len(values))], axis=1)
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    slope, intercept = _newton(design, target, np.array([0.0, np.log((positives + 1) / (negatives + 1))]))
    return Platt(float(slope / spread), float(intercept - slope * centre / spread))


def _newton(
    design: Float64[np.ndarray, "n 2"], target: Float64[np.ndarray, "n"], start: Float64[np.ndarray, "2"]
) -> Float64[np.ndarray, "2"]:
    point, loss = start, _loss(design @ start, target)
    for _ in range(_STEPS):
        chance = _logistic(design @ point)
        slope = design.T @ (chance - target)
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        size = 1.0
        while size > 1e-10 and _loss(design @ (point - size * step), target) > loss:
            size /= 2
        point = point - size * step
        before, loss = loss, _loss(design @ point, target)
        if before - loss <= _TOLERANCE * abs(before):
            break
    return point


def _loss(logits: Float64[np.ndarray, "n"], target: Float64[np.ndarray, "n"]) -> float:
    return float((np.logaddexp(0.0, logits) - target * logits).sum())


def _logistic(values: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    found: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * values))
    return found


@dataclass(frozen=True)
class Reliability:
    """Predicted probability beside the observed share, in bins of equal width.

    Attributes:
        edges: Of the bins, from 0 to 1.
        predicted: Mean probability of the cases of each bin; NaN for an empty one.
        observed: Share of positives among them; NaN for an empty one.
        cases: How many they are.
    """

    edges: Float64[np.ndarray, "K+1"]
    predicted: Float64[np.ndarray, "K"]
    observed: Float64[np.ndarray, "K"]
    cases: NDArray[np.int64]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over cases of how far apart their bin's two numbers are; NaN for none."""
        if not self.cases.sum():
            return float("nan")
        away = np.nan_to_num(np.abs(self.predicted - self.observed))
        return float((away * self.cases).sum() / self.cases.sum())

    def to_json(self) -> dict[str, Any]:
        """The bins that hold cases, as plain values."""
        filled = self.cases > 0
        return {
            "predicted": self.predicted[filled].round(5).tolist(),
            "observed": self.observed[filled].round(5).tolist(),
            "cases": self.cases[filled].tolist(),
            "ece": self.ece,
        }


def reliability(
    probability: Float[np.ndarray, "*shape"], labels: Int[np.ndarray, "*shape"], bins: int = 10
) -> Reliability:
    """Sort known cases into bins by their probability; a bin holds its lower edge, the last one also 1.

    Args:
        probability: In [0, 1]; may be NaN where the label is unknown.
        labels: 1, 0, or -1 where unknown.
        bins: Number of bins.

    Raises:
        BatchError: If a known case's probability is none.

    Examples:
        >>> round(reliability(np.array([0.9, 0.8, 0.1]), np.array([1, 0, 0]), bins=2).ece, 3)
        0.267
    """
    known = (labels == 0) | (labels == 1)
    chance, truth = np.asarray(probability, dtype=np.float64)[known], labels[known] == 1
    if not ((chance >= 0) & (chance <= 1)).all():
        raise BatchError("A case with a label has no probability between 0 and 1. Mark its label unknown (-1).")
    place = np.minimum((chance * bins).astype(np.int64), bins - 1)
    cases = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted = np.bincount(place, weights=chance, minlength=bins) / cases
        observed = np.bincount(place, weights=truth.astype(np.float64), minlength=bins) / cases
    return Reliability(np.linspace(0.0, 1.0, bins + 1), predicted, observed, cases)
