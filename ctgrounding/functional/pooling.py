"""Organ features: the mean of a feature map over the voxels of each organ, exact on any grid.

A cell of a coarse map holds voxels of several organs, and a small organ may fill no cell. So an organ's
feature is the mean of the cells' features weighted by how many of its voxels each cell holds, which equals
the mean over its voxels of the map blown up to voxels. No organ is lost, and the weights of one sum to 1.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ctgrounding.errors import ConfigError
from ctgrounding.types import ORGAN_IDS

DENSE_LIMIT = 2**24
"""Largest number of weights of a scan (organs times cells) that the dense product is used for."""

_OUTSIDE = -(2**48)  # entry so far below zero that no sum with real ones is an entry

Path = Literal["auto", "dense", "index"]


class OrganMeans(NamedTuple):
    """Features of every label id of every scan.

    Attributes:
        features: Mean feature of each organ, zeros where it has no voxel; row 0 (background) is zero.
        voxels: Number of its voxels within the grid.
    """

    features: Float[Tensor, "b K C"]
    voxels: Float[Tensor, "b K"]


class _Runs(NamedTuple):
    """Stretches of equal label along ``W`` within one cell, background left out.

    ``entry`` is where the stretch counts in a flat table of scans, organs and cells.
    """

    entry: Int64[Tensor, "R"]
    voxels: Float[Tensor, "R"]


@torch.no_grad()
def organ_weights(
    labels: UInt8[Tensor, "b D H W"],
    cell_vox: Sequence[float],
    grid: Sequence[int],
    *,
    offset_vox: Sequence[float] | None = None,
    classes: int = ORGAN_IDS,
) -> Float[Tensor, "b K n"]:
    """How many voxels of each organ lie in each cell: an exact histogram in one pass over the labels.

    Args:
        labels: Label map, 0 for background.
        cell_vox: Voxels of a cell along ``D H W``; may be fractional.
        grid: Cells along ``d h w``; ``n`` is their product. Voxels beyond the grid are not counted.
        offset_vox: Centre of the first cell in voxels; by default the grid starts at the first voxel's edge.
        classes: Number of label ids ``K``; larger ids are an error of the caller.

    Returns:
        Counts, not normalised, as float32. Row 0 is zero.
    """
    cells = grid[0] * grid[1] * grid[2]
    runs = _runs(labels, cell_vox, grid, offset_vox, classes)
    counts = torch.zeros(len(labels) * classes * cells, dtype=torch.float32, device=labels.device)
    counts.index_add_(0, runs.entry, runs.voxels)
    return counts.view(len(labels), classes, cells)


def pool_organs(
    features: Float[Tensor, "b C d h w"],
    labels: UInt8[Tensor, "b D H W"],
    cell_vox: Sequence[float],
    *,
    offset_vox: Sequence[float] | None = None,
    classes: int = ORGAN_IDS,
    path: Path = "auto",
) -> OrganMeans:
    """Mean feature of each organ of each scan.

    Two paths give the same: a dense product of weights and features, the quicker one on coarse grids, and an
    index-add over stretches of labels, which keeps no weights and so fits maps at voxel resolution.

    Args:
        features: Feature map.
        labels: Label map of the same scans.
        cell_vox: Voxels of a cell along ``D H W``.
        offset_vox: Centre of the first cell in voxels; by default the grid starts at the first voxel's edge.
        classes: Number of label ids ``K``.
        path: ``dense``, ``index``, or by size.

    Raises:
        ConfigError: If the path is not known.

    Examples:
        >>> labels = torch.tensor([[[[1, 1, 1, 2]]]], dtype=torch.uint8)
        >>> cells = torch.tensor([[[[[10.0, 20.0]]]]])
        >>> pool_organs(cells, labels, (1, 1, 2), classes=3).features[0, :, 0]
        tensor([ 0.0000, 13.3333, 20.0000])
    """
    grid = features.shape[2:]
    if path == "auto":
        path = "dense" if classes * grid.numel() <= DENSE_LIMIT else "index"
    if path == "dense":
        counts = organ_weights(labels, cell_vox, grid, offset_vox=offset_vox, classes=classes)
        return pool_by_weights(features, counts)
    if path == "index":
        return _pool_by_index(features, _runs(labels, cell_vox, grid, offset_vox, classes), classes)
    raise ConfigError(f"Pooling path '{path}' is not known. Use auto, dense or index.")


def pool_by_weights(features: Float[Tensor, "b C d h w"], counts: Float[Tensor, "b K n"]) -> OrganMeans:
    """Mean feature of each organ by the counts of :func:`organ_weights`, for several maps on one grid."""
    voxels = counts.sum(-1)
    weights = (counts / voxels.clamp(min=1)[..., None]).to(features.dtype)
    return OrganMeans(torch.bmm(weights, features.flatten(2).transpose(1, 2)), voxels)


def _pool_by_index(features: Tensor, runs: _Runs, classes: int) -> OrganMeans:
    scans, channels = features.shape[:2]
    cells = features.shape[2:].numel()
    row, cell = runs.entry // cells, runs.entry % cells
    voxels = torch.zeros(scans * classes, dtype=torch.float32, device=features.device)
    voxels.index_add_(0, row, runs.voxels)
    share = (runs.voxels / voxels[row]).to(features.dtype)
    of_cells = features.flatten(2).transpose(1, 2)[row // classes, cell]
    sums = features.new_zeros(scans * classes, channels).index_add(0, row, of_cells * share[:, None])
    return OrganMeans(sums.view(scans, classes, channels), voxels.view(scans, classes))


@torch.no_grad()
def _runs(
    labels: Tensor, cell_vox: Sequence[float], grid: Sequence[int], offset_vox: Sequence[float] | None, classes: int
) -> _Runs:
    offsets = [(cell - 1) / 2 for cell in cell_vox] if offset_vox is None else offset_vox
    cell_d, cell_h, cell_w = (
        _cell_of_voxel(size, cells, cell, offset, labels.device)
        for size, cells, cell, offset in zip(labels.shape[1:], grid, cell_vox, offsets, strict=True)
    )
    flat = labels.flatten()
    first = _positions(_run_starts(labels, cell_w))
    length = torch.diff(first, append=first.new_tensor([flat.numel()]))
    organ = flat[first]
    kept = _positions(organ != 0)
    first, length, organ = first[kept], length[kept], organ[kept].long()

    width, cells = labels.shape[3], grid[0] * grid[1] * grid[2]
    scan_entry = torch.arange(len(labels), device=labels.device) * (classes * cells)
    plane_entry = torch.where(cell_d < 0, _OUTSIDE, cell_d * (grid[1] * grid[2]))
    line_entry = torch.where(cell_h < 0, _OUTSIDE, cell_h * grid[2])
    entry_of_line = (scan_entry[:, None, None] + plane_entry[:, None] + line_entry).flatten()
    line = first // width
    entry = entry_of_line[line] + torch.where(cell_w < 0, _OUTSIDE, cell_w)[first - line * width] + organ * cells
    inside = entry >= 0
    if bool(inside.all()):
        return _Runs(entry, length.float())
    return _Runs(entry[inside], length[inside].float())


def _run_starts(labels: Tensor, cell_w: Tensor) -> Tensor:
    """Where a stretch begins: at another label, and at another cell except in background."""
    starts = torch.zeros_like(labels, dtype=torch.bool)
    flat, flat_starts = labels.flatten(), starts.view(-1)
    torch.ne(flat[1:], flat[:-1], out=flat_starts[1:])
    new_cell = torch.cat([cell_w.new_tensor([0]), (cell_w[1:] != cell_w[:-1]).nonzero()[:, 0] + 1])
    starts[..., new_cell] |= labels[..., new_cell] != 0
    return flat_starts


def _cell_of_voxel(size: int, cells: int, cell_vox: float, offset_vox: float, device: torch.device) -> Tensor:
    """Cell of each voxel along one axis, -1 beyond the grid."""
    voxels = torch.arange(size, device=device, dtype=torch.float64)
    index = torch.floor((voxels - offset_vox) / cell_vox + 0.5).long()
    return torch.where((index >= 0) & (index < cells), index, -1)


def _positions(mask: Tensor) -> Tensor:
    """Where a flat mask is true; NumPy finds it in a third of the time on the host."""
    if mask.is_cpu:
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]
