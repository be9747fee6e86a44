"""Evaluators over a pass: every sentence encoded once, every scan encoded once, numbers at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.encoders.text.base import Tokenizer
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.evaluation.base import Evaluator
from ctgrounding.evaluation.depth import SnippetDepth
from ctgrounding.tasks.encoding import StepWork
from ctgrounding.tasks.texts import FixedTexts, StepTexts
from ctgrounding.types import Batch, Encoded


class Evaluation:
    """Feeds evaluators from one image pass a scan and one text pass a sentence.

    A sentence that several scans share is encoded where it comes first and kept, so that it has one vector
    whatever batch it stands in.

    Args:
        evaluators: Role to evaluator.

    Attributes:
        texts_encoded: Sentences encoded in this pass, fixed texts included.
        scans_encoded: Scans encoded in this pass, those of validation patients included.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self.evaluators = dict(evaluators)
        self._fixed = FixedTexts({}, _no_tokens)
        self._texts = _SeenTexts()
        self._vectors: Tensor | None = None
        self.scans_encoded = 0
        self._untrained_encoder: VisionLanguageEncoder | None = None
        self._untrained_texts = _SeenTexts()

    @property
    def texts_encoded(self) -> int:
        """Sentences encoded in this pass, fixed texts included."""
        return self._texts.encoded + (0 if self._vectors is None else len(self._vectors))

    @property
    def wants_validation(self) -> bool:
        """Whether an evaluator chooses something on validation patients."""
        return any(evaluator.wants_validation for evaluator in self.evaluators.values())

    def use_label_names(self, names: Sequence[str]) -> None:
        """Tell the evaluators what the label columns are called.

        Raises:
            ConfigError: If one needs a column that is not there.
        """
        for evaluator in self.evaluators.values():
            evaluator.use_label_names(names)

    def begin(self, tokenizer: Tokenizer) -> None:
        """Forget the last pass and tokenise the evaluators' own texts."""
        for evaluator in self.evaluators.values():
            evaluator.reset()
        texts = {role: evaluator.fixed_texts() for role, evaluator in self.evaluators.items()}
        self._fixed = FixedTexts(texts, tokenizer)
        self._texts, self._untrained_texts = _SeenTexts(), _SeenTexts()
        self._vectors = None
        self.scans_encoded = 0

    def keep_untrained(self, encoder: VisionLanguageEncoder) -> None:
        """Have the snippet evaluators compared with this model, which no training step has touched."""
        self._untrained_encoder = encoder.eval().requires_grad_(False)

    def use_depth_prior(self, prior: Mapping[int, float]) -> None:
        """Give the snippet evaluators the training mean of each organ's place in its scan."""
        for evaluator in self._snippets():
            evaluator.use_prior(prior)

    def update(self, encoder: VisionLanguageEncoder, batch: Batch) -> None:
        """Encode a batch and give it to every evaluator, then what an untrained model makes of its snippets."""
        encoded = self.encode(encoder, batch)
        for role, evaluator in self.evaluators.items():
            evaluator.update(encoded[role], batch)
        if self._untrained_encoder is not None and self._snippets():
            twin = self._untrained_encoder.to(batch["tokens"].device)
            other = _run(twin, batch, self._untrained_texts)
            for evaluator in self._snippets():
                evaluator.update_untrained(other, batch)

    def update_validation(self, encoder: VisionLanguageEncoder, batch: Batch) -> None:
        """Encode a batch of validation patients for the evaluators that choose something on them."""
        encoded = self.encode(encoder, batch)
        for role, evaluator in self.evaluators.items():
            if evaluator.wants_validation:
                evaluator.update_validation(encoded[role], batch)

    def encode(self, encoder: VisionLanguageEncoder, batch: Batch) -> dict[str, Encoded]:
        """Encode a batch; each role sees its own fixed texts behind the batch's."""
        encoded = _run(encoder, batch, self._texts)
        fixed = self._fixed_vectors(encoder, encoded.text)
        self.scans_encoded += len(batch["scan_id"])
        joined = replace(encoded, text=torch.cat([encoded.text, fixed]))
        return {role: _planned(joined, rows + len(encoded.text)) for role, rows in self._fixed.rows.items()}

    def compute(self) -> dict[str, float]:
        """All evaluators' numbers by full name."""
        numbers: dict[str, float] = {}
        for evaluator in self.evaluators.values():
            numbers.update({evaluator.prefix + name: value for name, value in evaluator.compute().items()})
        return numbers

    def results(self) -> dict[str, Mapping[str, Any]]:
        """All evaluators' results in full, by role."""
        return {role: evaluator.results() for role, evaluator in self.evaluators.items()}

    def _snippets(self) -> list[SnippetDepth]:
        return [evaluator for evaluator in self.evaluators.values() if isinstance(evaluator, SnippetDepth)]

    def _fixed_vectors(self, encoder: VisionLanguageEncoder, like: Tensor) -> Tensor:
        if self._vectors is None:
            tokens, mask = self._fixed.all_rows(encoder.text.tokenizer.pad_id)
            with torch.no_grad():
                self._vectors = encoder.encode_tokens(tokens.to(like.device), mask.to(like.device)).to(like.dtype)
        return self._vectors


class _SeenTexts:
    """Vectors of the sentences that a pass has met."""

    def __init__(self) -> None:
        self._rows: dict[str, Tensor] = {}

    @property
    def encoded(self) -> int:
        return len(self._rows)

    def new(self, batch: Batch) -> list[int]:
        """Rows of a batch's texts that were not met before."""
        return [row for row, text in enumerate(batch["texts"]) if text not in self._rows]

    def joined(self, batch: Batch, new: Sequence[int], vectors: Float[Tensor, "n E"]) -> Float[Tensor, "T E"]:
        """Vectors of all texts of a batch, with those just encoded."""
        for row, vector in zip(new, vectors, strict=True):
            self._rows[batch["texts"][row]] = vector
        return torch.stack([self._rows[text] for text in batch["texts"]]) if batch["texts"] else vectors


def _run(encoder: VisionLanguageEncoder, batch: Batch, seen: _SeenTexts) -> Encoded:
    new = seen.new(batch)
    rows = torch.tensor(new, dtype=torch.int64, device=batch["tokens"].device)
    work = StepWork(encoder, batch, StepTexts(batch["tokens"][rows], batch["token_mask"][rows], {}, {}))
    with torch.no_grad():
        encoded = work.encoded([segment() for segment in work.segments])
        return replace(encoded, text=seen.joined(batch, new, encoded.text))


def _planned(encoded: Encoded, rows: Tensor) -> Encoded:
    device = encoded.text.device
    return replace(encoded, planned=torch.arange(len(rows), device=device), planned_text=rows.to(device))


def _no_tokens(text: str) -> Tensor:
    raise KeyError(text)
