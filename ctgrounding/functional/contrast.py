"""What the contrasts share: which pairs of rows belong together, all ranks' texts, gradients taken on the way.

A contrast compares every image row of this rank with every text row of all ranks. Its gradient is taken while
the logits of a tile are at hand, so no matrix of all pairs outlives its tile and nothing is computed twice. Forward
gathers the texts once, while the rank's own are being worked on; backward reduces their gradients once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ctgrounding import distributed
from ctgrounding.errors import ConfigError

Duplicates = Literal["ignore", "positive", "negative"]

Positives = Bool[Tensor, "r c"] | tuple[Int64[Tensor, "p"], Int64[Tensor, "p"]] | None
"""Positive pairs of a tile: a mask, or rows and columns of the few that there are."""


@dataclass(frozen=True)
class RowIds:
    """What the rows of one side are, by numbers that mean the same on every rank.

    Attributes:
        target: An image row and a text row of equal target, 0 or above, are a positive pair.
        group: Rows that share any group, 0 or above, are duplicates of each other: identical reports, two
            reconstructions of a study. -1 stands for none. The texts' ``k`` is the same on all ranks.
        subset: Where given (on both sides), only pairs of equal subset are compared.
    """

    target: Int64[Tensor, "R"]
    group: Int64[Tensor, "R k"] | None = None
    subset: Int64[Tensor, "R"] | None = None

    def packed(self, absent: int = -1) -> Int64[Tensor, "R n"]:
        """One row of numbers a row, to travel together: target, subset, groups.

        Args:
            absent: What stands for no target and no group; other for images than for texts, so that the two differ.
        """
        subset = torch.zeros_like(self.target) if self.subset is None else self.subset
        group = self.target.new_empty((len(self.target), 0)) if self.group is None else self.group
        numbers = torch.cat([self.target[:, None], subset[:, None], group], dim=1)
        absences = numbers < 0
        absences[:, 1] = False
        return numbers.masked_fill_(absences, absent)


@dataclass(frozen=True)
class Pairing:
    """Tells positive and excluded pairs of a tile; without ids, row i belongs to text i of the same rank.

    Ids are packed, with absences that differ between the sides.
    """

    image: Int64[Tensor, "M n"] | None
    text: Int64[Tensor, "W P n"] | None
    duplicates: Duplicates
    own: int

    def positives_and_excluded(
        self, rows: slice, block: int, columns: slice
    ) -> tuple[Positives, Bool[Tensor, "r c"] | None]:
        """Where a tile has positive pairs and where excluded ones, None for nowhere. A pair in both is excluded.

        Args:
            rows: Image rows of the tile.
            block: Rank of its texts.
            columns: Which of them.
        """
        if self.image is None or self.text is None:
            return self._diagonal(rows, block, columns), None
        one, other = self.image[rows].T.contiguous()[..., None], self.text[block, columns].T.contiguous()
        positive = one[0] == other[0]
        excluded = one[1] != other[1]
        if self.duplicates != "negative":
            shared = torch.zeros_like(positive)
            for mine in one[2:]:
                for theirs in other[2:]:
                    shared |= mine == theirs
            if self.duplicates == "positive":
                positive |= shared
            else:
                excluded |= shared & ~positive
        return positive, excluded

    def _diagonal(self, rows: slice, block: int, columns: slice) -> tuple[Tensor, Tensor] | None:
        low, high = max(rows.start, columns.start), min(rows.stop, columns.stop)
        if block != self.own or low >= high:
            return None
        places = torch.arange(low, high)
        return places - rows.start, places - columns.start


class Texts:
    """All ranks' text rows, one block a rank; the other ranks' are waited for when they are first needed.

    Their ids go first: they are short, and needed from the start.
    """

    def __init__(self, rows: Float[Tensor, "N D"], ids: RowIds | None, dtype: torch.dtype) -> None:
        self.own, self._rows, self._dtype = distributed.rank(), rows.detach(), dtype
        self.counts = distributed.counts(len(rows), rows.device)
        numbers = None if ids is None else distributed.start_gather(ids.packed(), self.counts)
        self._pending = distributed.start_gather(rows, self.counts)
        self.ids = None if numbers is None else numbers.wait()

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "n D"]]]:
        """Rank and rows of each block, this rank's first, then the others in ring order."""
        yield self.own, self._rows
        if len(self.counts) > 1:
            arrived = self._pending.wait()
            for step in range(1, len(self.counts)):
                block = (self.own + step) % len(self.counts)
                yield block, arrived[block, : self.counts[block]]

    def tiles(self, width: int) -> Iterator[tuple[int, slice, Float[Tensor, "c D"]]]:
        """Rank, place and rows, in the precision of the logits, of each tile of at most ``width`` texts."""
        for block, rows in self.blocks():
            for columns in spans(len(rows), width):
                yield block, columns, rows[columns].to(self._dtype)


