"""What an evaluator is: fed like an objective, answers with named numbers that know their protocol."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Shaped

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.rows import Rows, Table
from ctgrounding.functional.bootstrap import Bootstrap, Interval, Method, Statistic, draw_clusters
from ctgrounding.types import Batch, Encoded


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: by drawing whole patients.

    Attributes:
        resamples: Number of draws.
        level: Chance in (0, 1) that the interval holds the value.
        method: ``percentile`` or ``bca``.
        seed: Of the draws, from 0 on; runs compared with each other need the same.

    Raises:
        ConfigError: If the number of resamples, the level, the method or the seed is none.
    """

    resamples: int = 1000
    level: float = 0.95
    method: Method = "percentile"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ConfigError(f"resamples is {self.resamples}, but must be at least 1; 1000 make good intervals.")
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level}, but a chance lies between 0 and 1. Use 0.95, for example.")
        if self.method not in ("percentile", "bca"):
            raise ConfigError(f"method is '{self.method}', but an interval is 'percentile' or 'bca'.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}, but must be a number from 0 on.")

    def interval(self, statistic: Statistic, patients: Shaped[np.ndarray, "n"]) -> Interval:
        """Estimate and bounds of a statistic of rows that belong to ``patients``."""
        draws = draw_clusters(patients, self.resamples, self.seed)
        return Bootstrap(statistic, draws).interval(self.level, self.method)

    def described(self) -> str:
        """One line for the protocol of a number."""
        return f"{self.level:.0%} {self.method} interval, {self.resamples} draws of patients, seed {self.seed}"


@dataclass(frozen=True)
class Reads:
    """Embeddings that an evaluator reads, so that they can be saved and fed to it later.

    Attributes:
        image: Pairs of readout and image head.
        text: Text heads.
    """

    image: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    text: frozenset[str] = field(default_factory=frozenset)


class Evaluator(ABC):
    """Collects rows from encoded batches and turns them into numbers.

    Built from configuration; heads are named and an unknown name is an error of the model's head bank.
    ``update`` sees this rank's batches only. ``compute`` and ``results`` are collectives: every rank calls
    both, in this order, and every rank gets the same answer, that of one process on all scans.

    Attributes:
        requires: Batch keys and readouts that it reads.
        wants_validation: Whether it chooses something, such as thresholds, on validation patients first.
        prefix: Stands before the names of its numbers; a published protocol's name, for example.
    """

    requires: ClassVar[frozenset[str]]
    wants_validation: bool = False
    prefix: str = ""

    def __init__(self) -> None:
        self.rows = Rows()
        self.validation = Rows()
        self.label_names: tuple[str, ...] = ()

    def fixed_texts(self) -> Sequence[str]:
        """Texts that it needs besides those of a batch; ``encoded.planned_text`` points at their vectors."""
        return ()

    @abstractmethod
    def reads(self) -> Reads:
        """Embeddings that ``update`` asks for."""

    def reset(self) -> None:
        """Forget all rows, before another pass over the data."""
        self.rows = Rows()
        self.validation = Rows()

    def use_label_names(self, names: Sequence[str]) -> None:
        """Take the names of the batches' label columns; kept over resets.

        Raises:
            ConfigError: If it needs a column that is not among them.
        """
        self.label_names = tuple(names)

    def update_validation(self, encoded: Encoded, batch: Batch) -> None:
        """Add validation scans, on which it chooses what it must not choose on the evaluated ones.

        Raises:
            ConfigError: As :meth:`update` does.
            BatchError: As :meth:`update` does.
        """
        evaluated, self.rows = self.rows, self.validation
        try:
            self.update(encoded, batch)
        finally:
            self.rows = evaluated

    def validation_table(self) -> Table:
        """All ranks' validation rows; a collective the first time.

        Raises:
            ConfigError: If a patient is among the evaluated ones too.
        """
        chosen_on, judged_on = self.validation.table(), self.rows.table()
        if len(chosen_on) and len(judged_on):
            both = set(chosen_on.array("patient").tolist()) & set(judged_on.array("patient").tolist())
            if both:
                raise ConfigError(
                    f"{len(both)} patients are among the validation scans and among the evaluated ones, so thresholds "
                    "would be chosen on what they are judged on. Give other validation patients."
                )
        return chosen_on

    @abstractmethod
    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Add the scans of a batch.

        Raises:
            ConfigError: If a head or readout that it names does not exist.
            BatchError: If the batch cannot be evaluated.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The numbers by full name, such as ``snippet_localization/mae_mm``; what has no value is left out."""

    @abstractmethod
    def results(self) -> Mapping[str, Any]:
        """The numbers in full, as JSON values: tables, curves, examples, and the protocol they belong to."""


def bounds(name: str, interval: Interval, column: int = 0, unit: str = "") -> dict[str, float]:
    """An interval as flat names: ``name_ci_low`` and ``name_ci_high``, with a unit at the end."""
    return {
        f"{name}_ci_low{unit}": float(interval.low[column]),
        f"{name}_ci_high{unit}": float(interval.high[column]),
    }
