"""Transformer blocks whose positions are rotations by mm, so that any size and spacing of grid fits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.errors import ConfigError

DEFAULT_WAVELENGTHS_MM = (60.0, 2000.0)


def head_width(width: int, heads: int) -> int:
    """Channels of an attention head.

    Raises:
        ConfigError: If the width cannot be split evenly.
    """
    if heads < 1 or width % heads:
        raise ConfigError(f"Width {width} cannot be split into {heads} heads; choose a divisor of the width.")
    return width // heads


class Rotation(NamedTuple):
    """Cosine and sine by which each token's queries and keys are rotated; ``F`` is the number of planes."""

    cos: Float[Tensor, "R N F"]
    sin: Float[Tensor, "R N F"]


class AxialRotary(nn.Module):
    """Axial rotary positions in mm: a third of the planes turns with the position along each axis.

    Wavelengths run geometrically from ``wavelengths_mm[0]`` to ``[1]``. Attention then depends on the mm
    between two tokens, whatever the grid. Where ``head_width`` is no multiple of 6, the last channels of
    a head stay unrotated.

    Args:
        head_width: Channels of an attention head, at least 6.
        wavelengths_mm: Shortest and longest wavelength.

    Raises:
        ConfigError: If a head is too narrow or the wavelengths are not increasing.
    """

    turns_per_mm: Tensor

    def __init__(self, head_width: int, wavelengths_mm: Sequence[float] = DEFAULT_WAVELENGTHS_MM) -> None:
        super().__init__()
        shortest, longest = wavelengths_mm
        if head_width < 6 or not 0 < shortest < longest:
            raise ConfigError(
                f"Rotary positions need heads of at least 6 channels and increasing wavelengths, "
                f"but have {head_width} and {list(wavelengths_mm)}."
            )
        steps = torch.linspace(0, 1, head_width // 6, dtype=torch.float64)
        self.register_buffer("turns_per_mm", (shortest * (longest / shortest) ** steps).reciprocal(), persistent=False)

    def forward(self, position_mm: Float[Tensor, "*tokens 3"]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of shape ``(*tokens, F)`` in float32, or the positions' type if that is wider."""
        angle = 2 * math.pi * position_mm.double()[..., None] * self.turns_per_mm.double()
        angle = angle.flatten(-2)
        return angle.cos().float(), angle.sin().float()


def rotate(heads: Float[Tensor, "R heads N K"], rotation: Rotation) -> Float[Tensor, "R heads N K"]:
    """Turn the first ``2 F`` channels of every head, plane by plane; the last tokens of ``rotation`` count.

    Tokens in front of those that ``rotation`` covers (a summary) are left as they are.
    """
    planes = rotation.cos.shape[-1]
    before = heads.shape[2] - rotation.cos.shape[1]
    cos, sin = rotation.cos[:, None].to(heads.dtype), rotation.sin[:, None].to(heads.dtype)
    moving = heads[:, :, before:]
    first, second, rest = moving[..., :planes], moving[..., planes : 2 * planes], moving[..., 2 * planes :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    return turned if before == 0 else torch.cat([heads[:, :, :before], turned], dim=2)


class Attention(nn.Module):
    """Multi-head self-attention with rotated queries and keys.

    Args:
        width: Channels of a token.
        heads: Number of heads; divides ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width(width, heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "R N C"],
        rotation: Rotation | None = None,
        key_valid: Bool[Tensor, "R N"] | None = None,
    ) -> Float[Tensor, "R N C"]:
        """Attend from every token to the valid ones; None means that all are."""
        rows, count, width = tokens.shape
        qkv = self.qkv(tokens).view(rows, count, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mask = None if key_valid is None else key_valid[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(rows, count, width))
        return out


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        width: Channels of a token.
        heads: Attention heads.
        mlp_ratio: Hidden width of the MLP over ``width``.
        layer_scale: Initial value of a learned gain on each branch, None for no gain.
        eps: Added to the variance by the norms.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, layer_scale: float | None = None, eps: float = 1e-5
    ) -> None:
        super().__init__()
        hidden = round(width * mlp_ratio)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        gains = None if layer_scale is None else torch.full((2, width), layer_scale)
        self.layer_scale = None if gains is None else nn.Parameter(gains)

    def forward(
        self,
        tokens: Float[Tensor, "R N C"],
        rotation: Rotation | None = None,
        key_valid: Bool[Tensor, "R N"] | None = None,
    ) -> Float[Tensor, "R N C"]:
        """One round of attention and MLP."""
        attended: Tensor = self.attention(self.attention_norm(tokens), rotation, key_valid)
        tokens = tokens + (attended if self.layer_scale is None else attended * self.layer_scale[0])
        changed: Tensor = self.mlp(self.mlp_norm(tokens))
        return tokens + (changed if self.layer_scale is None else changed * self.layer_scale[1])


def initialise(module: nn.Module) -> None:
    """Weights of linear maps truncated-normal with std 0.02, biases zero; for ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
