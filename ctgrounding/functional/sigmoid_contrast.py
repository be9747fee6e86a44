"""Sigmoid contrast (SigLIP) over all ranks' texts, exact on any number of ranks, without a matrix of all pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.functional.contrast import Duplicates, Positives, Problem, RowIds, contrast, spans
from ctgrounding.types import Term

TILE_ROWS, TILE_COLUMNS = 1024, 1024
FOLDS = 3


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
            logits, spare = scratch.tiles(rows.stop - rows.start, len(texts))
            torch.mm(problem.image[rows], scaled, out=logits).add_(problem.bias)
            total += _tile(problem, logits, spare, rows, block, columns, texts)
    weight = problem.weight
    count = total.new_tensor(float(len(problem.image))) if weight is None else weight.sum(dtype=torch.float64)
    return total, count


class _Scratch:
    """Two tiles' memory, used again and again: fresh pages would cost as much as the arithmetic on them."""

    def __init__(self, problem: Problem) -> None:
        rows, columns = min(len(problem.image), TILE_ROWS), min(max(problem.texts.counts), TILE_COLUMNS)
        self._memory = problem.image.new_empty(2, rows * columns)

    def tiles(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        first, second = self._memory[:, : rows * columns]
        return first.view(rows, columns), second.view(rows, columns)


def _tile(
    problem: Problem, logits: Tensor, spare: Tensor, rows: slice, block: int, columns: slice, texts: Tensor
) -> Tensor:
    """Sum of one tile; its gradient goes where the problem collects it. ``logits`` and ``spare`` are used up."""
    positive, excluded = problem.pairing.positives_and_excluded(rows, block, columns)
    logits = _turned(logits, positive)
    if excluded is not None:
        logits.masked_fill_(excluded, -torch.inf)
    losses = _softplus_of_rows(logits, spare)
    weight = None if problem.weight is None else problem.weight[rows]
    total = (losses if weight is None else losses * weight).sum(dtype=torch.float64)
    if not problem.wants_gradient:
        return total
    gradient = _turned(logits.sigmoid_(), positive)
    if weight is not None:
        gradient.mul_(weight[:, None])
    problem.bias_gradient += gradient.sum()
    if problem.image_gradient is not None:
        problem.image_gradient[rows].addmm_(gradient, texts)
    if problem.text_gradient is not None:
        problem.text_gradient[block, columns].addmm_(gradient.T, problem.image[rows])
    return total


def _softplus_of_rows(logits: Tensor, spare: Tensor) -> Tensor:
    """``softplus(logits).sum(1)`` by ``max(x, 0) + log1p(exp(-abs(x)))``, with few logarithms, which cost most.

    Two terms of the sum become one by ``log1p(a) + log1p(b) = log1p(a + b + ab)``, which keeps what is tiny and
    stays below ``2 ** 2 ** FOLDS``.
    """
    rest = torch.abs(logits, out=spare).neg_().exp_()
    for _ in range(FOLDS):
        if rest.shape[1] % 2:
            break
        one, other = rest.chunk(2, dim=1)
        rest = one.addcmul_(one, other).add_(other)
    small = rest.log1p_().sum(1)
    return small + torch.clamp(logits, min=0, out=spare).sum(1)


def _turned(tile: Tensor, positive: Positives) -> Tensor:
    """The tile with the sign of its positive pairs turned; few are turned in place."""
    if positive is None:
        return tile
    if isinstance(positive, tuple):
        tile[positive] = -tile[positive]
        return tile
    return torch.where(positive, -tile, tile)
