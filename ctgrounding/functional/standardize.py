"""Standardisation of rows over all ranks, with exact gradient."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ctgrounding import distributed


class Moments(NamedTuple):
    """Statistics of every row of a call, over all ranks.

    Attributes:
        mean: Mean of each channel.
        variance: Biased variance of each channel.
        number: How many rows there are.
    """

    mean: Float64[Tensor, "C"]
    variance: Float64[Tensor, "C"]
    number: Float64[Tensor, ""]


def moments(rows: Float[Tensor, "R C"], shift: Float[Tensor, "C"]) -> Moments:
    """Mean and variance of the rows of all ranks, attached to the graph on every rank.

    One collective in either direction, whatever the counts; zero rows on a rank, or on all, are legal
    (the variance of nothing is 0 and its mean is ``shift``). Sums are taken in float64 of rows minus
    ``shift``, so the result depends on the split over ranks by rounding of 1e-16 only.

    Args:
        rows: This rank's rows; every rank must call.
        shift: A guess of the mean, equal on all ranks and without gradient. The better the guess, the
            less the one-pass variance cancels; any value is right.
    """
    channels = rows.shape[1]
    offset = rows.double() - shift.double()
    number = offset.new_full((1,), float(rows.shape[0]))
    sums = distributed.sum_with_gradient(torch.cat([offset.sum(0), offset.square().sum(0), number]))
    count = sums[-1].detach()
    at_least_one = count.clamp(min=1)
    mean = sums[:channels] / at_least_one
    variance = (sums[channels:-1] / at_least_one - mean.square()).clamp(min=0)
    return Moments(mean + shift, variance, count)


def standardize(
    rows: Float[Tensor, "R C"], mean: Float[Tensor, "C"], variance: Float[Tensor, "C"], eps: float = 1e-5
) -> Float[Tensor, "R C"]:
    """Rows with ``mean`` taken away and divided by ``sqrt(variance + eps)``, in the rows' own precision."""
    standard = (rows.double() - mean.double()) * torch.rsqrt(variance.double() + eps)
    return standard.to(rows.dtype)
