"""Which part of a scan a sample shows."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ctgrounding.errors import ConfigError

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Crop:
    """The box of a scan that a sample shows.

    Random starts are drawn uniformly from the multiples of ``start_multiple`` and the last possible start, so
    that every voxel can be seen. Multiples of 16 or 32 voxels save up to half of the reading time, because
    shards are cut in chunks of (32, 64, 64).

    Args:
        shape: Extent along ``D H W`` in ``unit``; null for an axis, or altogether, shows the whole axis. An
            axis that is shorter than that is shown whole; the batch is padded to the extent.
        unit: ``voxel`` or ``mm``; mm are rounded to whole voxels of the scan.
        start_multiple: Voxels that random starts are multiples of, for all axes or each.
        place: ``random`` (keyed by seed, epoch and scan) or ``centre``.

    Raises:
        ConfigError: If an extent or a multiple is not positive, or not finite.

    Examples:
        >>> Crop(shape=(96, 192, None), unit="mm", place="centre").box((64, 256, 200), (3.0, 1.5, 1.5))
        ((16, 64, 0), (32, 128, 200))
    """

    shape: tuple[float | None, float | None, float | None] | None = None
    unit: Literal["voxel", "mm"] = "voxel"
    start_multiple: int | tuple[int, int, int] = 1
    place: Literal["random", "centre"] = "random"

    def __post_init__(self) -> None:
        extents = [extent for extent in self.shape or () if extent is not None]
        if not all(0 < extent < math.inf for extent in extents):
            raise ConfigError(
                f"data.crop.shape is {self.shape}; extents must be positive and finite, or null for a whole axis."
            )
        if min(self._multiples()) < 1:
            raise ConfigError(f"data.crop.start_multiple is {self.start_multiple}; it must be at least 1.")

    def box(
        self, scan_shape: Triple, spacing_mm: tuple[float, float, float], generator: np.random.Generator | None = None
    ) -> tuple[Triple, Triple]:
        """First voxel and extent of the crop in a scan.

        Args:
            scan_shape: Voxels of the scan along ``D H W``.
            spacing_mm: Its spacing.
            generator: Source of a random place; the centre is taken without one.
        """
        extent = self.extent_vox(spacing_mm)
        shape = tuple(side if n is None else min(n, side) for n, side in zip(extent, scan_shape, strict=True))
        room = [side - n for side, n in zip(scan_shape, shape, strict=True)]
        if generator is None or self.place == "centre":
            start = [free // 2 for free in room]
        else:
            start = [_random_start(free, m, generator) for free, m in zip(room, self._multiples(), strict=True)]
        return (start[0], start[1], start[2]), (shape[0], shape[1], shape[2])

    def extent_vox(self, spacing_mm: tuple[float, float, float]) -> tuple[int | None, int | None, int | None]:
        """Voxels that the crop has along each axis, None where it shows the whole axis."""
        if self.shape is None:
            return None, None, None
        scale = spacing_mm if self.unit == "mm" else (1.0, 1.0, 1.0)
        d, h, w = (None if n is None else max(1, round(n / mm)) for n, mm in zip(self.shape, scale, strict=True))
        return d, h, w

    def _multiples(self) -> Triple:
        multiple = self.start_multiple
        return (multiple, multiple, multiple) if isinstance(multiple, int) else multiple


def _random_start(room: int, multiple: int, generator: np.random.Generator) -> int:
    steps = -(-room // multiple)
    return min(room, multiple * int(generator.integers(0, steps + 1)))
