"""Yes/no findings as sentence pairs in the shared space."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ctgrounding import distributed, questions
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.functional.prompts import answer_loss, draw_variants, positive_weights, text_keys
from ctgrounding.objectives.base import Objective, check_heads, check_readout
from ctgrounding.questions import Question
from ctgrounding.types import UNKNOWN_LABEL, Batch, Encoded, EncoderDims, Term


class DiseasePrompts(Objective):
    """Binary cross-entropy on how much nearer a scan is to a sentence than to its denial (RadFinder, arXiv 2603.02026).

    The logit is ``scale * (scan . positive - scan . negative)``; the logit's bias cancels. For each scan and
    question one of the sentence pairs is drawn anew every step. Unknown labels take no part. The sum is
    divided by the number of known labels, not by their weights, so a ``question_weights`` of 5 counts
    fivefold. With RadFinder's accumulation undone, its weights per optimizer step are global : prompts :
    localization = 1 : 8 : 1.02; here they mean the same at any micro-batch size.

    Columns of ``batch["labels"]`` are the questions in their order.

    Args:
        dims: Sizes of the encoders and heads.
        questions: Name or file of a question list, or several, one after another.
        image_head: Head of the scans (RadFinder: a copy of the main one).
        text_head: Head of the sentences (RadFinder: the main one).
        logit: Logit scale.
        question_weights: Pattern of question names (``*`` and ``?``) to weight; the last that fits counts, 1
            where none does.
        largest_positive_weight: Upper bound of ``negatives / positives``, the weight of a positive label; ``inf`` for
            none. The counts come from the training data by :meth:`set_label_counts`; before that it is 1.

    Raises:
        ConfigError: If a head, the readout ``global`` or a list does not exist, a pattern fits no question, a
            weight is none, or the questions differ in their number of sentence pairs.

    Examples:
        >>> from ctgrounding.testing.tiny import tiny_encoded_and_batch, tiny_questions_file
        >>> from ctgrounding.testing.tiny import with_fixed_texts
        >>> encoded, batch, dims = tiny_encoded_and_batch()
        >>> prompts = DiseasePrompts(dims, questions=str(tiny_questions_file()))
        >>> term = prompts(with_fixed_texts(encoded, prompts, batch), batch)["answers"]
        >>> int(term.weight) == int((batch["labels"] >= 0).sum())
        True
    """

    requires: ClassVar[frozenset[str]] = frozenset({"global", "labels", "scan_id"})

    positive_weight: Float[Tensor, "Q"]
    question_weight: Float[Tensor, "Q"]

    def __init__(
        self,
        dims: EncoderDims,
        *,
        questions: str | Sequence[str],
        image_head: str = "main",
        text_head: str = "main",
        logit: str = "main",
        question_weights: Mapping[str, float] | None = None,
        largest_positive_weight: float = 20.0,
    ) -> None:
        super().__init__()
        check_heads(dims, image_head, text_head)
        check_readout(dims, "global")
        if not largest_positive_weight > 0:
            raise ConfigError(f"largest_positive_weight is {largest_positive_weight}, but must be above 0.")
        self.image_head, self.text_head, self.logit = image_head, text_head, logit
        self.questions = _load(questions)
        self.variants = len(self.questions[0].positive)
        self.largest_positive_weight = largest_positive_weight
        self.register_buffer("positive_weight", torch.ones(len(self.questions)))
        weights = _question_weights([question.name for question in self.questions], question_weights or {})
        self.register_buffer("question_weight", weights, persistent=False)
        self._step_key = 0

    def fixed_texts(self) -> Sequence[str]:
        """All sentences: those that affirm, then those that deny, each by question and variant."""
        affirming = [sentence for question in self.questions for sentence in question.positive]
        return affirming + [sentence for question in self.questions for sentence in question.negative]

    def set_label_counts(self, counts: Int64[Tensor, "Q 2"]) -> None:
        """Weigh positive labels by the counts of the training data; see the class."""
        if len(counts) != len(self.questions):
            raise ConfigError(
                f"Counts of {len(counts)} label columns were given to {len(self.questions)} questions. "
                "Use one question list for data and objective."
            )
        self.positive_weight.copy_(positive_weights(counts, self.largest_positive_weight))

    def plan(self, batch: Batch, generator: torch.Generator) -> Int64[Tensor, "P"]:
        """The sentences that are asked on any rank in this step."""
        self._step_key = int(torch.randint(2**62, (), generator=generator))
        pair = self._pairs(batch)[batch["labels"] != UNKNOWN_LABEL]
        pairs = len(self.questions) * self.variants
        asked = torch.zeros(pairs, dtype=torch.int64, device=pair.device)
        asked[pair] = 1
        used = distributed.sum_over_ranks(asked).nonzero()[:, 0].cpu()
        return torch.cat([used, used + pairs])

    def forward(self, encoded: Encoded, batch: Batch) -> dict[str, Term]:
        """The one term, ``answers``."""
        labels = batch["labels"]
        if labels.shape[1] != len(self.questions):
            raise BatchError(
                f"The batch has {labels.shape[1]} label columns, but the objective {len(self.questions)} questions. "
                "Use one question list for data and objective."
            )
        scans = encoded.image("global", self.image_head)
        sentences = encoded.texts(encoded.planned_text, self.text_head)
        affirming, denying = sentences.chunk(2)
        cosines = scans @ (affirming - denying).T
        scale, _ = encoded.logit(self.logit)
        asked = self._place(encoded.planned, self._pairs(batch), labels)
        # One column of zeros stands for pairs that nobody is asked.
        answers = torch.cat([cosines, cosines.new_zeros(len(scans), 1)], dim=1).gather(1, asked)
        losses = answer_loss(scale * answers, labels, self.positive_weight) * self.question_weight
        known = (labels != UNKNOWN_LABEL).to(losses.dtype)
        return {"answers": Term(losses.sum(), known.sum())}

    def _pairs(self, batch: Batch) -> Int64[Tensor, "B Q"]:
        """Number of the sentence pair that each scan is asked for each question in this step."""
        labels = batch["labels"]
        scans = text_keys(batch["scan_id"]).to(labels.device)
        drawn = draw_variants(self._step_key, scans, len(self.questions), self.variants)
        return drawn + self.variants * torch.arange(len(self.questions), device=labels.device)

    def _place(self, planned: Tensor, pairs: Tensor, labels: Tensor) -> Tensor:
        """Column of each asked pair among the planned ones."""
        here = len(planned) // 2
        place = torch.full((len(self.questions) * self.variants,), here, device=pairs.device)
        place[planned[:here].to(pairs.device)] = torch.arange(here, device=pairs.device)
        asked = place[pairs]
        if bool(((asked == here) & (labels != UNKNOWN_LABEL)).any()):
            raise BatchError(
                "A sentence that a scan is asked was not encoded. Call plan in the same step, on each rank."
            )
        return asked


def _load(source: str | Sequence[str]) -> tuple[Question, ...]:
    sources = [source] if isinstance(source, str) else list(source)
    loaded = tuple(question for name in sources for question in questions.load(name))
    if not loaded:
        raise ConfigError("DiseasePrompts has no questions. Name a question list.")
    sizes = {len(question.positive) for question in loaded}
    if len(sizes) > 1:
        raise ConfigError(
            f"Questions of {', '.join(sources)} have {sorted(sizes)} sentence pairs. Give all of them the same number."
        )
    return loaded


def _question_weights(names: Sequence[str], weights: Mapping[str, float]) -> Tensor:
    result = torch.ones(len(names))
    for pattern, weight in weights.items():
        fitting = [number for number, name in enumerate(names) if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(
                f"Pattern '{pattern}' of question_weights fits none of the {len(names)} questions, "
                f"which begin with {', '.join(names[:3])}. Correct or remove it."
            )
        if not 0 <= weight < math.inf:
            raise ConfigError(
                f"question_weights gives '{pattern}' {weight}, but a weight is a finite number from 0 on."
            )
        result[fitting] = weight
    return result
