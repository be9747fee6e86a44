"""Scans of like size side by side, so that little of a forward pass is padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

from ctgrounding.data.augment import Crop
from ctgrounding.data.index import ScanIndex
from ctgrounding.data.keys import keyed_generator
from ctgrounding.data.sampler import Draw, Sampler, share
from ctgrounding.errors import ConfigError


@dataclass(frozen=True)
class Buckets:
    """How scans are put together by size.

    The scans of ``steps`` neighbouring steps are sorted into groups of like size, along all axes that the crop
    leaves open, and the groups are dealt to these steps in an order drawn anew each time.

    Attributes:
        steps: Steps whose scans are sorted together; more waste less and mix the order of the epoch less.
        group: ``micro_batch``: the scans of a forward pass are of like size and a step holds several such groups, so
            that its negatives are of all sizes. ``step``: a whole step is of like size, so that all ranks have as
            much to do even with one forward pass each.

    Raises:
        ConfigError: If ``steps`` is not positive.

    Examples:
        >>> Buckets(steps=8, group="step")
        Buckets(steps=8, group='step')
    """

    steps: int = 16
    group: Literal["micro_batch", "step"] = "micro_batch"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"data.buckets.steps is {self.steps}; it must be at least 1.")

    def check(self, batch_size: int, micro_batch_size: int | None, crop: Crop, has_shares: bool) -> None:
        """Refuse what leaves buckets nothing to do, or undoes what something else promises.

        Raises:
            ConfigError: With the setting and what to set instead.
        """
        if crop.shape is not None and None not in crop.shape:
            raise ConfigError("data.crop shows boxes of one size, so data.buckets has nothing to do. Remove buckets.")
        if has_shares and self.steps > 1:
            raise ConfigError(
                f"data.shares gives every step its share, which data.buckets would mix over {self.steps} steps. "
                "Set data.buckets.steps to 1, or remove one of the two."
            )
        if self.group == "micro_batch" and (micro_batch_size is None or batch_size % micro_batch_size):
            raise ConfigError(
                f"data.buckets fills micro-batches, but data.micro_batch_size is {micro_batch_size} and "
                f"data.batch_size {batch_size}. Set a divisor of it, or data.buckets.group to step."
            )

    def check_ranks(self, batch_size: int, micro_batch_size: int, world_size: int) -> None:
        """Refuse ranks whose parts of a step do not consist of whole micro-batches.

        Raises:
            ConfigError: With the sizes.
        """
        if self.group == "micro_batch" and batch_size % (micro_batch_size * world_size):
            raise ConfigError(
                f"data.buckets fills micro-batches, but {batch_size} scans on {world_size} ranks are no whole "
                f"number of micro-batches of {micro_batch_size}. Change data.micro_batch_size, or set "
                "data.buckets.group to step."
            )


class BucketedSampler:
    """Another sampler's draws in an order that puts scans of like size side by side.

    A window of steps holds the draws that it had before; which step of it shows them changes. Like the draws, the
    order is a pure function of seed, epoch and step, so it does not depend on ranks or workers and needs no state.

    Args:
        inner: Gives the draws; all its steps have ``batch_size`` of them.
        sizes: Voxels along ``D H W`` that each scan shows.
        buckets: How to sort.
        micro_batch_size: Scans of a forward pass; unused by groups of whole steps.
        seed: Key of the order.

    Examples:
        >>> from ctgrounding.data.sampler import EvaluationSampler
        >>> sizes = np.array([[9, 1, 1], [3, 1, 1], [8, 1, 1], [4, 1, 1]])
        >>> sampler = BucketedSampler(EvaluationSampler(range(4), 2), sizes, Buckets(2, "step"), None, seed=0)
        >>> sorted(sorted(draw.position for draw in sampler.batch(0, step)) for step in range(2))
        [[0, 2], [1, 3]]
    """

    def __init__(
        self,
        inner: Sampler,
        sizes: Int64[np.ndarray, "scans 3"],
        buckets: Buckets,
        micro_batch_size: int | None,
        seed: int,
    ) -> None:
        self.batch_size = inner.batch_size
        self._inner, self._sizes, self._seed = inner, sizes, seed
        self._window_steps = buckets.steps
        self._group = inner.batch_size
        if buckets.group == "micro_batch" and micro_batch_size is not None:
            self._group = micro_batch_size
        self._window: tuple[int, int] | None = None
        self._order: list[list[Draw]] = []

    def __len__(self) -> int:
        return len(self._inner)

    def batch(self, epoch: int, step: int) -> list[Draw]:
        """The scans of one step over all ranks.

        Args:
            epoch: Counted from 0.
            step: Within the epoch, counted from 0.

        Raises:
            IndexError: If the epoch has no such step.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"Step {step} of an epoch of {len(self)}.")
        window, place = divmod(step, self._window_steps)
        if self._window != (epoch, window):
            self._window, self._order = (epoch, window), self._deal(epoch, window)
        return self._order[place]

    def _deal(self, epoch: int, window: int) -> list[list[Draw]]:
        first = window * self._window_steps
        steps = range(first, min(first + self._window_steps, len(self)))
        draws = [draw for step in steps for draw in self._inner.batch(epoch, step)]
        groups = alike(self._sizes[[draw.position for draw in draws]], self._group)
        order = keyed_generator("buckets", self._seed, epoch, window).permutation(len(groups))
        dealt = [draws[place] for group in order for place in groups[group]]
        return [dealt[k * self.batch_size : (k + 1) * self.batch_size] for k in range(len(steps))]


