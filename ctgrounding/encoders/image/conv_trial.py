"""Whether this device and its libraries compute 3D convolutions in bfloat16 rightly and quickly.

Some releases of cuDNN gave silently wrong bfloat16 results for large inputs (pytorch issue 163539), others ran them
many times slower than float32 (166122). Neither shows in a loss curve until much time is lost.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.errors import ConfigError

Convolve = Callable[..., Tensor]
"""``torch.nn.functional.conv3d``, or what stands for it in a test."""

MOST_ERROR = 0.02
"""Relative, norm-wise; rounding to bfloat16 gives about 0.002."""

MOST_SLOWDOWN = 2.0
"""Times that bfloat16 may need over float32."""

CASES = ((3, 16, 3, 1), (16, 32, 3, 2), (32, 32, 3, 1), (32, 16, 1, 1))
"""Channels in and out, kernel and stride of the layers that networks are made of."""

LARGE_SHAPE = (1, 16, 80, 1024, 1024)
"""More than 2**31 bytes in bfloat16, where indices of 32 bits end."""

LARGE_FREE_BYTES = 12 * 2**30
"""Free memory that a trial of :data:`LARGE_SHAPE` asks for; with less a run does not reach that size either."""


@dataclass(frozen=True)
class ConvTrial:
    """What a trial found.

    Attributes:
        error: Largest relative error of an output or gradient against float32 on the CPU.
        slowdown: Seconds in bfloat16 over seconds in float32.
        versions: Of what was tried.
    """

    error: float
    slowdown: float
    versions: str

    @property
    def is_right(self) -> bool:
        """Whether the numbers are right; NaN is not."""
        return self.error <= MOST_ERROR

    @property
    def is_quick(self) -> bool:
        """Whether bfloat16 is not much slower than float32."""
        return self.slowdown <= MOST_SLOWDOWN

    def advice(self) -> str:
        """What is wrong and what to do, in one sentence; empty where all is well."""
        if not self.is_right:
            return (
                f"3D convolutions in bfloat16 are wrong on this device by {100 * self.error:.0f} % ({self.versions}); "
                "set trainer.precision to 32-true, or install another torch or cuDNN."
            )
        if not self.is_quick:
            return (
                f"3D convolutions in bfloat16 are {self.slowdown:.1f} times slower than in float32 on this device "
                f"({self.versions}); set trainer.precision to 32-true, or install another torch or cuDNN."
            )
        return ""


def has_convolutions(module: nn.Module) -> bool:
    """Whether a module has 3D convolutions."""
    return any(isinstance(part, nn.Conv3d | nn.ConvTranspose3d) for part in module.modules())


def try_convolutions(
    device: torch.device, convolve: Convolve = functional.conv3d, clock: Callable[[], float] = time.perf_counter
) -> ConvTrial:
    """Compare small convolutions in bfloat16 with float32; takes about a second.

    Args:
        device: What to try.
        convolve: What is tried.
        clock: Seconds.

    Examples:
        >>> def doubled(cells, weight, **settings):
        ...     return 2 * functional.conv3d(cells, weight, **settings)
        >>> try_convolutions(torch.device("cpu"), doubled).is_right
        False
    """
    generator = torch.Generator().manual_seed(0)
    errors = [_case_error(case, device, convolve, generator) for case in CASES]
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > LARGE_FREE_BYTES:
        errors.append(_large_error(device, convolve))
    wrong = [error for error in errors if not error <= MOST_ERROR]
    seconds = {dtype: _seconds(device, dtype, convolve, clock) for dtype in (torch.float32, torch.bfloat16)}
    slowdown = seconds[torch.bfloat16] / max(seconds[torch.float32], 1e-9)
    return ConvTrial(wrong[0] if wrong else max(errors), slowdown, _versions(device))


def check_convolutions(image: nn.Module, precision: str, device: torch.device, trial: ConvTrial | None = None) -> str:
    """Try the device where a network with 3D convolutions will train on CUDA in bfloat16.

    Args:
        image: The image encoder.
        precision: The trainer's.
        device: Where it will train.
        trial: What a trial found, if there was one.

    Returns:
        A warning where the device is slow, else nothing.

    Raises:
        ConfigError: If the device computes wrongly.
    """
    if not precision.startswith("bf16") or device.type != "cuda" or not has_convolutions(image):
        return ""
    found = trial or try_convolutions(device)
    if not found.is_right:
        raise ConfigError(found.advice())
    return found.advice()


def _case_error(
    case: tuple[int, int, int, int], device: torch.device, convolve: Convolve, generator: torch.Generator
) -> float:
    inputs, outputs, kernel, stride = case
    settings = {"stride": stride, "padding": kernel // 2}
    cells = torch.randn(2, inputs, 9, 14, 12, generator=generator).bfloat16()
    weight = torch.randn(outputs, inputs, kernel, kernel, kernel, generator=generator).bfloat16()
    wanted = _results(functional.conv3d, cells.float(), weight.float(), settings)
    found = _results(convolve, cells.to(device), weight.to(device), settings)
    errors = [(part.float().cpu() - truth).norm() / truth.norm() for part, truth in zip(found, wanted, strict=True)]
    return float(torch.stack(errors).max())


def _results(
    convolve: Convolve, cells: Tensor, weight: Tensor, settings: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and gradients of half its squared sum."""
    cells, weight = cells.requires_grad_(), weight.requires_grad_()
    output = convolve(cells, weight, **settings)
    to_cells, to_weight = torch.autograd.grad(output, (cells, weight), output.detach())
    return output.detach(), to_cells, to_weight


@torch.no_grad()
def _large_error(device: torch.device, convolve: Convolve) -> float:
    """Error at the far corner of a volume whose bytes need more than 32 bits to count."""
    cells = torch.ones(LARGE_SHAPE, dtype=torch.bfloat16, device=device)
    corner = cells[..., -4:, -8:, -8:]
    corner.normal_(generator=torch.Generator(device).manual_seed(0))
    weight = torch.randn(16, 16, 1, 3, 3, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = functional.conv3d(corner.float().cpu(), weight.float())
    found = convolve(cells, weight.to(device))[..., -4:, -6:, -6:].float().cpu()
    return float((found - wanted).norm() / wanted.norm())


def _seconds(device: torch.device, dtype: torch.dtype, convolve: Convolve, clock: Callable[[], float]) -> float:
    side = 48 if device.type == "cuda" else 8
    cells = torch.ones(1, 32, side, side, side, dtype=dtype, device=device)
    weight = torch.ones(32, 32, 3, 3, 3, dtype=dtype, device=device)
    settings = {"stride": 1, "padding": 1}
    _results(convolve, cells, weight, settings)
    start = _now(device, clock)
    for _ in range(5):
        _results(convolve, cells, weight, settings)
    return _now(device, clock) - start


def _now(device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def _versions(device: torch.device) -> str:
    named = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        named += [f"cuDNN {cudnn}", torch.cuda.get_device_name(device)]
    return ", ".join(named)
