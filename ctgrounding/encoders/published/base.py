"""What an import reads and what it makes."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ctgrounding.errors import CheckpointError


class Checkpoint:
    """Tensors of a published checkpoint, each of which must be taken or named as not needed.

    Args:
        tensors: Name to tensor.

    Attributes:
        left_out: Names of tensors that were not needed, and why.

    Examples:
        >>> checkpoint = Checkpoint({"norm.weight": torch.ones(4), "rope.periods": torch.ones(2)})
        >>> checkpoint.leave_out("rope.periods", "computed anew")
        >>> checkpoint.take("norm.weight", (4,)).shape
        torch.Size([4])
        >>> checkpoint.finish()
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._taken: set[str] = set()
        self.left_out: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, which is not taken by asking.

        Raises:
            CheckpointError: If there is none of that name.
        """
        return tuple(self._find(name).shape)

    def take(self, name: str, shape: Sequence[int] | None = None) -> Tensor:
        """A tensor in float32 (integers as they are).

        Args:
            name: Its name.
            shape: Shape it must have.

        Raises:
            CheckpointError: If there is none of that name, it has another shape, or a number is not finite.
        """
        value = self._find(name)
        if shape is not None and tuple(value.shape) != tuple(shape):
            raise CheckpointError(
                f"Tensor '{name}' has shape {tuple(value.shape)}, but the other tensors of this checkpoint call for "
                f"{tuple(shape)}. It is not a checkpoint of this model."
            )
        if value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all()):
            raise CheckpointError(f"Tensor '{name}' holds numbers that are not finite. The file is damaged.")
        self._taken.add(name)
        return value.float() if value.is_floating_point() else value

    def leave_out(self, pattern: str, reason: str) -> None:
        """Name tensors that are not needed; a pattern (regular expression) that fits none is legal."""
        for name in self._open():
            if re.fullmatch(pattern, name):
                self.left_out[name] = reason

    def blocks(self, prefix: str) -> int:
        """How many numbered parts there are, such as ``blocks.0.`` to ``blocks.23.``.

        Raises:
            CheckpointError: If there is none.
        """
        found = {int(match[1]) for name in self._tensors if (match := re.match(rf"{re.escape(prefix)}(\d+)\.", name))}
        if found != set(range(len(found))) or not found:
            raise CheckpointError(
                f"The checkpoint has no parts '{prefix}0', '{prefix}1' and so on. Is it of this model?"
            )
        return len(found)

    def finish(self) -> None:
        """Refuse to forget anything.

        Raises:
            CheckpointError: If a tensor was neither taken nor named.
        """
        rest = self._open()
        if rest:
            raise CheckpointError(
                f"{len(rest)} tensors of the checkpoint are not known for this model, such as '{rest[0]}'. "
                "It is another variant; nothing was written."
            )

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(
                f"The checkpoint has no tensor '{name}'; it starts with {sorted(self._tensors)[:3]}. "
                "Is it of the model that --from names?"
            )
        return self._tensors[name]

    def _open(self) -> list[str]:
        return [name for name in self._tensors if name not in self._taken and name not in self.left_out]


@dataclass(frozen=True)
class TextFolder:
    """A text tower for a ``transformers`` folder, without its tokenizer.

    Attributes:
        config: Contents of ``config.json``.
        tensors: Contents of ``model.safetensors``.
        tokenizer: Where the tokenizer's files are published.
        pooling: How the model makes one vector of a text.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: str
    pooling: Literal["first", "last"]


@dataclass(frozen=True)
class Imported:
    """Published weights under our names.

    Attributes:
        weights: Tensors under the names of a run's model, for ``model.initial_weights``.
        model: Sections ``image``, ``readouts`` and ``heads`` of a run config that the weights fit.
        licence: Of code and weights, as their authors state it.
        left_out: Tensors of the checkpoint that were not needed, and why.
        text: The text tower, where the checkpoint has one.
        notes: What a user should know.
    """

    weights: dict[str, Tensor]
    model: dict[str, Any]
    licence: str
    left_out: dict[str, str]
    text: TextFolder | None = None
    notes: list[str] = field(default_factory=list)


def check_complete(make: Callable[[], nn.Module], weights: Mapping[str, Tensor], prefix: str) -> None:
    """Check that weights fill a module: every tensor of it, in its shape, and nothing else.

    Args:
        make: Makes the module; called on the meta device, so its size costs no memory.
        weights: Imported tensors.
        prefix: Start of those that belong to the module.

    Raises:
        CheckpointError: If one is missing, unknown or of another shape.
    """
    with torch.device("meta"):
        expected = {prefix + name: tuple(value.shape) for name, value in make().state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items() if name.startswith(prefix)}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        name = different[0]
        raise CheckpointError(
            f"{len(different)} imported tensors do not fit the model, first '{name}': it needs "
            f"{expected.get(name, 'no such tensor')}, the checkpoint gives {found.get(name, 'none')}."
        )


def unit_range(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear map of inputs in [0, 1] as one of the same inputs in [-1, 1].

    Args:
        weight: Outputs first; every further axis is of the input.
        bias: One number an output.
    """
    return weight / 2, bias + weight.flatten(1).double().sum(1).float() / 2
