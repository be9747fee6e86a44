"""One vector a visible organ."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from ctgrounding.encoders.readouts.base import LearnedQueries, Readout, ReadoutContext, Rows, check_parts
from ctgrounding.functional.pooling import pool_organs
from ctgrounding.types import DenseFeatures

OrganPart = Literal["mean", "attention", "log_volume"]


class OrganReadout(Readout):
    """Exact mask pooling: what the cells say, weighted by how many of an organ's voxels each holds.

    ``mean`` is the mean over the organ's voxels; ``attention`` one mean a learned query, weighted by voxels
    times the query's weight of the cell; ``log_volume`` the tenth logarithm of the visible mL. Cells that are
    not valid (padding, dropped patches) count for nothing. Rows are ordered by scan, then by label id.

    Args:
        channels: Channels of the map.
        parts: Which of them, concatenated in this order.
        queries: Number of queries of ``attention``.
        min_voxels: Fewest voxels in the crop for an organ to be visible.

    Raises:
        ConfigError: If a part is unknown.

    Examples:
        >>> OrganReadout(64, parts=("mean", "attention", "log_volume"), queries=2).width
        193
    """

    def __init__(
        self,
        channels: int,
        parts: Sequence[OrganPart] = ("mean",),
        queries: int = 1,
        min_voxels: int = 8,
    ) -> None:
        check_parts("OrganReadout", parts, ("mean", "attention", "log_volume"))
        widths = {"mean": channels, "attention": queries * channels, "log_volume": 1}
        super().__init__(sum(widths[part] for part in parts))
        self.parts = tuple(parts)
        self.channels = channels
        self.min_voxels = min_voxels
        self.queries = LearnedQueries(channels, queries) if "attention" in parts else None

    def forward(self, dense: DenseFeatures, context: ReadoutContext) -> Rows:
        """One row a visible organ; none where no scan has a label map."""
        labels = context.organs
        if labels is None:
            labels = torch.zeros(len(dense.map), 1, 1, 1, dtype=torch.uint8, device=dense.map.device)
        pooled, voxels = self._pool(dense, labels)
        shown = pooled[..., -1] > 0
        scan, label = ((voxels >= max(self.min_voxels, 1)) & shown).nonzero(as_tuple=True)
        rows, seen = pooled[scan, label], voxels[scan, label].double()
        found = self._split(rows)
        if "log_volume" in self.parts:
            found["log_volume"] = _log_ml(seen, context.spacing_mm[scan])
        whole = seen if context.organ_voxels is None else context.organ_voxels[scan, label].clamp(min=1)
        return Rows(
            torch.cat([found[part].to(dense.map.dtype) for part in self.parts], dim=-1),
            organ_scan=scan,
            organ_class=label,
            organ_visible=(seen / whole).clamp(max=1).float(),
        )

    def _pool(
        self, dense: DenseFeatures, labels: UInt8[Tensor, "b D H W"]
    ) -> tuple[Float[Tensor, "b K F"], Float[Tensor, "b K"]]:
        """Means over voxels of ``[weighted cells of each query, query weights, cells, 1]``, zero at cells not valid.

        So a weighted mean is a quotient of two of them, on either path of the pooling.
        """
        grid = dense.map.shape[2:]
        with torch.autocast(dense.map.device.type, enabled=False):
            cells = dense.map.flatten(2).transpose(1, 2)
            cells = cells.float() if cells.dtype in (torch.float16, torch.bfloat16) else cells
            real = dense.valid.flatten(1)[..., None].to(cells.dtype)
            stacked = [cells * real, real]
            if self.queries is not None:
                weights = self.queries(cells) * real
                stacked = [(weights[..., None] * cells[:, :, None]).flatten(2), weights, *stacked]
            pooled = pool_organs(
                torch.cat(stacked, dim=-1).transpose(1, 2).view(len(cells), -1, *grid),
                labels,
                dense.cell_vox,
                offset_vox=dense.offset_vox,
                classes=int(labels.max()) + 1,
            )
        return pooled.features, pooled.voxels

    def _split(self, rows: Float[Tensor, "O F"]) -> dict[str, Float[Tensor, "O P"]]:
        channels = self.channels
        found = {"mean": rows[:, -channels - 1 : -1] / rows[:, -1:]}
        if self.queries is not None:
            count = len(self.queries.queries)
            sums = rows[:, : count * channels].view(-1, count, channels)
            weights = rows[:, count * channels : count * (channels + 1), None]
            found["attention"] = (sums / weights).flatten(1)
        return found


def _log_ml(voxels: Float64[Tensor, "O"], spacing_mm: Float64[Tensor, "O 3"]) -> Float64[Tensor, "O 1"]:
    return torch.log10(voxels * spacing_mm.prod(-1) / 1000)[:, None]
