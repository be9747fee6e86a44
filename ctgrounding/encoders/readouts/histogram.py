"""How dense an organ is: the shares of its voxels in HU bins, at the resolution of the volume."""

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from ctgrounding.types import ORGAN_IDS

DEFAULT_BINS_HU = (
    -1000, -950, -900, -850, -800, -700, -500, -300, -150, -80, -40, -20, 0, 20, 40, 60, 80, 100, 120, 150, 180, 220,
    300, 400, 600,
)  # fmt: skip
"""Edges between bins: fine where soft tissue and lung lie, coarse elsewhere."""


@torch.no_grad()
def organ_histograms(
    image_hu: Shaped[Tensor, "b D H W"], labels: UInt8[Tensor, "b D H W"], edges_hu: Float[Tensor, "edges"]
) -> Float[Tensor, "b 256 edges+1"]:
    """Square roots of the shares of each organ's voxels in HU bins, one row for each scan and label id.

    Roots, because their Euclidean distance is that of Hellinger: a few voxels of a stone or a cyst then
    count for more than the noise of a large bin. Rows are scaled to a mean square of 1, as learned features have;
    rows of organs without a voxel are zero.

    Args:
        image_hu: Volumes in HU, of any number type.
        labels: Label maps on the same voxels.
        edges_hu: Ascending edges between the bins; the outer bins are open.
    """
    bins = len(edges_hu) + 1
    inside = labels.flatten().nonzero()[:, 0]
    voxels = labels[0].numel() if len(labels) else 1
    organ = torch.div(inside, voxels, rounding_mode="floor") * ORGAN_IDS + labels.flatten()[inside].long()
    place = torch.bucketize(image_hu.flatten()[inside].to(edges_hu.dtype), edges_hu, right=True)
    counts = torch.bincount(organ * bins + place, minlength=len(labels) * ORGAN_IDS * bins)
    rows = counts.view(len(labels), ORGAN_IDS, bins).to(edges_hu.dtype)
    return (bins * rows / rows.sum(-1, keepdim=True).clamp(min=1)).sqrt()
