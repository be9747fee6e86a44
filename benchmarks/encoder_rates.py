"""Rates and shares of a device's peak: what ``encoders.py`` measures time with."""

import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ctgrounding.encoders.image.base import ImageEncoder

RESULTS = Path(__file__).parent / "results"
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX A6000": 155e12,
    "A40": 150e12,
    "A10": 125e12,
}
"""Dense bfloat16 peak by a part of the device's name, as its maker states it; the longest part that fits counts."""


def whole(shape: tuple[int, int, int], scans: int = 1, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Volumes of air, and boxes that say that all of it is real."""
    volume = torch.zeros(scans, *shape, device=device, dtype=torch.int16)
    return volume, torch.tensor([[[0, side] for side in shape]] * scans, device=device)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def ratio_of_medians(first: Callable[[], object], second: Callable[[], object], pairs: int) -> float:
    """Median CPU seconds of one run over the other's, in turns, each first in every second pair."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[which].append(cpu_seconds((first, second)[which]))
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 peak of a device by its name, None if it is not known."""
    fitting = [part for part in PEAK_FLOPS if part in device]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def mfu(forward_flop: float, scans: int, seconds: float, peak: float) -> float:
    """Share of the peak that a training step reaches: three times the forward FLOP of its scans over its time.

    Args:
        forward_flop: Of one scan.
        scans: Scans of the step.
        seconds: Time of the step.
        peak: FLOP a second.
    """
    return 3 * forward_flop * scans / seconds / peak


def cuda_step_seconds(encoder: ImageEncoder, shape: tuple[int, int, int], scans: int, steps: int = 10) -> float:
    """Mean time of a training step in bfloat16, optimizer included, after three that are not counted."""
    encoder = encoder.cuda().train()
    inputs = whole(shape, scans, "cuda")
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5, fused=True)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            dense = encoder(*inputs)
        dense.map.float().square().mean().backward()
        optimizer.step()

    for _ in range(3):
        train()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        train()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def cpu_name() -> str:
    """The processor's name."""
    about = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", about.read_text(encoding="utf-8")) if about.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def results_file(device: str) -> Path:
    """Where the results of a device go."""
    name = "" if device == "cpu" else "_" + re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")
    return RESULTS / f"encoders{name}.json"
