"""Intensity augmentation on the device: what changes grey values, never what moves them."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ctgrounding.errors import ConfigError

AIR_HU = -1024.0


class Recolour:
    """Random contrast, shift and noise of HU, one draw a scan, real voxels only.

    Args:
        contrast: Half width of the uniform factor around 1 that HU are multiplied by (about 0 HU).
        shift_hu: Half width of the uniform shift.
        noise_hu: Largest standard deviation of added Gaussian noise; each scan draws its own below it.

    Examples:
        >>> image = torch.zeros(1, 2, 2, 2)
        >>> box = torch.tensor([[[0, 2], [0, 2], [0, 2]]])
        >>> Recolour(shift_hu=20.0)(image, box, torch.Generator().manual_seed(0)).unique().numel()
        1
    """

    def __init__(self, contrast: float = 0.0, shift_hu: float = 0.0, noise_hu: float = 0.0) -> None:
        if not (0 <= contrast < 1 and 0 <= shift_hu < math.inf and 0 <= noise_hu < math.inf):
            raise ConfigError(
                "Recolour takes contrast in [0, 1) and finite shift_hu, noise_hu >= 0; "
                f"got {contrast}, {shift_hu}, {noise_hu}."
            )
        self.contrast, self.shift_hu, self.noise_hu = contrast, shift_hu, noise_hu

    def __call__(
        self, image_hu: Float[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"], generator: torch.Generator
    ) -> Float[Tensor, "b D H W"]:
        """Recolour a micro-batch.

        Args:
            image_hu: HU of the scans.
            valid_box: Half-open box of real voxels of each; the rest stays at -1024 HU.
            generator: CPU generator keyed by seed, step and micro-batch.
        """
        draws = torch.rand((len(image_hu), 3), generator=generator).to(image_hu)
        factor, shift, noise = (draws * 2 - 1).unbind(1)
        column = (-1, 1, 1, 1)
        out = image_hu * (1 + self.contrast * factor).view(column) + (self.shift_hu * shift).view(column)
        if self.noise_hu > 0:
            seed = int(torch.randint(2**62, (), generator=generator))
            local = torch.Generator(image_hu.device).manual_seed(seed)
            grain = torch.randn(image_hu.shape, generator=local, device=image_hu.device, dtype=image_hu.dtype)
            out = out + grain * (self.noise_hu * noise.abs()).view(column)
        return torch.where(box_mask(valid_box, image_hu.shape[1:]), out, image_hu.new_tensor(AIR_HU))


def box_mask(valid_box: Int64[Tensor, "b 3 2"], shape: torch.Size) -> Tensor:
    """Which voxels of a padded volume are real, shape (b, D, H, W)."""
    mask = torch.ones((len(valid_box), 1, 1, 1), dtype=torch.bool, device=valid_box.device)
    for axis, size in enumerate(shape):
        index = torch.arange(size, device=valid_box.device)
        inside = (index >= valid_box[:, axis, :1]) & (index < valid_box[:, axis, 1:])
        view = [len(valid_box), 1, 1, 1]
        view[axis + 1] = size
        mask = mask & inside.view(view)
    return mask
