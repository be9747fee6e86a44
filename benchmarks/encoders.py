"""What image encoders cost: parameters, FLOP, tokens, activations, mm, and time.

    python benchmarks/encoders.py [--quick] [--compile]

FLOP and activations are counted on the meta device for one scan, forward, at 224 x 224 x 112 and 480 x 480 x 240 voxels
(H W D). Activations are what autograd keeps, in float32, without the scores of attention, which fused kernels do not
keep. CPU times are of one thread, in seconds of CPU time, so that other work on the machine counts little: forward, and
forward with backward, of one scan of 128 x 128 x 32 voxels, and, without ``--quick``, forward at the two sizes above
where that is at most 16 TFLOP and 20 GB of activations.

On a CUDA machine the rate of training in bfloat16 is measured too, with optimizer steps, and its share of the device's
peak (MFU). As MFU is defined (PaLM, arXiv 2204.02311, appendix B), a step costs three times the forward FLOP, whatever
is recomputed or left out. Results go to ``benchmarks/results/``, one file for the CPU and one for each device, with
the hardware's name; the last line is JSON.
"""

import argparse
import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from encoder_rates import (
    cpu_name,
    cpu_seconds,
    cuda_step_seconds,
    mfu,
    peak_flops,
    ratio_of_medians,
    results_file,
    whole,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ctgrounding  # noqa: F401 (before Lightning: it mends torchvision beside a CPU-only torch)
from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.image.windowed import WindowedViT

SHAPES = {"S": (112, 224, 224), "L": (240, 480, 480)}
BARS = {"full_over_slice_scan_flop": 2.2, "patch_dropout_speedup": 1.7, "mfu_vit": 0.35, "mfu_cnn": 0.20}
ATTENTION_SIDE = 100
"""Square matrices of so many rows in three or four axes are scores of attention; maps of volumes have five."""

CPU_SHAPE = (32, 128, 128)
CPU_GFLOP = {"quick": 150.0, "full": 1500.0}
"""Forward GFLOP at ``CPU_SHAPE`` up to which an encoder is timed on the CPU."""

WHOLE_GFLOP, WHOLE_GB = 16_000.0, 20.0
"""Forward GFLOP and activations of a whole scan up to which its forward pass is timed on the CPU."""


def vit(attention: str = "slice_scan", patch: tuple[int, int, int] = (8, 16, 16), **changes: object) -> ViT:
    """ViT-B at 1.5 mm slices unless changed."""
    return ViT(spacing_mm=(1.5, 1.5, 1.5), patch=patch, attention=attention, **changes)


def encoders(quick: bool) -> dict[str, Callable[[], ImageEncoder]]:
    """Name to encoder; those of other libraries take long to import and are left out of a quick run."""
    made: dict[str, Callable[[], ImageEncoder]] = {
        "ViT-B 8x16x16 full": lambda: vit("full"),
        "ViT-B 8x16x16 slice-scan": vit,
        "ViT-S 8x16x16 slice-scan": lambda: vit(width=384, heads=6),
        "WindowedViT-L 4x16x16": WindowedViT,
    }
    if quick:
        return made
    from ctgrounding.encoders.image.dynunet import DynUNetEncoder
    from ctgrounding.encoders.image.mit import MiTEncoder
    from ctgrounding.encoders.image.resnet import ResNetEncoder
    from ctgrounding.encoders.image.segresnet import SegResNetEncoder
    from ctgrounding.encoders.image.slices import SlicesEncoder
    from ctgrounding.encoders.image.swin import SwinEncoder

    return made | {
        "SegResNet f16": SegResNetEncoder,
        "ResNet-18 stage 3": ResNetEncoder,
        "Swin 48 stage 2": SwinEncoder,
        "DynUNet": DynUNetEncoder,
        "MiT": MiTEncoder,
        "2.5D ViT-S of timm": lambda: SlicesEncoder("vit_small_patch16_224"),
    }


def forward_on_meta(encoder: ImageEncoder, shape: tuple[int, int, int]) -> int:
    """What a scan without padding goes through, without contents; the number of cells."""
    cells = encoder.grid(shape)
    count = cells[0] * cells[1] * cells[2]
    if isinstance(encoder, CroppedEncoder):
        full = [-(-side // step) * step for side, step in zip(shape, encoder.align, strict=True)]
        encoder.encode(torch.empty(1, *full, device="meta"))
    elif isinstance(encoder, WindowedViT):
        windows = [-(-side // step) for side, step in zip(shape, encoder.window, strict=True)]
        number = windows[0] * windows[1] * windows[2]
        inner = encoder.inner[0] * encoder.inner[1] * encoder.inner[2]
        _tower(
            encoder.local.blocks, encoder.embed(torch.empty(number, inner, encoder.embed.in_features, device="meta"))
        )
        for tokens in (number, number * encoder.inner[0]):
            _tower(encoder.combiner.blocks, torch.empty(1, tokens, encoder.width, device="meta", requires_grad=True))
    elif isinstance(encoder, ViT):
        states = encoder.embed(torch.empty(1, count, encoder.embed.in_features, device="meta"))
        for block, meets in zip(encoder.blocks, encoder.meets, strict=True):
            parts = 1 if meets else cells[0]
            _tower([block], states.reshape(parts, count // parts, encoder.width))
    return count


def _tower(blocks: Iterator[torch.nn.Module], tokens: Tensor) -> None:
    states = torch.cat([tokens.new_empty(len(tokens), 1, tokens.shape[2]), tokens], dim=1)
    for block in blocks:
        states = block(states)


def counted(encoder: ImageEncoder, shape: tuple[int, int, int]) -> dict[str, float]:
    """GFLOP, cells and GB that autograd keeps."""
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes the place of one that was freed
    weights = {id(item.untyped_storage()) for item in encoder.parameters()}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        scores = saved.ndim in (3, 4) and saved.shape[-1] == saved.shape[-2] >= ATTENTION_SIDE
        if id(storage) not in weights and not scores:
            kept[storage._cdata] = storage
        return saved

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        cells = forward_on_meta(encoder, shape)
    kept_bytes = sum(storage.nbytes() for storage in kept.values())
    return {"gflop": counter.get_total_flops() / 1e9, "cells": cells, "activation_gb": kept_bytes / 1e9}


def table(quick: bool) -> dict[str, dict[str, float]]:
    rows, own = {}, encoders(quick=True)
    for name, make in encoders(quick).items():
        with torch.device("meta" if name in own else "cpu"):  # MONAI's need numbers while they are made
            shapes_alone = make().to("meta")
        rows[name] = counts(shapes_alone)
        is_timed = counted(shapes_alone, CPU_SHAPE)["gflop"] <= CPU_GFLOP["quick" if quick else "full"]
        fitting = [] if quick else [size for size in SHAPES if is_within_limits(rows[name], size)]
        if is_timed or fitting:
            encoder = make().eval()
            rows[name] |= {f"{size}_forward_s": forward_seconds(encoder, SHAPES[size]) for size in fitting}
            rows[name] |= cpu_times(encoder) if is_timed else {}
        print(f"{name:26s} " + "  ".join(f"{key} {value:,.1f}" for key, value in rows[name].items()), flush=True)
    return rows


def counts(encoder: ImageEncoder) -> dict[str, float]:
    row = {"parameters_m": sum(item.numel() for item in encoder.parameters()) / 1e6, "axial_mm": encoder.axial_mm}
    for size, shape in SHAPES.items():
        row |= {f"{size}_{key}": value for key, value in counted(encoder, shape).items()}
    return row


def is_within_limits(row: dict[str, float], size: str) -> bool:
    return row[f"{size}_gflop"] <= WHOLE_GFLOP and row[f"{size}_activation_gb"] <= WHOLE_GB


def step(encoder: ImageEncoder, volume: Tensor, box: Tensor) -> None:
    encoder(volume, box).map.square().mean().backward()


def cpu_times(encoder: ImageEncoder) -> dict[str, float]:
    """Seconds of one thread for a scan of ``CPU_SHAPE``, after one pass that is not counted."""
    inputs = whole(CPU_SHAPE)
    forward_seconds(encoder.eval(), CPU_SHAPE)
    forward_s = forward_seconds(encoder, CPU_SHAPE)
    encoder.train()
    return {"cpu_forward_s": forward_s, "cpu_step_s": cpu_seconds(lambda: step(encoder, *inputs))}


@torch.no_grad()
def forward_seconds(encoder: ImageEncoder, shape: tuple[int, int, int]) -> float:
    inputs = whole(shape)
    return cpu_seconds(lambda: encoder(*inputs))


def patch_dropout_speedup(quick: bool) -> float:
    """A ViT-S step with all patches over one with half of them."""
    sizes = {"width": 384, "heads": 6, "depth": 4 if quick else 12}
    inputs = whole((64, 128, 128))
    every, half = vit(**sizes).train(), vit(**sizes, patch_keep=0.5).train()
    step(every, *inputs)
    step(half, *inputs)
    return ratio_of_medians(lambda: step(every, *inputs), lambda: step(half, *inputs), 9)


def cuda_rates(compiled: bool) -> dict[str, object]:
    """Rates of a ViT-B and of a SegResNet, and their shares of the device's peak where that is known."""
    from ctgrounding.encoders.compiling import compile_blocks
    from ctgrounding.encoders.image.segresnet import SegResNetEncoder

    device = torch.cuda.get_device_name()
    peak = peak_flops(device)
    rates: dict[str, object] = {"device": device, "peak_tflop_s": peak and peak / 1e12, "compiled": compiled}
    torch.backends.cudnn.benchmark = True  # all volumes are of one size
    subjects = {"vit": (vit(), 4), "cnn": (SegResNetEncoder(filters=32), 1)}
    for name, (encoder, scans) in subjects.items():
        flop = counted(copy.deepcopy(encoder).to("meta"), SHAPES["S"])["gflop"] * 1e9
        if compiled and name == "vit":
            compile_blocks(encoder, torch.device("cuda"))
        seconds = cuda_step_seconds(encoder, SHAPES["S"], scans)
        rates |= {f"cuda_step_s_{name}": seconds, f"tflop_s_{name}": 3 * flop * scans / seconds / 1e12}
        if peak is not None:
            rates[f"mfu_{name}"] = mfu(flop, scans, seconds, peak)
    return rates


def measure(quick: bool, compiled: bool) -> dict[str, object]:
    rows = table(quick)
    full, sliced = (rows[f"ViT-B 8x16x16 {kind}"]["L_gflop"] for kind in ("full", "slice-scan"))
    result: dict[str, object] = {
        "full_over_slice_scan_flop": full / sliced,
        "patch_dropout_speedup": patch_dropout_speedup(quick),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "cpu_shape": CPU_SHAPE,
        "device": "cpu",
        "encoders": rows,
    }
    return result | (cuda_rates(compiled) if torch.cuda.is_available() else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="transformers only, less deep; under two minutes")
    parser.add_argument("--compile", action="store_true", help="on CUDA: compile the ViT block by block")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = measure(settings.quick, settings.compile)
    numbers = {name: round(float(result[name]), 4) for name in BARS if name in result}
    for name, value in numbers.items():
        print(f"{name:32s} {value:8.3f}  (at least {BARS[name]:g})")
    if not settings.quick:
        file = results_file(str(result["device"]))
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
