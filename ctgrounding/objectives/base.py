"""The contract of a training signal."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from ctgrounding.errors import ConfigError
from ctgrounding.types import Batch, Encoded, EncoderDims, Term


class Objective(nn.Module, ABC):
    """A training signal: what the encoders say about a batch, turned into sums and weights.

    A subclass takes an :class:`ctgrounding.types.EncoderDims` first, then its own typed settings; a run
    configuration makes it with ``model.objectives: {role: {class_path: ..., init_args: ...}}``. It does not
    log, average, tokenise, or know its role, weight, rank, optimizer or trainer.

    What it must keep, and :func:`ctgrounding.testing.check_objective` checks:

    * each term is a sum over this rank's valid elements and the sum of their weights, so that the sum over
      ranks is what one process with all scans would give, in value and in every gradient;
    * the same collectives and the same heads in every step, whatever the batch holds; zero rows are legal;
    * nothing depends on the order of scans, on padding, or on keys that ``requires`` does not name.

    Rows of other ranks come from :mod:`ctgrounding.distributed`. A text head may standardise over all rows
    of one call, so give ``encoded.texts`` exactly the rows that matter to a comparison, in one call.

    Attributes:
        requires: Batch keys and readouts that it reads. ``depth_valid`` and ``depth_mm`` come with the readout
            ``depth``; ``organ_scan``, ``organ_class`` and ``organ_visible`` with ``organ``.
    """

    requires: ClassVar[frozenset[str]]

    def fixed_texts(self) -> Sequence[str]:
        """Prompts, organ names, dictionary entries: texts that belong to no batch, tokenised once at start."""
        return ()

    def plan(self, batch: Batch, generator: torch.Generator) -> Int64[Tensor, "P"]:
        """Which of :meth:`fixed_texts` this step uses; all of them by default.

        Called once a step on every rank, before the text pass, and only after that :meth:`forward`. It may use
        collectives. ``forward`` finds what was planned in ``encoded.planned`` and ``encoded.planned_text``.

        Args:
            batch: This rank's scans.
            generator: Seeded by the step alone, so that all ranks draw the same. Others draw from it
                afterwards: take as much of it whatever the batch holds.

        Returns:
            Indices into :meth:`fixed_texts`, each once, ascending, equal on all ranks.
        """
        return torch.arange(len(self.fixed_texts()))

    def set_label_counts(self, counts: Int64[Tensor, "Q 2"]) -> None:
        """Take the number of negatives and positives of each label column in the training data.

        Called once, before training. Most objectives have no use for it.
        """

    @abstractmethod
    def forward(self, encoded: Encoded, batch: Batch) -> dict[str, Term]:
        """Sum and weight of each of this objective's terms, the same names in every step."""


def check_heads(dims: EncoderDims, image_head: str, text_head: str) -> None:
    """Refuse heads that do not exist or whose embeddings cannot be compared.

    Raises:
        ConfigError: With the heads that there are.
    """
    image_width = _width("image", image_head, dims.image_heads)
    text_width = _width("text", text_head, dims.text_heads)
    if image_width != text_width:
        raise ConfigError(
            f"Image head '{image_head}' has width {image_width} and text head '{text_head}' {text_width}, so their "
            "embeddings cannot be compared. Give both the same width under model.heads."
        )


def check_readout(dims: EncoderDims, readout: str) -> None:
    """Refuse a readout that the model does not make.

    Raises:
        ConfigError: With the readouts that there are.
    """
    if readout not in dims.readouts:
        raise ConfigError(
            f"Readout '{readout}' is not made by this model, which has {sorted(dims.readouts)}. "
            "Add it under model.readouts or name one of those."
        )


def _width(side: str, name: str, heads: Mapping[str, int]) -> int:
    if name not in heads:
        raise ConfigError(
            f"There is no {side} head '{name}'; declared are {sorted(heads)}. "
            f"Declare it under model.heads.{side} or name one of those."
        )
    return heads[name]
