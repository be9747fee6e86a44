"""How much of a forward pass is padding, without and with buckets, at lengths like those of CT-RATE.

    python benchmarks/padding.py [--quick]

Lengths are drawn, not read: chests of about 32 cm and one scan in seven with abdomen, in cells of 12 mm; fields of
view of 28 to 50 cm in cells of 24 mm. ``length`` has a crop of 14 x 14 cells in the plane, ``all axes`` shows whole
scans. The last line is JSON.
"""

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from ctgrounding.data.buckets import BucketedSampler, Buckets, padding_share
from ctgrounding.data.sampler import Source, TrainingSampler

BAR = 0.03
"""Padded tokens over all tokens with buckets, where one axis is open."""

BATCH_SIZE, MICRO_BATCH_SIZE = 64, 8


def sizes(count: int, in_plane: bool) -> np.ndarray:
    """Cells along D, H, W of each scan."""
    rng = np.random.default_rng(0)
    length_mm = np.where(rng.random(count) < 1 / 7, rng.normal(480, 90, count), rng.normal(320, 40, count))
    depth = np.ceil(length_mm.clip(180, 750) / 12).astype(int)
    field = np.ceil(rng.normal(360, 35, count).clip(280, 500) / 24).astype(int)
    side = field if in_plane else np.full(count, 14)
    return np.stack([depth, side, side], axis=1)


def measure(count: int) -> dict[str, float]:
    """Share of padding by what is open and how scans are sorted."""
    result = {}
    plain = TrainingSampler([Source("all", [(i,) for i in range(count)])], BATCH_SIZE, seed=0)
    for name, in_plane in (("length", False), ("all axes", True)):
        cells = sizes(count, in_plane)
        result[f"{name}, as drawn"] = padding_share(plain, cells, MICRO_BATCH_SIZE)
        for steps in (1, 4, 16, 64):
            sampler = BucketedSampler(plain, cells, Buckets(steps), MICRO_BATCH_SIZE, seed=0)
            result[f"{name}, {steps} steps"] = padding_share(sampler, cells, MICRO_BATCH_SIZE)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4,096 scans instead of 24,128; a few seconds")
    result = measure(4096 if parser.parse_args().quick else 24_128)
    for name, share in result.items():
        print(f"{name:24s} {100 * share:6.2f} %")
    waste = result["length, 16 steps"]
    print(f"padded tokens with buckets of 16 steps: {100 * waste:.2f} %  (at most {100 * BAR:g} %)")
    print(json.dumps({name: round(share, 5) for name, share in result.items()}))
    if waste > BAR:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
