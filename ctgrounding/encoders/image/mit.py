"""A pyramid transformer with a light decoder: CT-GLIP's second encoder."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.image.attention import (
    DEFAULT_WAVELENGTHS_MM,
    AxialRotary,
    Rotation,
    head_width,
    initialise,
    rotate,
)
from ctgrounding.encoders.image.counts import check_counts
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.errors import ConfigError

STEM_WIDTH = 32
STEM_STRIDE = (1, 2, 2)


class MiTEncoder(CroppedEncoder):
    """UniMiSS's pyramid U-like medical transformer (MiT, arXiv 2112.09356), with its map at voxel resolution.

    A convolutional stem of stride ``1 x 2 x 2``, then four stages, each a convolution of stride 2 and
    transformer blocks whose keys and values are reduced in space. The decoder brings the last map back to
    voxels, adding each stage's map on its way.

    Differences from the public code (``YtongXie/UniMiSS-code``): positions are rotary in mm, so any size of
    volume fits; there is no summary token; the decoder is our own, since CT-GLIP's is not published.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        widths: Channels of the four stages.
        depths: Blocks of each.
        heads: Attention heads of each.
        reductions: Cells along each axis that become one key.
        width: Channels of the map.
        wavelengths_mm: Shortest and longest wavelength of the positions.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If the stages' sizes do not fit each other.

    Examples:
        >>> sizes = {"widths": (8, 16, 16, 16), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2)}
        >>> encoder = MiTEncoder(**sizes, width=8)
        >>> dense = encoder(torch.zeros(1, 9, 20, 32), torch.tensor([[[0, 9], [0, 20], [0, 32]]]))
        >>> dense.map.shape, encoder.axial_mm
        (torch.Size([1, 8, 9, 20, 32]), 3.0)
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
        widths: Sequence[int] = (48, 128, 256, 512),
        depths: Sequence[int] = (2, 3, 4, 3),
        heads: Sequence[int] = (1, 2, 4, 8),
        reductions: Sequence[int] = (6, 4, 2, 1),
        width: int = 32,
        wavelengths_mm: tuple[float, float] = DEFAULT_WAVELENGTHS_MM,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        count = len(widths)
        if not count == len(depths) == len(heads) == len(reductions) or not count:
            raise ConfigError("MiTEncoder needs a width, a depth, heads and a reduction for each of its stages.")
        check_counts("MiTEncoder", width=width, reductions=min(reductions))
        super().__init__(
            width=width,
            spacing_mm=spacing_mm,
            cell_vox=(1, 1, 1),
            align_vox=[step * 2**count for step in STEM_STRIDE],
            windows=windows,
            axial_mm=axial_mm,
        )
        self.enter = _Convolution(len(self.windows), width, (1, 1, 1))
        self.stem = _Convolution(len(self.windows), STEM_WIDTH, STEM_STRIDE, kernel=7)
        inputs = (STEM_WIDTH, *widths[:-1])
        sizes = zip(inputs, widths, depths, heads, reductions, strict=True)
        self.stages = nn.ModuleList(_Stage(*size, wavelengths_mm) for size in sizes)
        channels = (*reversed(widths), STEM_WIDTH, width)
        steps = [(2, 2, 2)] * count + [STEM_STRIDE]
        pairs = zip(channels[:-1], channels[1:], steps, strict=True)
        self.decoder = nn.ModuleList(_Up(before, after, step) for before, after, step in pairs)
        cells = torch.tensor([[step * 2**place for step in STEM_STRIDE] for place in range(1, count + 1)])
        self.register_buffer("cell_sizes_mm", cells * torch.tensor(spacing_mm, dtype=torch.float64), persistent=False)

    cell_sizes_mm: Tensor

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """The decoder's last map."""
        channels = self.windows(volume_hu)
        maps = [self.enter(channels), self.stem(channels)]
        for stage, cell_mm in zip(self.stages, self.cell_sizes_mm.unbind(), strict=True):
            maps.append(stage(maps[-1], cell_mm))
        cells: Tensor = maps.pop()
        for up in self.decoder:
            cells = up(cells, maps.pop())
        return cells.permute(0, 2, 3, 4, 1)


