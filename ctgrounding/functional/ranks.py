"""Exact retrieval ranks by counting, without a sort and without the score matrix.

The rank of a query is one more than the number of candidates that score higher than its own. Counting
needs one pass of matrix products over tiles of fixed size, so memory does not grow with queries times
candidates. Three rules keep the numbers exact:

- The own candidate's score is read from the same tile as its rivals': a separate dot product rounds
  differently and would turn ties into wins or losses at random.
- All tiles of a call have one shape, so equal embeddings score equally wherever they stand.
- Ties are counted, not broken: see :class:`Ranks`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ctgrounding.errors import BatchError

QUERY_TILE = 512
CANDIDATE_TILE = 4096
_STEP = 16
_FIXED_ROWS = 64

TieRule = Literal["min", "max", "expected"]


@dataclass(frozen=True)
class Ranks:
    """Where each query's own candidate stands, ties kept apart.

    Attributes:
        above: Rivals that score higher than the best own candidate.
        tied: Rivals that score the same.

    Examples:
        >>> ranks = Ranks(above=torch.tensor([0, 1]), tied=torch.tensor([0, 2]))
        >>> ranks.by("min").tolist(), ranks.by("max").tolist(), ranks.by("expected").tolist()
        ([1.0, 2.0], [1.0, 4.0], [1.0, 3.0])
        >>> ranks.hits(2).tolist()  # the tied query wins rank 2 in one of three orders
        [1.0, 0.3333333333333333]
    """

    above: Int64[Tensor, "R"]
    tied: Int64[Tensor, "R"]

    def by(self, rule: TieRule) -> Float64[Tensor, "R"]:
        """Ranks from 1: the lowest, the highest, or the mean over all orders of the tied.

        Raises:
            BatchError: If there is no such rule.
        """
        shares = {"min": 0.0, "max": 1.0, "expected": 0.5}
        if rule not in shares:
            raise BatchError(f"Tie rule '{rule}' is not known. Use one of {', '.join(shares)}.")
        return 1.0 + self.above.double() + shares[rule] * self.tied.double()

    def hits(self, k: int) -> Float64[Tensor, "R"]:
        """Chance in [0, 1] that the own candidate is among the first ``k`` when ties are ordered at random."""
        places = (k - self.above).clamp(min=0).double()
        return (places / (self.tied + 1).double()).clamp(max=1.0)


def retrieval_ranks(
    queries: Float[Tensor, "R M"],
    candidates: Float[Tensor, "N M"],
    query_group: Int64[Tensor, "R"],
    candidate_group: Int64[Tensor, "N"],
) -> Ranks:
    """Rank of each query's best own candidate among all candidates of other groups.

    A candidate is a query's own if their groups are equal; further own candidates neither help nor count
    as rivals. For plain retrieval, where query ``i`` belongs to candidate ``i``, both groups are ``arange``.
    The score is the dot product, in the precision of the inputs.

    Args:
        queries: Embeddings that search.
        candidates: Embeddings that are searched.
        query_group: Group id of each query.
        candidate_group: Group id of each candidate.

    Returns:
        Counts on the inputs' device, in the order of ``queries``.

    Raises:
        BatchError: If a query has no candidate of its group, or an embedding is not finite.
    """
    _check_finite(queries, "query")
    _check_finite(candidates, "candidate")
    query_order = query_group.argsort(stable=True)
    candidate_order = candidate_group.argsort(stable=True)
    sorted_groups = candidate_group[candidate_order]
    wanted = query_group[query_order]
    first, last = (torch.searchsorted(sorted_groups, wanted, right=right) for right in (False, True))
    if bool((first == last).any()):
        group = int(wanted[first == last][0])
        raise BatchError(f"No candidate belongs to group {group} of a query. Give each query its own candidate.")
    above, tied = torch.zeros_like(query_group), torch.zeros_like(query_group)
    columns = _tiles(candidate_order, CANDIDATE_TILE)
    for rows in _tiles(query_order, QUERY_TILE):
        block = slice(rows.start, rows.stop)
        own = OwnRange(first[block], last[block])
        counts = _count_block(rows.rows(queries), candidates, columns, own)
        above[query_order[block]], tied[query_order[block]] = counts
    return Ranks(above, tied)


@dataclass(frozen=True)
class OwnRange:
    """Half-open ranges of own candidates of a block of queries, in the order sorted by group."""

    first: Int64[Tensor, "r"]
    last: Int64[Tensor, "r"]

    def within(self, start: int, stop: int) -> Bool[Tensor, "r n"]:
        """Which of the candidates ``start..stop`` are own."""
        index = torch.arange(start, stop, device=self.first.device)
        return (index >= self.first[:, None]) & (index < self.last[:, None])


@dataclass(frozen=True)
class Tile:
    """One stretch of a sorted order, its indices padded by repetition to the size of all others.

    Attributes:
        start: Place of its first row in the order.
        stop: One past the place of its last row.
        indices: Which rows, padding included.
        first: Number of its first row where the rows follow each other, else None.
    """

    start: int
    stop: int
    indices: Int64[Tensor, "n"]
    first: int | None

    def rows(self, every: Float[Tensor, "N M"]) -> Float[Tensor, "n M"]:
        """The tile's rows; a view where they stand side by side already."""
        return every[self.indices] if self.first is None else every[self.first : self.first + len(self.indices)]


