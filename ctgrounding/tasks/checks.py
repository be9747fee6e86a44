"""What a task refuses before a step is taken, each in one sentence."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.errors import CheckpointError, ConfigError

_PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
"""Those that keep weights in float32 at least; the last one is refused where it scales losses."""

_REFUSED_CALLBACKS = {
    "GradientAccumulationScheduler": "Contrastive losses do not add up over batches; remove it and set data.batch_size "
    "and data.micro_batch_size, which is exact.",
    "BatchSizeFinder": "data.batch_size is part of a contrastive loss; remove it and set data.micro_batch_size to what "
    "fits the memory.",
    "LearningRateFinder": "It cannot reach the rates of an optimizer recipe; remove it and set model.optimizer.",
}


def check_roles(objectives: Mapping[str, object], weights: Mapping[str, object]) -> None:
    """Refuse a role that has an objective without a weight, or the reverse, and a weight that is none.

    Raises:
        ConfigError: With the roles.
    """
    for name, here, there in (("weights", weights, objectives), ("objectives", objectives, weights)):
        lonely = sorted(set(here) - set(there))
        if lonely:
            raise ConfigError(
                f"model.{name} has {lonely}, but model.{'objectives' if name == 'weights' else 'weights'} has only "
                f"{sorted(there)}. Give each role an objective and a weight."
            )
    for role, weight in weights.items():
        if isinstance(weight, int | float) and not 0 <= weight < math.inf:
            raise ConfigError(f"model.weights.{role} is {weight}, but must be a number from 0 on.")


def check_numbers(texts_per_pass: int | None, seed: int) -> None:
    """Refuse numbers that no step can be made with.

    Raises:
        ConfigError: With the number.
    """
    if texts_per_pass is not None and texts_per_pass < 1:
        raise ConfigError(f"model.texts_per_pass is {texts_per_pass}; it must be at least 1, or null for all at once.")
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"model.seed is {seed}, which has more than 64 bits. Give a smaller one.")


def check_trainer(trainer: Any) -> None:  # noqa: ANN401 (Lightning's plugins have no common type)
    """Refuse trainer settings under which a step would not be exact.

    Raises:
        ConfigError: With the setting, the reason, and what to set instead.
    """
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}. Contrastive losses do not add up "
            "over batches; leave it at 1 and set data.batch_size and data.micro_batch_size, which is exact."
        )
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise ConfigError("trainer.precision 16-mixed scales losses, which replays cannot. Use bf16-mixed or 32-true.")
    if str(trainer.precision) not in _PRECISIONS:
        raise ConfigError(
            f"trainer.precision {trainer.precision} keeps weights and HU in few bits, while readouts and losses are in "
            "float32. Use bf16-mixed, which computes in bfloat16, or 32-true."
        )
    if getattr(trainer.strategy, "_ddp_kwargs", {}).get("static_graph"):
        raise ConfigError(
            "static_graph makes DDP train silently wrong weights when a step has several backward passes. Turn it off."
        )


def check_callbacks(callbacks: Iterable[object]) -> None:
    """Refuse Lightning's callbacks that would change what a step is, of which the first would lose gradients.

    Raises:
        ConfigError: With the callback and what to set instead.
    """
    for name in (type(callback).__name__ for callback in callbacks):
        if name in _REFUSED_CALLBACKS:
            raise ConfigError(f"trainer.callbacks has {name}. {_REFUSED_CALLBACKS[name]}")


def check_labels(columns: tuple[str, ...] | None, users: Mapping[str, object]) -> None:
    """Refuse label columns in another order than those who read them: labels are columns without names.

    Args:
        columns: The data's label columns, None where unknown.
        users: Configuration key to objective or evaluator.

    Raises:
        ConfigError: With the key.
    """
    for key, user in users.items():
        asked = getattr(user, "questions", None)
        if columns is not None and asked is not None and tuple(item.name for item in asked) != tuple(columns):
            raise ConfigError(
                f"{key} asks {len(asked)} questions from '{asked[0].name}' on, but data has {len(columns)} label "
                f"columns from '{columns[0] if columns else ''}' on. Set data.label_names to that question list."
            )


def check_spacing(data_mm: tuple[float, float, float] | None, image: ImageEncoder) -> None:
    """Refuse shards of another voxel size than the image encoder is made for.

    Raises:
        ConfigError: With both.
    """
    if data_mm is not None and any(abs(a - b) > 1e-3 for a, b in zip(data_mm, image.spacing_mm, strict=True)):
        raise ConfigError(
            f"The shards have voxels of {data_mm} mm (D, H, W) and model.image is made for {image.spacing_mm} mm. "
            "Set model.image.init_args.spacing_mm, or ingest with --spacing_mm."
        )


def leave_out_objectives(found: dict[str, Any], roles: Collection[str]) -> dict[str, int]:
    """Take the tensors of objectives that are switched off from a checkpoint's.

    Args:
        found: Name to tensor, as the task has them; changed in place.
        roles: Of the objectives.

    Returns:
        Role to number of tensors, of the roles that had any.
    """
    counts: dict[str, int] = {}
    for role in roles:
        names = [name for name in found if name.startswith(f"objectives.{role}.")]
        for name in names:
            del found[name]
        counts |= {role: len(names)} if names else {}
    return counts


def check_fits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse weights of another model.

    Raises:
        CheckpointError: With the first tensors that are missing, unknown or of another shape.
    """
    missing = sorted(set(expected) - set(found))
    unknown = sorted(set(found) - set(expected))
    other = [name for name in sorted(set(expected) & set(found)) if expected[name].shape != found[name].shape]
    named = (("missing", missing), ("unknown", unknown), ("of another shape", other))
    faults = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in named if names]
    if faults:
        raise CheckpointError(
            f"The checkpoint does not fit this configuration: {'; '.join(faults)}. "
            "Use the config.yaml beside the checkpoint, or fit again."
        )
