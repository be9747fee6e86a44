"""Thresholds chosen on some scans, and what calls by them are worth on others.

A case is called positive where its score is at least the threshold. A threshold chosen on the scans that it is
then judged on is optimistic, so evaluators choose theirs on validation patients; only published protocols that
did otherwise do so here, by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray

from ctgrounding.errors import ConfigError
from ctgrounding.functional.auroc import roc_curve

Rule = Literal["youden", "f1", "corner"]


def choose_thresholds(
    scores: Float[np.ndarray, "n Q"], labels: Int[np.ndarray, "n Q"], rule: Rule = "youden"
) -> Float64[np.ndarray, "Q"]:
    """One threshold for each label, halfway between the scores that it parts.

    ``youden`` maximises sensitivity plus specificity, ``f1`` the F1 score, ``corner`` comes nearest to the
    corner (0, 1) of the ROC curve. Of equally good thresholds the highest is taken. Unlike CT-CLIP, which tries
    100 steps of a probability for ``corner``, every distinct score is tried.

    Args:
        scores: Higher means more likely positive; may be NaN where the label is unknown.
        labels: 1, 0, or -1 where unknown.
        rule: See above.

    Returns:
        Thresholds; NaN for a label that lacks positives or negatives.

    Raises:
        ConfigError: If there is no such rule.

    Examples:
        >>> choose_thresholds(np.array([[0.1], [0.4], [0.6], [0.8]]), np.array([[0], [0], [1], [1]])).tolist()
        [0.5]
    """
    if rule not in _GAINS:
        raise ConfigError(f"Rule '{rule}' for thresholds is not known. Use one of {', '.join(_GAINS)}.")
    return np.array([_choose(scores[:, label], labels[:, label], _GAINS[rule]) for label in range(scores.shape[1])])


def _choose(
    scores: Float[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
    gain: Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.float64]],
) -> float:
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        return float("nan")
    false, true, falling = roc_curve(scores, labels)
    best = 1 + int(gain(false[1:], true[1:], positives / negatives).argmax())
    below = falling[best + 1] if best + 1 < len(falling) else falling[best]
    return float((falling[best] + below) / 2)


def _f1(false: NDArray[np.float64], true: NDArray[np.float64], odds: float) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 2 * true * odds / (true * odds + false + odds)
    return found


_GAINS: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.float64]]] = {
    "youden": lambda false, true, _: true - false,
    "f1": _f1,
    "corner": lambda false, true, _: -np.hypot(false, 1.0 - true),
}


@dataclass(frozen=True)
class Calls:
    """Right and wrong calls of each label under each weighting of the cases.

    Rates of a label without cases of the class that they divide by are NaN; a precision without a call is 0, as
    scikit-learn's ``zero_division=0``.

    Attributes:
        true_positives: Weight of positives called positive.
        false_positives: Weight of negatives called positive.
        true_negatives: Weight of negatives called negative.
        false_negatives: Weight of positives called negative.
    """

    true_positives: Float64[np.ndarray, "R Q"]
    false_positives: Float64[np.ndarray, "R Q"]
    true_negatives: Float64[np.ndarray, "R Q"]
    false_negatives: Float64[np.ndarray, "R Q"]

    @property
    def sensitivity(self) -> Float64[np.ndarray, "R Q"]:
        """Share of positives called positive."""
        return _share(self.true_positives, self.false_negatives)

    @property
    def specificity(self) -> Float64[np.ndarray, "R Q"]:
        """Share of negatives called negative."""
        return _share(self.true_negatives, self.false_positives)

    @property
    def balanced_accuracy(self) -> Float64[np.ndarray, "R Q"]:
        """Mean of sensitivity and specificity."""
        found: NDArray[np.float64] = (self.sensitivity + self.specificity) / 2
        return found

    @property
    def accuracy(self) -> Float64[np.ndarray, "R Q"]:
        """Share of right calls."""
        return _share(self.true_positives + self.true_negatives, self.false_positives + self.false_negatives)

    @property
    def precision(self) -> Float64[np.ndarray, "R Q"]:
        """Share of positive calls that are right."""
        found: NDArray[np.float64] = np.nan_to_num(_share(self.true_positives, self.false_positives))
        return found

    @property
    def f1(self) -> Float64[np.ndarray, "R Q"]:
        """Harmonic mean of precision and sensitivity."""
        return _share(2 * self.true_positives, self.false_positives + self.false_negatives)

    @property
    def weighted_f1(self) -> Float64[np.ndarray, "R Q"]:
        """F1 of positives and of negatives, each weighted by its cases, as CT-CLIP and RadFinder report."""
        positives, negatives = self.true_positives + self.false_negatives, self.true_negatives + self.false_positives
        other = np.nan_to_num(_share(2 * self.true_negatives, self.false_positives + self.false_negatives))
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = (positives * np.nan_to_num(self.f1) + negatives * other) / (
                positives + negatives
            )
        return found


def count_calls(
    scores: Float[np.ndarray, "n Q"],
    labels: Int[np.ndarray, "n Q"],
    thresholds: Float64[np.ndarray, "Q"],
    weights: Float64[np.ndarray, "R n"] | None = None,
) -> Calls:
    """Count calls under many weightings at once; a label whose threshold is NaN has no calls and no rates.

    Args:
        scores: As for :func:`choose_thresholds`.
        labels: As there.
        thresholds: Of each label.
        weights: Weight of each case; one weighting of ones by default.
    """
    if weights is None:
        weights = np.ones((1, len(scores)))
    with np.errstate(invalid="ignore"):
        called = scores >= thresholds
    judged = ~np.isnan(thresholds)[None, :]
    kinds = [
        (labels == truth) & (called == call) & judged for truth, call in ((1, True), (0, True), (0, False), (1, False))
    ]
    return Calls(*(weights @ kind.astype(np.float64) for kind in kinds))


def _share(part: Float64[np.ndarray, "R Q"], rest: Float64[np.ndarray, "R Q"]) -> Float64[np.ndarray, "R Q"]:
    with np.errstate(invalid="ignore"):
        found: NDArray[np.float64] = part / (part + rest)
    return found
