"""What image encoders cost: parameters, FLOP, tokens, activations, mm, and time.

    python benchmarks/encoders.py [--quick]

FLOP and activations are counted on the meta device for one scan, forward, at 224 x 224 x 112 and 480 x 480 x 240 voxels
(H W D); training costs three times the FLOP. Activations are what autograd keeps, in float32, without the scores of
attention, which fused kernels do not keep. Times are CPU seconds of
one thread, forward and backward. On a CUDA machine the share of the device's peak that training reaches in bfloat16
(MFU) is measured too. Everything goes to ``benchmarks/results/encoders.json``; the last line is JSON.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ctgrounding  # noqa: F401 (before Lightning: it mends torchvision beside a CPU-only torch)
from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.image.windowed import WindowedViT

SHAPES = {"S": (112, 224, 224), "L": (240, 480, 480)}
BARS = {"full_over_slice_scan_flop": 2.2, "patch_dropout_speedup": 1.7, "mfu_vit": 0.35, "mfu_cnn": 0.20}
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40": 181e12, "A40": 150e12}
"""Dense bfloat16 peak by a part of the device's name, as its maker states it."""

ATTENTION_SIDE = 100
"""Square matrices of so many rows in three or four axes are scores of attention; maps of volumes have five."""

RESULTS = Path(__file__).parent / "results" / "encoders.json"


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
    kept: dict[int, int] = {}
    weights = {id(item.untyped_storage()) for item in encoder.parameters()}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        scores = saved.ndim in (3, 4) and saved.shape[-1] == saved.shape[-2] >= ATTENTION_SIDE
        if id(storage) not in weights and not scores:
            kept[storage._cdata] = storage.nbytes()
        return saved

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        cells = forward_on_meta(encoder, shape)
    return {"gflop": counter.get_total_flops() / 1e9, "cells": cells, "activation_gb": sum(kept.values()) / 1e9}


def table(quick: bool) -> dict[str, dict[str, float]]:
    rows, own = {}, encoders(quick=True)
    for name, make in encoders(quick).items():
        with torch.device("meta" if name in own else "cpu"):  # MONAI's need numbers while they are made
            encoder = make().to("meta")
        row = {"parameters_m": sum(item.numel() for item in encoder.parameters()) / 1e6, "axial_mm": encoder.axial_mm}
        for size, shape in SHAPES.items():
            row |= {f"{size}_{key}": value for key, value in counted(encoder, shape).items()}
        rows[name] = row
    return rows


def step(encoder: ImageEncoder, volume: Tensor, box: Tensor) -> None:
    encoder(volume, box).map.square().mean().backward()


def cpu_seconds(encoder: ImageEncoder, volume: Tensor, box: Tensor) -> float:
    start = time.process_time()
    step(encoder, volume, box)
    return time.process_time() - start


def patch_dropout_speedup(quick: bool) -> float:
    """Median over interleaved pairs of a ViT-S step with all patches over one with half of them."""
    sizes = {"width": 384, "heads": 6, "depth": 4 if quick else 12}
    shape = (56, 112, 112)
    volume, box = torch.zeros(1, *shape), torch.tensor([[[0, side] for side in shape]])
    every, half = vit(**sizes).train(), vit(**sizes, patch_keep=0.5).train()
    step(every, volume, box)
    step(half, volume, box)
    pairs = [cpu_seconds(every, volume, box) / cpu_seconds(half, volume, box) for _ in range(5 if quick else 9)]
    return statistics.median(pairs)


def mfu(encoder: ImageEncoder, shape: tuple[int, int, int], scans: int = 4) -> float:
    """FLOP of training in bfloat16 over the device's peak in the time that it took."""
    name = torch.cuda.get_device_name()
    peak = next((value for part, value in PEAK_FLOPS.items() if part in name), None)
    if peak is None:
        raise SystemExit(f"The peak of {name} is not known; add it to PEAK_FLOPS.")
    flop = counted(copy.deepcopy(encoder).to("meta"), shape)["gflop"] * 3e9 * scans
    encoder = encoder.cuda().train()
    volume = torch.zeros(scans, *shape, device="cuda", dtype=torch.int16)
    box = torch.tensor([[[0, side] for side in shape]] * scans, device="cuda")
    for repeat in range(13):
        if repeat == 3:
            torch.cuda.synchronize()
            start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            dense = encoder(volume, box)
        dense.map.float().square().mean().backward()
    torch.cuda.synchronize()
    return flop * 10 / (time.perf_counter() - start) / peak


def measure(quick: bool) -> dict[str, object]:
    rows = table(quick)
    full, sliced = (rows[f"ViT-B 8x16x16 {kind}"]["L_gflop"] for kind in ("full", "slice-scan"))
    result: dict[str, object] = {
        "full_over_slice_scan_flop": full / sliced,
        "patch_dropout_speedup": patch_dropout_speedup(quick),
        "torch": torch.__version__,
        "device": "cpu",
        "encoders": rows,
    }
    if torch.cuda.is_available():
        from ctgrounding.encoders.image.segresnet import SegResNetEncoder

        result["device"] = torch.cuda.get_device_name()
        result["mfu_vit"] = mfu(vit(), SHAPES["S"])
        result["mfu_cnn"] = mfu(SegResNetEncoder(filters=32), SHAPES["S"], scans=1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="transformers only, fewer repeats; under two minutes")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = measure(settings.quick)
    for name, row in result["encoders"].items():
        print(f"{name:26s} " + "  ".join(f"{key} {value:,.1f}" for key, value in row.items()))
    numbers = {name: round(float(result[name]), 4) for name in BARS if name in result}
    for name, value in numbers.items():
        print(f"{name:32s} {value:8.3f}  (at least {BARS[name]:g})")
    if not settings.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
