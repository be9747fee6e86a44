"""MONAI's SegResNet encoder, without batch statistics."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ctgrounding.encoders.image.counts import check_groups
from ctgrounding.encoders.image.cropped import CroppedEncoder, without_statistics
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS, HuWindows
from ctgrounding.errors import ConfigError


class SegResNetEncoder(CroppedEncoder):
    """The downward half of MONAI's ``SegResNet``, with the map of one stage; CT-FM's encoder is one.

    A stage halves the grid by a padded 3x3x3 convolution of stride 2, so cell ``i`` of stage ``s`` is centred
    at voxel ``i * 2**s``. Group and instance norm take statistics over a whole scan, so scans whose valid
    boxes differ are encoded apart, each without its padding.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        filters: Channels of stage 0; each stage doubles them.
        blocks: Residual blocks of each stage; stages after ``stage`` are not made.
        stage: Stage that gives the map, of ``2**stage`` voxels a cell; None for the last.
        norm: ``group`` (8 groups), ``instance``, or ``fixed``: a gain and a shift a channel, for weights that were
            trained with batch norm.
        final_norm: Layer norm over the channels of the map; CT-FM has none.
        unit_range: Windows in [0, 1] instead of [-1, 1], so that the zeros around a convolution mean the low end
            of the window.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If there is no such stage, or group norm cannot split the filters.

    Examples:
        >>> import torch
        >>> encoder = SegResNetEncoder(spacing_mm=(1.5, 1.5, 1.5), filters=8, blocks=(1, 1, 1, 1))
        >>> dense = encoder(torch.zeros(1, 24, 32, 32), torch.tensor([[[0, 24], [0, 32], [0, 32]]]))
        >>> dense.map.shape, dense.offset_vox, encoder.axial_mm
        (torch.Size([1, 64, 4, 5, 5]), (0.0, 0.0, 0.0), 12.0)
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5),
        filters: int = 16,
        blocks: Sequence[int] = (1, 2, 2, 4),
        stage: int | None = None,
        norm: Literal["group", "instance", "fixed"] = "group",
        final_norm: bool = True,
        unit_range: bool = False,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        stage = len(blocks) - 1 if stage is None else stage
        if not 0 <= stage < len(blocks):
            raise ConfigError(f"SegResNetEncoder has stages 0 to {len(blocks) - 1}, but stage is {stage}.")
        check_groups("SegResNetEncoder", norm, filters)
        width, stride = filters * 2**stage, 2**stage
        super().__init__(
            width=width,
            spacing_mm=spacing_mm,
            cell_vox=(stride,) * 3,
            align_vox=(stride,) * 3,
            strided=True,
            windows=windows,
            axial_mm=axial_mm,
        )
        if unit_range:
            self.windows = HuWindows(windows, low_value=0.0)
        from monai.networks.nets import SegResNet

        norms = {"group": ("group", {"num_groups": 8}), "instance": ("instance", {"affine": True}), "fixed": "batch"}
        whole = SegResNet(
            init_filters=filters,
            in_channels=len(self.windows),
            blocks_down=tuple(blocks[: stage + 1]),
            blocks_up=(1,) * stage,
            norm=norms[norm],
        )
        self.enter: nn.Module = whole.convInit
        self.stages: nn.ModuleList = whole.down_layers
        without_statistics(self.stages)
        self.norm = nn.LayerNorm(width) if final_norm else nn.Identity()

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """The map of one stage."""
        cells: Tensor = self.enter(self.windows(volume_hu))
        for stage in self.stages:
            cells = stage(cells)
        normed: Tensor = self.norm(cells.permute(0, 2, 3, 4, 1))
        return normed
