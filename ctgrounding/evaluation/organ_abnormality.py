"""Is this organ abnormal, and of what? Asked of each visible organ by itself."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from ctgrounding import label_sets
from ctgrounding import questions as question_lists
from ctgrounding.errors import BatchError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import Cases
from ctgrounding.evaluation.finding_numbers import check_min_cases
from ctgrounding.evaluation.operating import OperatingPoint, Scored
from ctgrounding.evaluation.prompts import Ensembles, about_organ, cosines
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.thresholds import Rule
from ctgrounding.functional.auroc import UNKNOWN, auroc, average_precision
from ctgrounding.types import Batch, Encoded

_PREFIX = "organ_abnormality"


class OrganAbnormality(Evaluator):
    """Zero-shot detection of abnormal organs, and of each finding in each organ that it may lie in.

    A finding's score in an organ is the cosine of the organ's embedding with the affirming sentences less that
    with the organ's denial; an organ's score is the highest over the findings that may lie in it. The truth is
    what the report says of that organ: an organ with a statement of something abnormal is abnormal, one that
    is spoken of without such is normal, one that is not spoken of is unknown. A finding is present in an organ
    if the scan has it and the organ is abnormal, absent if the scan does not have it or the organ is normal.

    Sides stay apart: a stone on the left says nothing against the right kidney, which a label of the scan alone
    cannot tell. Where the task feeds validation patients, F1 and balanced accuracy are those of thresholds chosen
    on them. CT-GLIP does not publish its prompts, dictionary or thresholds, so its figures are no reference.

    Args:
        questions: Packaged list of questions or a YAML file; the labels of the batch have its order.
        image_head: Head of the ``organ`` readout.
        text_head: Head of the sentences.
        negative: Templates with ``{organ}`` that deny any finding; the questions' own denials if empty.
        label_set: Organ label set of the masks.
        min_cases: Least number of positives and of negatives of an organ, or a finding in it, that counts.
        threshold_rule: How thresholds are chosen on validation patients.
        resampling: Of the intervals, by patient.

    Raises:
        ConfigError: If the list or the label set does not exist, or a template lacks ``{organ}``.

    Examples:
        >>> OrganAbnormality("phantom").compute()
        {'organ_abnormality/organs': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset(
        {
            "labels",
            "patient",
            "organ_text",
            "organ_text_scan",
            "organ_text_class",
            "organ_text_abnormal",
            "organ",
        }
    )
    wants_validation = True

    def __init__(
        self,
        questions: str,
        image_head: str = "organ",
        text_head: str = "organ",
        negative: Sequence[str] = ("no evident abnormality in the {organ}",),
        label_set: str = "total_v2",
        min_cases: int = 8,
        threshold_rule: Rule = "youden",
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        check_min_cases(min_cases)
        self.question_list, self.questions = questions, question_lists.load(questions)
        self.image_head, self.text_head, self.label_set = image_head, text_head, label_set
        self.min_cases, self.threshold_rule = min_cases, threshold_rule
        self.resampling = resampling or Resampling()
        self._names = label_sets.load(label_set)
        self._pairs = [
            (label_sets.label_of(organ, label_set), place)
            for place, question in enumerate(self.questions)
            for organ in question.organs
        ]
        self._asked = sorted({organ for organ, _ in self._pairs})
        spoken = [label_sets.spoken(self._names[organ]) for organ in self._asked]
        by_organ = [about_organ(negative, name, "negative") for name in spoken]
        self._affirming = Ensembles([question.positive for question in self.questions])
        self._denying = Ensembles(by_organ if negative else [question.negative for question in self.questions])
        self._denies_by_organ = bool(negative)

    def fixed_texts(self) -> Sequence[str]:
        """The affirming sentences, then the denials."""
        return (*self._affirming.texts, *self._denying.texts)

    def reads(self) -> Reads:
        """The ``organ`` readout and the sentences."""
        return Reads(frozenset({("organ", self.image_head)}), frozenset({self.text_head}))

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Score the organs of a batch.

        Raises:
            ConfigError: If a head or readout does not exist.
            BatchError: If the labels have another number of columns than the questions.
        """
        if batch["labels"].shape[1] != len(self.questions):
            raise BatchError(
                f"The batch has {batch['labels'].shape[1]} label columns but list '{self.question_list}' has "
                f"{len(self.questions)} questions. Give data and evaluator the same list."
            )
        abnormal = self._stated(batch)
        found = self._found(abnormal, batch["labels"].cpu())
        scores = self._scores(encoded, len(abnormal))
        by_organ = scores.new_full((len(abnormal), len(self._asked)), torch.nan)
        for column, organ in enumerate(self._asked):
            mine = [place for place, (label, _) in enumerate(self._pairs) if label == organ]
            by_organ[:, column] = scores[:, mine].amax(1)
        self.rows.add(
            scan_keys(batch),
            organ_labels=torch.where(by_organ.isnan(), UNKNOWN, abnormal),
            organ_scores=by_organ,
            finding_labels=torch.where(scores.isnan(), UNKNOWN, found),
            finding_scores=scores,
            patient=batch["patient"],
        )

    def _stated(self, batch: Batch) -> Int64[Tensor, "B A"]:
        """What the report says of each asked organ: 1 abnormal, 0 normal, -1 nothing."""
        stated = torch.full((len(batch["scan_id"]), len(self._asked)), UNKNOWN, dtype=torch.int64)
        column = {organ: place for place, organ in enumerate(self._asked)}
        rows = zip(
            batch["organ_text_scan"].tolist(),
            batch["organ_text_class"].tolist(),
            batch["organ_text_abnormal"].tolist(),
            strict=True,
        )
        for scan, organ, is_abnormal in rows:
            if organ in column:
                place = (scan, column[organ])
                stated[place] = max(int(stated[place]), int(is_abnormal))
        return stated

    def _found(self, abnormal: Int64[Tensor, "B A"], labels: Int64[Tensor, "B Q"]) -> Int64[Tensor, "B P"]:
        """Whether each finding lies in each of its organs."""
        organ = abnormal[:, [self._asked.index(label) for label, _ in self._pairs]]
        scan = labels[:, [question for _, question in self._pairs]]
        absent = (scan == 0) | ((scan == 1) & (organ == 0))
        present = (scan == 1) & (organ == 1)
        return torch.where(present, 1, torch.where(absent, 0, UNKNOWN))

    def _scores(self, encoded: Encoded, scans: int) -> Float[Tensor, "B P"]:
        """Score of each finding in each of its organs; NaN where the scan does not show the organ."""
        rows = encoded.image("organ", self.image_head)
        positive = cosines(rows, self._affirming.anchors(encoded, self.text_head))
        offset = len(self._affirming.texts)
        negative = cosines(rows, self._denying.anchors(encoded, self.text_head, offset=offset))
        organ, scan = encoded.organ_class.cpu(), encoded.organ_scan.cpu()
        scores = positive.new_full((scans, len(self._pairs)), torch.nan)
        for column, (label, question) in enumerate(self._pairs):
            mine = organ == label
            denial = self._asked.index(label) if self._denies_by_organ else question
            scores[scan[mine], column] = positive[mine, question] - negative[mine, denial]
        return scores

    def compute(self) -> dict[str, float]:
        """Mean areas over organs and over findings in organs, and calls at validation thresholds."""
        table = self.rows.table()
        if not len(table) or not self._pairs:
            return {f"{_PREFIX}/organs": 0.0}
        numbers: dict[str, float] = {}
        for kind, count in (("organ", "organs"), ("finding", "findings")):
            scored = self._scored(table, kind)
            counted = self._counted(scored)
            stem = f"{_PREFIX}/" if kind == "organ" else f"{_PREFIX}/finding_"
            numbers[f"{_PREFIX}/{count}"] = float(counted.sum())
            if counted.any():
                numbers |= self._areas(stem, scored.columns(counted))
                numbers |= self._judged(stem, kind, scored, counted)
        return numbers

    def results(self) -> Mapping[str, Any]:
        """A row an organ, a row a finding in an organ, and the protocol."""
        table = self.rows.table()
        has_cases = bool(len(table) and self._pairs)
        return {
            "title": "Organ abnormality",
            "protocol": {
                "score of a finding": "cosine with affirming sentences less cosine with the denial",
                "score of an organ": "highest over the findings that may lie in it",
                "truth": "statements of the report about that organ, and the labels of the scan",
                "counts from": f"{self.min_cases} positives and {self.min_cases} negatives",
                "thresholds": f"{self.threshold_rule}, chosen on validation patients",
                "intervals": self.resampling.described(),
            },
            "organs": self._table_rows(table, "organ") if has_cases else [],
            "findings": self._table_rows(table, "finding") if has_cases else [],
            "cases": self._comparable(table) if has_cases else [],
        }

    def _scored(self, table: Table, kind: str) -> Scored:
        scores = table.array(f"{kind}_scores").astype(np.float64)
        return Scored(scores, table.array(f"{kind}_labels"), table.array("patient"))

    def _counted(self, scored: Scored) -> NDArray[np.bool_]:
        fewest = np.minimum((scored.labels == 0).sum(0), (scored.labels == 1).sum(0))
        counted: NDArray[np.bool_] = fewest >= self.min_cases
        return counted

    def _areas(self, stem: str, scored: Scored) -> dict[str, float]:
        def means(weights: Float64[np.ndarray, "r R"]) -> Float64[np.ndarray, "r 2"]:
            areas = (area(scored.scores, scored.labels, weights).mean(1) for area in (auroc, average_precision))
            return np.stack(list(areas), axis=1)

        interval = self.resampling.interval(means, scored.patients)
        numbers: dict[str, float] = {}
        for column, name in enumerate(("auroc", "auprc")):
            numbers |= {f"{stem}{name}_macro": float(interval.estimate[column])}
            numbers |= bounds(f"{stem}{name}", interval, column)
        return numbers

    def _operating(self, kind: str) -> OperatingPoint | None:
        table = self.validation_table()
        return OperatingPoint.fitted(self._scored(table, kind), self.threshold_rule) if len(table) else None

    def _judged(self, stem: str, kind: str, scored: Scored, counted: NDArray[np.bool_]) -> dict[str, float]:
        point = self._operating(kind)
        if point is None:
            return {}
        among = OperatingPoint(np.where(counted, point.thresholds, np.nan), None, point.patients)
        numbers = among.judged(("f1", "balanced_accuracy"), scored, self.resampling)
        return {f"{stem}{name}": value for name, value in numbers.items()}

    def _columns(self, kind: str) -> list[str]:
        spoken = {organ: label_sets.spoken(self._names[organ]) for organ in self._asked}
        if kind == "organ":
            return [spoken[organ] for organ in self._asked]
        return [f"{self.questions[place].name} in {spoken[organ]}" for organ, place in self._pairs]

    def _table_rows(self, table: Table, kind: str) -> list[dict[str, Any]]:
        scored, point = self._scored(table, kind), self._operating(kind)
        areas, precision = auroc(scored.scores, scored.labels)[0], average_precision(scored.scores, scored.labels)[0]
        judged = [] if point is None else point.rows(scored)
        counted = self._counted(scored)
        return [
            {
                "name": name,
                "counts": bool(counted[column]),
                "positives": int((scored.labels[:, column] == 1).sum()),
                "negatives": int((scored.labels[:, column] == 0).sum()),
                "auroc": float(areas[column]),
                "auprc": float(precision[column]),
                "f1": judged[column]["f1"] if judged else float("nan"),
                "threshold": judged[column]["threshold"] if judged else float("nan"),
            }
            for column, name in enumerate(self._columns(kind))
        ]

    def _comparable(self, table: Table) -> list[dict[str, Any]]:
        found = []
        for kind, name in (("organ", "auroc"), ("finding", "finding_auroc")):
            scored = self._scored(table, kind)
            counted = self._counted(scored)
            if counted.any():
                part = scored.columns(counted)
                columns = [label for label, counts in zip(self._columns(kind), counted, strict=True) if counts]
                full = f"{_PREFIX}/{name}"
                cases = Cases(full, "auroc", False, table.keys, part.patients, columns, part.scores, part.labels)
                found.append(cases.to_json())
        return found
