"""One vector a scan."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ctgrounding.encoders.readouts.base import (
    LearnedQueries,
    Readout,
    ReadoutContext,
    Rows,
    check_parts,
    masked_max,
    masked_mean,
    summary_of,
)
from ctgrounding.types import DenseFeatures

GlobalPart = Literal["mean", "max", "summary", "attention"]


class GlobalReadout(Readout):
    """Parts of a scan's valid cells, concatenated.

    ``mean`` and ``max`` are over the valid cells, ``summary`` is the encoder's token, ``attention`` the means
    weighted by learned queries, one after the other.

    Args:
        channels: Channels of the map.
        parts: Which of them, in the order of the result. RadFinder's is ``[summary, mean]``.
        queries: Number of queries of ``attention``.
        project_queries: Bring what the queries found from ``queries * channels`` to ``channels``.

    Raises:
        ConfigError: If a part is unknown.

    Examples:
        >>> GlobalReadout(64, parts=("mean", "max", "attention"), queries=4).width
        384
    """

    def __init__(
        self,
        channels: int,
        parts: Sequence[GlobalPart] = ("mean",),
        queries: int = 1,
        project_queries: bool = False,
    ) -> None:
        check_parts("GlobalReadout", parts, ("mean", "max", "summary", "attention"))
        attended = channels if project_queries else channels * queries
        super().__init__(sum(attended if part == "attention" else channels for part in parts))
        self.parts = tuple(parts)
        has_queries = "attention" in parts
        self.queries = LearnedQueries(channels, queries) if has_queries else None
        self.project = nn.Linear(channels * queries, channels) if has_queries and project_queries else None

    def forward(self, dense: DenseFeatures, context: ReadoutContext) -> Rows:
        """One row a scan."""
        dense = dense.view("global")
        cells, valid = dense.map.flatten(2).transpose(1, 2), dense.valid.flatten(1)
        found: dict[str, Tensor] = {}
        if "mean" in self.parts:
            found["mean"] = masked_mean(cells, valid)
        if "max" in self.parts:
            found["max"] = masked_max(cells, valid)
        if "summary" in self.parts:
            found["summary"] = summary_of(dense)
        if self.queries is not None:
            found["attention"] = self._attend(self.queries, cells, valid)
        return Rows(torch.cat([found[part] for part in self.parts], dim=-1))

    def _attend(
        self, queries: LearnedQueries, cells: Float[Tensor, "b n C"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b A"]:
        weight = queries(cells).masked_fill(~valid[..., None], 0)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
        attended = torch.bmm(weight.to(cells.dtype).transpose(1, 2), cells).flatten(1)
        return attended if self.project is None else self.project(attended)
