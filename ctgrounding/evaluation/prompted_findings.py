"""Findings by the prompts, labels, scans and thresholds of a published evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from ctgrounding import label_sets
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation.asked import FindingSet, Judging, Prompts
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import Cases
from ctgrounding.evaluation.curves import curves
from ctgrounding.evaluation.operating import OperatingPoint, Scored
from ctgrounding.evaluation.prompts import Ensembles, cosines
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.selection import Selection
from ctgrounding.functional.auroc import UNKNOWN, auroc, average_precision
from ctgrounding.types import Batch, Encoded


class PromptedFindings(Evaluator):
    """Zero-shot findings with everything about them stated: what :mod:`ctgrounding.evaluation.protocols` builds.

    The score of a finding is the cosine with its affirming anchor less that with its denying one. The softmax of
    the pair, which papers report, rises with it, so ranks and areas are the same. Every finding with a positive
    and a negative scan counts; the others are named.

    Args:
        findings: What is asked.
        prompts: How.
        image_head: Head of the ``global`` readout, or of the ``organ`` readout where findings have organs.
        text_head: Head of the sentences.
        selection: Which scans take part.
        judging: How calls are made; None reports areas alone.
        label_set: Organ label set of the masks.
        resampling: Of the intervals, by patient.

    Examples:
        >>> prompts = Prompts(("There is {finding}.",), ("There is no {finding}.",))
        >>> evaluator = PromptedFindings(FindingSet(), prompts)
        >>> evaluator.use_label_names(["cyst"])
        >>> evaluator.fixed_texts()
        ('There is cyst.', 'There is no cyst.')
    """

    requires: ClassVar[frozenset[str]] = frozenset({"labels", "patient", "study", "global", "organ"})

    def __init__(
        self,
        findings: FindingSet,
        prompts: Prompts,
        image_head: str = "main",
        text_head: str = "main",
        selection: Selection | None = None,
        judging: Judging | None = None,
        label_set: str = "total_v2",
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        self.findings, self.prompts, self.judging = findings, prompts, judging
        self.image_head, self.text_head, self.label_set = image_head, text_head, label_set
        self.selection, self.resampling = selection or Selection(), resampling or Resampling()
        self.wants_validation = judging is not None and judging.chosen_on == "validation"
        self._columns: dict[str, tuple[str, ...]] = dict(findings.columns or {})
        self._prepare()

    def use_label_names(self, names: Sequence[str]) -> None:
        """Take the names of the batches' label columns.

        Raises:
            ConfigError: If a column that a finding is read from is not among them.
        """
        super().use_label_names(names)
        if self.findings.columns is None:
            self._columns = {name: (name,) for name in names}
        missing = [column for columns in self._columns.values() for column in columns if column not in names]
        if missing:
            raise ConfigError(
                f"The data have no label '{missing[0]}', which these findings are read from ({len(missing)} columns "
                f"are missing). They have {list(names)}. Name the protocol's columns in data.label_names."
            )
        self._prepare()

    def _prepare(self) -> None:
        merged = (names for finding in self._columns for names in self.findings.scores.get(finding, (finding,)))
        self._asked = tuple(dict.fromkeys(merged))
        sentences = [self.prompts.of(finding) for finding in self._asked]
        self._pairs = Ensembles([here for here, _ in sentences] + [not_here for _, not_here in sentences])
        table = self.findings.organs or {}
        self._organs = [
            [label_sets.label_of(organ, self.label_set) for organ in table.get(finding, ())] for finding in self._asked
        ]

    def fixed_texts(self) -> Sequence[str]:
        """The sentences of all findings."""
        return self._pairs.texts

    def reads(self) -> Reads:
        """The readout that is scored, and the sentences."""
        return Reads(frozenset({(self._readout, self.image_head)}), frozenset({self.text_head}))

    @property
    def _readout(self) -> str:
        return "global" if self.findings.organs is None else "organ"

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Score the scans of a batch.

        Raises:
            ConfigError: If a head or readout does not exist.
            BatchError: If nobody named the label columns, or the batch has another number of them.
        """
        if batch["labels"].shape[1] != len(self.label_names):
            raise BatchError(
                f"The batch has {batch['labels'].shape[1]} label columns, {len(self.label_names)} were named. "
                "Call use_label_names with the data's label_names before."
            )
        count = len(self._asked)
        rows = encoded.image(self._readout, self.image_head)
        pairs = cosines(rows, self._pairs.anchors(encoded, self.text_head))
        difference = pairs[:, :count] - pairs[:, count:]
        scores = difference if self._readout == "global" else self._highest(difference, encoded, batch)
        self.rows.add(
            scan_keys(batch), labels=batch["labels"], scores=scores, patient=batch["patient"], study=batch["study"]
        )

    def _highest(self, difference: Float[Tensor, "O A"], encoded: Encoded, batch: Batch) -> Float[Tensor, "B A"]:
        """Highest score over each finding's visible organs; NaN where there is none."""
        organ, scan = encoded.organ_class.cpu(), encoded.organ_scan.cpu()
        scores = difference.new_full((len(batch["scan_id"]), difference.shape[1]), -torch.inf)
        for column, organs in enumerate(self._organs):
            mine = torch.isin(organ, torch.tensor(organs, dtype=organ.dtype))
            scores[:, column].scatter_reduce_(0, scan[mine], difference[mine, column], reduce="amax")
        return torch.where(scores.isinf(), torch.nan, scores)

    def compute(self) -> dict[str, float]:
        """Mean areas with intervals, calls where they are made, and how many scans, patients and findings."""
        table = self.selection.of(self.rows.table())
        if not len(table):
            return {"findings/scans": 0.0}
        scored = self._scored(table)
        counted = _has_both(scored)
        numbers = {
            "findings/scans": float(len(table)),
            "findings/patients": float(len(np.unique(scored.patients))),
            "findings/classes": float(counted.sum()),
            "findings/asked": float(len(counted)),
        }
        if counted.any():
            numbers |= self._areas(scored.columns(counted))
            numbers |= self._judged(scored, counted)
        return numbers

    def _areas(self, scored: Scored) -> dict[str, float]:
        def means(weights: Float64[np.ndarray, "r R"]) -> Float64[np.ndarray, "r 2"]:
            areas = [area(scored.scores, scored.labels, weights).mean(1) for area in (auroc, average_precision)]
            return np.stack(areas, axis=1)

        interval = self.resampling.interval(means, scored.patients)
        numbers: dict[str, float] = {}
        for column, name in enumerate(("auroc", "auprc")):
            numbers[f"findings/{name}_macro"] = float(interval.estimate[column])
            numbers |= bounds(f"findings/{name}", interval, column)
        return numbers

    def _judged(self, scored: Scored, counted: NDArray[np.bool_]) -> dict[str, float]:
        point = self._operating(scored)
        if point is None or self.judging is None:
            return {}
        numbers = point.among(counted).judged(self.judging.numbers, scored, self.resampling)
        return {f"findings/{name}": value for name, value in numbers.items()}

    def _operating(self, scored: Scored) -> OperatingPoint | None:
        """Where calls are made.

        Raises:
            ConfigError: If thresholds should come from validation patients and there are none.
        """
        if self.judging is None:
            return None
        if self.judging.chosen_on == "test":
            point = OperatingPoint.fitted(scored, self.judging.rule)
            return OperatingPoint(point.thresholds, None, point.patients)
        table = self.selection.of(self.validation_table())
        if not len(table):
            raise ConfigError(
                "This protocol chooses thresholds on validation patients and there are none. Give a validation split "
                "(data.val_split), or with saved embeddings --validation FOLDER."
            )
        return OperatingPoint.fitted(self._scored(table), self.judging.rule)

    def _scored(self, table: Table) -> Scored:
        """Labels and scores of each finding of a table."""
        labels, scores = table.array("labels"), table.array("scores").astype(np.float64)
        truth = np.stack([self._truth(labels, columns) for columns in self._columns.values()], axis=1)
        wanted = [self.findings.scores.get(finding, (finding,)) for finding in self._columns]
        merged = np.stack([scores[:, [self._asked.index(n) for n in names]].max(1) for names in wanted], axis=1)
        return Scored(merged, np.where(np.isnan(merged), UNKNOWN, truth), table.array("patient"))

    def _truth(self, labels: Int64[np.ndarray, "R L"], columns: Sequence[str]) -> Int64[np.ndarray, "R"]:
        """1 if any column is 1, 0 if all are 0, else unknown."""
        part = labels[:, [self.label_names.index(name) for name in columns]]
        found: NDArray[np.int64] = np.where((part == 1).any(1), 1, np.where((part == 0).all(1), 0, UNKNOWN))
        return found

    def results(self) -> Mapping[str, Any]:
        """A row a finding, the protocol, and cases for a comparison."""
        table = self.selection.of(self.rows.table())
        scored = self._scored(table) if len(table) else None
        point = None if scored is None else self._operating(scored)
        return {
            "title": "Findings, by protocol",
            "protocol": {
                "scans": self.selection.described(),
                "score": f"cosine with affirming less cosine with denying sentences, {self._readout} readout "
                f"(heads {self.image_head}, {self.text_head})",
                "ensemble": f"{len(self.prompts.positive)} sentence pairs, normalised mean",
                "affirming": list(self.prompts.positive),
                "denying": list(self.prompts.negative),
                "thresholds": "none" if self.judging is None else self.judging.described(),
                "intervals": self.resampling.described(),
            },
            "classes": [] if scored is None else self._class_rows(scored, point),
            "calibration": None if scored is None or point is None else point.calibration(scored),
            "cases": [] if scored is None else self._comparable(table, scored),
        }

    def _class_rows(self, scored: Scored, point: OperatingPoint | None) -> list[dict[str, Any]]:
        interval = self.resampling.interval(lambda w: auroc(scored.scores, scored.labels, w), scored.patients)
        precision = average_precision(scored.scores, scored.labels)[0]
        judged = [] if point is None else point.rows(scored)
        counted = _has_both(scored)
        return [
            {
                "name": name,
                "readout": self._readout,
                "columns": list(columns),
                "counts": bool(counted[column]),
                "positives": int((scored.labels[:, column] == 1).sum()),
                "negatives": int((scored.labels[:, column] == 0).sum()),
                "auroc": float(interval.estimate[column]),
                "auroc_ci": [float(interval.low[column]), float(interval.high[column])],
                "auprc": float(precision[column]),
                **curves(scored.scores[:, column], scored.labels[:, column]),
                **(judged[column] if judged else {}),
            }
            for column, (name, columns) in enumerate(self._columns.items())
        ]

    def _comparable(self, table: Table, scored: Scored) -> list[dict[str, Any]]:
        counted = _has_both(scored)
        if not counted.any():
            return []
        names = [name for name, counts in zip(self._columns, counted, strict=True) if counts]
        part = scored.columns(counted)
        cases = Cases("findings/auroc", "auroc", False, table.keys, part.patients, names, part.scores, part.labels)
        return [cases.to_json()]


def _has_both(scored: Scored) -> NDArray[np.bool_]:
    both: NDArray[np.bool_] = (scored.labels == 1).any(0) & (scored.labels == 0).any(0)
    return both
