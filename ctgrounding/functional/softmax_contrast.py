"""Softmax contrast (InfoNCE) over all ranks' texts, with the interface of the sigmoid one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
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
    blocks = [(block, texts.to(problem.image.dtype)) for block, texts in problem.texts.blocks()]
    pairing = problem.pairing
    if pairing.image is None or pairing.text is None or len(problem.image) <= SUBSET_ROWS or _is_one(pairing.image):
        most = max(1, min(TILE_ROWS, TILE_LOGITS // max(1, sum(len(texts) for _, texts in blocks))))
        every = [slice(0, len(texts)) for _, texts in blocks]
        return _sum(problem, blocks, (_Tile(rows, every) for rows in spans(len(problem.image), most)))
    ordered, rows, columns = _by_subset(problem, pairing.image, pairing.text)
    blocks = [(block, texts[columns[block, : len(texts)]]) for block, texts in blocks]
    result = _sum(ordered, blocks, _subset_tiles(ordered, blocks))
    if problem.image_gradient is not None and ordered.image_gradient is not None:
        problem.image_gradient[rows] = ordered.image_gradient
    if problem.text_gradient is not None and ordered.text_gradient is not None:
        problem.text_gradient.scatter_(1, columns[..., None].expand_as(problem.text_gradient), ordered.text_gradient)
    return result


def _is_one(numbers: Tensor) -> bool:
    return bool((numbers[:, 1] == numbers[0, 1]).all())


class _Tile(NamedTuple):
    """Some image rows, and of each block of texts those that one of them may be compared with."""

    rows: slice
    columns: Sequence[slice]


def _by_subset(problem: Problem, image: Tensor, text: Tensor) -> tuple[Problem, Tensor, Tensor]:
    """The problem with rows of one subset side by side, and the place that each row and each text had."""
    rows = image[:, 1].argsort(stable=True)
    counts = torch.tensor(problem.texts.counts, device=text.device)[:, None]
    is_padding = torch.arange(text.shape[1], device=text.device) >= counts
    columns = text[..., 1].masked_fill(is_padding, torch.iinfo(text.dtype).max).argsort(dim=1, stable=True)
    ordered = replace(
        problem,
        image=problem.image[rows],
        pairing=replace(problem.pairing, image=image[rows], text=text.gather(1, columns[..., None].expand_as(text))),
        weight=None if problem.weight is None else problem.weight[rows],
        image_gradient=None if problem.image_gradient is None else torch.zeros_like(problem.image_gradient),
        text_gradient=None if problem.text_gradient is None else torch.zeros_like(problem.text_gradient),
    )
    return ordered, rows, columns


def _subset_tiles(problem: Problem, blocks: Sequence[tuple[int, Tensor]]) -> Iterator[_Tile]:
    """Rows of few subsets, beside the texts of these subsets alone."""
    image, text = problem.pairing.image, problem.pairing.text
    if image is None or text is None:
        return
    most = max(1, min(TILE_ROWS, TILE_LOGITS // max(1, sum(len(texts) for _, texts in blocks))))
    parts = list(spans(len(image), min(most, max(SUBSET_ROWS, ceil(len(image) / SUBSET_TILES)))))
    lowest = image[[part.start for part in parts], 1]
    highest = image[[part.stop - 1 for part in parts], 1]
    edges = []
    for block, texts in blocks:
        kinds = text[block, : len(texts), 1].contiguous()
        first, end = torch.searchsorted(kinds, lowest), torch.searchsorted(kinds, highest, right=True)
        edges.append([slice(*pair) for pair in zip(first.tolist(), end.tolist(), strict=True)])
    for part, columns in zip(parts, zip(*edges, strict=True), strict=True):
        if any(places.stop > places.start for places in columns):
            yield _Tile(part, columns)


def _sum(problem: Problem, blocks: list[tuple[int, Tensor]], tiles: Iterable[_Tile]) -> tuple[Tensor, Tensor]:
    total, count = problem.bias_gradient.new_zeros(()), problem.bias_gradient.new_zeros(())
    for tile in tiles:
        part, weight = _rows(problem, tile, blocks)
        total += part
        count += weight
    return total, count


def _rows(problem: Problem, tile: _Tile, blocks: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sum and weight of some image rows against every text; their gradient goes where the problem collects it."""
    image = problem.image[tile.rows]
    shown_texts = [(block, texts[columns]) for (block, texts), columns in zip(blocks, tile.columns, strict=True)]
    logits, positive, compared = _logits(problem, tile, image, shown_texts)
    positives = positive.sum(1)
    says = (positives > 0) & (compared.sum(1) > positives)
    weight = says.to(logits.dtype) if problem.weight is None else torch.where(says, problem.weight[tile.rows], 0.0)
    lowest = torch.finfo(logits.dtype).min / 2
    aim = positive.to(logits.dtype).div_(positives.clamp(min=1)[:, None])
    log_share = torch.log_softmax(logits.masked_fill(~compared, lowest), 1)
    total = -((log_share * aim).sum(1) * weight).sum(dtype=torch.float64)
    if problem.wants_gradient:
        gradient = log_share.exp_().sub_(aim).mul_(weight[:, None])
        start = 0
        for (block, texts), columns in zip(shown_texts, tile.columns, strict=True):
            part = gradient[:, start : start + len(texts)]
            start += len(texts)
            if problem.image_gradient is not None:
                problem.image_gradient[tile.rows].addmm_(part, texts)
            if problem.text_gradient is not None:
                problem.text_gradient[block, columns].addmm_(part.T, image)
    return total, weight.sum(dtype=torch.float64)


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
    if len(blocks) == 1:
        return logits[0], positives[0], comparisons[0]
    return torch.cat(logits, 1), torch.cat(positives, 1), torch.cat(comparisons, 1)
