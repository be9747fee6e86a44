"""Volumes to patches by a reshape: a patch embedding is a reshape and a Linear, never a Conv3d."""

from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor


def patches(volume: Shaped[Tensor, "b D H W"], size: Sequence[int]) -> Shaped[Tensor, "b d h w voxels"]:
    """Cut volumes into patches that do not overlap; a patch's voxels are in the order depth, row, column.

    With the channels of several HU windows stacked before the voxels, this equals the columns of a
    convolution whose stride is its kernel: ``Conv3d`` weights of shape ``(C, channels, *size)`` load as a
    Linear's after ``flatten(1)``.

    Args:
        volume: Volumes whose sides are multiples of ``size``.
        size: Voxels of a patch along ``D H W``.
    """
    b, *sides = volume.shape
    (depth, row, column), (d, h, w) = size, (side // step for side, step in zip(sides, size, strict=True))
    blocks = volume.reshape(b, d, depth, h, row, w, column)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(b, d, h, w, depth * row * column)
