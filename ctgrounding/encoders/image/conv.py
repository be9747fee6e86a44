"""A small hybrid of patches, convolutions and a coarse transformer that learns quickly on a CPU."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.branches import all_true, is_exporting
from ctgrounding.encoders.image.attention import (
    DEFAULT_WAVELENGTHS_MM,
    AxialRotary,
    Block,
    Rotation,
    head_width,
    initialise,
)
from ctgrounding.encoders.image.base import ImageEncoder, Triple
from ctgrounding.encoders.image.ragged import by_extent
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.types import DenseFeatures


class ConvBlock(nn.Module):
    """Residual bottleneck with one 3x3x3 convolution; cells outside the scan act as the border's zeros.

    Args:
        width: Channels of a cell.
        bottleneck: Channels of the convolution.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(bottleneck, bottleneck, 3, padding=1)
        self.leave = nn.Linear(bottleneck, width)

    def forward(
        self, cells: Float[Tensor, "b d h w C"], real: Float[Tensor, "b d h w 1"] | None
    ) -> Float[Tensor, "b d h w C"]:
        """Mix neighbouring cells; ``real`` is 1 at valid cells and 0 elsewhere, None where all are valid."""
        inner = functional.relu(self.enter(self.norm(cells)))
        inner = inner if real is None else inner * real
        inner = self.conv(inner.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        changed: Tensor = self.leave(functional.relu(inner))
        return cells + changed


class ContextBlock(nn.Module):
    """Transformer blocks over a coarser grid; what they add is shared by the cells of a coarse cell.

    Args:
        width: Channels of a cell.
        heads: Attention heads.
        depth: Number of blocks.
        factor: Cells of a coarse cell along ``D H W``.
        wavelengths_mm: Shortest and longest wavelength of the rotary positions.
    """

    def __init__(
        self, width: int, heads: int, depth: int, factor: Sequence[int], wavelengths_mm: Sequence[float]
    ) -> None:
        super().__init__()
        self.factor = tuple(factor)
        self.rotary = AxialRotary(head_width(width, heads), wavelengths_mm)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, width)

    def forward(
        self,
        cells: Float[Tensor, "b d h w C"],
        real: Float[Tensor, "b d h w 1"] | None,
        position_mm: Float[Tensor, "b d h w 3"],
    ) -> Float[Tensor, "b d h w C"]:
        """Add to every cell what the whole scan says about its surroundings."""
        weight = torch.ones_like(cells[..., :1]) if real is None else real
        weights = self._coarse_sums(weight)
        share = weights.clamp(min=1)
        tokens = (self._coarse_sums(cells if real is None else cells * real) / share).flatten(1, 3)
        centre_mm = (self._coarse_sums(position_mm * weight) / share).flatten(1, 3)
        rotation = Rotation(*self.rotary(centre_mm))
        key_valid = None if real is None else (weights > 0).flatten(1)
        for block in self.blocks:
            tokens = block(tokens, rotation, key_valid)
        change = self.leave(self.norm(tokens)).view(*weights.shape[:4], -1)
        return cells + self._spread(change, cells.shape[1:4])

    def _coarse_sums(self, cells: Tensor) -> Tensor:
        lacking = [-size % step for size, step in zip(cells.shape[1:4], self.factor, strict=True)]
        if any(lacking):
            depth, row, column = lacking
            cells = functional.pad(cells, (0, 0, 0, column, 0, row, 0, depth))
        for axis, step in enumerate(self.factor, start=1):  # one axis at a time: five times as quick on a CPU
            cells = cells.unflatten(axis, (-1, step)).sum(axis + 1)  # type: ignore[no-untyped-call]
        return cells

    def _spread(self, coarse: Tensor, shape: Sequence[int]) -> Tensor:
        for axis, step in enumerate(self.factor, start=1):
            copies = [-1] * (coarse.ndim + 1)
            copies[axis + 1] = step
            coarse = coarse.unsqueeze(axis + 1).expand(copies).flatten(axis, axis + 1)
        return coarse[:, : shape[0], : shape[1], : shape[2]]


