"""Single cases of a run, kept so that two runs can be compared case by case."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from ctgrounding.evaluation.rows import Table
from ctgrounding.functional.auroc import auroc
from ctgrounding.functional.bootstrap import Statistic, weighted_means

Kind = Literal["mean", "auroc"]


@dataclass(frozen=True)
class Cases:
    """What a number was computed from, one row a case.

    Attributes:
        name: Of the number, for example ``findings/auroc``.
        kind: ``mean`` of the values, or ``auroc`` of the values as scores.
        lower_is_better: Whether small values are good, as errors are.
        scans: Scan of each case.
        patients: Patient of each case, as a hash.
        columns: What the columns are: classes, depths of a recall, or one unnamed.
        values: One row a case; NaN where it takes no part.
        labels: For ``auroc``: 1, 0, or -1 where unknown.
        has_mean: Whether the mean over columns is a number of its own.
        items: What each case is among those of its scan, as a number: a snippet, an organ, a statement; None where a
            scan is one case.
    """

    name: str
    kind: Kind
    lower_is_better: bool
    scans: list[str]
    patients: Int64[np.ndarray, "n"]
    columns: list[str]
    values: Float64[np.ndarray, "n K"]
    labels: Int64[np.ndarray, "n K"] | None = None
    has_mean: bool = True
    items: Int64[np.ndarray, "n"] | None = None

    def identities(self) -> list[tuple[str, int, int]]:
        """Scan, item and place among equals of each case: the same case in another run has the same."""
        seen: Counter[tuple[str, int]] = Counter()
        found = []
        items = [0] * len(self.scans) if self.items is None else self.items.tolist()
        for case in zip(self.scans, items, strict=True):
            found.append((*case, seen[case]))
            seen[case] += 1
        return found

    def take(self, rows: Sequence[int]) -> "Cases":
        """Some cases, in the order given."""
        index = np.asarray(rows, dtype=np.int64)
        labels, items = (None if column is None else column[index] for column in (self.labels, self.items))
        scans, patients = [self.scans[row] for row in rows], self.patients[index]
        return replace(self, scans=scans, patients=patients, values=self.values[index], labels=labels, items=items)

    def statistic(self) -> Statistic:
        """The number of each column as a function of the cases' weights."""
        labels = self.labels
        if labels is None:
            return weighted_means(self.values)
        return lambda weights: auroc(self.values, labels, weights)

    def to_json(self) -> dict[str, Any]:
        """The cases as plain JSON values; NaN becomes null."""
        return {
            "name": self.name,
            "kind": self.kind,
            "lower_is_better": self.lower_is_better,
            "scans": self.scans,
            "patients": self.patients.tolist(),
            "columns": self.columns,
            "values": [[None if np.isnan(value) else value for value in row] for row in self.values.tolist()],
            "labels": None if self.labels is None else self.labels.tolist(),
            "has_mean": self.has_mean,
            "items": None if self.items is None else self.items.tolist(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Cases":
        """The cases that :meth:`to_json` described."""
        shape = (len(values["scans"]), len(values["columns"]))
        rows = np.array(values["values"], dtype=np.float64).reshape(shape)
        labels = None if values["labels"] is None else np.array(values["labels"], dtype=np.int64).reshape(shape)
        patients = np.array(values["patients"], dtype=np.int64)
        head = (values["name"], values["kind"], values["lower_is_better"], list(values["scans"]), patients)
        given = values.get("items")
        items = None if given is None else np.array(given, dtype=np.int64)
        return cls(*head, list(values["columns"]), rows, labels, values.get("has_mean", True), items)


def mean_cases(
    name: str,
    table: Table,
    columns: Sequence[str],
    values: Float64[np.ndarray, "n K"],
    *,
    lower_is_better: bool = False,
    has_mean: bool = True,
    items: Int64[np.ndarray, "n"] | None = None,
) -> dict[str, Any]:
    """Cases of means as JSON values, one for each row of a table with a column ``patient``; see :class:`Cases`."""
    patients = table.array("patient")
    cases = Cases(name, "mean", lower_is_better, table.keys, patients, list(columns), values, None, has_mean, items)
    return cases.to_json()
