"""HU windows: stored Hounsfield units become the channels an encoder sees."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from ctgrounding.errors import ConfigError

AIR_HU = -1024.0
"""Value of everything outside the scan."""

DEFAULT_WINDOWS = ((-1000.0, 1000.0), (-150.0, 250.0), (-1000.0, -300.0))
"""The whole range, soft tissue, lung."""


class HuWindows(nn.Module):
    """One channel a window, linear from ``low_value`` at its low end to 1 at its high end and clamped there.

    Works on whole volumes or on patches of them: the channels become the axis ``axis`` of the result.

    Args:
        windows: Low and high end of each window in HU.
        low_value: Value at the low end, below 1.

    Raises:
        ConfigError: If there is no window or one is empty.

    Examples:
        >>> HuWindows([(-1000, 1000)])(torch.tensor([[-2000.0, 0.0, 500.0]]))
        tensor([[[-1.0000,  0.0000,  0.5000]]])
    """

    low: Tensor
    high: Tensor

    def __init__(self, windows: Sequence[Sequence[float]] = DEFAULT_WINDOWS, low_value: float = -1.0) -> None:
        super().__init__()
        self.low_value = low_value
        if not windows or any(len(window) != 2 or window[0] >= window[1] for window in windows):
            raise ConfigError(f"windows must be pairs [low, high] of HU with low < high, but are {list(windows)}.")
        self.register_buffer("low", torch.tensor([float(low) for low, _ in windows]), persistent=False)
        self.register_buffer("high", torch.tensor([float(high) for _, high in windows]), persistent=False)

    def __len__(self) -> int:
        return int(self.low.numel())

    def forward(self, image_hu: Shaped[Tensor, "*shape"], axis: int = 1) -> Float[Tensor, "*channels"]:
        """Channels in the windows' own floating type, as a new axis at ``axis`` (not negative)."""
        values = image_hu.to(self.low.dtype).unsqueeze(axis)
        shape = [-1 if place == axis else 1 for place in range(values.ndim)]
        gain = (1 - self.low_value) / (self.high - self.low)
        shift = self.low_value - self.low * gain
        return torch.addcmul(shift.view(shape), values, gain.view(shape)).clamp_(self.low_value, 1.0)


def outside_to_air(image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]) -> Shaped[Tensor, "b D H W"]:
    """The volumes with -1024 HU outside their valid boxes, so that padding cannot carry anything in."""
    depth, row, column = (
        inside(torch.arange(size, device=image_hu.device), valid_box[:, axis])
        for axis, size in enumerate(image_hu.shape[1:])
    )
    outside = ~(depth[:, :, None, None] & row[:, None, :, None] & column[:, None, None, :])
    return image_hu.masked_fill(outside, AIR_HU)


def inside(position: Int64[Tensor, "n"], bounds: Int64[Tensor, "b 2"]) -> Shaped[Tensor, "b n"]:
    """Whether each position lies in each half-open interval."""
    return (position >= bounds[:, :1]) & (position < bounds[:, 1:])
