"""Sigmoid contrast (SigLIP) over all ranks' texts, exact on any number of ranks, without a matrix of all pairs."""

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.functional.contrast import Duplicates, Problem, RowIds, contrast, spans
from ctgrounding.types import Term

TILE_ROWS, TILE_COLUMNS = 512, 2048
EXACT_ABOVE = 50.0
"""Where softplus(x) is x in float64 as well; PyTorch's own bound of 20 costs 2e-9."""


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
    for block, columns, texts in problem.texts.tiles(TILE_COLUMNS):
        scaled = (texts * problem.scale).T
        for rows in spans(len(problem.image), TILE_ROWS):
            logits = torch.addmm(problem.bias, problem.image[rows], scaled)
            total += _tile(problem, logits, rows, block, columns, texts)
    weight = problem.weight
    count = total.new_tensor(float(len(problem.image))) if weight is None else weight.sum(dtype=torch.float64)
    return total, count


def _tile(problem: Problem, logits: Tensor, rows: slice, block: int, columns: slice, texts: Tensor) -> Tensor:
    """Sum of one tile; its gradient goes where the problem collects it. ``logits`` is used up."""
    positive, excluded = problem.pairing.positives_and_excluded(rows, block, columns, logits.device)
    if positive is not None:
        logits = torch.where(positive, -logits, logits)
    if excluded is not None:
        logits.masked_fill_(excluded, -torch.inf)
    softplus = torch.nn.functional.softplus(logits, threshold=EXACT_ABOVE)
    weight = None if problem.weight is None else problem.weight[rows]
    total = (softplus.sum() if weight is None else softplus.sum(1) @ weight).double()
    if not problem.wants_gradient:
        return total
    del softplus
    gradient = logits.sigmoid_()
    if positive is not None:
        gradient = torch.where(positive, -gradient, gradient)
    if weight is not None:
        gradient.mul_(weight[:, None])
    problem.bias_gradient += gradient.sum()
    if problem.image_gradient is not None:
        problem.image_gradient[rows].addmm_(gradient, texts)
    if problem.text_gradient is not None:
        problem.text_gradient[block, columns].addmm_(gradient.T, problem.image[rows])
    return total
