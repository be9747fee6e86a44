"""Sigmoid contrast (SigLIP) over all ranks' texts, exact on any number of ranks, without a matrix of all pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.functional.contrast import Duplicates, Positives, Problem, RowIds, contrast, spans
from ctgrounding.types import Term

TILE_ROWS, TILE_COLUMNS = 2048, 1024
STRIP_ROWS = 128
"""Rows of a tile that the arithmetic between its products takes at a time on a CPU: they stay in a core's own cache."""
FOLDS = 2


def sigmoid_contrast(
    image: Float[Tensor, "M D"],
    text: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    *,
    image_ids: RowIds | None = None,
    text_ids: RowIds | None = None,
    duplicates: Duplicates = "ignore",
    weight: Float[Tensor, "M"] | None = None,
) -> Term:
    """``sum_i w_i sum_j softplus(-z_ij * (scale * image_i . text_j + bias))`` over this rank's images and all texts.

    ``z`` is 1 for a positive pair, -1 else (Zhai et al., arXiv 2303.15343). Summed over ranks and divided by
    the summed weight, it is the published loss of the whole batch; so are its gradients, on any number of
    ranks, with ``M`` and ``N`` differing between each other and between ranks, zero included.

    Differs from other implementations in that equal reports need not oppose each other, logits are float32
    (float64 for float64 rows) whatever the rows' precision, positives use ``softplus(-x)`` and do not cancel,
    and memory grows with ``(M + N) * D`` only. Second derivatives are an error.

    Args:
        image: This rank's image rows, unit length as a rule.
        text: This rank's text rows. Their half of the work is skipped while they need no gradient.
        scale: Factor of the cosines (not its logarithm).
        bias: Offset of the logits.
        image_ids: What each image row is; without ids, image row i belongs to text row i of the same rank.
        text_ids: What each text row is.
        duplicates: Whether pairs that share a group but are not each other's own count as positives, as
            negatives or not at all.
        weight: Weight of each image row; 1 by default.

    Returns:
        The sum, and the sum of the image rows' weights.

    Raises:
        ConfigError: If widths or ids do not fit.

    Examples:
        >>> rows = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=1)
        >>> term = sigmoid_contrast(rows, rows, torch.tensor(10.0), torch.tensor(-5.0))
        >>> round(float(term.total / term.weight), 4)
        0.0134
    """
    total, summed = contrast(image, text, scale, bias, weight, (image_ids, text_ids, duplicates), _sweep)
    return Term(total, summed)


def _sweep(problem: Problem) -> tuple[Tensor, Tensor]:
    total = problem.bias_gradient.new_zeros(())
    scratch = _Scratch(problem)
    for block, columns, texts in problem.texts.tiles(TILE_COLUMNS):
        scaled = (texts * problem.scale).T
        for rows in spans(len(problem.image), TILE_ROWS):
            images = problem.image[rows]
            tile = torch.mm(images, scaled, out=scratch.tile(len(images), len(texts)))
            for strip in spans(len(tile), scratch.strip_rows):
                place = slice(rows.start + strip.start, rows.start + strip.stop)
                total += _strip(problem, tile[strip], scratch, place, block, columns)
            if problem.image_gradient is not None:
                problem.image_gradient[rows].addmm_(tile, texts)
            if problem.text_gradient is not None:
                problem.text_gradient[block, columns].addmm_(tile.T, images)
    weight = problem.weight
    count = total.new_tensor(float(len(problem.image))) if weight is None else weight.sum(dtype=torch.float64)
    return total, count


class _Scratch:
    """Memory of one tile and one strip, used again and again: fresh pages would cost as much as the arithmetic."""

    def __init__(self, problem: Problem) -> None:
        rows, columns = min(len(problem.image), TILE_ROWS), min(max(problem.texts.counts), TILE_COLUMNS)
        self.strip_rows = STRIP_ROWS if problem.image.device.type == "cpu" else TILE_ROWS
        self._tile = problem.image.new_empty(rows * columns)
        self._strip = problem.image.new_empty(min(rows, self.strip_rows) * columns)

    def tile(self, rows: int, columns: int) -> Tensor:
        return self._tile[: rows * columns].view(rows, columns)

    def like(self, strip: Tensor) -> Tensor:
        return self._strip[: strip.numel()].view_as(strip)


def _strip(
    problem: Problem, strip: Tensor, scratch: _Scratch, rows: slice, block: int, columns: slice
) -> Float[Tensor, ""]:
    """Sum of some rows of a tile, whose cosines, scaled, become the gradient by their logits where one is wanted."""
    spare = scratch.like(strip)
    positive, excluded = problem.pairing.positives_and_excluded(rows, block, columns)
    logits = _turn(strip.add_(problem.bias), positive, spare)
    if excluded is not None:
        logits.masked_fill_(excluded, -torch.inf)
    above = torch.clamp(logits, min=0, out=spare).sum(1)
    chances = logits.sigmoid_()
    losses = above + _softplus_of_minus_abs(chances, spare)
    weight = None if problem.weight is None else problem.weight[rows]
    total = (losses if weight is None else losses * weight).sum(dtype=torch.float64)
    if problem.wants_gradient:
        gradient = _turn(chances, positive, spare)
        if weight is not None:
            gradient.mul_(weight[:, None])
        problem.bias_gradient += gradient.sum()
    return total


def _softplus_of_minus_abs(chances: Tensor, spare: Tensor) -> Tensor:
    """``softplus(-abs(x)).sum(1)`` from ``sigmoid(x)``, with few logarithms, which cost most.

    It is ``-log1p(-t)`` of ``t = min(sigmoid(x), 1 - sigmoid(x))``, which keeps what is tiny; where the difference
    cancels, ``softplus(x)`` is at least log 2, and the error is that of its rounding. Two terms of the sum become one
    by ``(1 - a)(1 - b) = 1 - (a + b - ab)``; as ``t`` is at most 1/2, that stays at least ``2 ** -2 ** FOLDS``.
    """
    rest = torch.minimum(torch.sub(1.0, chances, out=spare), chances, out=spare)
    for _ in range(FOLDS):
        if rest.shape[1] % 2:
            break
        one, other = rest.chunk(2, dim=1)
        rest = one.addcmul_(one, other, value=-1.0).add_(other)
    return -rest.neg_().log1p_().sum(1)


def _turn(strip: Tensor, positive: Positives, spare: Tensor) -> Tensor:
    """Turn the sign of positive pairs, in place."""
    if positive is None:
        return strip
    if isinstance(positive, tuple):
        strip[positive] = -strip[positive]
        return strip
    return torch.where(positive, torch.neg(strip, out=spare), strip, out=strip)
