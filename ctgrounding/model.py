"""A trained model for use: scans and sentences to vectors, and sentences to depths."""

from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Int16
from jsonargparse import ArgumentParser
from torch import Tensor

from ctgrounding.data.augment import Crop
from ctgrounding.encoders.checkpoint_files import UNREADABLE, unreadable
from ctgrounding.encoders.readouts import ReadoutContext
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.errors import CheckpointError, ConfigError, ScanError
from ctgrounding.exported import is_exported, read_folder
from ctgrounding.geometry import Grid
from ctgrounding.ingest import OriginalSlice, Scan, read_scan
from ctgrounding.types import Encoded

PARTS = ("image", "text", "readouts", "heads", "image_lora")
"""Arguments of the task that make the model itself."""


@dataclass(frozen=True)
class Location:
    """Where in a scan a sentence's finding lies.

    Attributes:
        depth_mm: World z of the most probable depth bin.
        probability: Probability of each real depth bin; they sum to 1.
        depths_mm: World z of the centre of each real depth bin.
        slice: The slice of the original file nearest to ``depth_mm``; None for a volume without a file.
    """

    depth_mm: float
    probability: Float64[np.ndarray, "Z"]
    depths_mm: Float64[np.ndarray, "Z"]
    slice: OriginalSlice | None


@dataclass(frozen=True)
class Use:
    """Heads that a use of the model needs, taken from the objective that trained them."""

    image_head: str = "main"
    text_head: str = "main"
    temperature: float = 0.1


