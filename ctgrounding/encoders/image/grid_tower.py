"""A transformer over the cells of a small grid, with a summary token and positions relative to the grid's size."""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ctgrounding.encoders.branches import all_true
from ctgrounding.encoders.image.attention import Block, Rotation, head_width, initialise
from ctgrounding.errors import ConfigError


class GridRotary(nn.Module):
    """Axial rotary positions of cells on a grid: cell ``i`` of ``n`` lies at ``2 (i + 0.5) / n - 1``.

    A plane with period ``p`` turns by ``2 pi coordinate / p``; the periods of an axis are
    ``base ** (2 j / (head_width / 3))``. Planes run over ``W``, then ``H``, then ``D``, as in SPECTRE and
    RadFinder, whose arrays are ``x y z``. Unlike :class:`ctgrounding.encoders.image.attention.AxialRotary`
    the turn between two cells depends on how many cells the grid has.

    Args:
        head_width: Channels of an attention head, at least 6.
        base: Growth of the periods, above 1.
        rescale: In training each row's coordinates are multiplied by one factor, log-uniform in
            ``[1 / rescale, rescale]``; 1 for none. Draws from torch's global generator.

    Raises:
        ConfigError: If a number is out of range.
    """

    periods: Tensor

    def __init__(self, head_width: int, base: float, rescale: float = 1.0) -> None:
        super().__init__()
        if head_width < 6 or base <= 1 or rescale < 1:
            raise ConfigError(
                f"Rotary positions on a grid need heads of at least 6 channels, a base above 1 and a rescale of at "
                f"least 1, but have {head_width}, {base:g} and {rescale:g}."
            )
        self.rescale = rescale
        steps = torch.arange(head_width // 6, dtype=torch.float64) * 2 / (head_width / 3)
        self.register_buffer("periods", base**steps, persistent=False)

    def forward(self, index: Int64[Tensor, "r N 3"], cells: Int64[Tensor, "r 3"], rows: int) -> Rotation:
        """Rotation of each cell.

        Args:
            index: Cell along ``D H W`` of each token; one row for all or one each.
            cells: Cells along each axis that make up the range [-1, 1]; tokens may lie beyond.
            rows: Rows of tokens.
        """
        coordinate = 2 * (index.double() + 0.5) / cells[:, None].double() - 1
        if self.training and self.rescale > 1:
            reach = math.log(self.rescale)
            factor = torch.empty(rows, 1, 1, device=index.device).uniform_(-reach, reach).exp()
            coordinate = coordinate * factor
        angle = 2 * math.pi * coordinate.flip(-1)[..., None] / self.periods.double()
        angle = angle.flatten(-2)
        return Rotation(angle.cos().float(), angle.sin().float())


class GridTower(nn.Module):
    """Pre-norm blocks over a summary token and the cells of a grid, and a closing norm.

    The summary has no position. Cells that are not valid are never attended to.

    Args:
        width: Channels of a token.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over ``width``.
        layer_scale: Initial value of a learned gain on each branch.
        eps: Added to the variance by every norm.
        base: Growth of the rotary periods.
        rescale: Range of the random rescaling of coordinates in training.
        checkpoint_every: Recompute every so many-th block in backward to save memory; 0 for none.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float,
        eps: float,
        base: float,
        rescale: float,
        checkpoint_every: int = 0,
    ) -> None:
        super().__init__()
        self.checkpoint_every = checkpoint_every
        self.summary = nn.Parameter(torch.zeros(1, 1, width))
        self.rotary = GridRotary(head_width(width, heads), base, rescale)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, layer_scale, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=eps)
        self.apply(initialise)
        nn.init.normal_(self.summary, std=0.02)

    def forward(
        self,
        tokens: Float[Tensor, "R N C"],
        index: Int64[Tensor, "r N 3"],
        cells: Int64[Tensor, "r 3"],
        valid: Bool[Tensor, "R N"] | None = None,
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R N C"]]:
        """The summary and the cells after all blocks.

        Args:
            tokens: Cells.
            index: Their places, see :class:`GridRotary`.
            cells: Cells of the range of the positions.
            valid: Cells that may be attended to; None for all.
        """
        rotation = self.rotary(index, cells, tokens.shape[0])
        key_valid = None
        if valid is not None and not all_true(valid):
            key_valid = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)
        states = torch.cat([self.summary.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for place, block in enumerate(self.blocks):
            if self.training and self.checkpoint_every and place % self.checkpoint_every == 0:
                states = checkpoint(block, states, rotation, key_valid, use_reentrant=False)
            else:
                states = block(states, rotation, key_valid)
        states = self.norm(states)
        return states[:, 0], states[:, 1:]
