"""Which scans are like this scan? Three published definitions of an answer's worth, by name."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import mean_cases
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.scan_likeness import DEFINITIONS, DefinitionName, Labels
from ctgrounding.evaluation.selection import Selection
from ctgrounding.functional.auroc import UNKNOWN
from ctgrounding.functional.bootstrap import weighted_means
from ctgrounding.functional.ranks import top_candidates
from ctgrounding.types import Batch, Encoded


class ScanRetrieval(Evaluator):
    """Retrieval of scans by a scan, by cosine of the ``global`` readout and by labels.

    The three definitions in use give numbers that cannot be compared with each other, so each has its own
    names: ``scan_to_scan/ct_clip/jaccard_at_k``, ``scan_to_scan/spectre/map_at_k`` and
    ``scan_to_scan/radfinder/map_at_k``. CT-CLIP's program goes on adding to one list from one k to the next, so
    its printed number at k is the mean of those up to k: ``jaccard_at_k_as_printed``. Equal scores are ordered
    by the scan's name. Unknown labels count as absent; the published label files have none. Data without a single
    label have no answer that is right or wrong: then there is no number.

    Args:
        definitions: Names of definitions.
        image_head: Head of the ``global`` readout.
        labels: Label columns that count; all of the batch if None.
        selection: Which scans take part.
        resampling: Of the intervals, by patient of the query.

    Raises:
        ConfigError: If a definition is not known.

    Examples:
        >>> ScanRetrieval(("radfinder",)).compute()
        {'scan_to_scan/radfinder/pool': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset({"labels", "patient", "study", "global"})

    def __init__(
        self,
        definitions: Sequence[DefinitionName] = ("ct_clip", "spectre", "radfinder"),
        image_head: str = "main",
        labels: Sequence[str] | None = None,
        selection: Selection | None = None,
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        if unknown := [name for name in definitions if name not in DEFINITIONS]:
            raise ConfigError(
                f"There is no definition '{unknown[0]}' of scan-to-scan retrieval. Use {', '.join(DEFINITIONS)}."
            )
        self.definitions, self.image_head = tuple(definitions), image_head
        self.labels = None if labels is None else tuple(labels)
        self.selection, self.resampling = selection or Selection(), resampling or Resampling()

    def reads(self) -> Reads:
        """The ``global`` readout."""
        return Reads(frozenset({("global", self.image_head)}))

    def use_label_names(self, names: Sequence[str]) -> None:
        """Take the names of the batches' label columns.

        Raises:
            ConfigError: If a label that counts is not among them.
        """
        super().use_label_names(names)
        if missing := [name for name in self.labels or () if name not in names]:
            raise ConfigError(f"Scan retrieval needs the label '{missing[0]}', which the data lack: {list(names)}.")

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Add the scans of a batch."""
        self.rows.add(
            scan_keys(batch),
            image=encoded.image("global", self.image_head),
            labels=batch["labels"],
            patient=batch["patient"],
            study=batch["study"],
        )

    def compute(self) -> dict[str, float]:
        """The worth of the answers at each k by each definition, with intervals, queries and pool."""
        numbers: dict[str, float] = {}
        for name in self.definitions:
            stem, (table, worth, pool) = f"scan_to_scan/{name}", self._judged(name)
            numbers[f"{stem}/pool"] = float(pool)
            if not len(table):
                continue
            interval = self.resampling.interval(weighted_means(worth), table.array("patient"))
            measure, depths = DEFINITIONS[name].measure, self._depths(name, pool)
            for column, k in enumerate(depths):
                key = f"{stem}/{measure}_at_{k}"
                numbers |= {key: float(interval.estimate[column]), **bounds(key, interval, column)}
                if name == "ct_clip":
                    numbers[f"{key}_as_printed"] = float(interval.estimate[: column + 1].mean())
            numbers[f"{stem}/queries"] = float(len(table))
        return numbers

    def results(self) -> Mapping[str, Any]:
        """Each definition in words, with its numbers."""
        judged = {name: self._judged(name) for name in self.definitions}
        return {
            "title": "Scan to scan",
            "protocol": {
                "score": f"cosine of global readouts (head {self.image_head})",
                "scans": self.selection.described(),
                "labels": "unknown counts as absent",
                "ties": "by name of the scan",
                "intervals": self.resampling.described(),
            },
            "definitions": {
                name: {"text": DEFINITIONS[name].text, "measure": DEFINITIONS[name].measure, "pool": pool}
                for name, (_, _, pool) in judged.items()
            },
            "cases": [
                mean_cases(
                    f"scan_to_scan/{name}",
                    table,
                    [f"{DEFINITIONS[name].measure}_at_{k}" for k in self._depths(name, pool)],
                    worth,
                )
                for name, (table, worth, pool) in judged.items()
                if len(table)
            ],
        }

    def _depths(self, name: DefinitionName, pool: int) -> tuple[int, ...]:
        most = pool if DEFINITIONS[name].finds_itself else pool - 1
        return tuple(k for k in DEFINITIONS[name].k if k <= most)

    def _judged(self, name: DefinitionName) -> tuple[Table, Float64[np.ndarray, "R K"], int]:
        """Queries, their answers' worth at each depth, and the number of candidates."""
        definition, table = DEFINITIONS[name], self.selection.of(self.rows.table())
        if not len(table):
            return table, np.zeros((0, 0)), 0
        if (table.array("labels") == UNKNOWN).all():
            return table.take(np.zeros(0, dtype=np.int64)), np.zeros((0, 0)), 0
        labels = self._known(table)
        every = np.arange(len(table))
        has_finding = labels.any(1)
        candidates = every[has_finding] if definition.abnormal_candidates else every
        queries = every[has_finding] if definition.abnormal_queries else every
        depths = self._depths(name, len(candidates))
        if not depths:
            return table.take(every[:0]), np.zeros((0, 0)), len(candidates)
        answers = _answers(table, queries, candidates, max(depths), definition.finds_itself)
        worth = np.stack([definition.worth(labels, queries, answers, k) for k in depths], axis=1)
        counted = ~np.isnan(worth).any(1)
        return table.take(queries[counted]), worth[counted], len(candidates)

    def _known(self, table: Table) -> Labels:
        labels: NDArray[np.int64] = table.array("labels")
        present: NDArray[np.bool_] = labels == 1
        if self.labels is None:
            return present
        if len(self.label_names) != labels.shape[1]:
            raise BatchError("Nobody named the batch's label columns. Call use_label_names before.")
        return present[:, [self.label_names.index(name) for name in self.labels]]


def _answers(
    table: Table, queries: NDArray[np.int64], candidates: NDArray[np.int64], k: int, finds_itself: bool
) -> NDArray[np.int64]:
    """Rows of the first k candidates of each query, without the query itself unless it may be found."""
    image = table.tensors["image"].float()
    wanted = k if finds_itself else k + 1
    _, found = top_candidates(image[torch.from_numpy(queries)], image[torch.from_numpy(candidates)], wanted)
    rows: NDArray[np.int64] = candidates[found.numpy()]
    if finds_itself:
        return rows
    other: NDArray[np.bool_] = rows != queries[:, None]
    other[other.all(1), -1] = False
    kept: NDArray[np.int64] = rows[other].reshape(len(queries), k)
    return kept
