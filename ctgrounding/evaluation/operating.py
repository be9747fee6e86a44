"""Calls and probabilities of findings at an operating point that was fitted on other patients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

from ctgrounding.evaluation.base import Resampling, bounds
from ctgrounding.evaluation.calibration import Platt, fit_platt, reliability
from ctgrounding.evaluation.thresholds import Calls, Rule, choose_thresholds, count_calls

NUMBERS = ("f1", "balanced_accuracy", "sensitivity", "specificity")


@dataclass(frozen=True)
class Scored:
    """Scores and labels of cases.

    Attributes:
        scores: Higher means more likely positive; may be NaN where the label is unknown.
        labels: 1, 0, or -1 where unknown.
        patients: Patient of each case.
    """

    scores: Float[np.ndarray, "n Q"]
    labels: Int64[np.ndarray, "n Q"]
    patients: Int64[np.ndarray, "n"]

    def columns(self, chosen: NDArray[np.bool_]) -> "Scored":
        """Some labels only."""
        return Scored(self.scores[:, chosen], self.labels[:, chosen], self.patients)


@dataclass(frozen=True)
class OperatingPoint:
    """Where scores become calls and probabilities.

    The probability is one logistic map for all labels together (two numbers), so that few validation patients
    are enough to fit it.

    Attributes:
        thresholds: Of each label; NaN where there was nothing to choose by.
        platt: From scores to probabilities; None where it could not be fitted.
        patients: Number of patients that both were fitted on.
    """

    thresholds: Float64[np.ndarray, "Q"]
    platt: Platt | None
    patients: int

    @classmethod
    def fitted(cls, cases: Scored, rule: Rule = "youden") -> "OperatingPoint":
        """Choose thresholds and fit the probability.

        Args:
            cases: Of patients that nothing is reported for.
            rule: Of :func:`ctgrounding.evaluation.thresholds.choose_thresholds`.
        """
        thresholds = choose_thresholds(cases.scores, cases.labels, rule)
        return cls(thresholds, fit_platt(cases.scores.ravel(), cases.labels.ravel()), len(np.unique(cases.patients)))

    def among(self, counted: NDArray[np.bool_]) -> "OperatingPoint":
        """The same with thresholds for some labels only."""
        return OperatingPoint(np.where(counted, self.thresholds, np.nan), self.platt, self.patients)

    def judged(self, numbers: Sequence[str], cases: Scored, resampling: Resampling) -> dict[str, float]:
        """Means over labels, with intervals by patient.

        Args:
            numbers: Properties of :class:`ctgrounding.evaluation.thresholds.Calls`.
            cases: Of other patients.
            resampling: Of the intervals; thresholds stay as they are in every draw.

        Returns:
            ``<number>_macro`` and bounds, ``ece``, ``threshold_classes`` and ``threshold_patients``; numbers without
            a value are left out.
        """
        usable = self._usable(cases)
        found = {"threshold_classes": float(usable.sum()), "threshold_patients": float(self.patients)}
        if usable.any():
            part, cut = cases.columns(usable), self.thresholds[usable]

            def means(weights: Float64[np.ndarray, "r n"]) -> Float64[np.ndarray, "r K"]:
                calls = count_calls(part.scores, part.labels, cut, weights)
                return np.stack([getattr(calls, name).mean(1) for name in numbers], axis=1)

            interval = resampling.interval(means, part.patients)
            for column, name in enumerate(numbers):
                found |= {f"{name}_macro": float(interval.estimate[column]), **bounds(name, interval, column)}
        if self.platt is not None:
            error = reliability(self.platt.probability(cases.scores), cases.labels).ece
            found |= {} if np.isnan(error) else {"ece": error}
        return found

    def rows(self, cases: Scored) -> list[dict[str, Any]]:
        """For each label its threshold, what calls by it are worth, and its calibration."""
        calls = count_calls(cases.scores, cases.labels, self.thresholds)
        return [self._row(calls, cases, column) for column in range(len(self.thresholds))]

    def calibration(self, cases: Scored) -> dict[str, Any] | None:
        """Reliability over all labels together; None where no probability could be fitted."""
        if self.platt is None:
            return None
        drawn = reliability(self.platt.probability(cases.scores), cases.labels).to_json()
        return {**drawn, "slope": self.platt.slope, "intercept": self.platt.intercept, "patients": self.patients}

    def _usable(self, cases: Scored) -> NDArray[np.bool_]:
        both = ((cases.labels == 1).any(0)) & ((cases.labels == 0).any(0))
        usable: NDArray[np.bool_] = both & ~np.isnan(self.thresholds)
        return usable

    def _row(self, calls: Calls, cases: Scored, column: int) -> dict[str, Any]:
        values = {name: float(getattr(calls, name)[0, column]) for name in (*NUMBERS, "precision", "weighted_f1")}
        if np.isnan(self.thresholds[column]):
            values = dict.fromkeys(values, float("nan"))
        chance = None if self.platt is None else self.platt.probability(cases.scores[:, column])
        ece = float("nan") if chance is None else reliability(chance, cases.labels[:, column]).ece
        return {"threshold": float(self.thresholds[column]), **values, "ece": ece}
