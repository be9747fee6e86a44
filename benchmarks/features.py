"""What a step costs with the frozen encoder in place and on features that ``ctgrounding embed`` stored.

    python benchmarks/features.py [--quick] [--shards FOLDER]

The demo's config at full width, its towers frozen: image encoder, text tower and, for ``readouts``, the readouts too. A
step is reading, encoding, objectives, backward, clipping and optimizer, as CPU seconds of one thread, on 20 scans;
each ratio is the median over interleaved repetitions, after some epochs that fill what is kept. Without
``--shards`` synthetic patients are made at the demo's voxel size. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import save_file

import ctgrounding  # noqa: F401 (before Lightning: it mends torchvision beside a CPU-only torch)
from ctgrounding.commands.embed import embed
from ctgrounding.data.datamodule import ShardDataModule
from ctgrounding.ingest import ingest
from ctgrounding.model import build
from ctgrounding.phantom import write_patients
from ctgrounding.tasks.initial_weights import load_initial
from ctgrounding.tasks.pretrain import Pretrain
from ctgrounding.tasks.stored import use_stored
from ctgrounding.tasks.texts import FixedTexts

ROOT = Path(__file__).parents[1]
BARS = {"frozen_over_stored_step_time": 20.0}
PATIENTS = {True: 32, False: 48}
REPETITIONS = {True: 5, False: 11}
WARM_STEPS = 8
"""Each patient some four times: by then nearly every sentence was drawn, and its vector is kept."""
Step = Callable[[], dict[str, float]]


def demo_shards(folder: Path, patients: int) -> Path:
    """Synthetic patients as the demo makes them."""
    write_patients(
        output=folder / "patients", patients=patients, voxel_mm=5.5, format="nifti", split=(0.9, 0.05, 0.05), workers=1
    )
    card = str(ROOT / "data_manifests" / "phantom.yaml")
    ingest(card=card, root=folder / "patients", output=folder / "shards", spacing_mm=(8, 8, 8), workers=1)
    return folder / "shards"


def demo_config(folder: Path, shards: Path) -> Path:
    """The demo's run config, with random weights to start from."""
    content = yaml.safe_load((ROOT / "configs" / "pretrain" / "demo.yaml").read_text())
    content["data"] |= {"shards": str(shards), "num_workers": 0}
    torch.manual_seed(0)
    encoder = build(content["model"])
    weights = folder / "start.safetensors"
    save_file({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, weights)
    content["model"]["initial_weights"] = str(weights)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def step_of(config: Path, features: Path, *, in_place: bool) -> Step:
    """A step of the fit that a config and an overlay describe, as a function that says what its parts took."""
    content = merged(yaml.safe_load(config.read_text()), yaml.safe_load((features / "features.yaml").read_text()))
    if in_place:
        del content["data"]["features"]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Pretrain, "model")
    parser.add_class_arguments(ShardDataModule, "data")
    made = parser.instantiate(parser.parse_object({name: content[name] for name in ("model", "data")}))
    task, data = made.model, made.data
    load_initial(task, Path(content["model"]["initial_weights"]))
    task._fixed = FixedTexts({role: item.fixed_texts() for role, item in task._roles.items()}, task.tokenizer)
    clock = SimpleNamespace(optimizers=[], loggers=[], current_epoch=0, global_step=0, log_every_n_steps=10**9)
    task.trainer = clock
    data.trainer = SimpleNamespace(lightning_module=task, current_epoch=0, global_rank=0, world_size=1)
    data.setup("fit")
    use_stored(task.encoder, data)
    loader = data.train_dataloader()
    trained = [item for item in task.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    task.train()

    def step() -> dict[str, float]:
        data.trainer.current_epoch += 1
        start = time.process_time()
        batch = next(iter(loader))
        read = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        task.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)  # as Lightning does: what the optimizer steps
        optimizer.step()
        clock.global_step += 1
        return {"read": read - start, "train": time.process_time() - read, "step": time.process_time() - start}

    return step


def merged(config: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """A config with the values of an overlay, section by section."""
    return {
        name: {**value, **overlay[name]} if isinstance(overlay.get(name), dict) else value
        for name, value in config.items()
    }


def text_seconds(config: Path, features: Path) -> tuple[float, float]:
    """CPU seconds of a text pass over a batch's texts, by the tower and from the vectors that were kept."""
    found = []
    content = yaml.safe_load(config.read_text())
    data = ShardDataModule(content["data"]["shards"], batch_size=20)
    encoder = build(content["model"]).eval().requires_grad_(False)
    data.trainer = SimpleNamespace(lightning_module=encoder.text, current_epoch=0, global_rank=0, world_size=1)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for keeps in (False, True):
        if keeps:
            encoder.text.keep_vectors(features / "benchmark")
            encoder.encode_tokens(batch["tokens"], batch["token_mask"])
        seconds = []
        for _ in range(5):
            start = time.process_time()
            encoder.encode_tokens(batch["tokens"], batch["token_mask"])
            seconds.append(time.process_time() - start)
        found.append(statistics.median(seconds))
    return found[0], found[1]


def measure(config: Path, folder: Path, repetitions: int) -> dict[str, float]:
    """Seconds and ratios of all variants."""
    steps: dict[str, Step] = {}
    for keep in ("map", "readouts"):
        embed(model=config, output=folder / keep, keep=keep, splits=["train", "val"])
        steps[f"{keep} in place"] = step_of(config, folder / keep, in_place=True)
        steps[f"{keep} stored"] = step_of(config, folder / keep, in_place=False)
    for step in steps.values():
        for _ in range(WARM_STEPS):
            step()
    times: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            times[name].append(step())
    numbers: dict[str, float] = {}
    for name, found in times.items():
        parts = {part: statistics.median(one[part] for one in found) for part in ("read", "train", "step")}
        numbers |= {f"{name.replace(' ', '_')}_{part}_ms": 1000 * value for part, value in parts.items()}
        print(f"{name:18s}" + "".join(f"  {part} {1000 * value:7.1f} ms" for part, value in parts.items()))
    for keep in ("map", "readouts"):
        pairs = list(zip(times[f"{keep} in place"], times[f"{keep} stored"], strict=True))
        for part, name in (("step", "step"), ("train", "training")):
            numbers[f"{keep}_frozen_over_stored_{name}_time"] = statistics.median(a[part] / b[part] for a, b in pairs)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer patients and repetitions")
    parser.add_argument("--shards", type=Path, default=None, help="shards of phantom patients at the demo's voxel size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = arguments.shards or demo_shards(folder, PATIENTS[arguments.quick])
        config = demo_config(folder, shards.resolve())
        numbers = measure(config, folder, REPETITIONS[arguments.quick])
        tower, kept = text_seconds(config, folder / "readouts")
    numbers["text_tower_over_kept_time"] = tower / kept
    numbers["frozen_over_stored_step_time"] = numbers["readouts_frozen_over_stored_step_time"]
    for key, bar in BARS.items():
        print(f"{key}: {numbers[key]:.1f}, bar {bar:g}")
    print(json.dumps({key: round(value, 3) for key, value in numbers.items()}))


if __name__ == "__main__":
    main()
