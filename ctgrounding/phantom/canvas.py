"""Paints parts onto a scan's grid. All that a patient is made of, organs and lesions alike, is a list of parts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
from jaxtyping import Float, Float32, UInt8

from ctgrounding import label_sets
from ctgrounding.phantom.shapes import Box, Depth, Shape

Texture = Callable[[Depth, Depth, Depth, Depth], Depth]
"""HU as a function of x, y, z (mm, body coordinates, broadcastable) and depth (mm below the surface)."""
SLAB_VOXELS = 1 << 15
"""Large parts are painted in slabs of so many voxels, which stay in the processor's cache."""


@dataclass(frozen=True)
class Part:
    """One shape of a patient, ready to be painted.

    Attributes:
        shape: Where.
        hu: Its HU, or a texture that gives HU by place; None leaves them.
        organ: Organ whose label it takes (TotalSegmentator v2); "" takes labels away, None leaves them.
        only_in: Paint only where one of these organs already is; empty paints everywhere.
    """

    shape: Shape
    hu: float | Texture | None
    organ: str | None = None
    only_in: tuple[str, ...] = ()


class Canvas:
    """A scan being painted: HU and organ labels on a grid that may be tilted against the body.

    Edges are blended over one voxel, as a scanner's are, and a voxel takes a label where at least half
    of it is covered.

    Args:
        shape: Voxels along ``D H W``.
        affine: Maps ``(w, h, d, 1)`` to body coordinates in mm.
    """

    def __init__(self, shape: tuple[int, int, int], affine: Float[np.ndarray, "4 4"]) -> None:
        self.image_hu: Float32[np.ndarray, "d h w"] = np.full(shape, -1000.0, np.float32)
        self.organs: UInt8[np.ndarray, "d h w"] = np.zeros(shape, np.uint8)
        inverse = np.linalg.inv(affine)
        self._to_index = inverse[:3, :3][::-1], inverse[:3, 3][::-1]
        self._reach = np.abs(self._to_index[0])
        self._per_edge = np.float32(1 / np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
        self._steps = [self._along(affine, row) for row in range(3)]

    def paint(self, part: Part) -> None:
        """Blend one part over what is there."""
        window = self._window(part.shape.box_mm())
        if window is None:
            return
        d, h, w = window
        slices = max(SLAB_VOXELS // ((h.stop - h.start) * (w.stop - w.start)), 1)
        for start in range(d.start, d.stop, slices):
            self._paint_slab(part, (slice(start, min(start + slices, d.stop)), h, w))

    def _paint_slab(self, part: Part, window: tuple[slice, slice, slice]) -> None:
        x, y, z = self._coordinates(window)
        depth = part.shape.depth_mm(x, y, z)
        cover = depth * self._per_edge + np.float32(0.5)
        np.minimum(np.maximum(cover, 0, out=cover), 1, out=cover)
        labels = self.organs[window]
        if part.only_in:
            cover = cover * np.isin(labels, [_label_of(organ) for organ in part.only_in])
        if part.hu is not None:
            image_hu = self.image_hu[window]
            hu = part.hu(x, y, z, depth) if callable(part.hu) else np.float32(part.hu)
            image_hu += cover * (hu - image_hu)
        if part.organ is not None:
            labels[cover >= 0.5] = _label_of(part.organ) if part.organ else 0

    def _along(self, affine: Float[np.ndarray, "4 4"], row: int) -> list[tuple[int, Depth]]:
        """One world coordinate as a sum of what each array axis that matters gives to it."""
        terms: list[tuple[int, Depth]] = []
        for axis, column in enumerate((2, 1, 0)):
            if abs(affine[row, column]) > 1e-9:
                start = 0.0 if terms else affine[row, 3]
                places = start + affine[row, column] * np.arange(self.image_hu.shape[axis])
                terms.append((axis, places.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])))
        return terms

    def _coordinates(self, window: tuple[slice, slice, slice]) -> tuple[Depth, Depth, Depth]:
        """World x, y, z of a window, each no larger than it must be: one axis long where the grid is straight."""
        d, h, w = window
        only = ((d, slice(None), slice(None)), (slice(None), h, slice(None)), (slice(None), slice(None), w))
        x, y, z = (reduce(np.add, [places[only[axis]] for axis, places in terms]) for terms in self._steps)
        return x, y, z

    def _window(self, box: Box) -> tuple[slice, slice, slice] | None:
        (x0, y0, z0), (x1, y1, z1) = box
        matrix, shift = self._to_index
        centre = matrix @ ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2) + shift
        half = self._reach @ ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2)
        window = []
        for middle, reach, size in zip(centre.tolist(), half.tolist(), self.image_hu.shape, strict=True):
            low, high = max(int(middle - reach), 0), min(int(middle + reach) + 2, size)
            if high <= low or middle + reach < -1:
                return None
            window.append(slice(low, high))
        d, h, w = window
        return d, h, w


@cache
def _label_of(organ: str) -> int:
    return label_sets.label_of(organ)
