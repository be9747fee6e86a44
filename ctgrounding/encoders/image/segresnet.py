"""MONAI's SegResNet encoder, without batch statistics."""

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.image.ragged import groups
from ctgrounding.encoders.image.windows import AIR_HU, DEFAULT_WINDOWS, outside_to_air
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.types import DenseFeatures


class SegResNetEncoder(ImageEncoder):
    """The downward half of MONAI's ``SegResNet``, with the map of one stage.

    A stage halves the grid by a padded 3x3x3 convolution of stride 2, so cell ``i`` of stage ``s`` is centred
    at voxel ``i * 2**s``. Group and instance norm take statistics over a whole scan, so scans whose valid
    boxes differ are encoded apart, each without its padding.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        filters: Channels of stage 0; each stage doubles them.
        blocks: Residual blocks of each stage; stages after ``stage`` are not made.
        stage: Stage that gives the map, of ``2**stage`` voxels a cell; None for the last.
        norm: ``group`` (8 groups) or ``instance``.
        windows: Low and high end of each HU window.

    Raises:
        ConfigError: If there is no such stage.

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
        norm: Literal["group", "instance"] = "group",
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
    ) -> None:
        stage = len(blocks) - 1 if stage is None else stage
        if not 0 <= stage < len(blocks):
            raise ConfigError(f"SegResNetEncoder has stages 0 to {len(blocks) - 1}, but stage is {stage}.")
        width, stride = filters * 2**stage, 2**stage
        super().__init__(
            width=width, spacing_mm=spacing_mm, cell_vox=(stride,) * 3, offset_vox=(0.0, 0.0, 0.0), windows=windows
        )
        from monai.networks.nets import SegResNet

        options = {"num_groups": 8} if norm == "group" else {"affine": True}
        whole = SegResNet(
            init_filters=filters,
            in_channels=len(self.windows),
            blocks_down=tuple(blocks[: stage + 1]),
            blocks_up=(1,) * stage,
            norm=(norm, options),
        )
        self.stride = stride
        self.enter: nn.Module = whole.convInit
        self.stages: nn.ModuleList = whole.down_layers
        self.norm = nn.LayerNorm(width)

    def forward(self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> DenseFeatures:
        """Encode volumes of any size."""
        grid = self.grid(image_hu.shape[1:])
        volume = outside_to_air(image_hu, valid_box)
        cells: Tensor | None = None
        for group in groups(valid_box, (self.stride,) * 3):
            found = self._encode(volume[group.scans][group.window])
            if cells is None:
                cells = found.new_zeros(len(volume), *grid, self.width)
            d, h, w = (start // self.stride for start in group.low)
            depth, row, column = found.shape[1:4]
            cells[group.scans, d : d + depth, h : h + row, w : w + column] = found
        if cells is None:
            raise BatchError("A micro-batch without scans has no features; leave it out.")
        return self.features(cells.permute(0, 4, 1, 2, 3), self.valid_cells(valid_box, grid))

    def _encode(self, volume: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        sides = volume.shape[1:]
        needed = [(cells - 1) * self.stride + 1 for cells in self.grid(sides)]
        depth, row, column = (max(full - side, 0) for full, side in zip(needed, sides, strict=True))
        cells: Tensor = self.enter(self.windows(functional.pad(volume, (0, column, 0, row, 0, depth), value=AIR_HU)))
        for stage in self.stages:
            cells = stage(cells)
        normed: Tensor = self.norm(cells.permute(0, 2, 3, 4, 1))
        return normed
