"""One vector a depth bin."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.branches import all_true
from ctgrounding.encoders.image.attention import (
    DEFAULT_WAVELENGTHS_MM,
    AxialRotary,
    Block,
    Rotation,
    head_width,
)
from ctgrounding.encoders.readouts.base import (
    Readout,
    ReadoutContext,
    Rows,
    check_parts,
    masked_max,
    masked_mean,
    summary_of,
)
from ctgrounding.errors import ConfigError
from ctgrounding.types import DenseFeatures

DepthPart = Literal["mean", "max", "summary"]


class DepthReadout(Readout):
    """In-plane mean and maximum of every slice of cells, then optional mixing along the depth.

    Args:
        channels: Channels of the map.
        parts: In-plane reductions, concatenated; ``summary`` repeats the encoder's token at every bin.
            RadFinder's is ``[summary, mean]``.
        width: Width of a bin after mixing; None for ``channels``. Without mixing the parts are the result.
        mixing: ``none``; ``conv``, residual convolutions along the depth; ``transformer``, blocks with rotary
            positions in mm.
        layers: Mixing layers.
        kernel: Bins that a convolution sees; odd.
        heads: Attention heads of the transformer.
        wavelengths_mm: Shortest and longest wavelength of its positions.

    Raises:
        ConfigError: If a part is unknown or the kernel is even.

    Examples:
        >>> DepthReadout(64, parts=("mean", "max"), width=96, mixing="conv").width
        96
    """

    def __init__(
        self,
        channels: int,
        parts: Sequence[DepthPart] = ("mean",),
        width: int | None = None,
        mixing: Literal["none", "conv", "transformer"] = "none",
        layers: int = 1,
        kernel: int = 3,
        heads: int = 4,
        wavelengths_mm: tuple[float, float] = DEFAULT_WAVELENGTHS_MM,
    ) -> None:
        check_parts("DepthReadout", parts, ("mean", "max", "summary"))
        together = channels * len(parts)
        mixed = width or channels
        super().__init__(together if mixing == "none" else mixed)
        if mixing == "none" and width is not None:
            raise ConfigError(f"DepthReadout takes a width ({width}) only with mixing; set mixing or remove it.")
        if kernel % 2 == 0:
            raise ConfigError(f"DepthReadout needs an odd kernel, but kernel is {kernel}.")
        self.parts = tuple(parts)
        self.enter = nn.Identity() if mixing == "none" else nn.Linear(together, mixed)
        convolutions = layers if mixing == "conv" else 0
        self.convolutions = nn.ModuleList(_DepthConv(mixed, kernel) for _ in range(convolutions))
        blocks = layers if mixing == "transformer" else 0
        self.blocks = nn.ModuleList(Block(mixed, heads) for _ in range(blocks))
        self.rotary = AxialRotary(head_width(mixed, heads), wavelengths_mm) if blocks else None

    def forward(self, dense: DenseFeatures, context: ReadoutContext) -> Rows:
        """One row a bin of every scan, zero at bins without real voxels."""
        dense = dense.view("depth")
        valid = dense.valid.flatten(2)
        bin_valid = valid.any(-1)
        rows: Tensor = self.enter(self._in_plane(dense, valid))
        for convolution in self.convolutions:
            rows = convolution(rows, bin_valid)
        if self.rotary is not None:
            rows = self._attend(self.rotary, rows, bin_valid, dense.cell_vox[0] * context.spacing_mm[:, 0])
        return Rows(rows.masked_fill(~bin_valid[..., None], 0), depth_valid=bin_valid)

    def _in_plane(self, dense: DenseFeatures, valid: Bool[Tensor, "b Z n"]) -> Float[Tensor, "b Z C"]:
        b, bins = valid.shape[:2]
        cells = dense.map.flatten(3).permute(0, 2, 3, 1).flatten(0, 1)
        found: dict[str, Tensor] = {}
        if "mean" in self.parts:
            found["mean"] = masked_mean(cells, valid.flatten(0, 1)).view(b, bins, -1)
        if "max" in self.parts:
            found["max"] = masked_max(cells, valid.flatten(0, 1)).view(b, bins, -1)
        if "summary" in self.parts:
            found["summary"] = summary_of(dense)[:, None].expand(-1, bins, -1)
        return torch.cat([found[part] for part in self.parts], dim=-1)

    def _attend(
        self, rotary: AxialRotary, rows: Tensor, bin_valid: Tensor, bin_mm: Float[Tensor, "b"]
    ) -> Float[Tensor, "b Z C"]:
        along = torch.arange(rows.shape[1], device=rows.device) * bin_mm[:, None]
        position_mm = torch.stack([along, torch.zeros_like(along), torch.zeros_like(along)], dim=-1)
        cos, sin = rotary(position_mm)
        key_valid = None if all_true(bin_valid) else bin_valid
        for block in self.blocks:
            rows = block(rows, Rotation(cos, sin), key_valid)
        return rows


class _DepthConv(nn.Module):
    """Residual: layer norm, convolution along the depth, GELU; bins that are not valid count as zeros."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2)

    def forward(self, rows: Float[Tensor, "b Z C"], valid: Bool[Tensor, "b Z"]) -> Float[Tensor, "b Z C"]:
        inner = self.norm(rows).masked_fill(~valid[..., None], 0)
        return rows + functional.gelu(self.conv(inner.transpose(1, 2)).transpose(1, 2))