class _Convolution(nn.Sequential):
    """Convolution, instance norm and leaky ReLU."""

    def __init__(self, inputs: int, width: int, stride: tuple[int, int, int], kernel: int = 3) -> None:
        conv = nn.Conv3d(inputs, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        super().__init__(conv, nn.InstanceNorm3d(width, affine=True), nn.LeakyReLU(0.01))


class _Up(nn.Module):
    """A map brought to the next finer grid, joined with the one that is there."""

    def __init__(self, inputs: int, width: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, width, stride, stride=stride)
        self.join = _Convolution(2 * width, width, (1, 1, 1))

    def forward(self, cells: Tensor, finer: Tensor) -> Tensor:
        joined: Tensor = self.join(torch.cat([self.up(cells), finer], dim=1))
        return joined


class _Stage(nn.Module):
    """Half the grid, then blocks."""

    def __init__(
        self, inputs: int, width: int, depth: int, heads: int, reduction: int, wavelengths_mm: Sequence[float]
    ) -> None:
        super().__init__()
        self.reduction = reduction
        self.down = _Convolution(inputs, width, (2, 2, 2))
        self.rotary = AxialRotary(head_width(width, heads), wavelengths_mm)
        self.blocks = nn.ModuleList(_ReducedBlock(width, heads, reduction) for _ in range(depth))
        self.blocks.apply(initialise)

    def forward(self, finer: Tensor, cell_mm: Float64[Tensor, "3"]) -> Float[Tensor, "g C d h w"]:
        cells: Tensor = self.down(finer)
        grid = cells.shape[2:]
        coarse = [-(-side // self.reduction) for side in grid]
        query = self._rotation(grid, cell_mm, cell_mm.new_zeros(3))
        key = self._rotation(coarse, cell_mm * self.reduction, cell_mm * (self.reduction - 1) / 2)
        tokens = cells.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens, grid, query, key)
        return tokens.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call, no-any-return]

    def _rotation(self, grid: Sequence[int], cell_mm: Tensor, first_mm: Tensor) -> Rotation:
        axes = [torch.arange(side, device=cell_mm.device, dtype=torch.float64) for side in grid]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
        cos, sin = self.rotary(place * cell_mm + first_mm)
        return Rotation(cos[None], sin[None])


class _ReducedBlock(nn.Module):
    """Pre-norm block whose keys and values stand for cubes of cells."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.reduce = nn.Conv3d(width, width, reduction, stride=reduction) if reduction > 1 else None
        self.reduced_norm = nn.LayerNorm(width) if reduction > 1 else nn.Identity()
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, tokens: Float[Tensor, "g n C"], grid: Sequence[int], query_turn: Rotation, key_turn: Rotation
    ) -> Float[Tensor, "g n C"]:
        normed = self.attention_norm(tokens)
        query = rotate(self._split(self.query(normed)), query_turn)
        key, value = self.key_value(self._reduced(normed, grid)).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, rotate(self._split(key), key_turn), self._split(value))
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = self.mlp(self.mlp_norm(tokens))
        return tokens + changed

    def _reduced(self, tokens: Tensor, grid: Sequence[int]) -> Tensor:
        if self.reduce is None:
            return tokens
        depth, row, column = (-side % self.reduction for side in grid)
        cells = tokens.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-untyped-call]
        cells = self.reduce(functional.pad(cells, (0, column, 0, row, 0, depth)))
        normed: Tensor = self.reduced_norm(cells.flatten(2).transpose(1, 2))
        return normed

    def _split(self, tokens: Float[Tensor, "g n C"]) -> Float[Tensor, "g heads n K"]:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]