def alike(sizes: Int64[np.ndarray, "n 3"], group: int) -> list[list[int]]:
    """Rows in groups of ``group`` whose sizes are near each other along every axis.

    They are halved again and again along the axis in which they differ most, at a multiple of ``group``; inside a
    group too, so that neighbours are near.

    Args:
        sizes: Positive.
        group: Rows of a group; the last one may have fewer.

    Examples:
        >>> alike(np.array([[9, 1, 1], [3, 1, 1], [8, 1, 1], [4, 1, 1]]), 2)
        [[1, 3], [2, 0]]
    """

    def ordered(rows: list[int]) -> list[int]:
        if len(rows) < 2:
            return rows
        mine = sizes[rows]
        axis = int(np.argmax(mine.max(0) / mine.min(0)))
        rows = [rows[place] for place in np.argsort(mine[:, axis], kind="stable")]
        half = len(rows) // 2 // group * group or (group if len(rows) > group else len(rows) // 2)
        return ordered(rows[:half]) + ordered(rows[half:])

    order = ordered(list(range(len(sizes))))
    return [order[start : start + group] for start in range(0, len(order), group)]


def shown_sizes(scans: ScanIndex, crop: Crop) -> Int64[np.ndarray, "scans 3"]:
    """Voxels along ``D H W`` that a sample of each scan has in a batch at least."""
    sizes = np.zeros((len(scans), 3), np.int64)
    for position in range(len(scans)):
        record = scans.record(position)
        extent = crop.extent_vox(record.spacing_mm)
        sizes[position] = [side if n is None else n for n, side in zip(extent, record.shape, strict=True)]
    return sizes


def padding_share(sampler: Sampler, sizes: Int64[np.ndarray, "scans 3"], micro_batch_size: int | None) -> float:
    """Share of an epoch's voxels (or cells, if sizes count these) that are padding, for one rank.

    Args:
        sampler: Gives the scans.
        sizes: Size of each scan along ``D H W``.
        micro_batch_size: Scans of a forward pass; the whole step if None.
    """
    shown, padded = 0.0, 0.0
    for step in range(len(sampler)):
        for micro in share(sampler.batch(0, step), sampler.batch_size, 0, 1, micro_batch_size):
            mine = sizes[[draw.position for draw in micro]]
            shown += float(mine.prod(1).sum())
            padded += float(len(mine) * mine.max(0, initial=0).prod())
    return 1 - shown / padded if padded else 0.0


def bucketed(
    inner: Sampler, scans: ScanIndex, crop: Crop, buckets: Buckets, micro_batch_size: int | None, seed: int
) -> tuple[BucketedSampler, Sequence[float]]:
    """A sampler by size, and the share of padding without and with it."""
    sizes = shown_sizes(scans, crop)
    sampler = BucketedSampler(inner, sizes, buckets, micro_batch_size, seed)
    return sampler, [padding_share(each, sizes, micro_batch_size) for each in (inner, sampler)]
