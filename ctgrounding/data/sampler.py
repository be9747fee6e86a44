"""Which scans a step shows: a pure function of seed, epoch and step, the same on every rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ctgrounding.data.keys import keyed_generator
from ctgrounding.errors import ConfigError


class Draw(NamedTuple):
    """A scan to show, and how often this epoch showed its study before."""

    position: int
    repeat: int


class Sampler(Protocol):
    """Gives the global batch of each step. ``len`` is the number of steps of an epoch, equal on every rank."""

    batch_size: int

    def __len__(self) -> int:
        """Steps of an epoch."""

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The scans of one step over all ranks."""


@dataclass(frozen=True)
class Source:
    """One of the sets that a training run mixes.

    Attributes:
        name: For messages and as part of the key.
        units: What is drawn: each unit is one scan, or the scans of a study of which one is drawn.
        weight: Share of the mixture before normalisation; None stands for the number of units.
    """

    name: str
    units: Sequence[tuple[int, ...]]
    weight: float | None = None


class TrainingSampler:
    """Shuffled batches of constant size from one or several sources.

    An epoch has as many steps as the units of all sources fill. Each source gives its share of them, spread
    evenly over the epoch, in an order shuffled anew in each epoch; one with fewer units than its share starts
    over, one with more shows a part.

    Args:
        sources: What to draw from.
        batch_size: Scans of a step over all ranks.
        seed: Key of the order.
        last_batch: ``drop`` leaves out the units that do not fill a last batch; ``wrap`` fills it by starting
            over.

    Raises:
        ConfigError: If there is nothing to draw, fewer units than a batch, or a weight that is not positive.

    Examples:
        >>> sampler = TrainingSampler([Source("all", [(0,), (1, 2), (3,)])], batch_size=2, seed=0)
        >>> len(sampler), len(sampler.batch(epoch=5, step=0))
        (1, 2)
    """

    def __init__(
        self, sources: Sequence[Source], batch_size: int, seed: int, last_batch: Literal["drop", "wrap"] = "drop"
    ) -> None:
        count = sum(len(source.units) for source in sources)
        empty = [source.name for source in sources if not source.units]
        if not count or empty:
            raise ConfigError(f"No training scans in {', '.join(empty) or 'data.shards'}. Check paths and splits.")
        wrong = [source.name for source in sources if source.weight is not None and not 0 < source.weight < math.inf]
        if wrong:
            raise ConfigError(
                f"The weight of {', '.join(wrong)} under data.shards must be positive and finite; remove it instead."
            )
        if batch_size < 1 or (count < batch_size and last_batch == "drop"):
            raise ConfigError(
                f"data.batch_size is {batch_size}, but there are {count} scans or studies to train on. "
                "Lower it, or set data.last_batch to wrap."
            )
        self.batch_size = batch_size
        self._sources = tuple(sources)
        self._seed = seed
        self._steps = count // batch_size if last_batch == "drop" else -(-count // batch_size)
        self._quotas = _quotas(self._steps * batch_size, sources)
        self._epoch = -1
        self._order: list[tuple[int, int, int]] = []

    def __len__(self) -> int:
        return self._steps

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The scans of one step over all ranks.

        Args:
            epoch: Counted from 0.
            step: Within the epoch, counted from 0.

        Raises:
            IndexError: If the epoch has no such step.
        """
        if not 0 <= step < self._steps:
            raise IndexError(f"Step {step} of an epoch of {self._steps}.")
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._shuffle(epoch)
        return [self._draw(epoch, *slot) for slot in self._order[step * self.batch_size : (step + 1) * self.batch_size]]

    def _shuffle(self, epoch: int) -> list[tuple[int, int, int]]:
        slots: list[tuple[float, int, tuple[int, int, int]]] = []
        for number, (source, quota) in enumerate(zip(self._sources, self._quotas, strict=True)):
            for repeat in range(-(-quota // len(source.units))):
                order = keyed_generator("order", self._seed, source.name, epoch, repeat).permutation(len(source.units))
                first = repeat * len(source.units)
                slots += [
                    ((first + i + 0.5) / quota, number, (number, int(unit), repeat))
                    for i, unit in enumerate(order[: quota - first])
                ]
        return [slot for _, _, slot in sorted(slots, key=lambda item: item[:2])]

    def _draw(self, epoch: int, number: int, unit: int, repeat: int) -> Draw:
        source = self._sources[number]
        scans = source.units[unit]
        if len(scans) == 1:
            return Draw(scans[0], repeat)
        pick = keyed_generator("reconstruction", self._seed, source.name, epoch, repeat, unit).integers(len(scans))
        return Draw(scans[int(pick)], repeat)


class FirstEpoch:
    """Another sampler's first epoch in every epoch: what ``trainer.overfit_batches`` takes a part of.

    Args:
        inner: Gives the draws.

    Examples:
        >>> sampler = FirstEpoch(TrainingSampler([Source("all", [(0,), (1,), (2,)])], batch_size=1, seed=0))
        >>> sampler.batch(epoch=5, step=0) == sampler.batch(epoch=0, step=0)
        True
    """

    def __init__(self, inner: Sampler) -> None:
        self.batch_size = inner.batch_size
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The scans of one step over all ranks, the same in every epoch."""
        return self._inner.batch(0, step)


class EvaluationSampler:
    """Every scan once and in order; the last batch may be smaller.

    Args:
        positions: The scans.
        batch_size: Scans of a step over all ranks.
    """

    def __init__(self, positions: Sequence[int], batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"The batch size of an evaluation is {batch_size}; it must be at least 1.")
        self.batch_size = batch_size
        self._positions = tuple(positions)

    def __len__(self) -> int:
        return -(-len(self._positions) // self.batch_size)

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The scans of one step over all ranks, the same in every epoch."""
        return [Draw(scan, 0) for scan in self._positions[step * self.batch_size : (step + 1) * self.batch_size]]


def share(
    batch: Sequence[Draw], batch_size: int, rank: int, world_size: int, micro_batch_size: int | None
) -> list[list[Draw]]:
    """One rank's part of a global batch, cut into micro-batches.

    The number of micro-batches follows from the sizes alone, so that every rank has as many in every step;
    the last ones of a short batch may be empty.

    Args:
        batch: The scans of the step over all ranks.
        batch_size: How many a full step has.
        rank: Of this process.
        world_size: Number of processes.
        micro_batch_size: Scans of a forward pass; all of the rank's part if None.

    Returns:
        The scans of each micro-batch; ranks' parts are contiguous and differ in size by one at most.
    """
    largest = -(-batch_size // world_size)
    micro = micro_batch_size or largest
    bounds = [len(batch) * r // world_size for r in (rank, rank + 1)]
    mine = list(batch[bounds[0] : bounds[1]])
    return [mine[k * micro : (k + 1) * micro] for k in range(-(-largest // micro))]


def _quotas(total: int, sources: Sequence[Source]) -> list[int]:
    weights = np.asarray([len(s.units) if s.weight is None else s.weight for s in sources], np.float64)
    exact = total * weights / weights.sum()
    quotas = np.floor(exact).astype(int)
    missing = np.argsort(quotas - exact, kind="stable")[: total - int(quotas.sum())]
    quotas[missing] += 1
    return [int(quota) for quota in quotas]
