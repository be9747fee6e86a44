"""An image encoder under test and the volumes that it is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.types import DenseFeatures


@dataclass(frozen=True)
class EncoderSubject:
    """An encoder under test, and how to make another with other weights.

    Attributes:
        encoder: In evaluation mode.
        make: Makes another, with fresh random weights at each call.
        shape: Voxels of the test volumes along ``D H W``.
    """

    encoder: ImageEncoder
    make: Callable[[], ImageEncoder]
    shape: tuple[int, int, int]

    def scans(self) -> tuple[Float[Tensor, "3 D H W"], Int64[Tensor, "3 3 2"]]:
        """Test volumes, each with texture of its own, and their boxes of real voxels."""
        box = boxes(self.shape)
        return torch.cat([texture(self.shape, seed) for seed in range(len(box))]), box


@torch.no_grad()
def encode(
    encoder: ImageEncoder, volume: Float[Tensor, "b D H W"], box: Int64[Tensor, "b 3 2"] | None = None
) -> DenseFeatures:
    """Features of some volumes, without gradient; every voxel is real without ``box``."""
    whole = whole_box(volume.shape[1:]).expand(len(volume), -1, -1)
    dense: DenseFeatures = encoder(volume, whole if box is None else box)
    return dense


def texture(shape: Sequence[int], seed: int = 0) -> Float[Tensor, "1 D H W"]:
    """Soft tissue with structure of the size of a few voxels, whole HU."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 100, (1, *shape), generator=draw).float()


def whole_box(shape: Sequence[int]) -> Int64[Tensor, "1 3 2"]:
    """The box of all voxels of a volume."""
    return torch.tensor([[[0, size] for size in shape]])


def boxes(shape: Sequence[int]) -> Int64[Tensor, "3 3 2"]:
    """The whole volume, one that ends early, and one that also starts late and within a cell."""
    early = [[0, size - size // 3] for size in shape]
    late = [[size // 4, size - 1] for size in shape]
    return torch.tensor([[[0, size] for size in shape], early, late])