@dataclass
class Problem:
    """What a sweep works on, and what it fills: gradients of the sum by the *logits'* cosines, not yet scaled."""

    image: Float[Tensor, "M D"]
    texts: Texts
    pairing: Pairing
    scale: Float[Tensor, ""]
    bias: Float[Tensor, ""]
    weight: Float[Tensor, "M"] | None
    image_gradient: Float[Tensor, "M D"] | None
    text_gradient: Float[Tensor, "W P D"] | None
    bias_gradient: Float[Tensor, ""]

    @property
    def wants_gradient(self) -> bool:
        """Whether anything is to be filled."""
        return self.image_gradient is not None or self.text_gradient is not None


class Sweep(Protocol):
    """Goes over all pairs once and returns the sum and the weight, filling the problem's gradients."""

    def __call__(self, problem: Problem) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Sum and weight in float64."""


def spans(length: int, width: int) -> Iterator[slice]:
    """Slices of at most ``width`` that cover ``length``."""
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))


class _Context(FunctionCtx):
    texts_here: int
    has_text_gradient: bool
    saved_tensors: tuple[Tensor, ...]


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        weight: Tensor | None,
        ids: tuple[RowIds | None, RowIds | None, Duplicates],
        sweep: Sweep,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if torch.float64 in (image.dtype, text.dtype) else torch.float32
        image_ids, text_ids, duplicates = ids
        texts = Texts(text, text_ids, dtype)
        image_numbers = None if image_ids is None else image_ids.packed(absent=-2)
        blocks = (len(texts.counts), max(texts.counts), text.shape[1])
        problem = Problem(
            image=image.to(dtype),
            texts=texts,
            pairing=Pairing(image_numbers, texts.ids, duplicates, texts.own),
            scale=scale.to(dtype),
            bias=bias.to(dtype),
            weight=None if weight is None else weight.to(dtype),
            image_gradient=image.new_zeros(image.shape, dtype=dtype) if wanted[0] else None,
            text_gradient=text.new_zeros(blocks, dtype=dtype) if wanted[1] else None,
            bias_gradient=image.new_zeros((), dtype=torch.float64),
        )
        with torch.autocast(image.device.type, enabled=False):
            total, count = sweep(problem)
            scale_gradient = _scale_gradient(problem)
        saved = [problem.scale, scale_gradient, problem.bias_gradient]
        saved += [part for part in (problem.image_gradient, problem.text_gradient) if part is not None]
        ctx.save_for_backward(*saved)
        ctx.texts_here, ctx.has_text_gradient = text.shape[0], wanted[1]
        count = count.to(dtype)
        ctx.mark_non_differentiable(count)
        return total.to(dtype), count

    @staticmethod
    @distributed.first_derivative_only
    def backward(ctx: _Context, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, scale_gradient, bias_gradient, *parts = ctx.saved_tensors
        text_gradient = None
        if ctx.has_text_gradient:
            text_gradient = distributed.reduce_blocks(parts.pop() * (scale * upstream), ctx.texts_here)
        image_gradient = parts[0] * (scale * upstream) if parts else None
        return (
            image_gradient,
            text_gradient,
            scale_gradient * upstream,
            bias_gradient * upstream,
            None,
            None,
            None,
            None,
        )


def _scale_gradient(problem: Problem) -> Tensor:
    """Sum over pairs of gradient times cosine, from what the sweep left on the images; on the texts if it left none."""
    summed = problem.bias_gradient.new_zeros(())
    if problem.image_gradient is not None:
        for rows in spans(len(problem.image), 1024):
            summed += (problem.image_gradient[rows] * problem.image[rows]).sum(dtype=torch.float64)
    return summed


_apply: Callable[..., tuple[Tensor, Tensor]] = _Contrast.apply


def contrast(
    image: Float[Tensor, "M D"],
    text: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    weight: Float[Tensor, "M"] | None,
    ids: tuple[RowIds | None, RowIds | None, Duplicates],
    sweep: Sweep,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Run a sweep under autograd; see :mod:`.sigmoid_contrast` and :mod:`.softmax_contrast`.

    Raises:
        ConfigError: If shapes, ids or the name of the policy do not fit.
    """
    _check(image, text, ids)
    on = torch.is_grad_enabled()
    of_image = image.requires_grad or scale.requires_grad or bias.requires_grad
    return _apply(image, text, scale, bias, weight, ids, sweep, (on and of_image, on and text.requires_grad))


def _check(image: Tensor, text: Tensor, ids: tuple[RowIds | None, RowIds | None, Duplicates]) -> None:
    image_ids, text_ids, duplicates = ids
    if image.shape[1] != text.shape[1]:
        raise ConfigError(
            f"Image rows have {image.shape[1]} channels and text rows {text.shape[1]}. Use heads of equal width."
        )
    if duplicates not in ("ignore", "positive", "negative"):
        raise ConfigError(f"Policy '{duplicates}' for duplicates is not known. Use ignore, positive or negative.")
    if (image_ids is None) != (text_ids is None):
        raise ConfigError("Ids are given for one side only. Give both sides' ids or none.")
    if image_ids is None and len(image) != len(text):
        raise ConfigError(
            f"There are {len(image)} image and {len(text)} text rows, so rows do not pair up by place. Give ids."
        )
