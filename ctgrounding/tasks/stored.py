"""Training on stored features: they must be what this model would make of the scans, or the fit does not begin."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ctgrounding.encoders.readouts import ReadoutContext
from ctgrounding.encoders.stems import STEMS, Features, Stem, stem_digest
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.errors import ConfigError
from ctgrounding.types import Batch

TOLERANCE = {"float32": 1e-4, "float16": 4e-3}
"""Largest relative difference, norm-wise for each array, between features stored and made anew, by precision."""


class _About(Protocol):
    keep: str
    precision: str
    weights_sha256: str


def use_stored(encoder: VisionLanguageEncoder, data: Any) -> None:  # noqa: ANN401 (any data module)
    """See that stored features are this model's, and keep the vectors of texts beside them where texts are frozen.

    Weights are compared by their hash. One scan is encoded anew, so that settings, view and code are compared too.

    Args:
        encoder: The model, its weights loaded.
        data: The data module; one without stored features passes.

    Raises:
        ConfigError: With what differs and what to do.
    """
    found = getattr(data, "features", None)
    if found is None:
        return
    about: _About = found.about
    stem = STEMS[about.keep](encoder)
    if stem_digest(stem) != about.weights_sha256:
        raise ConfigError(
            f"The features in {found.folder} were made by other weights than this model has. Set model.initial_weights "
            f"to {found.folder / 'weights.safetensors'}, or run ctgrounding embed again, to another folder."
        )
    as_voxels, as_stored = data.proof()
    _compare(_made_anew(stem, as_voxels), as_stored["features"][0], TOLERANCE[about.precision], found.folder)
    if not any(parameter.requires_grad for parameter in encoder.text.parameters()):
        encoder.text.keep_vectors(found.text_folder)


def check_frozen(encoder: VisionLanguageEncoder, data: Any, recolour: object) -> None:  # noqa: ANN401
    """Refuse to train what stored features stand in the place of, or to change volumes that are not read.

    Args:
        encoder: The model.
        data: The data module; one without stored features passes.
        recolour: The task's intensity augmentation.

    Raises:
        ConfigError: With the setting.
    """
    found = getattr(data, "features", None)
    if found is None:
        return
    if recolour is not None:
        raise ConfigError(
            f"model.recolour changes volumes at random, but the features in {found.folder} are stored. Set it to null."
        )
    parts = STEMS[found.about.keep](encoder).parts
    trained = [name for name, part in parts.items() if any(item.requires_grad for item in part.parameters())]
    if trained:
        raise ConfigError(
            f"The features in {found.folder} were made by a frozen model, but this run trains encoder.{trained[0]}. "
            f"Add it to model.freeze, as in {found.folder / 'features.yaml'}."
        )


def _made_anew(stem: Stem, batch: Batch) -> Features:
    device = next(stem.encoder.parameters()).device
    organs = batch["organs"][0].to(device) if "organs" in batch else None
    voxels = batch["organ_voxels"].to(device) if "organ_voxels" in batch else None
    context = ReadoutContext(batch["spacing_mm"].to(device), organs, voxels)
    modes = [(part, part.training) for part in stem.encoder.modules()]
    stem.encoder.eval()
    with torch.no_grad():
        made = stem.of_scan(batch["volume"][0].to(device), batch["valid_box"].to(device), context)
    for part, mode in modes:
        part.training = mode
    return made


def _compare(made: Features, stored: Features, tolerance: float, folder: object) -> None:
    for name, value in made.items():
        difference = _difference(value.cpu(), stored[name][0]) if name in stored else float("inf")
        if not difference <= tolerance:  # NaN is no agreement
            raise ConfigError(
                f"The features in {folder} are not what this model makes: '{name}' of a scan differs by "
                f"{difference:.2g}. Its settings, its readouts or the view are others; run ctgrounding embed again, to "
                "another folder."
            )


def _difference(made: Tensor, stored: Tensor) -> float:
    if made.shape != stored.shape:
        return float("inf")
    made, stored = made.double(), stored.double()
    return float((made - stored).norm() / made.norm().clamp(min=1e-12))
