"""A model to freeze: one that was trained, or one of a run config with the weights that it starts from."""

from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from ctgrounding.encoders.lora import named_as_adapted
from ctgrounding.errors import CheckpointError, ConfigError
from ctgrounding.model import Model, build, load

_PREFIX = "encoder."


def open_frozen(path: Path) -> Model:
    """A model by run folder, checkpoint, or run config.

    Args:
        path: What :func:`ctgrounding.load` takes, or a YAML run config with ``model.initial_weights``.

    Raises:
        ConfigError: If a run config names no weights.
        CheckpointError: If weights are missing or do not fit.
    """
    return _of_config(path) if path.suffix in (".yaml", ".yml") else load(path)


def _of_config(path: Path) -> Model:
    from ctgrounding.trainer_cli import run

    cli = run(["fit", "--config", str(path)], execute=False)
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))["fit"]
    weights = config["model"]["initial_weights"]
    if not weights:
        raise ConfigError(
            f"{path} names no model.initial_weights, so its encoder would be random. Name them, or give a run folder."
        )
    encoder = build(config["model"])
    expected = {_PREFIX + name: value for name, value in encoder.state_dict().items()}
    try:
        found = named_as_adapted(load_file(weights), expected)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} cannot be read as .safetensors ({type(error).__name__}).") from error
    lacking = [name for name in expected if name.startswith(f"{_PREFIX}image.") and name not in found]
    others = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    if lacking or others:
        raise CheckpointError(
            f"{weights} does not fit {path}: {len(lacking)} weights of the image encoder are missing and {len(others)} "
            f"have another shape, {(lacking + others)[0]} for one. Use the config that they were made for."
        )
    encoder.load_state_dict(
        {name.removeprefix(_PREFIX): value for name, value in found.items() if name in expected}, strict=False
    )
    return Model(encoder, None, config)
