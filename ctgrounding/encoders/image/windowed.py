"""A 3D vision transformer inside windows, and a combiner that lets the windows of a scan meet."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.branches import is_exporting
from ctgrounding.encoders.image.base import ImageEncoder, Triple
from ctgrounding.encoders.image.counts import check_counts
from ctgrounding.encoders.image.grid_tower import GridTower
from ctgrounding.encoders.image.patches import patches
from ctgrounding.encoders.image.windows import AIR_HU
from ctgrounding.encoders.layers import Layer
from ctgrounding.errors import ConfigError
from ctgrounding.types import DenseFeatures

LOCAL_BASE, COMBINER_BASE = 1000.0, 100.0


class WindowedViT(ImageEncoder):
    """SPECTRE's local transformer with its feature combiner, and RadFinder's depth branch.

    Every window of a scan is encoded alone: patches and a summary attend to each other. The combiner then sees
    one token a window, made of ``[summary; mean of its patches]``, and has a summary of its own. Sources:
    SPECTRE (arXiv 2511.17209, ``cclaess/SPECTRE``) and RadFinder (arXiv 2603.02026,
    ``lmb-freiburg/radfinder``); weights of both can be imported.

    What each readout sees:

    * ``organ`` and others: the map of all patches.
    * ``global``: the windows after the combiner; the published scan vector is its ``[summary, mean]``.
    * ``depth``: windows cut into the depths of their patches, each the mean of a depth's patches, through the
      same combiner. Rotary coordinates are divided by the number of windows, not of depths, so that
      neighbours keep the distance of pretraining and depths run beyond 1. The published slice vector is
      ``[summary, mean]``.

    Differences from the public code: windows start at the volume's first voxel, and those that reach beyond the
    scan are filled with air where the public code crops to whole windows; windows without a real voxel are left
    out; a depth bin without a real voxel is not valid. On scans of whole windows the results agree.

    Args:
        spacing_mm: Voxel size along ``D H W``.
        window: Voxels of a window along ``D H W``, a multiple of ``patch``.
        patch: Voxels of a cell along ``D H W``; SPECTRE's ``[8, 16, 16]`` was halved by RadFinder.
        width: Channels of a token.
        depth: Blocks of the local transformer.
        heads: Attention heads.
        combiner_depth: Blocks of the combiner.
        depth_branch: ``trained``, with an input projection of its own; ``zero_shot``, ``[window's summary; mean
            of the depth]`` through the windows' projection, for models that never learned to locate; ``none``.
        freeze_local: Train the combiner only.
        layer_scale: Initial gain of every branch.
        rescale: In training coordinates are rescaled by a factor in ``[1 / rescale, rescale]``.
        norm_eps: Added to the variance by every norm: 1e-6 in RadFinder, 1e-5 in SPECTRE.
        checkpoint_every: Recompute every so many-th block in backward to save memory; 0 for none.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If sizes do not fit each other.

    Examples:
        >>> encoder = WindowedViT(window=(8, 32, 32), width=24, depth=1, heads=2, combiner_depth=1)
        >>> dense = encoder(torch.zeros(1, 16, 64, 32), torch.tensor([[[0, 16], [0, 64], [0, 32]]]))
        >>> dense.map.shape, dense.view("global").map.shape, dense.view("depth").map.shape
        (torch.Size([1, 24, 4, 4, 2]), torch.Size([1, 24, 2, 2, 1]), torch.Size([1, 24, 4, 2, 1]))
    """

    def __init__(
        self,
        spacing_mm: tuple[float, float, float] = (3.0, 0.75, 0.75),
        window: tuple[int, int, int] = (32, 128, 128),
        patch: tuple[int, int, int] = (4, 16, 16),
        width: int = 1080,
        depth: int = 24,
        heads: int = 12,
        combiner_depth: int = 4,
        depth_branch: Literal["trained", "zero_shot", "none"] = "trained",
        freeze_local: bool = False,
        layer_scale: float = 1.0,
        rescale: float = 2.0,
        norm_eps: float = 1e-6,
        checkpoint_every: int = 0,
        windows: Sequence[tuple[float, float]] = ((-1000.0, 1000.0),),
        axial_mm: float | None = None,
    ) -> None:
        super().__init__(
            width=width,
            spacing_mm=spacing_mm,
            cell_vox=patch,
            windows=windows,
            has_summary=True,
            axial_mm=axial_mm,
        )
        if any(size % step for size, step in zip(window, patch, strict=True)):
            raise ConfigError(
                f"A window holds whole patches, but window {list(window)} is no multiple of {list(patch)}."
            )
        depths = {"depth": depth, "combiner_depth": combiner_depth, "checkpoint_every": checkpoint_every}
        check_counts("WindowedViT", least=0, **depths)
        self.window, self.patch = tuple(window), tuple(patch)
        self.inner = tuple(size // step for size, step in zip(window, patch, strict=True))
        self.depth_branch, self.freeze_local = depth_branch, freeze_local
        self.embed = nn.Linear(len(self.windows) * patch[0] * patch[1] * patch[2], width)
        shared = {"mlp_ratio": 4.0, "layer_scale": layer_scale, "rescale": rescale}
        self.local = GridTower(
            width, depth, heads, **shared, eps=norm_eps, base=LOCAL_BASE, checkpoint_every=checkpoint_every
        )
        self.window_in = nn.Linear(2 * width, width)
        self.combiner = GridTower(
            width,
            combiner_depth,
            heads,
            **shared,
            eps=norm_eps,
            base=COMBINER_BASE,
            checkpoint_every=checkpoint_every,
        )
        self.depth_in = nn.Linear(width, width) if depth_branch == "trained" else None
        if self.depth_in is not None:  # as the half of window_in that reads the mean
            with torch.no_grad():
                self.depth_in.weight.copy_(self.window_in.weight[:, width:])
                self.depth_in.bias.copy_(self.window_in.bias)
        if freeze_local:
            self.embed.requires_grad_(False)
            self.local.requires_grad_(False)

    @property
    def period_vox(self) -> Triple:
        """A window: padding by less would cut the scan elsewhere."""
        depth, row, column = self.window
        return float(depth), float(row), float(column)

    def ordered_layers(self) -> list[Layer]:
        """Patches, local blocks, what feeds the combiner, the combiner's blocks, its norm."""
        between: Layer = ("local.norm", "window_in", "depth_in", "combiner.summary")
        local = [(f"local.blocks.{place}",) for place in range(len(self.local.blocks))]
        combining = [(f"combiner.blocks.{place}",) for place in range(len(self.combiner.blocks))]
        return [("embed", "local.summary"), *local, between, *combining, ("combiner.norm",)]

    def train(self, mode: bool = True) -> "WindowedViT":
        """Set training mode; a frozen local transformer stays in evaluation mode."""
        super().train(mode)
        if self.freeze_local:
            self.local.eval()
        return self

    def forward(self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> DenseFeatures:
        """Encode volumes of any size."""
        return self._features(*self._encode_windows(image_hu, valid_box))

    def window_tokens(
        self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]
    ) -> dict[str, Shaped[Tensor, "b ..."]]:
        """What the local transformer says of every window, at its place in its scan, as named arrays.

        Windows start at a scan's first voxel, so the arrays of a smaller scan filled up with zeros at the far ends are
        those of the scan in a larger volume. :meth:`from_window_tokens` does the rest.
        """
        cut, summaries, cells, valid = self._encode_windows(image_hu, valid_box)
        arrays = {"summaries": summaries, "cells": cells}
        placed = {
            name: torch.index_put(rows.new_zeros(*cut.real.shape, *rows.shape[1:]), (cut.real,), rows)
            for name, rows in arrays.items()
        }
        return {**placed, "real": cut.real, "first": cut.first, "spanned": cut.spanned, "valid": valid}

    def from_window_tokens(self, tokens: Mapping[str, Shaped[Tensor, "b ..."]]) -> DenseFeatures:
        """The features of the volumes that :meth:`window_tokens` saw."""
        real = tokens["real"]
        cut = _Cut(real, tokens["first"], tokens["spanned"])
        return self._features(cut, tokens["summaries"][real], tokens["cells"][real], tokens["valid"])

    def _encode_windows(self, image_hu: Tensor, valid_box: Tensor) -> tuple["_Cut", Tensor, Tensor, Tensor]:
        """Where the windows are, their summaries and cells, and which cells of the scans are real."""
        valid = self.valid_cells(valid_box, self.grid(image_hu.shape[1:]))
        volumes, cut = self._cut(image_hu, valid_box)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_local):
            summaries, cells = self._local(volumes)
        return cut, summaries, cells, valid

    def _features(
        self,
        cut: "_Cut",
        summaries: Float[Tensor, "R C"],
        cells: Float[Tensor, "R N C"],
        valid: Bool[Tensor, "b d h w"],
    ) -> DenseFeatures:
        scan = self._global_view(cut, summaries, cells)
        views = {"global": scan}
        if self.depth_branch != "none":
            views["depth"] = self._depth_view(cut, summaries, cells, valid)
        whole = self._place(cut, cells.unflatten(1, self.inner))  # type: ignore[no-untyped-call]
        depth, row, column = valid.shape[1:]
        cell_map = whole[:, :, :depth, :row, :column]
        return DenseFeatures(cell_map, valid, self.cell_vox, self.offset_vox, scan.summary, views)

    def _cut(self, image_hu: Tensor, valid_box: Tensor) -> tuple[Shaped[Tensor, "R D H W"], "_Cut"]:
        """HU of the windows that hold real voxels, scan by scan, and where they are."""
        volume = self.padded(image_hu, valid_box)
        lacking = [-size % step for size, step in zip(volume.shape[1:], self.window, strict=True)]
        volume = functional.pad(volume, (0, lacking[2], 0, lacking[1], 0, lacking[0]), value=AIR_HU)
        windows = patches(volume, self.window)
        step = torch.tensor(self.window, device=valid_box.device)
        first = valid_box[..., 0] // step
        count = (valid_box[..., 1] - 1) // step - first + 1
        place = _places(windows.shape[1:4], valid_box.device) - first[:, None, None, None]
        real = ((place >= 0) & (place < count[:, None, None, None])).all(-1)
        kept = windows.flatten(0, 3) if is_exporting() else windows[real]  # a program's shapes depend on no number
        return kept.unflatten(1, self.window), _Cut(real, first, count)  # type: ignore[no-untyped-call]

    def _local(self, volumes: Shaped[Tensor, "R D H W"]) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R N C"]]:
        voxels = self.windows(patches(volumes, self.patch), axis=4).flatten(4)
        index = _places(self.inner, volumes.device).flatten(0, 2)[None]
        cells = torch.tensor([self.inner], device=volumes.device)
        summaries, tokens = self.local(self.embed(voxels).flatten(1, 3), index, cells)
        return summaries, tokens

    def _global_view(self, cut: "_Cut", summaries: Tensor, cells: Tensor) -> DenseFeatures:
        tokens = self.window_in(torch.cat([summaries, cells.mean(1)], dim=-1))
        summary, values = self._combine(cut, tokens[:, None])
        return self._view(values, cut.real, self.window, summary)

    def _depth_view(self, cut: "_Cut", summaries: Tensor, cells: Tensor, valid: Tensor) -> DenseFeatures:
        bins = self.inner[0]
        means = cells.unflatten(1, (bins, -1)).mean(2)  # type: ignore[no-untyped-call]
        if self.depth_in is not None:
            tokens = self.depth_in(means)
        else:
            tokens = self.window_in(torch.cat([summaries[:, None].expand_as(means), means], dim=-1))
        summary, values = self._combine(cut, tokens)
        shown = valid.any(-1).any(-1)
        real = cut.real.repeat_interleave(bins, dim=1)[:, : shown.shape[1]] & shown[:, :, None, None]
        size = (self.patch[0], self.window[1], self.window[2])
        return self._view(values[:, :, : shown.shape[1]], real, size, summary)

    def _combine(self, cut: "_Cut", tokens: Float[Tensor, "R z C"]) -> tuple[Tensor, Float[Tensor, "b C Z h w"]]:
        """The combiner over windows cut into ``z`` depths, at positions in windows of each scan."""
        bins = tokens.shape[1]
        placed = self._place(cut, tokens[:, :, None, None])
        shape = placed.shape[2:]
        depths = cut.first * torch.tensor([bins, 1, 1], device=placed.device)
        index = _places(shape, placed.device).flatten(0, 2) - depths[:, None]
        real = cut.real.repeat_interleave(bins, dim=1).flatten(1)
        summary, values = self.combiner(placed.flatten(2).transpose(1, 2), index, cut.spanned, real)
        return summary, values.transpose(1, 2).unflatten(2, shape)

    def _place(self, cut: "_Cut", cells: Float[Tensor, "R d h w C"]) -> Float[Tensor, "b C D H W"]:
        """Cells of windows at their places in the scans; zeros where a window is left out."""
        inner, width = cells.shape[1:4], cells.shape[4]
        if is_exporting():
            every = cells.view(*cut.real.shape, *inner, width)
            placed = every.masked_fill(~cut.real[..., None, None, None, None], 0)
        else:
            placed = cells.new_zeros(*cut.real.shape, *inner, width)
            placed = torch.index_put(placed, (cut.real,), cells)
        ordered = placed.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return ordered.reshape(
            placed.shape[0], width, *(n * step for n, step in zip(cut.real.shape[1:], inner, strict=True))
        )

    def _view(self, values: Tensor, valid: Tensor, cell: Sequence[int], summary: Tensor) -> DenseFeatures:
        depth, row, column = cell
        offset = ((depth - 1) / 2, (row - 1) / 2, (column - 1) / 2)
        return DenseFeatures(values, valid, (float(depth), float(row), float(column)), offset, summary)


class _Cut(NamedTuple):
    """Scans cut into windows.

    Attributes:
        real: Which windows of the padded volumes hold real voxels.
        first: First such window of each scan along ``D H W``.
        spanned: Their number along each axis.
    """

    real: Bool[Tensor, "b d h w"]
    first: Int64[Tensor, "b 3"]
    spanned: Int64[Tensor, "b 3"]


def _places(shape: Sequence[int], device: torch.device) -> Int64[Tensor, "d h w 3"]:
    axes = [torch.arange(size, device=device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
