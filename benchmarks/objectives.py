"""What the contrast and the organ pooling cost beside open_clip's loss and a loop over masks.

    python benchmarks/objectives.py [--quick]

Times are CPU seconds of one thread, forward and backward; each ratio is the median over interleaved pairs. Memory is
the peak above what the process held before, one fresh process a figure. The last line is JSON. "chunked" is our own
plain form: 512 text rows at a time, logits kept by autograd.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

import ctgrounding  # noqa: F401 (before Lightning: it mends torchvision beside a CPU-only torch)
from ctgrounding import distributed
from ctgrounding.functional.pooling import organ_weights
from ctgrounding.functional.sigmoid_contrast import sigmoid_contrast
from ctgrounding.testing.ranks import RankPool

WIDTH, CHUNK, ORGANS = 512, 512, 104
BARS = {
    "time_over_open_clip": 0.70,
    "memory_over_open_clip": 1 / 15,
    "time_over_chunked": 1.05,
    "memory_over_chunked": 1 / 6,
    "time_over_matmul_floor": 1.15,
    "memory_per_rank_over_open_clip": 1 / 8,
    "metrics_ms_per_step": 0.4,
}
AT_LEAST = {"mask_loop_over_organ_weights": 50.0}

Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def ours(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> None:
    term = sigmoid_contrast(image, text, scale, bias)
    (term.total / len(image)).backward()


def open_clip(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> None:
    """The installed package's loss file alone; the package itself would import torchvision."""
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(folder) / "loss.py")
    module = sys.modules.get("open_clip_loss") or importlib.util.module_from_spec(spec)
    if "open_clip_loss" not in sys.modules:
        sys.modules["open_clip_loss"] = module
        spec.loader.exec_module(module)
    loss = module.SigLipLoss(rank=distributed.rank(), world_size=distributed.world_size())
    loss(image, text, scale, bias).backward()


