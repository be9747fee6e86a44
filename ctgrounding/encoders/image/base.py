"""What every image encoder is: HU volumes in, a dense feature map on a known grid out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.branches import is_exporting
from ctgrounding.encoders.image.patches import patches
from ctgrounding.encoders.image.windows import AIR_HU, DEFAULT_WINDOWS, HuWindows, outside_to_air
from ctgrounding.encoders.layers import Layer, numbered_layers
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.types import DenseFeatures

Triple = tuple[float, float, float]


class ImageEncoder(nn.Module, ABC):
    """Base of image encoders.

    A subclass calls ``super().__init__`` with its sizes and writes :meth:`forward`, which may use
    :meth:`channels`, :meth:`patch_channels` and :meth:`valid_cells`. It must not use batch statistics, and
    what lies outside a scan's valid box must not change the features of valid cells;
    :func:`ctgrounding.testing.encoders.check_image_encoder` tells whether it keeps to that.

    Args:
        width: Channels of the feature map.
        spacing_mm: Voxel size along ``D H W`` that the encoder is made for.
        cell_vox: Voxels of a cell of its map along ``D H W``.
        offset_vox: Centre of cell (0, 0, 0) in voxels; None where the map starts at the volume's first voxel, that
            is ``(cell_vox - 1) / 2``. A stack of padded strided convolutions has its first cell at voxel 0.
        windows: Low and high end of each HU window.
        has_summary: Whether :meth:`forward` gives one vector a scan besides the map.
        axial_mm: Size of a depth bin that is asked for; None for whatever the cells give.

    Raises:
        ConfigError: If a size is not positive, or the depth bins are not as asked for.
    """

    def __init__(
        self,
        *,
        width: int,
        spacing_mm: Sequence[float],
        cell_vox: Sequence[float],
        offset_vox: Sequence[float] | None = None,
        windows: Sequence[Sequence[float]] = DEFAULT_WINDOWS,
        has_summary: bool = False,
        axial_mm: float | None = None,
    ) -> None:
        super().__init__()
        self._width = width
        self._spacing_mm = _triple("spacing_mm", spacing_mm)
        self._cell_vox = _triple("cell_vox", cell_vox)
        depth, row, column = ((vox - 1) / 2 for vox in self._cell_vox) if offset_vox is None else offset_vox
        self._offset_vox = (depth, row, column)
        self._has_summary = has_summary
        self.windows = HuWindows(windows)
        if axial_mm is not None and abs(axial_mm - self.axial_mm) > 1e-6 * self.axial_mm:
            raise ConfigError(
                f"{type(self).__name__} is asked for depth bins of {axial_mm:g} mm, but its cells of "
                f"{self._cell_vox[0]:g} voxels of {self._spacing_mm[0]:g} mm are {self.axial_mm:g} mm. "
                "Change its patch, stage or spacing_mm, or remove axial_mm."
            )

    @abstractmethod
    def forward(self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> DenseFeatures:
        """Encode volumes of any size.

        Args:
            image_hu: Volumes in HU, padded to one shape; any number type.
            valid_box: Half-open box of real voxels of each.

        Returns:
            The map of ``ceil(size / cell)`` cells along each axis.
        """

    @property
    def width(self) -> int:
        """Channels of the feature map, and of the summary where there is one."""
        return self._width

    @property
    def spacing_mm(self) -> Triple:
        """Voxel size along ``D H W`` that the encoder is made for."""
        return self._spacing_mm

    @property
    def cell_vox(self) -> Triple:
        """Voxels of a cell along ``D H W``."""
        return self._cell_vox

    @property
    def cell_mm(self) -> Triple:
        """Size of a cell along ``D H W``."""
        return tuple(vox * mm for vox, mm in zip(self._cell_vox, self._spacing_mm, strict=True))  # type: ignore[return-value]

    @property
    def offset_vox(self) -> Triple:
        """Centre of cell (0, 0, 0) in voxels."""
        return self._offset_vox

    @property
    def period_vox(self) -> Triple:
        """Padding in front of a scan by a multiple of this moves its features by whole cells and changes none."""
        return self._cell_vox

    @property
    def axial_mm(self) -> float:
        """Size of a cell along ``D``, that is of one depth bin."""
        return self.cell_mm[0]

    @property
    def has_summary(self) -> bool:
        """Whether the encoder gives one vector a scan besides its map."""
        return self._has_summary

    def ordered_layers(self) -> list[Layer]:
        """Names of its parts from the input to the output, for rates that fall by layer.

        By default :func:`ctgrounding.encoders.layers.numbered_layers`; override it where parts are registered in
        another order than they act in.
        """
        return numbered_layers(self)

    def grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Fewest cells along ``D H W`` that together hold every voxel of a volume of this shape."""
        depth, row, column = (
            ceil((size - offset - 0.5) / vox + 0.5)
            for size, vox, offset in zip(shape, self._cell_vox, self._offset_vox, strict=True)
        )
        return depth, row, column

    def padded(
        self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]
    ) -> Shaped[Tensor, "b D2 H2 W2"]:
        """Volumes in HU that are air outside their boxes and padded with air at their ends to whole cells.

        Raises:
            BatchError: If a valid box is empty or leaves its volume (looked at on the CPU only).
        """
        sides = image_hu.shape[1:]
        _check_box(valid_box, image_hu.shape)
        full = [round(cells * vox) for cells, vox in zip(self.grid(sides), self._cell_vox, strict=True)]
        depth, row, column = (whole - side for whole, side in zip(full, sides, strict=True))
        volume = outside_to_air(image_hu, valid_box)
        return functional.pad(volume, (0, column, 0, row, 0, depth), value=AIR_HU)

    def channels(
        self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]
    ) -> Float[Tensor, "b windows D2 H2 W2"]:
        """HU windows of :meth:`padded` volumes, in [-1, 1]."""
        channels: Tensor = self.windows(self.padded(image_hu, valid_box))
        return channels

    def patch_channels(
        self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]
    ) -> Float[Tensor, "b d h w voxels"]:
        """HU windows of every cell's voxels, in the order window, depth, row, column; for cells of whole voxels."""
        size = [round(vox) for vox in self._cell_vox]
        cells: Tensor = self.windows(patches(self.padded(image_hu, valid_box), size), axis=4)
        return cells.flatten(4)

    def valid_cells(self, valid_box: Int64[Tensor, "b 3 2"], grid: Sequence[int]) -> Bool[Tensor, "b d h w"]:
        """Cells that hold at least one voxel of their scan's valid box."""
        depth, row, column = (self._overlap(valid_box[:, axis], axis, cells) for axis, cells in enumerate(grid))
        return depth[:, :, None, None] & row[:, None, :, None] & column[:, None, None, :]

    def centred_mm(self, valid_box: Int64[Tensor, "b 3 2"], grid: Sequence[int]) -> Float64[Tensor, "b d h w 3"]:
        """Position of each cell's centre from the centre of its scan's valid box, along ``D H W``.

        A whole number of cells of padding on any side leaves it as it is.
        """
        centre = valid_box.double().sum(-1) / 2
        along = [
            ((torch.arange(cells, device=valid_box.device, dtype=torch.float64) + 0.5) * vox - centre[:, axis, None])
            * mm
            for axis, (cells, vox, mm) in enumerate(zip(grid, self._cell_vox, self._spacing_mm, strict=True))
        ]
        shape = (valid_box.shape[0], *grid)
        views = (along[0][:, :, None, None], along[1][:, None, :, None], along[2][:, None, None, :])
        return torch.stack([view.expand(shape) for view in views], dim=-1)

    def features(
        self,
        cells: Float[Tensor, "b C d h w"],
        valid: Bool[Tensor, "b d h w"],
        summary: Float[Tensor, "b C"] | None = None,
    ) -> DenseFeatures:
        """A result on this encoder's grid."""
        return DenseFeatures(cells, valid, self._cell_vox, self.offset_vox, summary)

    def _overlap(self, bounds: Tensor, axis: int, cells: int) -> Tensor:
        start = self._starts(axis, cells, bounds.device)
        return (start < bounds[:, 1:]) & (start + self._cell_vox[axis] > bounds[:, :1])

    def _starts(self, axis: int, cells: int, device: torch.device) -> Tensor:
        """Lower edge of each cell, where voxel ``v`` reaches from ``v`` to ``v + 1``."""
        vox = self._cell_vox[axis]
        first = self._offset_vox[axis] + 0.5 - vox / 2
        return first + torch.arange(cells, device=device, dtype=torch.float64) * vox


def _check_box(valid_box: Tensor, shape: Sequence[int]) -> None:
    if valid_box.shape != (shape[0], 3, 2):
        raise BatchError(
            f"{shape[0]} volumes need valid boxes of shape ({shape[0]}, 3, 2), not {tuple(valid_box.shape)}."
        )
    if valid_box.device.type != "cpu" or is_exporting():
        return
    low, high = valid_box.unbind(-1)
    if bool(((low < 0) | (low >= high) | (high > torch.tensor(shape[1:]))).any()):
        raise BatchError(
            f"Valid boxes must be parts of volumes of shape {tuple(shape[1:])}, but they are {valid_box.tolist()}."
        )


def _triple(name: str, values: Sequence[float]) -> Triple:
    if len(values) != 3 or min(values) <= 0:
        raise ConfigError(f"{name} must be three positive numbers along D, H, W, but is {list(values)}.")
    return float(values[0]), float(values[1]), float(values[2])