def _tiles(order: Int64[Tensor, "N"], size: int) -> list[Tile]:
    """Cut an order into the fewest equal tiles of at most ``size``; only repeated padding fills the last."""
    total = len(order)
    if total == 0:
        return []
    width = math.ceil(total / math.ceil(total / size))
    width = min(size, -(-width // _STEP) * _STEP)
    padded = torch.cat([order, order[-1:].expand(-total % width)])
    run = torch.cat([order.new_zeros(1), (padded.diff() != 1).cumsum(0)]).tolist()
    tiles = []
    for start in range(0, total, width):
        indices = padded[start : start + width]
        first = int(indices[0]) if run[start] == run[start + width - 1] else None
        tiles.append(Tile(start, min(start + width, total), indices, first))
    return tiles


def _count_block(
    queries: Float[Tensor, "q M"], candidates: Float[Tensor, "N M"], columns: list[Tile], own: OwnRange
) -> tuple[Int64[Tensor, "r"], Int64[Tensor, "r"]]:
    """Rivals above and level, for one block of queries whose own candidates stand side by side."""
    count = len(own.first)
    low, high = int(own.first.min()), int(own.last.max())
    touched = [tile for tile in columns if tile.start < high and tile.stop > low]
    best = queries.new_full((count,), -math.inf)
    own_tied = torch.zeros_like(own.first)
    kept: tuple[Tile, Tensor] | None = None
    for tile in touched:
        scores = _scores(queries, candidates, tile)[:count]
        start, stop = max(low, tile.start), min(high, tile.stop)
        mask = own.within(start, stop)
        near = scores[:, start - tile.start : stop - tile.start].masked_fill(~mask, -math.inf)
        top, level = near.amax(1), torch.maximum(best, near.amax(1))
        own_tied = torch.where(top > best, 0, own_tied) + ((near == level[:, None]) & mask).sum(1)
        best = level
        kept = (tile, scores)
    above, level_or_above = torch.zeros_like(own.first), torch.zeros_like(own.first)
    marks = torch.empty((count, columns[0].stop - columns[0].start), device=queries.device)
    for tile in columns:
        scores = kept[1] if kept is not None and tile is kept[0] else _scores(queries, candidates, tile)[:count]
        scores, found = scores[:, : tile.stop - tile.start], marks[:, : tile.stop - tile.start]
        # Marks as floats add up several times quicker than booleans, and exactly: a tile is small.
        above += torch.gt(scores, best[:, None], out=found).sum(1).long()
        level_or_above += torch.ge(scores, best[:, None], out=found).sum(1).long()
    return above, level_or_above - above - own_tied


def _scores(queries: Float[Tensor, "q M"], candidates: Float[Tensor, "N M"], tile: Tile) -> Float[Tensor, "q n"]:
    return queries @ tile.rows(candidates).T


def top_candidates(
    queries: Float[Tensor, "R M"], candidates: Float[Tensor, "N M"], k: int
) -> tuple[Float[Tensor, "R k"], Int64[Tensor, "R k"]]:
    """The ``k`` highest scores of each query and whose they are, by falling score, equal ones by index.

    Args:
        queries: Embeddings that search.
        candidates: Embeddings that are searched.
        k: How many; fewer are returned where there are fewer candidates.

    Raises:
        BatchError: If an embedding is not finite.
    """
    _check_finite(queries, "query")
    _check_finite(candidates, "candidate")
    k = min(k, len(candidates))
    every = torch.arange(len(candidates), device=candidates.device)
    values, indices = queries.new_zeros((len(queries), k)), every.new_zeros((len(queries), k))
    if k == 0:
        return values, indices
    columns = _tiles(every, CANDIDATE_TILE)
    for rows in _tiles(torch.arange(len(queries), device=queries.device), QUERY_TILE):
        block = slice(rows.start, rows.stop)
        values[block], indices[block] = _top_block(rows.rows(queries), candidates, columns, k, rows.stop - rows.start)
    return values, indices


def _top_block(
    queries: Float[Tensor, "q M"], candidates: Float[Tensor, "N M"], columns: list[Tile], k: int, count: int
) -> tuple[Float[Tensor, "r k"], Int64[Tensor, "r k"]]:
    best, where = queries.new_empty((count, 0)), torch.empty((count, 0), dtype=torch.int64, device=queries.device)
    for tile in columns:
        scores = _scores(queries, candidates, tile)[:count, : tile.stop - tile.start]
        best = torch.cat([best, scores], dim=1)
        index = torch.arange(tile.start, tile.stop, device=queries.device).expand(count, -1)
        best, where = _first_k(best, torch.cat([where, index], dim=1), k)
    return best, where


def _first_k(
    scores: Float[Tensor, "r n"], index: Int64[Tensor, "r n"], k: int
) -> tuple[Float[Tensor, "r k"], Int64[Tensor, "r k"]]:
    """Highest ``k`` by (-score, place); ``topk`` alone leaves open which of several equal ones it returns."""
    k = min(k, scores.shape[1])
    threshold = scores.topk(k, dim=1).values[:, -1:]
    place = torch.arange(scores.shape[1], device=scores.device)
    room = k - (scores > threshold).sum(1, keepdim=True)
    level = scores == threshold
    chosen = (scores > threshold) | (level & (level.cumsum(1) <= room))
    columns = place.expand_as(scores)[chosen].view(len(scores), k)
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return values, index.gather(1, columns.gather(1, order))


def _check_finite(rows: Float[Tensor, "R M"], role: str) -> None:
    # A NaN score is never above another, so it would pass for rank 1.
    broken = _first_broken(rows)
    if broken is not None:
        raise BatchError(f"The embedding of {role} {broken} is not finite, so it has no rank. Find what made it so.")


def _first_broken(rows: Float[Tensor, "R M"]) -> int | None:
    for start, chunk in _chunks(rows):
        bad = ~torch.isfinite(chunk).all(1)
        if bool(bad.any()):
            return start + int(bad.nonzero()[0, 0])
    return None


def _chunks(rows: Float[Tensor, "R M"]) -> Iterator[tuple[int, Float[Tensor, "r M"]]]:
    for start in range(0, len(rows), CANDIDATE_TILE):
        yield start, rows[start : start + CANDIDATE_TILE]


def fixed_scores(rows: Float[Tensor, "R M"], anchors: Float[Tensor, "A M"]) -> Float[Tensor, "R A"]:
    """Dot products whose bits do not depend on how the rows were cut into batches.

    A matrix product rounds by its shape, so the same scan could score differently in another batch and
    break a tie. Rows go through blocks of one size, padded with zeros.
    """
    scores = rows.new_empty((len(rows), len(anchors)))
    for start in range(0, len(rows), _FIXED_ROWS):
        part = rows[start : start + _FIXED_ROWS]
        block = torch.cat([part, part.new_zeros((_FIXED_ROWS - len(part), part.shape[1]))])
        scores[start : start + len(part)] = (block @ anchors.T)[: len(part)]
    return scores
