"""MONAI's 3D ResNet, without batch statistics."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ctgrounding.encoders.image.counts import check_groups
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.errors import ConfigError

_BLOCKS = {
    18: ("basic", (2, 2, 2, 2), 1),
    34: ("basic", (3, 4, 6, 3), 1),
    50: ("bottleneck", (3, 4, 6, 3), 4),
    101: ("bottleneck", (3, 4, 23, 3), 4),
}
"""Kind of block, blocks of each stage, and how many times wider a block's output is than its inside."""


class ResNetEncoder(CroppedEncoder):
    """A stem of stride ``2 * stem_stride`` and up to four stages, each of which but the first halves the grid.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        depth: Layers as in the names of ResNets.
        filters: Channels inside the blocks of stage 1; each stage doubles them. A multiple of 8 with group norm.
        stage: Stage that gives the map, 1 to 4; later ones are not made.
        stem_stride: Stride of the first convolution along every axis.
        norm: ``group`` (8 groups) or ``instance``.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If there is no such depth or stage, or group norm cannot split the filters.

    Examples:
        >>> import torch
        >>> encoder = ResNetEncoder(spacing_mm=(1.5, 1.5, 1.5), filters=8, stage=3)
        >>> dense = encoder(torch.zeros(1, 24, 32, 32), torch.tensor([[[0, 24], [0, 32], [0, 32]]]))
        >>> dense.map.shape, encoder.axial_mm
        (torch.Size([1, 32, 4, 5, 5]), 12.0)
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5),
        depth: Literal[18, 34, 50, 101] = 18,
        filters: int = 64,
        stage: int = 3,
        stem_stride: int = 1,
        norm: Literal["group", "instance"] = "group",
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        if depth not in _BLOCKS or not 1 <= stage <= 4:
            raise ConfigError(
                f"ResNetEncoder has depths {sorted(_BLOCKS)} and stages 1 to 4, but is asked for {depth} and {stage}."
            )
        check_groups("ResNetEncoder", norm, filters)
        block, layers, expansion = _BLOCKS[depth]
        stride = stem_stride * 2**stage
        super().__init__(
            width=filters * expansion * 2 ** (stage - 1),
            spacing_mm=spacing_mm,
            cell_vox=(stride,) * 3,
            align_vox=(stride,) * 3,
            strided=True,
            windows=windows,
            axial_mm=axial_mm,
        )
        from monai.networks.nets import ResNet

        whole = ResNet(
            block,
            list(layers),
            [filters * 2**place for place in range(4)],
            n_input_channels=len(self.windows),
            conv1_t_stride=stem_stride,
            feed_forward=False,
            bias_downsample=False,
        )
        _renormed(whole, norm)  # MONAI passes the norm to the stem alone
        self.stem = nn.Sequential(whole.conv1, whole.bn1, whole.act, whole.maxpool)
        self.stages = nn.Sequential(whole.layer1, whole.layer2, whole.layer3, whole.layer4)[:stage]
        self.norm = nn.LayerNorm(self.width)

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """The map of one stage."""
        cells: Tensor = self.stages(self.stem(self.windows(volume_hu)))
        normed: Tensor = self.norm(cells.permute(0, 2, 3, 4, 1))
        return normed


def _renormed(module: nn.Module, norm: str) -> None:
    """Replace every batch norm inside."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm3d):
            channels = child.num_features
            made = nn.GroupNorm(8, channels) if norm == "group" else nn.InstanceNorm3d(channels, affine=True)
            setattr(module, name, made)
        else:
            _renormed(child, norm)