class Model:
    """Encoders and heads in evaluation mode, with the grid that they were trained on.

    Args:
        encoder: The trained model.
        locating: Heads of snippet localization; None if the model was not trained to locate.
        config: Configuration of the run that made it.

    Attributes:
        crop: What the model sees of a scan, as in its own evaluation.
    """

    def __init__(self, encoder: VisionLanguageEncoder, locating: Use | None, config: Mapping[str, Any]) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.locating = locating
        self.config = config
        self.crop = Crop(**(config["data"].get("evaluation_crop") or {}))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along ``D H W`` that scans are brought to."""
        return self.encoder.image.spacing_mm

    @property
    def device(self) -> torch.device:
        """Where the model computes. What it gives lies on the CPU."""
        return next(self.encoder.parameters()).device

    def to(self, device: str | torch.device | None) -> Self:
        """Compute on another device; on a GPU if there is one for None.

        Raises:
            ConfigError: If this machine has no such device.
        """
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(f"Device '{name}' cannot be used here ({reason}). Leave it out, or give cpu.") from error
        self.encoder.to(name)
        return self

    @property
    def shard_paths(self) -> list[str]:
        """Shards that the model was trained from, as its configuration names them."""
        shards = self.config["data"]["shards"]
        if isinstance(shards, str):
            return [shards]
        return (
            list(shards) if isinstance(shards, list) else [path for item in shards.values() for path in item["paths"]]
        )

    def read(self, path: str | Path, series: int | None = None) -> Scan:
        """Read, check and resample a scan to the model's grid.

        Args:
            path: A NIfTI file or a folder of DICOM slices.
            series: Series number, where a folder holds several.

        Raises:
            ScanError: If it is no usable CT scan, or no path.
        """
        if not isinstance(path, str | Path):
            raise ScanError(
                f"A scan is a file, a DICOM folder, or what read() gave, but this is of type {type(path).__name__}. "
                "Give one path; save an array as NIfTI first, with its affine."
            )
        return read_scan(path, self.spacing_mm, series)

    def encode_scan(self, scan: str | Path | Scan, head: str = "main") -> Float[Tensor, "M"]:
        """Unit vector of a scan in the space of reports.

        Args:
            scan: A file, a DICOM folder, or what :meth:`read` gave.
            head: Image head to use, one of those that read ``global``.

        Raises:
            ConfigError: If there is no such head, or it reads another readout.
            ScanError: If it is no usable CT scan.
        """
        reads = self.encoder.heads.image_readouts
        if reads.get(head, "global") != "global":
            fitting = sorted(name for name, readout in reads.items() if readout == "global")
            raise ConfigError(
                f"The image head '{head}' reads '{reads[head]}', but a scan's vector is 'global'. "
                f"Name one of {fitting}."
            )
        opened = scan if isinstance(scan, Scan) else self.read(scan)
        encoded = self._encode(opened.image_hu, opened.grid, opened.valid_box, [])
        return encoded.image("global", head)[0].cpu()

    def encode_text(self, text: str | Sequence[str], head: str = "main") -> Float[Tensor, "texts M"]:
        """Unit vectors of sentences or reports; one row for a single string too.

        Raises:
            ConfigError: If a text is empty or no string.
        """
        texts = list(text) if isinstance(text, Iterable) and not isinstance(text, str) else [text]
        return self.encoder.heads.text(head, self._text_vectors(texts)).cpu()

    def locate(self, scan: str | Path | Scan, text: str) -> Location:
        """Find the depth that a sentence speaks of.

        Args:
            scan: A file, a DICOM folder, or what :meth:`read` gave.
            text: A finding in words, for example "a cyst in the left kidney".

        Raises:
            ConfigError: If the model was not trained to locate, or the text is empty.
        """
        opened = scan if isinstance(scan, Scan) else self.read(scan)
        found = self.locate_in(opened.image_hu, opened.grid, opened.valid_box, text)
        return Location(found.depth_mm, found.probability, found.depths_mm, opened.slice_at(found.depth_mm))

    def locate_in(
        self,
        image_hu: Int16[np.ndarray, "D H W"],
        grid: Grid,
        valid_box: Sequence[Sequence[int]],
        text: str,
    ) -> Location:
        """The same for a volume that is already on the model's grid, such as one of a shard.

        Raises:
            ConfigError: If the model was not trained to locate, or the text is empty.
        """
        if self.locating is None:
            raise ConfigError(
                "This model was trained without SnippetLocalization, so it cannot locate. "
                "Add that objective under model.objectives and fit again."
            )
        use = self.locating
        encoded = self._encode(image_hu, grid, valid_box, [text])
        valid = encoded.depth_valid[0]
        depths = encoded.image("depth", use.image_head)[0, valid]
        words = encoded.texts(torch.tensor([0], device=self.device), use.text_head)[0]
        probability = torch.softmax(depths @ words / use.temperature, dim=0).double().cpu().numpy()
        depths_mm = encoded.depth_mm[0, valid].cpu().numpy()
        return Location(float(depths_mm[probability.argmax()]), probability, depths_mm, None)

    def search(
        self, scans: Mapping[str, Tensor], text: str, head: str = "main", top: int = 10
    ) -> list[tuple[str, float]]:
        """Rank scans by a sentence.

        Args:
            scans: Name to the unit vector that :meth:`encode_scan` gave.
            text: What to look for.
            head: Text head to use.
            top: How many to return.

        Returns:
            Names and cosines, best first; equal cosines in the order of their names.
        """
        words = self.encode_text(text, head)[0]
        scored = [(name, float(vector @ words)) for name, vector in scans.items()]
        return sorted(scored, key=lambda item: (-item[1], item[0]))[:top]

    def _encode(
        self, image_hu: Int16[np.ndarray, "D H W"], grid: Grid, valid_box: Sequence[Sequence[int]], texts: list[str]
    ) -> Encoded:
        if not np.allclose(grid.spacing_mm, self.spacing_mm):
            raise ConfigError(
                f"The volume has spacing {grid.spacing_mm} mm and the model {self.spacing_mm} mm (D, H, W). "
                "Ingest the scans at the model's spacing."
            )
        start, shape = self.crop.box(grid.shape, grid.spacing_mm)
        shown = tuple(slice(first, first + size) for first, size in zip(start, shape, strict=True))
        image_hu, grid = np.ascontiguousarray(image_hu[shown]), grid.crop(start, shape)
        valid_box = _within(valid_box, start, shape)
        spacing_mm, origin_mm = torch.tensor([grid.spacing_mm, grid.origin_mm], dtype=torch.float64, device=self.device)
        box = torch.tensor([valid_box], dtype=torch.int64, device=self.device)
        volume = torch.from_numpy(image_hu)[None].to(self.device)
        with torch.inference_mode():
            part = self.encoder.encode_volumes(volume, box, origin_mm[None], ReadoutContext(spacing_mm[None]))
            return self.encoder.join([part], self._text_vectors(texts))

    def _text_vectors(self, texts: Sequence[str]) -> Float[Tensor, "T E"]:
        wrong = [type(text).__name__ for text in texts if not isinstance(text, str)]
        if wrong:
            raise ConfigError(
                f"A text is a string, but this is of type {wrong[0]}. Give one sentence or report at a time."
            )
        if any(not text.strip() for text in texts):
            raise ConfigError("The text is empty. Write what to look for, for example 'a cyst in the left kidney'.")
        tokenizer = self.encoder.text.tokenizer
        rows = [tokenizer(text) for text in texts]
        length = max((len(row) for row in rows), default=1)
        tokens = torch.full((len(rows), length), tokenizer.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), length), dtype=torch.bool)
        for index, row in enumerate(rows):
            tokens[index, : len(row)], mask[index, : len(row)] = row, True
        with torch.inference_mode():
            return self.encoder.encode_tokens(tokens.to(self.device), mask.to(self.device))


def load(path: str | Path) -> Model:
    """A trained model from a run folder, a checkpoint, or a folder that was exported.

    Args:
        path: A folder that ``ctgrounding fit`` wrote (its ``checkpoints/last.ckpt`` is taken), a ``.ckpt`` file, or a
            folder of ``ctgrounding export``.

    Raises:
        CheckpointError: If there is none of these, or it is damaged.
    """
    if is_exported(Path(path)):
        return _load_exported(Path(path))
    file = Path(path) / "checkpoints" / "last.ckpt" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise CheckpointError(f"There is no checkpoint at {file}. Name a run folder of 'ctgrounding fit' or a .ckpt.")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise unreadable(file, error, "Name a run folder or a checkpoint of 'ctgrounding fit'.") from error
    config = checkpoint.get("run_config") if isinstance(checkpoint, dict) else None
    if not config:
        raise CheckpointError(
            f"{file} holds no run configuration, so its encoders are not known. Use a checkpoint of 'ctgrounding fit', "
            "or build the task in Python and load its state_dict."
        )
    encoder = build(config["model"])
    prefix = "encoder."
    weights = {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not fit its own configuration; was it made by another version?") from error
    return Model(encoder, _locating(config["model"]), config)


def _load_exported(folder: Path) -> Model:
    description, weights = read_folder(folder)
    encoder = build(description.placed(folder))
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its weights do not fit its config.json. Export it again.") from error
    locating = None if description.locating is None else Use(**description.locating)
    config = {"model": description.encoder, "data": {"evaluation_crop": description.evaluation_crop, "shards": []}}
    return Model(encoder, locating, config | {"exported": description})


def build(model_config: Mapping[str, Any]) -> VisionLanguageEncoder:
    """An untrained model from the ``model`` part of a run configuration.

    Raises:
        ConfigError: If it does not say what to build, or names a class that cannot be imported here.
    """
    model_config = deepcopy(dict(model_config))  # the parser leaves objects of its own in what it is given
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(VisionLanguageEncoder, "model")
    try:
        parsed = parser.parse_object({"model": {name: model_config[name] for name in PARTS if name in model_config}})
    except ArgumentError as error:
        said = " ".join(str(error).replace('Parser key "', "").replace('":', ":").split()).rstrip(".")
        foreign = "No module named" in said
        raise ConfigError(
            f"The model cannot be built from its configuration: {said}. "
            + ("Install that package, or put the folder it lies in on PYTHONPATH." if foreign else "Correct it there.")
        ) from error
    encoder: VisionLanguageEncoder = parser.instantiate(parsed).model
    return encoder


def _within(box: Sequence[Sequence[int]], start: Sequence[int], shape: Sequence[int]) -> list[list[int]]:
    """A half-open box in the voxels of a crop."""
    return [
        [min(max(bound - first, 0), size) for bound in bounds]
        for bounds, first, size in zip(box, start, shape, strict=True)
    ]


def _locating(model_config: Mapping[str, Any]) -> Use | None:
    for objective in model_config["objectives"].values():
        if objective and _localizes(objective["class_path"]):
            chosen = objective.get("init_args", {})
            names = {"image_head": "image_head", "text_head": "text_head", "tau": "temperature"}
            return Use(**{names[name]: chosen[name] for name in names if name in chosen})
    return None


def _localizes(class_path: str) -> bool:
    """Whether a class is SnippetLocalization or one of its subclasses; one that cannot be imported goes by its name."""
    module, _, name = class_path.rpartition(".")
    try:
        bases = getattr(import_module(module), name).__mro__
    except (ImportError, AttributeError, ValueError):
        return name == "SnippetLocalization"
    return "SnippetLocalization" in {base.__name__ for base in bases}
