"""Linear interpolation for sources whose axes are those of the grid: one axis at a time, one plane at a time.

Nearly every CT is such a source, whatever the order and direction of its axes. Interpolating along depth, height and
width in turn gives the same values as doing all at once, needs two reads an axis instead of eight a voxel, and never
holds more than a few planes beside source and result.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int16, Int64, Shaped

from ctgrounding.geometry import Affine, Triple


@dataclass(frozen=True)
class Line:
    """How the voxels of one grid axis lie along one source axis.

    Attributes:
        before: Source index at or before each voxel.
        after: The next one; the same at the last.
        share: Weight of ``after``.
        inside: Voxels that lie in the source, the outer halves of its border voxels included.
    """

    before: Int64[np.ndarray, "n"]
    after: Int64[np.ndarray, "n"]
    share: Float32[np.ndarray, "n"]
    inside: slice

    @classmethod
    def of(cls, step: float, start: float, size: int, count: int) -> "Line":
        """The line of ``count`` voxels at source indices ``start + step * n``, along ``size`` source voxels."""
        places = start + step * np.arange(count)
        inside = np.flatnonzero((places >= -0.5) & (places <= size - 0.5))
        kept = np.clip(places[inside], 0, size - 1)
        before = np.minimum(kept.astype(np.int64), max(size - 2, 0))
        after = np.minimum(before + 1, size - 1)
        first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        return cls(before, after, (kept - before).astype(np.float32), slice(first, last))


def is_aligned(matrix: Affine) -> bool:
    """Whether each grid axis runs along one source axis, so that :func:`interpolate_aligned` applies."""
    return int((np.abs(matrix[:3, :3]) > 1e-9).sum()) == 3


def interpolate_aligned(
    values: Shaped[np.ndarray, "k j i"], matrix: Affine, shape: Triple, outside: int
) -> Int16[np.ndarray, "D H W"]:
    """Interpolate a source on a grid, rounded to whole numbers.

    Differs from ITK's linear interpolation only in precision: single instead of double, which rounds about one voxel in
    ten thousand to the neighbouring whole number.

    Args:
        values: The source, within the range of int16.
        matrix: Maps grid index ``(w, h, d)`` to source index ``(i, j, k)``; see :func:`is_aligned`.
        shape: Of the grid, ``D H W``.
        outside: Value of voxels outside the source.
    """
    source_axes = [int(np.abs(matrix[:3, column]).argmax()) for column in (2, 1, 0)]
    source = values.transpose([2 - axis for axis in source_axes])
    depth, height, width = (
        Line.of(float(matrix[axis, column]), float(matrix[axis, 3]), source.shape[2 - column], shape[2 - column])
        for axis, column in zip(source_axes, (2, 1, 0), strict=True)
    )
    result = np.full(shape, outside, np.int16)
    rows_share, columns_share = height.share[:, None], width.share
    planes = _Planes(source)
    for place, before, after, share in zip(
        range(depth.inside.start, depth.inside.stop), depth.before, depth.after, depth.share, strict=True
    ):
        plane = planes.between(int(before), int(after), float(share))
        plane = _between(plane.take(height.before, 0), plane.take(height.after, 0), rows_share)
        plane = _between(plane.take(width.before, 1), plane.take(width.after, 1), columns_share)
        result[place, height.inside, width.inside] = np.rint(plane, out=plane)
    return result


class _Planes:
    """Planes of a source in single precision; the two that were used last are kept."""

    def __init__(self, source: Shaped[np.ndarray, "D H W"]) -> None:
        self._source = source
        self._kept: dict[int, Float32[np.ndarray, "H W"]] = {}

    def between(self, before: int, after: int, share: float) -> Float32[np.ndarray, "H W"]:
        """The plane that lies ``share`` of the way from one to the next."""
        found = {index: self._kept.get(index) for index in {before, after}}
        self._kept = {
            index: self._source[index].astype(np.float32, order="C") if plane is None else plane
            for index, plane in found.items()
        }
        first, second = self._kept[before], self._kept[after]
        return first if share == 0 else _between(first, second.copy(), share)


def _between(
    first: Float32[np.ndarray, "H W"],
    second: Float32[np.ndarray, "H W"],
    share: Float32[np.ndarray, "..."] | float,
) -> Float32[np.ndarray, "H W"]:
    """``first + share * (second - first)``, in the memory of ``second``."""
    np.subtract(second, first, out=second)
    np.multiply(second, share, out=second)
    np.add(second, first, out=second)
    return second
