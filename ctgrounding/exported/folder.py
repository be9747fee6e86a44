"""A model as a folder: ``config.json`` and ``model.safetensors``, of which reading executes nothing.

``transformers`` reads the same two files through :mod:`ctgrounding.hub`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctgrounding.encoders.text.transformers import TransformersText, write_text_folder
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.errors import CheckpointError
from ctgrounding.exported.portable import TEXT_FOLDER, placed, portable

CONFIG, WEIGHTS, CODE = "config.json", "model.safetensors", "modeling_ctgrounding.py"
MODEL_TYPE, FORMAT = "ctgrounding", 1
PREFIX = "encoder."
"""Names of the weights are those of a run's checkpoints."""

_CODE = '''"""Lets ``transformers`` find the classes of ctgrounding, which must be installed."""

from ctgrounding.hub import CTGroundingConfig, CTGroundingModel

__all__ = ["CTGroundingConfig", "CTGroundingModel"]
'''


@dataclass(frozen=True)
class Description:
    """What an exported folder says of its model; plain values, all of them in ``config.json``.

    Attributes:
        encoder: Sections ``image``, ``text``, ``readouts``, ``heads`` and others that build the model.
        spacing_mm: Voxel size along ``D H W`` that scans are brought to.
        axial_mm: Size of a depth bin.
        evaluation_crop: Arguments of the crop that the model sees of a scan; None for whole scans.
        locating: Heads and temperature of snippet localization; None if it was not trained to locate.
        image_embeddings: Embedding of volumes to its width: readout and head, such as ``global.main``.
        objectives: Names of the classes that trained it.
        trained_on: For each data set of the training patients its ``name`` and numbers of ``patients`` and ``scans``;
            None where that is not known.
        licence: Of the weights.
        version: Of the ctgrounding that wrote it.
        format: Version of this layout.
    """

    encoder: Mapping[str, Any]
    spacing_mm: tuple[float, ...]
    axial_mm: float
    evaluation_crop: Mapping[str, Any] | None
    locating: Mapping[str, Any] | None
    image_embeddings: Mapping[str, int]
    objectives: Sequence[str]
    trained_on: Sequence[Mapping[str, Any]] | None
    licence: str
    version: str
    format: int = FORMAT

    def placed(self, folder: Path) -> dict[str, Any]:
        """Sections that build the model from a folder.

        Raises:
            CheckpointError: If they reach out of it.
        """
        return placed(self.encoder, folder)


def is_exported(folder: Path) -> bool:
    """Whether this is a folder of ``ctgrounding export``."""
    if not (folder / CONFIG).is_file():
        return False
    return _json(folder / CONFIG).get("model_type") == MODEL_TYPE


def write_folder(encoder: VisionLanguageEncoder, description: Description, folder: Path) -> None:
    """Write a model.

    Args:
        encoder: The model.
        description: What is said of it; its sections are made portable.
        folder: An empty folder.

    Raises:
        ConfigError: If the model needs a file of this machine.
    """
    own = asdict(description) | {"encoder": portable(description.encoder)}
    config = {
        "architectures": ["CTGroundingModel"],
        "auto_map": {f"Auto{kind}": f"{Path(CODE).stem}.CTGrounding{kind}" for kind in ("Config", "Model")},
        "model_type": MODEL_TYPE,
        MODEL_TYPE: own,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CODE).write_text(_CODE, encoding="utf-8")
    metadata = {"format": "pt", "licence": description.licence}
    save_file(_separate(encoder), folder / WEIGHTS, metadata=metadata)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes a file that nobody else may read
    for part in encoder.text.modules():
        if isinstance(part, TransformersText):
            write_text_folder(part, folder / TEXT_FOLDER)


def read_folder(folder: Path) -> tuple[Description, dict[str, Tensor]]:
    """Read a model, without executing anything that lies in the folder.

    Args:
        folder: A folder of ``ctgrounding export``.

    Returns:
        What it says of itself, and the weights under the names of a run's model.

    Raises:
        CheckpointError: If a file is missing, damaged, or of a newer layout.
    """
    return describe(folder, _json(folder / CONFIG).get(MODEL_TYPE)), read_weights(folder)


def describe(folder: Path, said: object) -> Description:
    """What an exported folder's ``config.json`` says under ``ctgrounding``.

    Raises:
        CheckpointError: If it is not that, or of a newer layout.
    """
    if not isinstance(said, Mapping) or not isinstance(said.get("format"), int):
        raise CheckpointError(f"{folder / CONFIG} describes no model of ctgrounding. Export it again.")
    if said["format"] > FORMAT:
        raise CheckpointError(
            f"{folder} has format {said['format']}, and this ctgrounding reads up to {FORMAT}. Install a newer one."
        )
    try:
        return Description(**said)
    except TypeError as error:
        raise CheckpointError(f"{folder / CONFIG} lacks a value or has one too many. Export it again.") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of an exported folder under the names of a run's model.

    Raises:
        CheckpointError: If there are none, or the file is damaged.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"There is no {file}. Copy the whole folder of 'ctgrounding export'.")
    try:
        return {name.removeprefix(PREFIX): value for name, value in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged ({error}). Copy it again.") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}). Copy or export it again.") from error
    if not isinstance(held, dict):
        raise CheckpointError(f"{file} holds no object. Copy or export it again.")
    return held


def _separate(encoder: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor in memory of its own, as safetensors want it."""
    seen: set[int] = set()
    weights = {}
    for name, value in encoder.state_dict().items():
        place = value.untyped_storage().data_ptr()
        shared = value.numel() > 0 and place in seen
        seen.add(place)
        weights[PREFIX + name] = value.detach().cpu().clone() if shared else value.detach().cpu().contiguous()
    return weights
