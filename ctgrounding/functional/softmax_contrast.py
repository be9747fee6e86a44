"""Softmax contrast (InfoNCE) over all ranks' texts, with the interface of the sigmoid one."""

from collections.abc import Iterator, Sequence
from math import ceil
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ctgrounding.functional.contrast import Duplicates, Problem, RowIds, contrast, spans
from ctgrounding.types import Term

TILE_ROWS, TILE_LOGITS = 512, 2**22
SUBSET_ROWS, SUBSET_TILES = 64, 16
"""Least rows of a tile, and most tiles, where rows are compared within subsets."""


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
    for tile in _tiles(problem, blocks):
        part, weight = _rows(problem, tile, blocks)
        total += part
        count += weight
    return total, count


class _Tile(NamedTuple):
    """Some image rows, and of each block of texts those that one of them may be compared with."""

    rows: slice | Tensor
    columns: Sequence[slice | Tensor]


def _tiles(problem: Problem, blocks: Sequence[tuple[int, Tensor]]) -> Iterator[_Tile]:
    """All rows, some at a time. Rows of few subsets stand together, beside the texts of these subsets alone."""
    rows, pairing = len(problem.image), problem.pairing
    most = max(1, min(TILE_ROWS, TILE_LOGITS // max(1, sum(len(texts) for _, texts in blocks))))
    if pairing.image is None or pairing.text is None or rows <= SUBSET_ROWS or _is_one(pairing.image[:, 1]):
        yield from (_Tile(part, [slice(0, len(texts)) for _, texts in blocks]) for part in spans(rows, most))
        return
    kinds, order = pairing.image[:, 1].sort(stable=True)
    others = [pairing.text[block, : len(texts), 1] for block, texts in blocks]
    for part in spans(rows, min(most, max(SUBSET_ROWS, ceil(rows / SUBSET_TILES)))):
        lowest, highest = kinds[part][0], kinds[part][-1]
        columns = [((other >= lowest) & (other <= highest)).nonzero()[:, 0] for other in others]
        if any(len(places) for places in columns):
            yield _Tile(order[part], columns)


def _is_one(subsets: Tensor) -> bool:
    return bool((subsets == subsets[0]).all())


def _rows(problem: Problem, tile: _Tile, blocks: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sum and weight of some image rows against every text; their gradient goes where the problem collects it."""
    image = problem.image[tile.rows]
    shown_texts = [(block, texts[columns]) for (block, texts), columns in zip(blocks, tile.columns, strict=True)]
    logits, positive, compared = _logits(problem, tile, image, shown_texts)
    positives = positive.sum(1)
    says = (positives > 0) & (compared.sum(1) > positives)
    weight = says.to(logits.dtype) if problem.weight is None else torch.where(says, problem.weight[tile.rows], 0.0)
    lowest = torch.finfo(logits.dtype).min / 2
    shown = logits.masked_fill(~compared, lowest)
    aim = positive / positives.clamp(min=1)[:, None]
    lost = torch.logsumexp(shown, 1) - (shown * aim).sum(1)
    total = torch.where(says, lost * weight, 0.0).sum(dtype=torch.float64)
    if problem.wants_gradient:
        gradient = (shown.softmax(1) - aim).mul_(weight[:, None])
        start = 0
        for (block, texts), columns in zip(shown_texts, tile.columns, strict=True):
            part = gradient[:, start : start + len(texts)]
            start += len(texts)
            if problem.image_gradient is not None:
                _add_product(problem.image_gradient, tile.rows, part, texts)
            if problem.text_gradient is not None:
                _add_product(problem.text_gradient[block], columns, part.T, image)
    return total, weight.sum(dtype=torch.float64)


def _add_product(target: Tensor, rows: slice | Tensor, left: Tensor, right: Tensor) -> None:
    if isinstance(rows, slice):
        target[rows].addmm_(left, right)
    else:
        target.index_add_(0, rows, left @ right)


def _logits(
    problem: Problem, tile: _Tile, image: Tensor, blocks: list[tuple[int, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of every text, which are positives, and which are compared at all."""
    image = image * problem.scale
    logits, positives, comparisons = [], [], []
    for (block, texts), columns in zip(blocks, tile.columns, strict=True):
        cosines = image @ texts.T
        positive, excluded = problem.pairing.positives_and_excluded(tile.rows, block, columns)
        compared = torch.ones_like(cosines, dtype=torch.bool) if excluded is None else ~excluded
        logits.append(cosines)
        if isinstance(positive, Tensor):
            positives.append(positive & compared)
        else:
            few = torch.zeros_like(compared)
            if positive is not None:
                few[positive] = True
            positives.append(few)
        comparisons.append(compared)
    return torch.cat(logits, 1), torch.cat(positives, 1), torch.cat(comparisons, 1)
