"""Findings asked as pairs of sentences, of the organ in which they lie and of the whole scan."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ctgrounding import label_sets
from ctgrounding import questions as question_lists
from ctgrounding.errors import BatchError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling
from ctgrounding.evaluation.finding_numbers import FindingNumbers, check_min_cases
from ctgrounding.evaluation.prompts import Ensembles, about_organ, cosines
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.thresholds import Rule
from ctgrounding.types import Batch, Encoded


class ZeroShotFindings(Evaluator):
    """Zero-shot classification of findings: area under the ROC curve of a difference of cosines.

    The score of a finding is the cosine with its affirming sentences less the cosine with its denying
    ones, each an ensemble (normalised mean of unit embeddings). A finding that lies in organs is scored on
    each of them that the scan shows, and the highest counts; a scan that shows none of them takes no part
    in that score. The score of the global readout stands beside it, for all scans and for the same scans.
    A finding counts where it has enough positives and enough negatives.

    Where the task feeds validation patients too, as ``test`` does, thresholds and a calibration are fitted on
    them, and F1, balanced accuracy and calibration error are reported for the evaluated ones.

    Args:
        questions: Packaged list of questions or a YAML file; the labels of the batch have its order.
        image_head: Head of the ``global`` readout.
        text_head: Head of the sentences that meet the global readout.
        organ_image_head: Head of the ``organ`` readout.
        organ_text_head: Head of the sentences that meet the organ readout.
        organ_negative: Templates with ``{organ}`` that deny any finding in an organ; used instead of the
            question's own denial for the organ score. None uses the question's own.
        label_set: Organ label set of the masks.
        min_cases: Least number of positives and of negatives of a finding that counts.
        resampling: Of the intervals, by patient.
        threshold_rule: How thresholds are chosen on validation patients, see
            :func:`ctgrounding.evaluation.thresholds.choose_thresholds`.

    Raises:
        ConfigError: If the list or the label set does not exist or names an unknown organ, or a template lacks
            ``{organ}``.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"labels", "patient", "global", "organ"})
    wants_validation = True

    def __init__(
        self,
        questions: str,
        image_head: str = "main",
        text_head: str = "main",
        organ_image_head: str = "organ",
        organ_text_head: str = "organ",
        organ_negative: Sequence[str] | None = None,
        label_set: str = "total_v2",
        min_cases: int = 8,
        resampling: Resampling | None = None,
        threshold_rule: Rule = "youden",
    ) -> None:
        super().__init__()
        check_min_cases(min_cases)
        self.threshold_rule: Rule = threshold_rule
        self.question_list, self.questions = questions, question_lists.load(questions)
        self.image_head, self.text_head = image_head, text_head
        self.organ_image_head, self.organ_text_head = organ_image_head, organ_text_head
        self.organ_negative, self.label_set, self.min_cases = organ_negative, label_set, min_cases
        self.resampling = resampling or Resampling()
        self._organs = [
            [label_sets.label_of(organ, label_set) for organ in question.organs] for question in self.questions
        ]
        self._pairs = Ensembles([q.positive for q in self.questions] + [q.negative for q in self.questions])
        asked = sorted({organ for organs in self._organs for organ in organs}) if organ_negative else []
        spoken = [label_sets.spoken(label_sets.load(label_set)[organ]) for organ in asked]
        self._denials = Ensembles([about_organ(organ_negative or (), name, "organ_negative") for name in spoken])
        self._denial_of = {organ: place for place, organ in enumerate(asked)}

    def fixed_texts(self) -> Sequence[str]:
        """The sentences of all questions, and the denials of each organ where configured."""
        return (*self._pairs.texts, *self._denials.texts)

    def reads(self) -> Reads:
        """Both readouts, each with its head, and the sentences through both text heads."""
        pairs = frozenset({("global", self.image_head), ("organ", self.organ_image_head)})
        return Reads(pairs, frozenset({self.text_head, self.organ_text_head}))

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Score the scans of a batch.

        Raises:
            ConfigError: If a head or readout does not exist.
            BatchError: If the labels have another number of columns than the questions.
        """
        count = len(self.questions)
        if batch["labels"].shape[1] != count:
            raise BatchError(
                f"The batch has {batch['labels'].shape[1]} label columns but list '{self.question_list}' has {count} "
                "questions. Give data and evaluator the same list."
            )
        anchors = self._pairs.anchors(encoded, self.text_head)
        whole = cosines(encoded.image("global", self.image_head), anchors)
        self.rows.add(
            scan_keys(batch),
            labels=batch["labels"],
            patient=batch["patient"],
            **{"global": whole[:, :count] - whole[:, count:], "organ": self._organ_scores(encoded, len(whole))},
        )

    def _organ_scores(self, encoded: Encoded, scans: int) -> Float[Tensor, "B Q"]:
        """Highest score over the organs of each finding that a scan shows; NaN where it shows none."""
        anchors = self._pairs.anchors(encoded, self.organ_text_head)
        rows = encoded.image("organ", self.organ_image_head)
        pairs = cosines(rows, anchors)
        count = len(self.questions)
        positive, negative = pairs[:, :count], pairs[:, count:]
        organ, scan = encoded.organ_class.cpu(), encoded.organ_scan.cpu()
        if self._denial_of:
            negative = self._denied(encoded, rows, organ)
        scores = pairs.new_full((scans, count), -torch.inf)
        for question, organs in enumerate(self._organs):
            mine = torch.isin(organ, torch.tensor(organs, dtype=organ.dtype))
            difference = positive[mine, question] - negative[mine, question]
            scores[:, question].scatter_reduce_(0, scan[mine], difference, reduce="amax")
        return torch.where(scores.isinf(), torch.nan, scores)

    def _denied(self, encoded: Encoded, rows: Float[Tensor, "O M"], organ: Int64[Tensor, "O"]) -> Float[Tensor, "O Q"]:
        """Cosine of each organ with its own denial, whatever the question."""
        anchors = self._denials.anchors(encoded, self.organ_text_head, offset=len(self._pairs.texts))
        place = torch.tensor([self._denial_of.get(label, 0) for label in organ.tolist()], dtype=torch.int64)
        own = cosines(rows, anchors).gather(1, place[:, None])
        return own.expand(-1, len(self.questions))

    def compute(self) -> dict[str, float]:
        """Macro areas with intervals, calls at thresholds of validation patients, and the findings that count."""
        table = self.rows.table()
        return self._numbers(table).macro() if len(table) else {"findings/classes": 0.0}

    def results(self) -> Mapping[str, Any]:
        """A row a finding with intervals, case numbers and curves, and the protocol."""
        table = self.rows.table()
        told = self._numbers(table) if len(table) else None
        return {
            "title": "Findings, zero-shot",
            "protocol": {
                "questions": self.question_list,
                "score": "cosine with affirming sentences less cosine with denying ones"
                + (f"; in organs, denial is '{self.organ_negative[0]}'" if self.organ_negative else ""),
                "ensemble": f"up to {max((len(q.positive) for q in self.questions), default=0)} sentence pairs, mean",
                "organ readout": "highest over the finding's visible organs; scans that show none are left out",
                "a finding counts from": f"{self.min_cases} positives and {self.min_cases} negatives",
                "thresholds": f"{self.threshold_rule}, chosen on validation patients; so is the map to probabilities",
                "intervals": self.resampling.described(),
            },
            "classes": [] if told is None else told.rows(),
            "calibration": None if told is None else told.calibration(),
            "cases": [] if told is None else told.comparable(),
        }

    def _numbers(self, table: Table) -> FindingNumbers:
        chosen_on = self.validation_table()
        return FindingNumbers(
            self.questions,
            table,
            chosen_on if len(chosen_on) else None,
            min_cases=self.min_cases,
            rule=self.threshold_rule,
            resampling=self.resampling,
        )
