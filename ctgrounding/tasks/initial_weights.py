"""Weights that a fit starts from."""

import copy
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ctgrounding.encoders.lora import named_as_adapted
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.errors import CheckpointError
from ctgrounding.tasks.checks import check_fits


def load_initial(task: nn.Module, path: Path) -> int:
    """Load some or all of a task's weights; an adapted tower takes those of the plain one.

    Args:
        task: What is to start from them.
        path: A ``.safetensors`` file.

    Returns:
        Number of tensors.

    Raises:
        CheckpointError: If the file is missing, damaged, empty, or holds what the task has not.
    """
    if not path.is_file():
        raise CheckpointError(f"model.initial_weights names {path}, which does not exist. Give a .safetensors file.")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"model.initial_weights {path} cannot be read as .safetensors ({type(error).__name__}). Give one that "
            "'ctgrounding import-weights' or a run wrote; --ckpt_path takes checkpoints."
        ) from error
    if not weights:
        raise CheckpointError(f"model.initial_weights {path} holds no tensors. Give another file, or remove the key.")
    expected = task.state_dict()
    weights = named_as_adapted(weights, expected)
    check_fits({name: value for name, value in expected.items() if name in weights}, weights)
    task.load_state_dict(weights, strict=False)
    return len(weights)


def as_begun(encoder: VisionLanguageEncoder, objectives: nn.Module, path: Path | None) -> VisionLanguageEncoder:
    """A copy of a model that nothing has trained yet, as a fit begins with it.

    Args:
        encoder: The model with its random start.
        objectives: The task's, some of which may have weights in the file.
        path: Weights to start from, None for none.

    Raises:
        CheckpointError: As :func:`load_initial` does.
    """
    begun = copy.deepcopy(encoder)
    if path is not None:
        load_initial(nn.ModuleDict({"encoder": begun, "objectives": copy.deepcopy(objectives)}), path)
    begun.heads.copy_declared()
    return begun
