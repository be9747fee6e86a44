"""MONAI's DynUNet, the network of nnU-Net, with its map at voxel resolution."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ctgrounding.encoders.image.counts import check_counts
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.errors import ConfigError


class DynUNetEncoder(CroppedEncoder):
    """Encoder and decoder of an nnU-Net; the map is that of the decoder's last stage, before its classes.

    CT-GLIP (arXiv 2404.15272) pools this map over organ masks. Its sizes are not published; the defaults are
    nnU-Net's for isotropic CT. Norms take statistics over a scan, so each valid box is encoded apart.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        filters: Channels of each stage, the finest first; the first is the map's width.
        strides: Stride of each stage along ``D H W``; the first is 1. None halves every axis at each stage.
        res_block: Residual blocks instead of plain ones.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If filters and strides do not fit each other, or the first stride is not 1.

    Examples:
        >>> import torch
        >>> encoder = DynUNetEncoder(filters=(8, 16, 16), spacing_mm=(3, 1, 1))
        >>> dense = encoder(torch.zeros(1, 7, 16, 12), torch.tensor([[[0, 7], [0, 16], [0, 12]]]))
        >>> dense.map.shape, encoder.axial_mm
        (torch.Size([1, 8, 7, 16, 12]), 3.0)
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
        filters: Sequence[int] = (32, 64, 128, 256, 320),
        strides: Sequence[tuple[int, int, int]] | None = None,
        res_block: bool = False,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        steps = [(1, 1, 1)] + [(2, 2, 2)] * (len(filters) - 1) if strides is None else [tuple(s) for s in strides]
        if len(steps) != len(filters) or len(filters) < 3 or steps[0] != (1, 1, 1):
            raise ConfigError(
                f"DynUNetEncoder needs at least three stages, a stride for each and a first stride of 1, but has "
                f"filters {list(filters)} and strides {steps}."
            )
        check_counts("DynUNetEncoder", filters=min(filters), strides=min(side for step in steps for side in step))
        total = [int(side) for side in np.prod(steps, axis=0)]
        super().__init__(
            width=filters[0],
            spacing_mm=spacing_mm,
            cell_vox=(1, 1, 1),
            align_vox=total,
            windows=windows,
            axial_mm=axial_mm,
        )
        from monai.networks.nets import DynUNet

        whole = DynUNet(
            spatial_dims=3,
            in_channels=len(self.windows),
            out_channels=1,
            kernel_size=[3] * len(filters),
            strides=steps,
            upsample_kernel_size=steps[1:],
            filters=list(filters),
            res_block=res_block,
        )
        self.layers: nn.Module = whole.skip_layers

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """The decoder's last map."""
        cells: Tensor = self.layers(self.windows(volume_hu))
        return cells.permute(0, 2, 3, 4, 1)
