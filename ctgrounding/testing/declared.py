"""A view of a step that gives an objective only what it declared, and notes what it took."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, cast

from torch import Tensor

from ctgrounding.testing.outcome import ContractError
from ctgrounding.types import Batch, Encoded

_FIELDS_OF_READOUT = {
    "depth_valid": "depth",
    "depth_mm": "depth",
    "organ_scan": "organ",
    "organ_class": "organ",
    "organ_visible": "organ",
}


class Declared:
    """Guard for :func:`ctgrounding.testing.outcome.run_step`.

    Attributes:
        requires: What the objective declared.
        used: What it took so far.
    """

    def __init__(self, requires: frozenset[str]) -> None:
        self.requires, self.used = requires, set[str]()

    def take(self, key: str) -> None:
        """Note that a key is read.

        Raises:
            ContractError: If it was not declared.
        """
        if key not in self.requires:
            raise ContractError("declared keys", f"'{key}' is read but not declared. Add it to 'requires'.")
        self.used.add(key)

    def apply(self, encoded: Encoded, batch: Batch) -> tuple[Encoded, Batch]:
        """The same step behind this guard."""
        values: dict[str, Any] = {item.name: getattr(encoded, item.name) for item in fields(encoded)}
        values["readouts"] = _GuardedReadouts(values["readouts"], self)
        guarded = _GuardedEncoded(**values)
        object.__setattr__(guarded, "guard", self)
        return guarded, cast(Batch, _GuardedBatch(cast(dict[str, object], batch), self))


class _GuardedReadouts(Mapping[str, Tensor]):
    def __init__(self, readouts: Mapping[str, Tensor], guard: Declared) -> None:
        self._readouts, self._guard = readouts, guard

    def __getitem__(self, name: str) -> Tensor:
        self._guard.take(name)
        return self._readouts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readouts)

    def __len__(self) -> int:
        return len(self._readouts)


class _GuardedEncoded(Encoded):
    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401
        guard = object.__getattribute__(self, "__dict__").get("guard")
        if guard is not None and name in _FIELDS_OF_READOUT:
            guard.take(_FIELDS_OF_READOUT[name])
        return object.__getattribute__(self, name)


class _GuardedBatch(dict[str, object]):
    def __init__(self, batch: dict[str, object], guard: Declared) -> None:
        super().__init__(batch)
        self._guard = guard

    def __getitem__(self, key: str) -> object:
        self._guard.take(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._guard.take(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: object = None) -> object:
        """The value of a declared key."""
        self._guard.take(key)
        return super().get(key, default)
