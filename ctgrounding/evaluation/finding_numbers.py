"""What scores of findings are worth: areas, calls and calibration, by the organ score and by the global one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Resampling, bounds
from ctgrounding.evaluation.cases import Cases
from ctgrounding.evaluation.curves import curves
from ctgrounding.evaluation.operating import NUMBERS, OperatingPoint, Scored
from ctgrounding.evaluation.rows import Table
from ctgrounding.evaluation.thresholds import Rule
from ctgrounding.functional.auroc import auroc, average_precision
from ctgrounding.functional.bootstrap import Interval
from ctgrounding.questions import Question

Score = Literal["main", "global"]
Area = Callable[..., Float64[np.ndarray, "r Q"]]


def check_min_cases(min_cases: int) -> None:
    """Refuse a least number of cases from which findings count that none needs to have.

    Raises:
        ConfigError: If it is below 1.
    """
    if min_cases < 1:
        raise ConfigError(f"min_cases is {min_cases}, but a finding without cases has no number. Use 1 or more.")


@dataclass(frozen=True)
class FindingNumbers:
    """Numbers of a table of findings' scores.

    The table has columns ``labels``, ``patient`` and a score of each readout, ``organ`` (NaN where a scan shows none
    of a finding's organs) and ``global``. The *main* score of a finding is the organ score where it has organs.

    Attributes:
        questions: One a column.
        table: Scans that are reported.
        validation: Scans that thresholds and probabilities are fitted on; None where there are none.
        min_cases: Least number of positives and of negatives of a finding that counts.
        rule: How thresholds are chosen.
        resampling: Of the intervals.
    """

    questions: Sequence[Question]
    table: Table
    validation: Table | None
    min_cases: int
    rule: Rule
    resampling: Resampling

    def macro(self) -> dict[str, float]:
        """Means over the findings that count, with intervals, and how many there are."""
        main, whole = self.scored("main"), self.scored("global")
        counted = self._counted
        located = counted & self._has_organs
        numbers = {
            "findings/classes": float(counted.sum()),
            "findings/organ_classes": float(located.sum()),
            "findings/scans": float(len(self.table)),
        }
        if counted.any():
            numbers |= self._mean_area("findings/auroc_macro", main, counted)
            numbers |= self._mean_area("findings/global_auroc_macro", whole, counted)
            numbers |= self._mean_area("findings/auprc_macro", main, counted, average_precision)
        if located.any():
            numbers |= self._mean_area("findings/organ_auroc_macro", main, located)
        return numbers | self._called()

    def rows(self) -> list[dict[str, Any]]:
        """A row a finding."""
        main, whole = self.scored("main"), self.scored("global")
        areas, others = self._intervals(main), self._intervals(whole)
        same = auroc(whole.scores, main.labels)[0]
        precision = average_precision(main.scores, main.labels)[0]
        judged = self._judged_rows()
        return [
            {
                "name": question.name,
                "readout": "organ" if question.organs else "global",
                "organs": list(question.organs),
                "counts": bool(self._counted[column]),
                "positives": int((main.labels[:, column] == 1).sum()),
                "negatives": int((main.labels[:, column] == 0).sum()),
                "not_visible": int(((main.labels == -1) & (whole.labels != -1))[:, column].sum()),
                "auroc": float(areas.estimate[column]),
                "auroc_ci": [float(areas.low[column]), float(areas.high[column])],
                "auprc": float(precision[column]),
                "global_auroc": float(others.estimate[column]),
                "global_auroc_ci": [float(others.low[column]), float(others.high[column])],
                "global_auroc_same_scans": float(same[column]),
                "draws_without_value": int(areas.undefined[column]),
                **curves(main.scores[:, column], main.labels[:, column]),
                **judged[column],
            }
            for column, question in enumerate(self.questions)
        ]

    def calibration(self) -> dict[str, Any] | None:
        """Reliability of the main score's probability; None without validation patients."""
        point = self._points["main"]
        return None if point is None else point.calibration(self.scored("main"))

    def comparable(self) -> list[dict[str, Any]]:
        """Scores and labels of the findings that count, for comparison with another run."""
        names = [question.name for question, counts in zip(self.questions, self._counted, strict=True) if counts]
        return [
            self._cases(name, names, self.scored(score).columns(self._counted)).to_json()
            for name, score in _COMPARED.items()
            if names
        ]

    def scored(self, score: Score, table: Table | None = None) -> Scored:
        """Scores and labels of the reported scans, or of those of another table."""
        table = self.table if table is None else table
        labels, values = table.array("labels"), table.array("global")
        if score == "main":
            values = np.where(self._has_organs, table.array("organ"), values)
            labels = np.where(np.isnan(values), -1, labels)
        return Scored(values, labels, table.array("patient"))

    @cached_property
    def _has_organs(self) -> NDArray[np.bool_]:
        return np.array([bool(question.organs) for question in self.questions])

    @cached_property
    def _counted(self) -> NDArray[np.bool_]:
        labels = self.scored("main").labels
        counted: NDArray[np.bool_] = np.minimum((labels == 0).sum(0), (labels == 1).sum(0)) >= self.min_cases
        return counted

    @cached_property
    def _points(self) -> dict[Score, OperatingPoint | None]:
        """Thresholds and probabilities of each score, by validation patients."""
        scores: tuple[Score, ...] = ("main", "global")
        if self.validation is None:
            return dict.fromkeys(scores)
        return {score: OperatingPoint.fitted(self.scored(score, self.validation), self.rule) for score in scores}

    def _called(self) -> dict[str, float]:
        main, whole = self._points["main"], self._points["global"]
        if main is None or whole is None:
            return {}
        numbers = main.among(self._counted).judged(NUMBERS, self.scored("main"), self.resampling)
        others = whole.among(self._counted).judged(("f1",), self.scored("global"), self.resampling)
        numbers |= {f"global_{name}": value for name, value in others.items() if name.startswith("f1")}
        return {f"findings/{name}": value for name, value in numbers.items()}

    def _judged_rows(self) -> list[dict[str, Any]]:
        main, whole = self._points["main"], self._points["global"]
        if main is None or whole is None:
            return [{} for _ in self.questions]
        cuts = whole.thresholds.tolist()
        return [{**row, "global_threshold": cut} for row, cut in zip(main.rows(self.scored("main")), cuts, strict=True)]

    def _mean_area(self, name: str, scored: Scored, counted: NDArray[np.bool_], area: Area = auroc) -> dict[str, float]:
        part = scored.columns(counted)

        def mean(weights: Float64[np.ndarray, "r R"]) -> Float64[np.ndarray, "r 1"]:
            areas: NDArray[np.float64] = area(part.scores, part.labels, weights).mean(1, keepdims=True)
            return areas

        interval = self.resampling.interval(mean, part.patients)
        return {name: float(interval.estimate[0]), **bounds(name.removesuffix("_macro"), interval)}

    def _intervals(self, scored: Scored) -> Interval:
        return self.resampling.interval(lambda weights: auroc(scored.scores, scored.labels, weights), scored.patients)

    def _cases(self, name: str, columns: list[str], part: Scored) -> Cases:
        values = part.scores.astype(np.float64)
        return Cases(name, "auroc", False, self.table.keys, part.patients, columns, values, part.labels)


_COMPARED: dict[str, Score] = {"findings/auroc": "main", "findings/global_auroc": "global"}
