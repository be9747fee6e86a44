"""What it costs to bring a scan into a shard, beside MONAI's and TorchIO's ways to the same grid.

    python benchmarks/ingest.py [--quick]

All start from the same 512 x 512 x 300 .nii.gz file, end on a RAS grid of 1.5 x 0.75 x 0.75 mm with linear
interpolation in whole HU, and write it by the same ShardWriter, which hashes, compresses (zstd), reads back and
compares. Ours is `ingest` itself, so plan, audit, quarantine list and notes are in its figure; theirs is LoadImage,
Orientation, Spacing and ToCanonical, Resample. Times are CPU seconds of one thread, user and system; each ratio is the
median over rounds in which all three take their turn, in changing order. Memory is the peak of a fresh process above
what it holds after its imports, for one scan, over the size of the int16 result. The last line is JSON.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import nibabel as nib
import numpy as np

from ctgrounding.data.records import ScanRecord
from ctgrounding.data.shards import HU_RANGE, Shard, ShardWriter, find_shards
from ctgrounding.ingest import ingest

SPACING_MM = (1.5, 0.75, 0.75)
SHAPES = {"full": (512, 512, 300), "quick": (256, 256, 150)}
ROUNDS = {"full": 5, "quick": 3}
AT_LEAST = {"cpu_monai_over_ours": 2.5, "cpu_torchio_over_ours": 1.8}
AT_MOST = {"peak_memory_over_output": 6.0}
CARD = """
name: benchmark
root: {root}
ids: keep
scans: {{table: scans.csv}}
"""


def write_scan(folder: Path, shape: tuple[int, int, int]) -> Path:
    """A chest-like cylinder with lungs and the noise of a soft-tissue kernel, and a card that names it."""
    rng = np.random.default_rng(0)
    i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    body = (i / 0.8) ** 2 + (j / 0.65) ** 2 < 1
    lungs = ((np.abs(i) - 0.35) / 0.25) ** 2 + (j / 0.4) ** 2 < 1
    plain = np.where(body, np.where(lungs, -850.0, 45.0), -1000.0)
    grain = rng.normal(0, 1, (shape[0] + 64, shape[1] + 64))
    grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))) * 9
    values = np.empty(shape, np.int16, order="F")
    for k in range(shape[2]):
        a, b = rng.integers(0, 64, 2)
        values[:, :, k] = np.clip(np.rint(plain + grain[a : a + shape[0], b : b + shape[1]]), *HU_RANGE)
    affine = np.diag([-0.7, -0.7, 1.25, 1.0])
    affine[:3, 3] = (179.0, 179.0, -100.0)
    image = nib.Nifti1Image(values, affine)
    image.header.set_slope_inter(1, 0)
    nib.save(image, folder / "scan.nii.gz")
    (folder / "scans.csv").write_text("scan_id,study_id,patient_id,path\ns,e,p,scan.nii.gz\n")
    (folder / "card.yaml").write_text(CARD.format(root=folder))
    return folder / "scan.nii.gz"


def ours(scan: Path, output: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        ingest(card=str(scan.parent / "card.yaml"), output=output, spacing_mm=SPACING_MM, workers=1)


def monai(scan: Path, output: Path) -> None:
    from monai.transforms import LoadImage, Orientation, Spacing

    loaded = LoadImage(image_only=True, ensure_channel_first=True)(scan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned = Orientation(axcodes="RAS", labels=None)(loaded)
    image = Spacing(pixdim=SPACING_MM[::-1], mode="bilinear")(turned)
    _write(image[0].numpy(), np.asarray(image.affine), output)


def torchio(scan: Path, output: Path) -> None:
    import torchio as tio

    image = tio.Resample(SPACING_MM[::-1])(tio.ToCanonical()(tio.ScalarImage(scan)))
    _write(image.data[0].numpy(), image.affine, output)


def _write(values_xyz: np.ndarray, affine: np.ndarray, output: Path) -> None:
    rounded = np.rint(np.clip(values_xyz, *HU_RANGE)).astype(np.int16)
    image_hu = np.ascontiguousarray(rounded.transpose(2, 1, 0))
    box = tuple((0, side) for side in image_hu.shape)
    origin = tuple(float(value) for value in affine[:3, 3])
    record = ScanRecord("s", "e", "p", "benchmark", "train", image_hu.shape, SPACING_MM, origin, box)
    with ShardWriter(output / "shard-00000.h5", spacing_mm=SPACING_MM, classes={}, dataset="benchmark") as writer:
        writer.write(record, image_hu)


WAYS: dict[str, Callable[[Path, Path], None]] = {"ours": ours, "monai": monai, "torchio": torchio}


def cpu_seconds(way: str, scan: Path) -> float:
    with tempfile.TemporaryDirectory(dir=scan.parent) as output:
        start = time.process_time()
        WAYS[way](scan, Path(output))
        return time.process_time() - start


def rounds(scan: Path, count: int) -> dict[str, list[float]]:
    """CPU seconds of every way in every round; who is first changes from round to round."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    names = list(WAYS)
    for number in range(count):
        first = number % len(names)
        for way in names[first:] + names[:first]:
            found[way].append(cpu_seconds(way, scan))
    return found


def peak_over_output(scan: Path) -> float:
    """Peak of this process for one scan above what it holds now, over the bytes of the int16 result."""
    import ctgrounding.ingest.crew
    import ctgrounding.ingest.readers.nifti  # noqa: F401

    output = scan.parent / "memory"
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    ours(scan, output)
    peak = (_status_kb("VmHWM") - before) * 1024
    shape = Shard(find_shards([output])[0]).records[0].shape
    shutil.rmtree(output)
    return peak / (2 * shape[0] * shape[1] * shape[2])


def _status_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_fresh_process(scan: Path) -> float:
    command = [sys.executable, __file__, "--memory-of", str(scan)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(size: str) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        warm = Path(name) / "warm"
        warm.mkdir()
        small = write_scan(warm, (64, 64, 40))
        for way in WAYS:
            cpu_seconds(way, small)
        scan = write_scan(Path(name), SHAPES[size])
        seconds = rounds(scan, ROUNDS[size])
        for way, values in seconds.items():
            print(
                f"{way:8s} {statistics.median(values):6.2f} CPU s a volume  ({', '.join(f'{v:.2f}' for v in values)})"
            )
        result = {
            f"cpu_{way}_over_ours": statistics.median(
                other / own for other, own in zip(seconds[way], seconds["ours"], strict=True)
            )
            for way in ("monai", "torchio")
        }
        result["peak_memory_over_output"] = in_fresh_process(scan)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small volume; the bars are for the full one")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.memory_of:
        print(peak_over_output(settings.memory_of))
        return
    result = measure("quick" if settings.quick else "full")
    for name, value in result.items():
        bar = f"at least {AT_LEAST[name]:.1f}" if name in AT_LEAST else f"at most {AT_MOST[name]:.1f}"
        print(f"{name:26s} {value:6.2f}  ({bar})")
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
