"""A 3D vision transformer for volumes of any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctgrounding.encoders.branches import all_true
from ctgrounding.encoders.image.attention import (
    DEFAULT_WAVELENGTHS_MM,
    AxialRotary,
    Block,
    Rotation,
    head_width,
    initialise,
)
from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.image.counts import check_counts
from ctgrounding.encoders.image.position_table import PositionTable
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.errors import ConfigError
from ctgrounding.types import DenseFeatures


@dataclass
class _Tokens:
    """Tokens of a batch of scans, ``m`` in each of ``d`` slices, and what attention needs of them.

    There is one summary (``s`` is 1), or between slice blocks one a slice. ``valid`` is None where every token is
    real, so that attention needs no mask.
    """

    values: Float[Tensor, "b d m C"]
    summary: Float[Tensor, "b s C"]
    cos: Float[Tensor, "b d m F"]
    sin: Float[Tensor, "b d m F"]
    valid: Bool[Tensor, "b d m"] | None


class ViT(ImageEncoder):
    """Vision transformer with linear patches, axial rotary positions in mm, and full or slice-scan attention.

    With ``slice_scan`` the tokens of a slice attend to each other and to a summary of their own, and every
    ``scan_every``-th block lets all tokens of the scan meet, with the mean of the summaries of the slices that
    hold real voxels (HLIP, arXiv 2505.21862, which has two slice blocks to a scan block: ``scan_every: 3``).

    Positions are rotary in mm, or with ``table`` a fixed table that is added to the patches, as in HLIP, where
    it is made of sines and cosines and not trained. The table's middle lies on the middle of the scan's valid
    box and is read between its cells, where the public code stretches it over any grid; a scan as large as the
    table gets the same.

    Patch dropout keeps the same number of cells in every slice, real ones first; dropped cells are zero and
    not valid in the result. It happens in training only and draws from torch's global generator.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        patch: Voxels of a cell along ``D H W``; the default gives axial cells of 12 mm.
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads; at least 6 channels each.
        mlp_ratio: Hidden width of a block's MLP over ``width``.
        attention: ``full``, or ``slice_scan``.
        scan_every: With ``slice_scan``, every how many blocks all tokens meet; the last block always does.
        layer_scale: Initial value of a learned gain on each branch, None for none.
        patch_keep: Share of a slice's cells that a training step keeps, in (0, 1].
        checkpoint_every: Recompute every so many-th block in backward to save memory; 0 for none.
        wavelengths_mm: Shortest and longest wavelength of the rotary positions; with ``table`` there are none.
        table: Cells along ``D H W`` of a table of positions instead of rotary ones.
        norm_eps: Added to the variance by every norm.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If sizes do not fit each other.

    Examples:
        >>> encoder = ViT(width=48, depth=2, heads=4)
        >>> volume = torch.zeros(1, 16, 64, 48)
        >>> dense = encoder(volume, torch.tensor([[[0, 16], [0, 64], [0, 48]]]))
        >>> dense.map.shape, dense.summary.shape, encoder.axial_mm
        (torch.Size([1, 48, 4, 4, 3]), torch.Size([1, 48]), 12.0)
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
        patch: tuple[int, int, int] = (4, 16, 16),
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        attention: Literal["full", "slice_scan"] = "full",
        scan_every: int = 3,
        layer_scale: float | None = None,
        patch_keep: float = 1.0,
        checkpoint_every: int = 0,
        wavelengths_mm: tuple[float, float] = DEFAULT_WAVELENGTHS_MM,
        table: tuple[int, int, int] | None = None,
        norm_eps: float = 1e-5,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        super().__init__(
            width=width, spacing_mm=spacing_mm, cell_vox=patch, windows=windows, has_summary=True, axial_mm=axial_mm
        )
        if not 0 < patch_keep <= 1:
            raise ConfigError(f"patch_keep is a share in (0, 1], but is {patch_keep}.")
        if table is not None and tuple(wavelengths_mm) != DEFAULT_WAVELENGTHS_MM:
            raise ConfigError(
                f"wavelengths_mm of ViT is {list(wavelengths_mm)}, but with a table no position is rotary. "
                "Remove one of the two."
            )
        check_counts("ViT", scan_every=scan_every)
        check_counts("ViT", least=0, depth=depth, checkpoint_every=checkpoint_every)
        self.patch_keep = patch_keep
        self.checkpoint_every = checkpoint_every
        last = depth - 1
        self.meets = [attention == "full" or i == last or (i + 1) % scan_every == 0 for i in range(depth)]
        self.embed = nn.Linear(len(self.windows) * patch[0] * patch[1] * patch[2], width)
        self.summary = nn.Parameter(torch.zeros(1, 1, width))
        self.rotary = AxialRotary(head_width(width, heads), wavelengths_mm) if table is None else None
        self.table = None if table is None else PositionTable(table, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, layer_scale, norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.apply(initialise)
        nn.init.trunc_normal_(self.summary, std=0.02)

    def forward(self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> DenseFeatures:
        """Encode volumes of any size."""
        grid = self.grid(image_hu.shape[1:])
        valid = self.valid_cells(valid_box, grid).flatten(2)
        cells = self.patch_channels(image_hu, valid_box).flatten(2, 3)
        position_mm = self.centred_mm(valid_box, grid).flatten(2, 3)
        kept = self._kept(valid)
        if kept is not None:
            cells, position_mm, valid = _take(cells, kept), _take(position_mm, kept), valid.gather(2, kept)
        tokens = self._run(self._tokens(cells, position_mm, valid))
        values, summary = self.norm(tokens.values), self.norm(_joined(tokens.summary, tokens.valid))[:, 0]
        if kept is not None:
            values, valid = _put_back(values, valid, kept, grid[1] * grid[2])
        cell_map = values.view(values.shape[0], *grid, -1).permute(0, 4, 1, 2, 3)
        return self.features(cell_map, valid.view(-1, *grid), summary)

    def _kept(self, valid: Bool[Tensor, "b d n"]) -> Int64[Tensor, "b d m"] | None:
        if not self.training or self.patch_keep == 1:
            return None
        count = ceil(self.patch_keep * valid.shape[2])
        order = torch.rand(valid.shape, device=valid.device) + ~valid
        return order.topk(count, dim=2, largest=False).indices.sort(dim=2).values

    def _tokens(
        self,
        cells: Float[Tensor, "b d m voxels"],
        position_mm: Float64[Tensor, "b d m 3"],
        valid: Bool[Tensor, "b d m"],
    ) -> _Tokens:
        values = self.embed(cells)
        summary = self.summary.to(values.dtype).expand(values.shape[0], -1, -1)
        if self.table is not None:
            values = values + self.table(position_mm / position_mm.new_tensor(self.cell_mm)).to(values.dtype)
        cos, sin = self.rotary(position_mm) if self.rotary is not None else _no_turn(position_mm)
        return _Tokens(values, summary, cos, sin, None if all_true(valid) else valid)

    def _run(self, tokens: _Tokens) -> _Tokens:
        for place, (block, meets) in enumerate(zip(self.blocks, self.meets, strict=True)):
            step = partial(_scan_block if meets else _slice_block, block, tokens)
            if self.training and self.checkpoint_every and place % self.checkpoint_every == 0:
                values, summary = checkpoint(step, tokens.values, tokens.summary, use_reentrant=False)
            else:
                values, summary = step(tokens.values, tokens.summary)
            tokens = _Tokens(values, summary, tokens.cos, tokens.sin, tokens.valid)
        return tokens


def _scan_block(block: nn.Module, about: _Tokens, values: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens of a scan and the mean of its summaries attend to each other."""
    rotation = Rotation(about.cos.flatten(1, 2), about.sin.flatten(1, 2))
    key_valid = None if about.valid is None else _with_summary(about.valid.flatten(1))
    joined = _joined(summary, about.valid)
    mixed = block(torch.cat([joined, values.flatten(1, 2)], dim=1), rotation, key_valid)
    return mixed[:, 1:].view_as(values), mixed[:, :1]


def _slice_block(block: nn.Module, about: _Tokens, values: Tensor, summary: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of a slice and its own summary attend to each other."""
    b, d, _, width = values.shape
    rotation = Rotation(about.cos.flatten(0, 1), about.sin.flatten(0, 1))
    key_valid = None if about.valid is None else _with_summary(about.valid.flatten(0, 1))
    own = summary.expand(b, d, width).reshape(b * d, 1, width)
    mixed = block(torch.cat([own, values.flatten(0, 1)], dim=1), rotation, key_valid)
    return mixed[:, 1:].reshape_as(values), mixed[:, 0].view(b, d, width)


def _joined(summary: Float[Tensor, "b s C"], valid: Bool[Tensor, "b d m"] | None) -> Float[Tensor, "b 1 C"]:
    if summary.shape[1] == 1 or valid is None:
        return summary.mean(1, keepdim=True)
    real = valid.any(2, keepdim=True).to(summary.dtype)
    return (summary * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)


def _no_turn(position: Float64[Tensor, "b d m 3"]) -> tuple[Tensor, Tensor]:
    none = torch.zeros(*position.shape[:3], 0, device=position.device)
    return none, none


def _with_summary(valid: Bool[Tensor, "R N"]) -> Bool[Tensor, "R N1"]:
    return torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)


def _take(rows: Shaped[Tensor, "b d n F"], kept: Int64[Tensor, "b d m"]) -> Shaped[Tensor, "b d m F"]:
    return rows.gather(2, kept[..., None].expand(-1, -1, -1, rows.shape[-1]))


def _put_back(values: Tensor, valid: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    b, d, _, width = values.shape
    full = values.new_zeros(b, d, count, width).scatter(2, kept[..., None].expand_as(values), values)
    return full, valid.new_zeros(b, d, count).scatter(2, kept, valid)
