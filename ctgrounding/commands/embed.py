"""``ctgrounding embed``: what a frozen model makes of every scan, kept so that a fit need not make it again."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save_file

from ctgrounding.commands.frozen_model import open_frozen
from ctgrounding.data.dataset import ScanDataset
from ctgrounding.data.feature_format import TEXT_FOLDER, Arrays, FeatureAbout
from ctgrounding.data.feature_reading import FeatureShard
from ctgrounding.data.feature_writing import FeatureWriter
from ctgrounding.data.index import ScanIndex, load_index
from ctgrounding.data.overlay import lay_over
from ctgrounding.data.recipe import Recipe
from ctgrounding.encoders.lora import fold_adapters
from ctgrounding.encoders.readouts import ReadoutContext
from ctgrounding.encoders.stems import STEMS, Features, Keep, Stem, check_rest, is_made, stem_digest
from ctgrounding.errors import ConfigError, ShardError
from ctgrounding.model import Model
from ctgrounding.types import Sample

WEIGHTS, OVERLAY = "weights.safetensors", "features.yaml"
_SPLITS = ("train", "dev", "val", "test")


@dataclass
class _Work:
    """One shard of scans and what becomes of it."""

    path: Path
    scans: ScanIndex


def embed(
    *,
    model: Path,
    output: Path,
    keep: Keep = "map",
    splits: list[str] | None = None,
    shards: list[str] | None = None,
    precision: Literal["float32", "float16"] = "float32",
    device: str | None = None,
) -> None:
    """Encode every scan once and keep what comes out, to train what lies behind it many times faster.

    A second call goes on where the first one was stopped.

    Args:
        model: Run folder of ``ctgrounding fit``, a checkpoint, or a run config whose ``initial_weights`` are given.
        output: Folder for the features, ``weights.safetensors`` and ``features.yaml``, which a fit adds to its config.
        keep: What is kept: map (then readouts and heads are trained), readouts (then heads are), or windows of a
            WindowedViT (then its combiner and depth branch are, too).
        splits: Splits to encode; train and val if not given. Testing reads the scans themselves.
        shards: Shard files or folders; those of the run if not given.
        precision: float32, or float16 for half the room and about three digits.
        device: Where to encode, such as cuda:1; a GPU if there is one.
    """
    wanted = splits or ["train", "val"]
    if unknown := sorted(set(wanted) - set(_SPLITS)):
        raise ConfigError(f"--splits has '{unknown[0]}'; choose among {', '.join(_SPLITS)}.")
    trained = open_frozen(model).to(device)
    stem = STEMS[keep](trained.encoder)
    if "image" in stem.parts:
        fold_adapters(trained.encoder.image)  # what is frozen as a whole needs none beside its weights
    about = FeatureAbout(keep, precision, stem_digest(stem), type(trained.encoder.image).__name__)
    todo = list(_shards(_index(trained, shards, wanted), output))
    embedder = _Embedder(trained, stem, about, output)
    left = [work for work in todo if not embedder.is_done(work)]
    output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    with Progress(console=console) as progress:
        for work in progress.track(left, description="Shards"):
            task = progress.add_task(work.path.name, total=len(work.scans))
            for _ in embedder.write(work):
                progress.advance(task)
            progress.remove_task(task)
    _write_weights(trained, stem, output)
    _write_overlay(trained, stem, output)
    scans, size = sum(len(work.scans) for work in todo), sum(work.path.stat().st_size for work in todo)
    console.print(
        f"{keep} of {scans} scans in {output}, {size / 2**20:.1f} MiB; {len(todo) - len(left)} of {len(todo)} shards "
        f"were there. Train on them: add --config {output / OVERLAY} to a fit.",
        soft_wrap=True,
    )


class _Embedder:
    """Writes feature shards of one model into one folder."""

    def __init__(self, trained: Model, stem: Stem, about: FeatureAbout, output: Path) -> None:
        self._stem, self._about, self._output = stem, about, output
        data = trained.config["data"]
        self._recipe = Recipe(crop=trained.crop, with_organs=data.get("organs", True))
        self._encoder, self._device = trained.encoder, trained.device
        self._encoder.text.keep_vectors(output / TEXT_FOLDER)
        self._is_checked = False

    def is_done(self, work: _Work) -> bool:
        """Whether a shard's features are there, of this model and these scans.

        Raises:
            ConfigError: If the folder holds other features.
        """
        if not work.path.is_file():
            return False
        try:
            found = FeatureShard(work.path)
            about, entries = found.about, {entry.key: entry for entry in found.entries}
        except ShardError:
            return False
        if about != self._about:
            raise ConfigError(
                f"{work.path} holds features of another model, or kept otherwise ({about.keep} of {about.encoder} as "
                f"{about.precision}). Name another --output, or remove that folder."
            )
        for position in range(len(work.scans)):
            record = work.scans.record(position)
            entry = entries.get((record.dataset, record.scan_id))
            if entry is None:
                return False
            try:
                entry.check(record, *self._recipe.crop.box(record.shape, record.spacing_mm), self._output)
            except ShardError:
                return False
        return True

    def write(self, work: _Work) -> Iterator[None]:
        """Write a shard, one scan at a time."""
        dataset = ScanDataset(work.scans, self._recipe, self._encoder.text.tokenizer)
        with FeatureWriter(work.path, self._about) as writer:
            for position in range(len(work.scans)):
                record = work.scans.record(position)
                sample = dataset.sample(position)
                start, shape = self._recipe.crop.box(record.shape, record.spacing_mm)
                writer.write(record, start, shape, self._arrays(self._features(sample)))
                self._keep_texts(sample)
                yield

    def _features(self, sample: Sample) -> Features:
        device = self._device
        image, box = sample["volume"][None].to(device), sample["valid_box"][None].to(device)
        organs = sample["organs"][None].to(device) if "organs" in sample else None
        voxels = sample["organ_voxels"][None].to(device) if "organ_voxels" in sample else None
        context = ReadoutContext(sample["spacing_mm"][None].to(device), organs, voxels)
        with torch.inference_mode():
            features = self._stem.of_scan(image, box, context)
            if not self._is_checked:
                check_rest(self._stem, features, image, box, context)
                self._is_checked = True
        return features

    def _arrays(self, features: Features) -> Arrays:
        half = self._about.precision == "float16"
        return {
            name: (value.half() if half and is_made(name, value) else value).cpu().numpy()
            for name, value in features.items()
        }

    def _keep_texts(self, sample: Sample) -> None:
        rows = list(sample["token_rows"].values())
        if not rows:
            return
        device = self._device
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        with torch.inference_mode():
            self._encoder.encode_tokens(tokens, torch.arange(tokens.shape[1], device=device) < lengths[:, None])


def _index(trained: Model, shards: list[str] | None, splits: list[str]) -> ScanIndex:
    data = trained.config["data"]
    paths = shards or trained.shard_paths
    if not paths:
        raise ConfigError("An exported model knows no shards. Name those to encode: --shards '[FOLDER]'.")
    index = load_index(paths)
    if index.spacing_mm != trained.spacing_mm:
        raise ConfigError(
            f"The shards have voxels of {index.spacing_mm} mm (D, H, W) and the model is for {trained.spacing_mm}. "
            "Ingest the scans at the model's spacing."
        )
    index = lay_over(index, data["supervision"]) if data.get("supervision") else index
    index = index.with_dev(data.get("dev_fraction") or 0.0)
    chosen = [place for place, split in enumerate(index.columns["split"]) if split in splits]
    if not chosen:
        raise ConfigError(
            f"No scan is of split {' or '.join(splits)}. The shards have {sorted(set(index.columns['split']))}."
        )
    return index.take(chosen)


def _shards(scans: ScanIndex, output: Path) -> Iterator[_Work]:
    """The scans of each shard, and the name of the file for their features."""
    names = [shard.path.stem for shard in scans.shards]
    for number, shard in enumerate(scans.shards):
        positions = [place for place in range(len(scans)) if scans.shard_of[place] == number]
        name = shard.path.stem if names.count(shard.path.stem) == 1 else f"{number:03d}-{shard.path.stem}"
        if positions:
            yield _Work(output / f"{name}.h5", scans.take(positions))


def _write_weights(trained: Model, stem: Stem, output: Path) -> None:
    """Weights of all that stays frozen, and of the whole image encoder, by their names in a run."""
    encoder = trained.encoder
    parts = {"image": encoder.image, "text": encoder.text, **stem.parts}
    weights = {
        f"encoder.{name}.{key}": value.detach().cpu().contiguous().clone()
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    with tempfile.NamedTemporaryFile(dir=output, suffix=".partial", delete=False) as partial:
        path = Path(partial.name)
    save_file(weights, path)
    path.replace(output / WEIGHTS)


def _write_overlay(trained: Model, stem: Stem, output: Path) -> None:
    crop = trained.config["data"].get("evaluation_crop")
    placed = None if crop is None or crop.get("shape") is None else {**crop, "place": "centre"}
    own = [f"encoder.{name}" for name in (*stem.parts, "text")]
    frozen = trained.config["model"].get("freeze") or []  # a list in a later file replaces the one before it
    model: dict[str, Any] = {
        "initial_weights": str(output / WEIGHTS),
        "freeze": [*own, *(pattern for pattern in frozen if pattern not in own)],
        "recolour": None,
    }
    if "image" in stem.parts:
        model["image_lora"] = None
    data = {"features": str(output), "crop": placed, "mirror_probability": 0.0, "spatial": None}
    header = "# Added to the config of a fit: it trains on the features beside this file, see ctgrounding embed.\n"
    (output / OVERLAY).write_text(header + yaml.safe_dump({"model": model, "data": data}, sort_keys=False))