def chunked(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> None:
    total = image.new_zeros(())
    for start in range(0, len(text), CHUNK):
        logits = scale * image @ text[start : start + CHUNK].T + bias
        own = logits[start : start + CHUNK].diagonal()
        total = total + torch.nn.functional.softplus(logits).sum() - own.sum()
    (total / len(image)).backward()


def matmul_floor(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> None:
    """Logits and both feature gradients, in tiles, with nothing between."""
    with torch.no_grad():
        image_gradient, text_gradient = torch.zeros_like(image), torch.zeros_like(text)
        for column in range(0, len(text), 2048):
            texts = text[column : column + 2048]
            for row in range(0, len(image), 512):
                images = image[row : row + 512]
                logits = images @ texts.T
                image_gradient[row : row + 512].addmm_(logits, texts)
                text_gradient[column : column + 2048].addmm_(logits.T, images)


STEPS: dict[str, Step] = {
    "ours": ours,
    "open_clip": open_clip,
    "chunked": chunked,
    "matmul_floor": matmul_floor,
}


def inputs(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(torch.randn(2, rows, WIDTH, generator=generator), dim=-1)
    numbers = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)
    return features[0].clone().requires_grad_(), features[1].clone().requires_grad_(), *numbers


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ratio(one: Callable[[], object], other: Callable[[], object], pairs: int) -> float:
    """Median over interleaved pairs of the time of ``one`` over that of ``other``; a pair's order alternates."""
    found = []
    for number in range(pairs):
        first, second = (one, other) if number % 2 else (other, one)
        times = {first: cpu_seconds(first), second: cpu_seconds(second)}
        found.append(times[one] / times[other])
    return statistics.median(found)


def peak_mb(name: str, rows: int) -> float:
    """Peak of this process above what it held before the step, after a small step that loads what it needs."""
    STEPS[name](*inputs(8))
    leaves = inputs(rows)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    STEPS[name](*leaves)
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_in_fresh_process(name: str, rows: int) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--rows", str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def mb_per_added_rank(name: str, rows: int, pools: int) -> float:
    """Growth of a rank's peak from two to four gloo ranks, for each of the two added; medians over fresh processes."""
    peaks: dict[int, list[float]] = {2: [], 4: []}
    for _ in range(pools):
        for world, found in peaks.items():
            with RankPool(world) as pool:
                found += pool.run(peak_mb, name, rows)
    return (statistics.median(peaks[4]) - statistics.median(peaks[2])) / 2


def organ_labels(shape: tuple[int, int, int]) -> Tensor:
    """Ellipsoids of 2 to 1500 ml, one for each organ."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(1, *shape, dtype=torch.uint8)
    axes = [torch.arange(size, dtype=torch.float32) for size in shape]
    for organ in range(1, ORGANS + 1):
        voxels = 2000 * 750 ** float(torch.rand((), generator=generator)) / (1.5 * 1.5 * 3.0) * shape[0] / 112
        radius = (voxels * 0.75 / torch.pi) ** (1 / 3)
        centre = torch.rand(3, generator=generator) * torch.tensor(shape)
        distance = [((axis - middle) / radius).square() for axis, middle in zip(axes, centre, strict=True)]
        labels[0][distance[0][:, None, None] + distance[1][:, None] + distance[2] < 1] = organ
    return labels


def mask_loop(labels: Tensor, cell: tuple[int, int, int]) -> None:
    for organ in range(1, ORGANS + 1):
        torch.nn.functional.avg_pool3d((labels == organ).float()[:, None], cell)


def metrics_ms_per_step(pairs: int, steps: int = 400) -> float:
    """CPU milliseconds that 20 metrics, logged every 50 steps, add to a step of the same Trainer with none."""
    import logging
    import tempfile
    import warnings

    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader

    from ctgrounding.tasks.meters import PackedMeter, send  # here, as processes of ranks need no Lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    names = [f"train/metric_{number}" for number in range(20)]

    class Task(pl.LightningModule):
        def __init__(self, *, metered: bool) -> None:
            super().__init__()
            self.layer, self.meter, self.metered = torch.nn.Linear(16, len(names)), PackedMeter(), metered
            self.weights = torch.ones(len(names))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            values = self.layer(batch).sum(0)
            if self.metered:
                self.meter.add(names, torch.stack(values.detach().unbind()), self.weights)
                if (self.trainer.global_step + 1) % 50 == 0:
                    send(self, self.meter.reduce())
            return values.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    def fit(*, metered: bool) -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_steps=steps, accelerator="cpu", logger=CSVLogger(folder), enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=50,
            )  # fmt: skip
            task, loader = Task(metered=metered), DataLoader(torch.randn(steps * 4, 16), batch_size=4)
            return cpu_seconds(lambda: trainer.fit(task, loader))

    fit(metered=True)
    found = []
    for number in range(pairs):
        order = (True, False) if number % 2 else (False, True)
        seconds = {metered: fit(metered=metered) for metered in order}
        found.append((seconds[True] - seconds[False]) / steps * 1000)
    return statistics.median(found)


def measure(*, quick: bool) -> dict[str, float]:
    rows, rank_rows, pairs, pools = (2048, 512, 3, 1) if quick else (8192, 2048, 9, 3)
    shape, cell = ((56, 112, 112), (4, 8, 8)) if quick else ((112, 224, 224), (8, 16, 16))
    leaves = inputs(rows)
    step = {name: lambda work=work: work(*leaves) for name, work in STEPS.items()}
    step["ours"]()
    result = {
        f"time_over_{name}": ratio(step["ours"], step[name], pairs) for name in ("open_clip", "chunked", "matmul_floor")
    }
    peaks = {name: peak_in_fresh_process(name, rows) for name in ("ours", "open_clip", "chunked")}
    for name in ("open_clip", "chunked"):
        result[f"memory_over_{name}"] = peaks["ours"] / peaks[name]
    growth = {name: mb_per_added_rank(name, rank_rows, pools) for name in ("ours", "open_clip")}
    result["memory_per_rank_over_open_clip"] = growth["ours"] / growth["open_clip"]
    labels = organ_labels(shape)
    grid = tuple(size // step for size, step in zip(shape, cell, strict=True))
    result["mask_loop_over_organ_weights"] = ratio(
        lambda: mask_loop(labels, cell), lambda: organ_weights(labels, cell, grid, classes=ORGANS + 1), pairs
    )
    result["metrics_ms_per_step"] = metrics_ms_per_step(pairs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes; the bars are for the full ones")
    parser.add_argument("--memory-of", choices=sorted(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=8192, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    if settings.memory_of:
        print(peak_mb(settings.memory_of, settings.rows))
        return
    result = measure(quick=settings.quick)
    for name, value in result.items():
        bar = f"at most {BARS[name]:.3f}" if name in BARS else f"at least {AT_LEAST[name]:.0f}"
        print(f"{name:32s} {value:8.3f}  ({bar})")
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
