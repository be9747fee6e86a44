"""Readouts of an encoder's features against slow loops over its cells and over the volume's voxels."""

from collections.abc import Iterator, Sequence
from math import floor

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ctgrounding.encoders.readouts import DepthReadout, GlobalReadout, OrganReadout, ReadoutContext
from ctgrounding.types import DenseFeatures

ORGAN_SIDE = 5
"""Largest extent of a made-up organ in voxels, so that loops over its voxels stay quick."""


def readout_differences(dense: DenseFeatures, shape: Sequence[int]) -> Iterator[tuple[str, float]]:
    """How far each built-in readout of some features is from a loop that knows nothing but their declared grid.

    Args:
        dense: Features of a batch of volumes.
        shape: Shape of the volumes along ``D H W``.

    Yields:
        Name of the readout, and the norm of the difference over the norm of what the loop gives.
    """
    scans, width = dense.map.shape[:2]
    organs = _organs(scans, shape)
    context = ReadoutContext(torch.ones(scans, 3, dtype=torch.float64), organs=organs)
    found = GlobalReadout(width, parts=("mean", "max"))(dense, context).values
    yield "global", _relative(found, _scan_rows(dense.view("global")))
    found = DepthReadout(width, parts=("mean", "max"))(dense, context).values
    yield "depth", _relative(found, _bin_rows(dense.view("depth")))
    found = OrganReadout(width, min_voxels=1)(dense, context).values
    yield "organ", _relative(found, _organ_rows(dense.view("organ"), organs))


def _organs(scans: int, shape: Sequence[int]) -> UInt8[Tensor, "b D H W"]:
    """Two boxes in every scan: one in its middle, and one at its end, which smaller scans may lack."""
    organs = torch.zeros(scans, *shape, dtype=torch.uint8)
    middle = [slice(side // 2, min(side // 2 + ORGAN_SIDE, side)) for side in shape]
    end = [slice(max(side - ORGAN_SIDE, 0), side) for side in shape]
    organs[:, *end] = 7
    organs[:, *middle] = 3
    return organs


def _scan_rows(view: DenseFeatures) -> Float[Tensor, "b C2"]:
    rows = []
    for cells, valid in zip(view.map, view.valid, strict=True):
        real = cells[:, valid]
        rows.append(torch.cat([real.mean(1), real.max(1).values]))
    return torch.stack(rows)


def _bin_rows(view: DenseFeatures) -> Float[Tensor, "b Z C2"]:
    rows = torch.zeros(*view.valid.shape[:2], 2 * view.map.shape[1])
    for scan, depth in view.valid.flatten(2).any(-1).nonzero().tolist():
        real = view.map[scan, :, depth][:, view.valid[scan, depth]]
        rows[scan, depth] = torch.cat([real.mean(1), real.max(1).values])
    return rows


def _organ_rows(view: DenseFeatures, organs: UInt8[Tensor, "b D H W"]) -> Float[Tensor, "O C"]:
    rows = []
    for scan, labels in enumerate(organs):
        for label in (3, 7):
            cells = view.map[scan].permute(1, 2, 3, 0)
            seen = [cells[cell] for cell in _cells(view, scan, (labels == label).nonzero())]
            if seen:
                rows.append(torch.stack(seen).mean(0))
    return torch.stack(rows) if rows else torch.zeros(0, view.map.shape[1])


def _cells(view: DenseFeatures, scan: int, voxels: Int64[Tensor, "n 3"]) -> Iterator[tuple[int, ...]]:
    """The valid cell that each voxel lies in, by the declared grid; voxels of other cells are left out."""
    for voxel in voxels.tolist():
        places = zip(voxel, view.offset_vox, view.cell_vox, strict=True)
        cell = tuple(floor((place - offset) / vox + 0.5) for place, offset, vox in places)
        if bool(view.valid[scan][cell]):
            yield cell


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
