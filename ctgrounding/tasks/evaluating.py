"""Evaluators over a pass: fixed texts encoded once, every scan encoded once, numbers at the end."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctgrounding.encoders.text.base import Tokenizer
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.evaluation.base import Evaluator
from ctgrounding.evaluation.depth import SnippetDepth
from ctgrounding.tasks.encoding import StepWork
from ctgrounding.tasks.texts import FixedTexts
from ctgrounding.types import Batch, Encoded


class Evaluation:
    """Feeds evaluators from one image pass a scan and one text pass a sentence.

    Args:
        evaluators: Role to evaluator.

    Attributes:
        texts_encoded: Text vectors made in this pass, fixed texts included once.
        scans_encoded: Scans encoded in this pass.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator]) -> None:
        self.evaluators = dict(evaluators)
        self.texts_encoded = 0
        self.scans_encoded = 0
        self._fixed = FixedTexts({}, _no_tokens)
        self._vectors: Tensor | None = None
        self._untrained: Evaluation | None = None
        self._untrained_encoder: VisionLanguageEncoder | None = None

    def begin(self, tokenizer: Tokenizer) -> None:
        """Forget the last pass and tokenise the evaluators' own texts."""
        for evaluator in self.evaluators.values():
            evaluator.reset()
        texts = {role: evaluator.fixed_texts() for role, evaluator in self.evaluators.items()}
        self._fixed = FixedTexts(texts, tokenizer)
        self._vectors = None
        self.texts_encoded = self.scans_encoded = 0

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
            other = _run(twin, batch, self._fixed)
            for evaluator in self._snippets():
                evaluator.update_untrained(other, batch)

    def encode(self, encoder: VisionLanguageEncoder, batch: Batch) -> dict[str, Encoded]:
        """Encode a batch; each role sees its own fixed texts behind the batch's."""
        encoded = _run(encoder, batch, self._fixed)
        fixed = self._fixed_vectors(encoder, encoded.text)
        self.texts_encoded += len(encoded.text)
        self.scans_encoded += len(batch["scan_id"])
        joined = replace(encoded, text=torch.cat([encoded.text, fixed]))
        return {role: _planned(joined, rows + len(encoded.text)) for role, rows in self._fixed.rows.items()}

    def compute(self) -> dict[str, float]:
        """All evaluators' numbers by full name."""
        numbers: dict[str, float] = {}
        for evaluator in self.evaluators.values():
            numbers.update(evaluator.compute())
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
            self.texts_encoded += len(tokens)
        return self._vectors


def _run(encoder: VisionLanguageEncoder, batch: Batch, fixed: FixedTexts) -> Encoded:
    work = StepWork(encoder, batch, fixed.step(batch, {}, encoder.text.tokenizer.pad_id))
    with torch.no_grad():
        return work.encoded([segment() for segment in work.segments])


def _planned(encoded: Encoded, rows: Tensor) -> Encoded:
    device = encoded.text.device
    return replace(encoded, planned=torch.arange(len(rows), device=device), planned_text=rows.to(device))


def _no_tokens(text: str) -> Tensor:
    raise KeyError(text)
