"""Whom the numbers speak of."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from ctgrounding.evaluation.base import Evaluator, Reads
from ctgrounding.evaluation.rows import scan_keys
from ctgrounding.types import Batch, Encoded


class Cohort(Evaluator):
    """Counts patients, studies and scans of the evaluated data.

    Examples:
        >>> Cohort().compute()
        {'patients': 0.0, 'studies': 0.0, 'scans': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset({"patient", "study"})

    def reads(self) -> Reads:
        """Nothing of the model."""
        return Reads()

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Add the scans of a batch."""
        self.rows.add(scan_keys(batch), patient=batch["patient"], study=batch["study"], dataset=batch["dataset"])

    def compute(self) -> dict[str, float]:
        """``patients``, ``studies`` and ``scans``."""
        table = self.rows.table()
        if not len(table):
            return {"patients": 0.0, "studies": 0.0, "scans": 0.0}
        distinct = {name: float(len(set(table.array(column).tolist()))) for name, column in _COLUMNS.items()}
        return {**distinct, "scans": float(len(table))}

    def results(self) -> Mapping[str, Any]:
        """The counts and the scans of each dataset."""
        return {"title": "Patients", "counts": self.compute(), "datasets": dict(Counter(self._datasets()))}

    def _datasets(self) -> list[str]:
        return self.rows.table().texts.get("dataset", [])


_COLUMNS = {"patients": "patient", "studies": "study"}
