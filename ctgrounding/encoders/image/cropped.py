"""Base of encoders that see a scan without its padding, whatever they do inside."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.branches import is_exporting
from ctgrounding.encoders.image.base import ImageEncoder, Triple
from ctgrounding.encoders.image.ragged import groups
from ctgrounding.encoders.image.windows import AIR_HU, DEFAULT_WINDOWS, outside_to_air
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.types import DenseFeatures


class CroppedEncoder(ImageEncoder):
    """Encodes each scan's valid box alone, so that statistics, borders and windows inside never see padding.

    Scans of equal boxes are encoded together. A crop starts at a multiple of ``align_vox`` at or before the box.
    At its end it is filled with air: to a multiple of ``align_vox``, or along a ``strided`` axis to the centre of its
    last cell at least; and to two cells of the deepest stage, since a norm over one has no variance.

    Args:
        width: Channels of the feature map.
        spacing_mm: Voxel size along ``D H W``.
        cell_vox: Voxels of a cell along ``D H W``.
        align_vox: Whole cells that a crop is made of along each axis, such as the stride of the deepest stage.
        strided: Whether cell ``i`` is centred at voxel ``i * cell_vox``, as padded strided convolutions do,
            instead of in the middle of its voxels; for all axes, or for each.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for.

    Raises:
        ConfigError: If the depth bins are not as asked for.
    """

    def __init__(
        self,
        *,
        width: int,
        spacing_mm: Sequence[float],
        cell_vox: Sequence[int],
        align_vox: Sequence[int],
        strided: bool | tuple[bool, bool, bool] = False,
        windows: Sequence[Sequence[float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        along = (strided,) * 3 if isinstance(strided, bool) else strided
        super().__init__(
            width=width,
            spacing_mm=spacing_mm,
            cell_vox=cell_vox,
            offset_vox=[0.0 if first else (vox - 1) / 2 for vox, first in zip(cell_vox, along, strict=True)],
            windows=windows,
            axial_mm=axial_mm,
        )
        self.cell, self.align, self.strided = tuple(cell_vox), tuple(align_vox), along

    @property
    def period_vox(self) -> Triple:
        """What crops start at a multiple of."""
        depth, row, column = self.align
        return float(depth), float(row), float(column)

    @abstractmethod
    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """Encode crops without padding.

        Args:
            volume_hu: Volumes in HU, filled as said above.

        Returns:
            The map from the first voxel on; cells beyond those of the scan are cut off.
        """

    def forward(self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> DenseFeatures:
        """Encode volumes of any size; an exported program takes volumes without padding only, and checks that."""
        grid = self.grid(image_hu.shape[1:])
        if is_exporting():
            _assert_whole(image_hu, valid_box)
            whole = self._encode(image_hu).permute(0, 4, 1, 2, 3)
            return self.features(whole, self.valid_cells(valid_box, grid))
        volume = outside_to_air(image_hu, valid_box)
        cells: Tensor | None = None
        for group in groups(valid_box, self.align):
            crop = volume[group.scans][group.window]
            found = self._encode(crop)
            if cells is None:
                if tuple(found.shape[1:4]) == grid and len(found) == len(volume):
                    cells = found
                    break
                cells = found.new_zeros(len(volume), *grid, self.width)
            d, h, w = (start // step for start, step in zip(group.low, self.cell, strict=True))
            depth, row, column = found.shape[1:4]
            cells[group.scans, d : d + depth, h : h + row, w : w + column] = found
        if cells is None:
            raise BatchError("A micro-batch without scans has no features; leave it out.")
        return self.features(cells.permute(0, 4, 1, 2, 3), self.valid_cells(valid_box, grid))

    def _encode(self, crop: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        sides, grid = crop.shape[1:], self.grid(crop.shape[1:])
        to_centre = [(cells - 1) * step + 1 for cells, step in zip(grid, self.cell, strict=True)]
        to_multiple = [-(-side // step) * step for side, step in zip(sides, self.align, strict=True)]
        ends = zip(to_centre, to_multiple, self.strided, strict=True)
        full = [centre if strided else multiple for centre, multiple, strided in ends]
        if all(whole <= step for whole, step in zip(full, self.align, strict=True)):
            full[2] += self.align[2]
        depth, row, column = (max(whole - side, 0) for whole, side in zip(full, sides, strict=True))
        found = self.encode(functional.pad(crop, (0, column, 0, row, 0, depth), value=AIR_HU))
        if any(has < due for has, due in zip(found.shape[1:4], grid, strict=True)):  # else some would stay zero
            raise ConfigError(
                f"{type(self).__name__} gives {tuple(found.shape[1:4])} cells of {tuple(sides)} voxels, where cells of "
                f"{self.cell} voxels make {grid}. Its cell_vox, align_vox or strided are not those of its network."
            )
        return found[:, : grid[0], : grid[1], : grid[2]]


def _assert_whole(image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> None:
    whole = torch.tensor([[0, side] for side in image_hu.shape[1:]], device=valid_box.device)
    message = "This program takes volumes without padding: every valid box must be the whole volume."
    torch._assert_async((valid_box == whole).all(), message)


class ChannelAffine(nn.Module):
    """A gain and a shift for each channel, trained: what batch norm is in evaluation, without statistics.

    Args:
        channels: Number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, cells: Float[Tensor, "b C *space"]) -> Float[Tensor, "b C *space"]:
        """Scale and shift."""
        shape = [1, -1] + [1] * (cells.ndim - 2)
        return cells * self.weight.view(shape) + self.bias.view(shape)


def without_statistics(module: nn.Module) -> nn.Module:
    """Every batch norm inside a module becomes a :class:`ChannelAffine` that does what it does in evaluation.

    Raises:
        ConfigError: If the module is a batch norm itself.
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise ConfigError("A batch norm cannot replace itself; give the module that holds it.")
    for name, child in list(module.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _fixed(child))
        else:
            without_statistics(child)
    return module


@torch.no_grad()
def _fixed(norm: nn.modules.batchnorm._BatchNorm) -> ChannelAffine:
    affine = ChannelAffine(norm.num_features)
    if norm.running_mean is None or norm.running_var is None:
        return affine
    gain = (norm.running_var + norm.eps).rsqrt()
    if norm.affine:
        gain = gain * norm.weight
    affine.weight.copy_(gain)
    affine.bias.copy_((norm.bias if norm.affine else 0) - norm.running_mean * gain)
    return affine
