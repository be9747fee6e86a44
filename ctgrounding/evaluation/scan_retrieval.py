"""Which scans are like this scan? Three published definitions of an answer's worth, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import mean_cases
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.selection import Selection
from ctgrounding.functional.bootstrap import weighted_means
from ctgrounding.functional.ranks import top_candidates
from ctgrounding.types import Batch, Encoded

DefinitionName = Literal["ct_clip", "spectre", "radfinder"]
Labels = Bool[np.ndarray, "N Q"]
Worth = Callable[[Labels, Int64[np.ndarray, "R"], Int64[np.ndarray, "R K"], int], Float64[np.ndarray, "R"]]


@dataclass(frozen=True)
class Definition:
    """How one paper scores the scans found for a scan.

    Attributes:
        measure: Name of the number.
        k: Depths that the paper reports.
        finds_itself: Whether the query is among the candidates.
        abnormal_queries: Whether only scans with a finding are queries.
        abnormal_candidates: Whether only scans with a finding are candidates.
        worth: From labels, queries, answers in order and k, the worth of each query's answers; NaN leaves a
            query out.
        text: The definition in words.
    """

    measure: str
    k: tuple[int, ...]
    finds_itself: bool
    abnormal_queries: bool
    abnormal_candidates: bool
    worth: Worth
    text: str


def jaccard(
    labels: Labels, queries: Int64[np.ndarray, "R"], answers: Int64[np.ndarray, "R K"], k: int
) -> Float64[np.ndarray, "R"]:
    """Mean over the first k answers of shared findings over findings of either."""
    own, found = labels[queries][:, None], labels[answers[:, :k]]
    with np.errstate(invalid="ignore"):
        shared = (own & found).sum(-1) / (own | found).sum(-1)
    mean: NDArray[np.float64] = shared.mean(1)
    return mean


def precision_of_identical(
    labels: Labels, queries: Int64[np.ndarray, "R"], answers: Int64[np.ndarray, "R K"], k: int
) -> Float64[np.ndarray, "R"]:
    """Average precision at k of scans with the same label row; NaN where there is no other such scan."""
    rows = np.unique(labels, axis=0, return_inverse=True)[1].reshape(len(labels))
    others = np.bincount(rows, minlength=1)[rows[queries]] - 1
    hits = rows[answers[:, :k]] == rows[queries][:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        worth: NDArray[np.float64] = _precisions(hits) / np.where(others > 0, np.minimum(others, k), np.nan)
    return worth


def precision_of_shared(
    labels: Labels, queries: Int64[np.ndarray, "R"], answers: Int64[np.ndarray, "R K"], k: int
) -> Float64[np.ndarray, "R"]:
    """Sum of precisions at the ranks of scans that share a finding, over k."""
    hits = (labels[queries][:, None] & labels[answers[:, :k]]).any(-1)
    return _precisions(hits) / k


def _precisions(hits: Bool[np.ndarray, "R k"]) -> Float64[np.ndarray, "R"]:
    total: NDArray[np.float64] = (hits.cumsum(1) / np.arange(1, hits.shape[1] + 1) * hits).sum(1)
    return total


DEFINITIONS: Mapping[DefinitionName, Definition] = {
    "ct_clip": Definition(
        "jaccard",
        (1, 5, 10, 50),
        True,
        False,
        True,
        jaccard,
        "mean Jaccard index of the label rows over the first k; candidates have a finding; a scan may find itself",
    ),
    "spectre": Definition(
        "map",
        (1, 5, 10, 50),
        False,
        False,
        False,
        precision_of_identical,
        "average precision at k over min(positives, k); positives have the identical label row; a scan without "
        "another such scan is no query",
    ),
    "radfinder": Definition(
        "map",
        (5, 10, 50),
        False,
        True,
        True,
        precision_of_shared,
        "sum of precisions at relevant ranks over k; relevant scans share a finding; scans with a finding only",
    ),
}


class ScanRetrieval(Evaluator):
    """Retrieval of scans by a scan, by cosine of the ``global`` readout and by labels.

    The three definitions in use give numbers that cannot be compared with each other, so each has its own
    names: ``scan_to_scan/ct_clip/jaccard_at_k``, ``scan_to_scan/spectre/map_at_k`` and
    ``scan_to_scan/radfinder/map_at_k``. CT-CLIP's program goes on adding to one list from one k to the next, so
    its printed number at k is the mean of those up to k: ``jaccard_at_k_as_printed``. Equal scores are ordered
    by the scan's name. Unknown labels count as absent; the published label files have none.

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
