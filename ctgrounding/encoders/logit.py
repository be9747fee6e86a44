"""Scale and bias that turn a cosine into a logit, and the bound on the scale."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctgrounding.errors import ConfigError

MAX_SCALE = 100.0
"""Largest logit scale."""


@dataclass
class LogitConfig:
    """Scale and bias that turn a cosine into a logit.

    Attributes:
        scale: Initial scale, in (0, 100].
        bias: Initial bias.
        learn: Whether the two are trained.
    """

    scale: float = 10.0
    bias: float = -10.0
    learn: bool = True


class _UpperBound(torch.autograd.Function):
    """``min(value, bound)`` whose gradient still passes where a descent step would lower the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, bound: float) -> Tensor:  # noqa: ANN401 - autograd's own context
        ctx.save_for_backward(value >= bound)
        return value.clamp(max=bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - autograd's own context
        (beyond,) = ctx.saved_tensors
        return torch.where(beyond, gradients[0].clamp(min=0), gradients[0]), None


class Logit(nn.Module):
    """A logit's scale, kept as its logarithm and never above 100, and its bias.

    At the bound the scale's gradient is that of a projected descent: it passes only where it would lower
    the scale, so a scale that reached the bound can come back.

    Args:
        config: Where the two begin, and whether they are trained.

    Raises:
        ConfigError: If the scale is out of range.

    Examples:
        >>> scale, bias = Logit(LogitConfig(scale=20.0, bias=-5.0))()
        >>> round(scale.item(), 4), bias.item()
        (20.0, -5.0)
    """

    def __init__(self, config: LogitConfig) -> None:
        super().__init__()
        if not 0 < config.scale <= MAX_SCALE:
            raise ConfigError(
                f"A logit scale must lie in (0, {MAX_SCALE:g}], but model.heads.logit has {config.scale}."
            )
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale)), requires_grad=config.learn)
        self.bias = nn.Parameter(torch.tensor(float(config.bias)), requires_grad=config.learn)

    def forward(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale (exponentiated) and bias."""
        log_scale: Tensor = _UpperBound.apply(self.log_scale, math.log(MAX_SCALE))  # type: ignore[no-untyped-call]
        return log_scale.exp(), self.bias