class PatchConv(ImageEncoder):
    """Patches by a small MLP, residual convolutions around a transformer over coarse cells.

    Every normalisation is of one cell's channels, so neither the batch nor padding reaches a cell.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        patch: Voxels of a cell along ``D H W``.
        width: Channels of the map.
        patch_hidden: Hidden width of the patch MLP.
        bottleneck: Channels of the convolutions.
        convolutions: Convolution blocks; half of them before the context, the rest after it.
        context_depth: Transformer blocks over coarse cells; 0 for none.
        context_cells: Cells of a coarse cell along ``D H W``.
        heads: Attention heads of the context.
        wavelengths_mm: Shortest and longest wavelength of its rotary positions.
        windows: Low and high end of each HU window.
        passes: Batches of scans of several sizes are encoded in so many parts, by size and each without
            the padding that none of its scans needs; the result is the same.

    Examples:
        >>> encoder = PatchConv(spacing_mm=(8, 8, 8), patch=(2, 4, 4), width=32, heads=4)
        >>> volume = torch.full((1, 20, 36, 48), -1024.0)
        >>> encoder(volume, torch.tensor([[[0, 20], [0, 36], [0, 48]]])).map.shape
        torch.Size([1, 32, 10, 9, 12])
        >>> encoder.axial_mm
        16.0
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (8.0, 8.0, 8.0),
        patch: tuple[int, int, int] = (2, 4, 4),
        width: int = 64,
        patch_hidden: int = 128,
        bottleneck: int = 32,
        convolutions: int = 3,
        context_depth: int = 1,
        context_cells: tuple[int, int, int] = (1, 3, 3),
        heads: int = 4,
        wavelengths_mm: tuple[float, float] = DEFAULT_WAVELENGTHS_MM,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        passes: int = 1,
    ) -> None:
        super().__init__(width=width, spacing_mm=spacing_mm, cell_vox=patch, windows=windows)
        self.passes = passes
        voxels = len(self.windows) * patch[0] * patch[1] * patch[2]
        self.embed = nn.Sequential(nn.Linear(voxels, patch_hidden), nn.GELU(), nn.Linear(patch_hidden, width))
        early = (convolutions + 1) // 2
        self.before = nn.ModuleList(ConvBlock(width, bottleneck) for _ in range(early))
        self.context = (
            ContextBlock(width, heads, context_depth, context_cells, wavelengths_mm) if context_depth else None
        )
        self.after = nn.ModuleList(ConvBlock(width, bottleneck) for _ in range(convolutions - early))
        self.norm = nn.LayerNorm(width)
        if self.context is not None:
            self.context.blocks.apply(initialise)

    @property
    def period_vox(self) -> Triple:
        """A coarse cell of the context where there is one, else a cell."""
        if self.context is None:
            return self.cell_vox
        depth, row, column = (vox * cells for vox, cells in zip(self.cell_vox, self.context.factor, strict=True))
        return depth, row, column

    def forward(self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> DenseFeatures:
        """Encode volumes of any size."""
        grid = self.grid(image_hu.shape[1:])
        valid = self.valid_cells(valid_box, grid)
        if self.passes == 1 or is_exporting() or all_true(valid):
            return self.features(self._encode(image_hu, valid_box).permute(0, 4, 1, 2, 3), valid)
        parts = [
            (group.scans, self._encode(image_hu[group.scans][group.window], valid_box[group.scans]))
            for group in by_extent(valid_box, self.passes)
        ]
        cells = parts[0][1].new_zeros(*valid.shape, self.width)
        for scans, found in parts:
            _, d, h, w, _ = found.shape
            cells[scans, :d, :h, :w] = found
        return self.features(cells.permute(0, 4, 1, 2, 3), valid)

    def _encode(
        self, image_hu: Shaped[Tensor, "g D H W"], valid_box: Int64[Tensor, "g 3 2"]
    ) -> Float[Tensor, "g d h w C"]:
        grid = self.grid(image_hu.shape[1:])
        valid = self.valid_cells(valid_box, grid)
        cells: Tensor = self.embed(self.patch_channels(image_hu, valid_box))
        real = None if all_true(valid) else valid[..., None].to(cells.dtype)
        for block in self.before:
            cells = block(cells, real)
        if self.context is not None:
            cells = self.context(cells, real, self.centred_mm(valid_box, grid))
        for block in self.after:
            cells = block(cells, real)
        normed: Tensor = self.norm(cells)
        return normed
