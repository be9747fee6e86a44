"""Text to depth: target distributions over depth bins in mm and their soft cross-entropy."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from ctgrounding.errors import ConfigError

TargetForm = Literal["renormalized", "release"]


def distance_to_interval_mm(
    depth_mm: Float64[Tensor, "S Z"], interval_mm: Float64[Tensor, "S 2"]
) -> Float64[Tensor, "S Z"]:
    """How far each bin's centre lies outside ``[low, high]``; 0 inside."""
    low, high = interval_mm[:, :1], interval_mm[:, 1:]
    return torch.maximum(low - depth_mm, depth_mm - high).clamp(min=0)


def depth_targets(
    depth_mm: Float64[Tensor, "S Z"],
    depth_valid: Bool[Tensor, "S Z"],
    interval_mm: Float64[Tensor, "S 2"],
    *,
    sigma_mm: float = 24.0,
    axial_mm: float,
    form: TargetForm = "renormalized",
) -> Float64[Tensor, "S Z"]:
    """Target probability of each depth bin of a snippet's scan.

    ``renormalized``: a Gaussian of the distance from the bin's centre to the interval, in mm, that sums to 1
    over the real bins. A range of images or a tilted slice is flat over its interval; the position counts
    to the mm, not to the bin.

    ``release``: as RadFinder's published code does it (arXiv 2603.02026). The bin nearest to the interval's
    middle is the target, spread by a Gaussian cut at ``int(3 * sigma + 0.5)`` bins whose taps sum to 1; what
    falls on bins that are not real is lost and the rest is not renormalised, so a target near the end of a
    scan weighs down to half as much as one in its middle.

    Args:
        depth_mm: World z of bin centres, equally spaced by ``axial_mm``.
        depth_valid: Bins that hold real voxels.
        interval_mm: Lowest and highest z that the snippet speaks of.
        sigma_mm: Width of the Gaussian, above 0.
        axial_mm: Size of a bin.
        form: Which of the two.

    Returns:
        Targets; a row is all zero where :func:`reachable` is false.

    Raises:
        ConfigError: If ``sigma_mm`` is not above 0 or the form is not known.
    """
    if sigma_mm <= 0:
        raise ConfigError(f"sigma_mm is {sigma_mm}, but the width of a target must be above 0 mm.")
    if form not in ("renormalized", "release"):
        raise ConfigError(f"Target form '{form}' is not known. Use renormalized or release.")
    ok = reachable(depth_mm, depth_valid, interval_mm, axial_mm)
    if form == "release":
        targets = _released_targets(depth_mm, depth_valid, interval_mm, sigma_mm / axial_mm)
    else:
        distance = distance_to_interval_mm(depth_mm, interval_mm).nan_to_num()
        logits = -0.5 * (distance / sigma_mm).square()
        targets = _masked_log_softmax(logits, depth_valid).exp() * depth_valid
    return torch.where(ok[:, None], targets, 0.0)


def reachable(
    depth_mm: Float64[Tensor, "S Z"],
    depth_valid: Bool[Tensor, "S Z"],
    interval_mm: Float64[Tensor, "S 2"],
    axial_mm: float,
) -> Bool[Tensor, "S"]:
    """Whether a real bin of the scan touches the interval; false where a crop left it outside or it is NaN."""
    touching = distance_to_interval_mm(depth_mm, interval_mm) <= axial_mm / 2 + 1e-6
    return (touching & depth_valid).any(-1)


def depth_logits(
    slices: Float[Tensor, "S Z M"], snippets: Float[Tensor, "S M"], tau: float | Float[Tensor, ""]
) -> Float[Tensor, "S Z"]:
    """Cosine of every depth bin with the snippet over ``tau``, in float32 or wider."""
    cosines = torch.bmm(slices, snippets[..., None])[..., 0]
    return (cosines if cosines.dtype == torch.float64 else cosines.float()) / tau


def soft_cross_entropy(
    logits: Float[Tensor, "S Z"], targets: Float[Tensor, "S Z"], valid: Bool[Tensor, "S Z"]
) -> Float[Tensor, "S"]:
    """``-sum_z target * log softmax(logits)_z`` over the real bins of each row.

    Finite, with finite gradients, for logits of any size and for rows without a real bin, which give 0.
    A target that sums to less than 1 gives a smaller loss (see :func:`depth_targets`).
    """
    log_probability = _masked_log_softmax(logits, valid)
    return -(torch.where(valid, log_probability, 0.0) * targets.to(logits.dtype)).sum(-1)


def depth_probability(logits: Float[Tensor, "S Z"], valid: Bool[Tensor, "S Z"]) -> Float[Tensor, "S Z"]:
    """Probability of each real bin; 0 elsewhere, and all 0 for a row without a real bin."""
    return _masked_log_softmax(logits, valid).exp() * valid


def _masked_log_softmax(logits: Tensor, valid: Tensor) -> Tensor:
    """The fill is finite: a row of ``-inf`` alone would be NaN."""
    lowest = torch.finfo(logits.dtype).min / 2
    return torch.log_softmax(torch.where(valid, logits, lowest), dim=-1)


def _released_targets(depth_mm: Tensor, valid: Tensor, interval_mm: Tensor, sigma_bins: float) -> Tensor:
    if depth_mm.shape[1] == 0:
        return torch.zeros_like(depth_mm)
    middle = interval_mm.mean(1, keepdim=True)
    distance = torch.where(valid, (depth_mm - middle).abs(), torch.inf)
    nearest = distance.nan_to_num(nan=torch.inf).argmin(1, keepdim=True)
    steps = torch.arange(depth_mm.shape[1], device=depth_mm.device, dtype=depth_mm.dtype) - nearest
    radius = int(3 * sigma_bins + 0.5)
    taps = torch.arange(-radius, radius + 1, device=depth_mm.device, dtype=depth_mm.dtype)
    total = (-0.5 * (taps / sigma_bins).square()).exp().sum()
    spread = (-0.5 * (steps / sigma_bins).square()).exp() / total
    return torch.where(valid & (steps.abs() <= radius), spread, 0.0)
