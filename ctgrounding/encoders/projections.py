"""The networks a head can be made of; none of them normalises its output to unit length."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.functional.standardize import moments, standardize


class WeightNormedLinear(nn.Module):
    """A linear map without bias whose output weights have unit length (weight norm with gain fixed at 1).

    Args:
        inputs: Width of the rows.
        outputs: Width of the result.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.trunc_normal_(self.direction, std=0.02)

    def forward(self, rows: Float[Tensor, "R I"]) -> Float[Tensor, "R M"]:
        """Cosine-weighted sums: ``rows @ unit(direction).T``."""
        return functional.linear(rows, functional.normalize(self.direction, dim=1))


class BatchStandardize(nn.Module):
    """Each channel to mean 0 and variance 1 over all rows of a call on all ranks; no affine.

    In training the statistics are those of the call, with exact gradient through them on every rank;
    in evaluation they are running means. A call with fewer than two rows on all ranks together has no
    variance and uses the running ones.

    Args:
        channels: Width of the rows.
        momentum: Share of a call's statistics in the running ones; the first calls weigh equally.
        eps: Added to the variance.
    """

    mean: Tensor
    variance: Tensor
    calls: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, rows: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
        """Standardise rows; in training every rank must call, with any number of rows."""
        if not self.training:
            return standardize(rows, self.mean, self.variance, self.eps)
        # Copies: the buffers move on below, and a second call must not spoil this one's backward.
        before_mean, before_variance = self.mean.clone(), self.variance.clone()
        mean, variance, number = moments(rows, before_mean)
        enough = number >= 2
        self._remember(mean.detach(), variance.detach(), enough)
        mean = torch.where(enough, mean, before_mean.to(mean.dtype))
        variance = torch.where(enough, variance, before_variance.to(variance.dtype))
        return standardize(rows, mean, variance, self.eps)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, enough: Tensor) -> None:
        self.calls += enough
        share = torch.clamp(1.0 / self.calls.clamp(min=1), min=self.momentum) * enough
        self.mean.copy_(torch.lerp(self.mean.double(), mean, share.double()))
        self.variance.copy_(torch.lerp(self.variance.double(), variance, share.double()))


def linear_projection(inputs: int, width: int) -> nn.Sequential:
    """One linear map."""
    return nn.Sequential(nn.Linear(inputs, width))


def mlp_projection(inputs: int, hidden: int, width: int) -> nn.Sequential:
    """Linear, GELU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, width))


def radfinder_projection(inputs: int, hidden: int, width: int, bottleneck: int = 256) -> nn.Sequential:
    """RadFinder's head: two GELU layers, a bottleneck, and a weight-normed map; trunc-normal weights, std 0.02.

    Source: ``lmb-freiburg/radfinder``, ``projection_image`` and ``projection_text`` (hidden 2048, bottleneck
    256, width 512).
    """
    layers = nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.GELU(),
        nn.Linear(hidden, hidden),
        nn.GELU(),
        nn.Linear(hidden, bottleneck),
        WeightNormedLinear(bottleneck, width),
    )
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers


def without_last_bias(layers: nn.Sequential) -> None:
    """Take the biases behind a projection's last bend, in place.

    Before standardisation they change nothing and their gradient is rounding alone, of which Adam makes full steps
    that running means follow late: embeddings in evaluation would depend on rounding.
    """
    for layer in reversed(layers):
        if isinstance(layer, nn.Linear):
            layer.register_parameter("bias", None)
        elif not isinstance(layer, WeightNormedLinear):
            return
