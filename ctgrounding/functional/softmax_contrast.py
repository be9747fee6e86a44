"""Softmax contrast (InfoNCE) over all ranks' texts, with the interface of the sigmoid one."""

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.functional.contrast import Duplicates, Problem, RowIds, contrast, spans
from ctgrounding.types import Term

TILE_ROWS, TILE_LOGITS = 512, 2**22


def softmax_contrast(
    image: Float[Tensor, "M D"],
    text: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    *,
    image_ids: RowIds | None = None,
    text_ids: RowIds | None = None,
    duplicates: Duplicates = "ignore",
    weight: Float[Tensor, "M"] | None = None,
) -> Term:
    """``sum_i w_i (logsumexp_j z_ij - mean over i's positives of z_ij)`` over this rank's images and all texts.

    The logits are ``z_ij = scale * image_i . text_j``. An image row without a positive, or with no text to tell it
    from, says nothing and weighs nothing. A bias would cancel, so there is none. For the other direction (each text
    among all images) swap the sides; CLIP's loss is the mean of both. Exactness, precision and memory are those of
    :func:`.sigmoid_contrast.sigmoid_contrast`, but for one tile of whole rows.

    Args:
        image: This rank's image rows, unit length as a rule.
        text: This rank's text rows.
        scale: Factor of the cosines, that is one over the temperature.
        image_ids: What each image row is; without ids, image row i belongs to text row i of the same rank.
        text_ids: What each text row is.
        duplicates: Whether pairs that share a group but are not each other's own count as positives, as
            negatives or not at all.
        weight: Weight of each image row; 1 by default.

    Returns:
        The sum, and the summed weight of the rows that count.

    Raises:
        ConfigError: If widths or ids do not fit.

    Examples:
        >>> rows = torch.eye(3)
        >>> term = softmax_contrast(rows, rows, torch.tensor(10.0))
        >>> round(float(term.total / term.weight), 5)
        9e-05
    """
    none = scale.detach().new_zeros(())
    return Term(*contrast(image, text, scale, none, weight, (image_ids, text_ids, duplicates), _sweep))


def _sweep(problem: Problem) -> tuple[Tensor, Tensor]:
    total, count = problem.bias_gradient.new_zeros(()), problem.bias_gradient.new_zeros(())
    blocks = [(block, texts.to(problem.image.dtype)) for block, texts in problem.texts.blocks()]
    columns = max(1, sum(problem.texts.counts))
    for rows in spans(len(problem.image), max(1, min(TILE_ROWS, TILE_LOGITS // columns))):
        part, weight = _rows(problem, rows, blocks)
        total += part
        count += weight
    return total, count


def _rows(problem: Problem, rows: slice, blocks: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sum and weight of some image rows against every text; their gradient goes where the problem collects it."""
    logits, positive, compared = _logits(problem, rows, blocks)
    positives = positive.sum(1)
    says = (positives > 0) & (compared.sum(1) > positives)
    weight = says.to(logits.dtype) if problem.weight is None else torch.where(says, problem.weight[rows], 0.0)
    lowest = torch.finfo(logits.dtype).min / 2
    shown = logits.masked_fill(~compared, lowest)
    aim = positive / positives.clamp(min=1)[:, None]
    lost = torch.logsumexp(shown, 1) - (shown * aim).sum(1)
    total = torch.where(says, lost * weight, 0.0).sum(dtype=torch.float64)
    if problem.wants_gradient:
        gradient = (shown.softmax(1) - aim).mul_(weight[:, None])
        start = 0
        for block, texts in blocks:
            part = gradient[:, start : start + len(texts)]
            start += len(texts)
            if problem.image_gradient is not None:
                problem.image_gradient[rows].addmm_(part, texts)
            if problem.text_gradient is not None:
                problem.text_gradient[block, : len(texts)].addmm_(part.T, problem.image[rows])
    return total, weight.sum(dtype=torch.float64)


def _logits(problem: Problem, rows: slice, blocks: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of every text, which are positives, and which are compared at all."""
    image = problem.image[rows] * problem.scale
    logits, positives, comparisons = [], [], []
    for block, texts in blocks:
        tile = image @ texts.T
        columns = slice(0, len(texts))
        positive, excluded = problem.pairing.positives_and_excluded(rows, block, columns)
        compared = torch.ones_like(tile, dtype=torch.bool) if excluded is None else ~excluded
        logits.append(tile)
        if isinstance(positive, Tensor):
            positives.append(positive & compared)
        else:
            few = torch.zeros_like(compared)
            if positive is not None:
                few[positive] = True
            positives.append(few)
        comparisons.append(compared)
    return torch.cat(logits, 1), torch.cat(positives, 1), torch.cat(comparisons, 1)
