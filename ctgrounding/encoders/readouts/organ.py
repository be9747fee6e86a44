"""One vector a visible organ."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from ctgrounding.encoders.readouts.base import (
    LearnedQueries,
    Readout,
    ReadoutContext,
    Rows,
    check_parts,
    volume_of,
)
from ctgrounding.encoders.readouts.histogram import DEFAULT_BINS_HU, organ_histograms
from ctgrounding.errors import ConfigError
from ctgrounding.functional.pooling import DENSE_LIMIT, organ_weights, pool_organs
from ctgrounding.types import DenseFeatures

OrganPart = Literal["mean", "attention", "log_volume", "histogram"]


class OrganReadout(Readout):
    """Exact mask pooling: what the cells say, weighted by how many of an organ's voxels each holds.

    ``mean`` is the mean over the organ's voxels; ``attention`` one mean a learned query, weighted by voxels
    times the query's weight of the cell; ``log_volume`` the tenth logarithm of the visible mL; ``histogram``
    how many of its voxels lie in each HU bin, which a coarse map blurs. Cells that are not valid (padding,
    dropped patches) count for nothing. Rows are ordered by scan, then by label id.

    CT-GLIP pools the highest-resolution map of a U-Net; ``histogram`` is our stand-in for that resolution where
    the map is coarse. It has no gradient.

    Args:
        channels: Channels of the map.
        parts: Which of them, concatenated in this order.
        queries: Number of queries of ``attention``.
        min_voxels: Fewest voxels in the crop for an organ to be visible.
        bins_hu: Ascending edges between the bins of ``histogram``.

    Raises:
        ConfigError: If a part is unknown, or the edges do not ascend.

    Examples:
        >>> OrganReadout(64, parts=("mean", "attention", "log_volume"), queries=2).width
        193
    """

    bins_hu: Float[Tensor, "edges"]

    def __init__(
        self,
        channels: int,
        parts: Sequence[OrganPart] = ("mean",),
        queries: int = 1,
        min_voxels: int = 8,
        bins_hu: Sequence[float] = DEFAULT_BINS_HU,
    ) -> None:
        check_parts("OrganReadout", parts, ("mean", "attention", "log_volume", "histogram"))
        if list(bins_hu) != sorted(set(bins_hu)) or not bins_hu:
            raise ConfigError(f"OrganReadout's bins_hu must be ascending edges, but are {list(bins_hu)}.")
        widths = {"mean": channels, "attention": queries * channels, "log_volume": 1, "histogram": len(bins_hu) + 1}
        super().__init__(sum(widths[part] for part in parts))
        self.parts = tuple(parts)
        self.min_voxels = min_voxels
        self.register_buffer("bins_hu", torch.tensor(bins_hu, dtype=torch.float32), persistent=False)
        self.queries = LearnedQueries(channels, queries) if "attention" in parts else None

    def forward(self, dense: DenseFeatures, context: ReadoutContext) -> Rows:
        """One row a visible organ; none where no scan has a label map."""
        dense = dense.view("organ")
        labels = context.organs
        if labels is None:
            labels = torch.zeros(len(dense.map), 1, 1, 1, dtype=torch.uint8, device=dense.map.device)
        with torch.autocast(dense.map.device.type, enabled=False):
            pooled = self._pool(dense, labels, context)
        shown = (pooled.voxels >= max(self.min_voxels, 1)) & (pooled.weights[:, 0] > 0)
        scan, place = shown.nonzero(as_tuple=True)
        label, seen = pooled.labels[place], pooled.voxels[scan, place].double()
        means = pooled.sums[scan, :, place] / pooled.weights[scan, :, place, None]
        found = {"mean": means[:, 0], "attention": means[:, 1:].flatten(1)}
        if "log_volume" in self.parts:
            found["log_volume"] = _log_ml(seen, context.spacing_mm[scan])
        if "histogram" in self.parts:
            found["histogram"] = self._histograms(labels, context)[scan, label]
        whole = seen if context.organ_voxels is None else context.organ_voxels[scan, label].clamp(min=1)
        return Rows(
            torch.cat([found[part].to(dense.map.dtype) for part in self.parts], dim=-1),
            organ_scan=scan,
            organ_class=label,
            organ_visible=(seen / whole).clamp(max=1).float(),
        )

    def _histograms(self, labels: UInt8[Tensor, "b D H W"], context: ReadoutContext) -> Float[Tensor, "b 256 bins"]:
        def make() -> Tensor:
            image_hu = labels.new_zeros(labels.shape) if context.organs is None else volume_of(context)
            return organ_histograms(image_hu, labels, self.bins_hu)

        return context.once(f"histogram of HU {self.bins_hu.tolist()}", make)

    def _pool(self, dense: DenseFeatures, labels: UInt8[Tensor, "b D H W"], context: ReadoutContext) -> "_Pooled":
        cells = dense.map.flatten(2).transpose(1, 2)
        cells = cells.float() if cells.dtype in (torch.float16, torch.bfloat16) else cells
        real = dense.valid.flatten(1).to(cells.dtype)
        gains = self._gains(cells, real)
        classes = int(labels.max()) + 1
        if classes * cells.shape[1] > DENSE_LIMIT:
            return _pool_by_voxels(dense, cells, gains, labels, classes)
        counts = _counts(dense, labels, classes, context).flatten(2)
        voxels = counts.sum(-1)
        present = voxels.any(0).nonzero()[:, 0]
        weights = gains[:, :, None] * counts[:, present].to(cells.dtype)[:, None]
        sums = torch.bmm(weights.flatten(1, 2), cells).view(*weights.shape[:3], cells.shape[2])
        return _Pooled(sums, weights.sum(-1), voxels[:, present], present)

    def _gains(self, cells: Float[Tensor, "b n C"], real: Float[Tensor, "b n"]) -> Float[Tensor, "b G n"]:
        """What a voxel of each cell counts: once for the mean, then for each query."""
        if self.queries is None:
            return real[:, None]
        weights: Tensor = self.queries(cells)
        return torch.cat([torch.ones_like(real)[:, None], weights.transpose(1, 2)], dim=1) * real[:, None]


class _Pooled(NamedTuple):
    """Sums over the voxels of each label, for the mean (first) and each query.

    Attributes:
        sums: Cells' features times what their voxels count.
        weights: What the voxels count together.
        voxels: Number of voxels, whether their cells are valid or not.
        labels: Label ids of the ``K`` columns.
    """

    sums: Float[Tensor, "b G K C"]
    weights: Float[Tensor, "b G K"]
    voxels: Float[Tensor, "b K"]
    labels: Int64[Tensor, "K"]


def _counts(
    dense: DenseFeatures, labels: UInt8[Tensor, "b D H W"], classes: int, context: ReadoutContext
) -> Float[Tensor, "b K d h w"]:
    """Voxels of each label in each cell."""
    cell_vox, offset_vox, grid = tuple(dense.cell_vox), tuple(dense.offset_vox), dense.map.shape[2:]

    def make() -> Tensor:
        counts = organ_weights(labels, cell_vox, grid, offset_vox=offset_vox, classes=classes)
        return counts.view(*counts.shape[:2], *grid)

    return context.once(f"voxels in cells of {cell_vox} from {offset_vox}", make)


def _pool_by_voxels(
    dense: DenseFeatures, cells: Float[Tensor, "b n C"], gains: Float[Tensor, "b G n"], labels: Tensor, classes: int
) -> _Pooled:
    """The same for maps so fine that counts of every label in every cell would not fit."""
    b, channels = len(cells), cells.shape[2]
    gain = gains.transpose(1, 2)
    stacked = torch.cat([(gain[..., None] * cells[:, :, None]).flatten(2), gain], dim=-1)
    pooled = pool_organs(
        stacked.transpose(1, 2).view(b, -1, *dense.map.shape[2:]),
        labels,
        dense.cell_vox,
        offset_vox=dense.offset_vox,
        classes=classes,
        path="index",
    )
    sums, weights = pooled.features[..., : -gain.shape[2]], pooled.features[..., -gain.shape[2] :]
    sums = sums.reshape(b, classes, -1, channels).transpose(1, 2)
    return _Pooled(sums, weights.transpose(1, 2), pooled.voxels, torch.arange(classes, device=cells.device))


def _log_ml(voxels: Float64[Tensor, "O"], spacing_mm: Float64[Tensor, "O 3"]) -> Float64[Tensor, "O 1"]:
    return torch.log10(voxels * spacing_mm.prod(-1) / 1000)[:, None]
