"""Solid shapes in mm and the canvas that paints them onto a scan's grid.

A shape answers two questions: which box holds it, and how deep inside it a point lies. Everything a
patient is made of, organs and lesions alike, is a list of :class:`Part`, painted in order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray

from ctgrounding import label_sets

Point = tuple[float, float, float]
Box = tuple[Point, Point]
Depth = NDArray[np.float32]
"""Values on a window of voxels, ``d h w``; an axis along which nothing changes may have size one."""
Texture = Callable[[Depth, Depth, Depth, Depth], Depth]
"""HU as a function of x, y, z (mm, body coordinates, broadcastable) and depth (mm below the surface)."""


class Shape(Protocol):
    """A solid in body coordinates: x to the patient's right, y anterior, z superior, in mm."""

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds the shape."""

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Distance below the surface, negative outside; exact enough near the surface to blend edges."""


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid whose surface ripples a little, so that no two organs are alike.

    Attributes:
        centre_mm: Centre.
        radii_mm: Semi-axes before rotation.
        tilt_deg: Rotation about y (in the coronal plane), then about z (in the axial plane).
        ripple: Share of the radius by which the surface goes in and out, in [0, 0.2].
        phase: Where the ripple starts, in radians.
    """

    centre_mm: Point
    radii_mm: Point
    tilt_deg: tuple[float, float] = (0.0, 0.0)
    ripple: float = 0.0
    phase: float = 0.0

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds the shape."""
        reach = np.sqrt(((self._axes() * np.array(self.radii_mm)[:, None]) ** 2).sum(0)) * (1 + self.ripple)
        low, high = np.array(self.centre_mm) - reach, np.array(self.centre_mm) + reach
        return tuple(low.tolist()), tuple(high.tolist())

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """First-order distance k0 (1 - k0) / k1 with k0 = |p / r| and k1 = |p / r^2|, negative outside."""
        dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), self.centre_mm, strict=True))
        if self.tilt_deg != (0.0, 0.0):
            dx, dy, dz = (a * dx + b * dy + c * dz for a, b, c in self._axes().astype(np.float32))
        inverse = [np.float32(1 / r) for r in self.radii_mm]
        u, v, w = ((d * i) ** 2 for d, i in zip((dx, dy, dz), inverse, strict=True))
        k0 = np.sqrt(u + v + w)
        k1 = np.sqrt(u * inverse[0] ** 2 + v * inverse[1] ** 2 + w * inverse[2] ** 2) + np.float32(1e-6)
        scale = k0 / k1
        if self.ripple:
            k0 = k0 * (1 - np.float32(self.ripple / 3) * self._waves(dx, dy, dz))
        depth: Depth = scale * (1 - k0)
        return depth

    def _waves(self, dx: Depth, dy: Depth, dz: Depth) -> Depth:
        turns = [np.float32(2.6 / r) for r in self.radii_mm]
        waves: Depth = (
            np.sin(dx * turns[0] + np.float32(self.phase))
            + np.sin(dy * turns[1] + np.float32(2 * self.phase))
            + np.sin(dz * turns[2] + np.float32(3 * self.phase))
        )
        return waves

    def _axes(self) -> NDArray[np.float64]:
        coronal, axial = np.deg2rad(self.tilt_deg)
        about_y = np.array([[np.cos(coronal), 0, np.sin(coronal)], [0, 1, 0], [-np.sin(coronal), 0, np.cos(coronal)]])
        about_z = np.array([[np.cos(axial), -np.sin(axial), 0], [np.sin(axial), np.cos(axial), 0], [0, 0, 1]])
        axes: NDArray[np.float64] = (about_z @ about_y).T
        return axes


@dataclass(frozen=True)
class Capsule:
    """A rod with round ends whose radius changes evenly from one end to the other."""

    start_mm: Point
    end_mm: Point
    start_radius_mm: float
    end_radius_mm: float

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds the shape."""
        r, s = self.start_radius_mm, self.end_radius_mm
        ends = list(zip(self.start_mm, self.end_mm, strict=True))
        x0, y0, z0 = (min(a - r, b - s) for a, b in ends)
        x1, y1, z1 = (max(a + r, b + s) for a, b in ends)
        return (x0, y0, z0), (x1, y1, z1)

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Radius at the nearest point of the axis minus the distance to it."""
        along = [np.float32(b - a) for a, b in zip(self.start_mm, self.end_mm, strict=True)]
        square = np.float32(sum(a * a for a in along) + 1e-6)
        dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), self.start_mm, strict=True))
        dot = dx * along[0] + dy * along[1] + dz * along[2]
        t = np.clip(dot / square, 0, 1)
        distance = np.sqrt(np.maximum(dx * dx + dy * dy + dz * dz - t * (2 * dot - t * square), 0))
        widening = np.float32(self.end_radius_mm - self.start_radius_mm)
        depth: Depth = np.float32(self.start_radius_mm) + t * widening - distance
        return depth


@dataclass(frozen=True)
class Cut:
    """A shape with what lies beyond some planes taken away.

    Attributes:
        shape: The whole.
        planes: Points with ``normal . point <= offset`` stay; ``(normal, offset_mm)`` with unit normals.
    """

    shape: Shape
    planes: tuple[tuple[Point, float], ...]

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds the shape, narrowed by planes square to an axis."""
        low, high = (list(corner) for corner in self.shape.box_mm())
        for normal, offset in self.planes:
            for axis in range(3):
                if normal[axis] > 0.999:
                    high[axis] = min(high[axis], offset)
                elif normal[axis] < -0.999:
                    low[axis] = max(low[axis], -offset)
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Depth in the whole or below the nearest plane, whichever is less."""
        depth = self.shape.depth_mm(x, y, z)
        for (nx, ny, nz), offset in self.planes:
            side = np.float32(offset) - (x * np.float32(nx) + y * np.float32(ny) + z * np.float32(nz))
            depth = np.minimum(depth, side)
        return depth


@cache
def _label_of(organ: str) -> int:
    return label_sets.label_of(organ)


def tube(points_mm: list[Point], radii_mm: list[float]) -> list[Shape]:
    """A bent tube as capsules end to end.

    Args:
        points_mm: Points of the axis.
        radii_mm: Radius at each of them.
    """
    stations = list(zip(points_mm, radii_mm, strict=True))
    return [Capsule(a, b, ra, rb) for (a, ra), (b, rb) in pairwise(stations)]


@dataclass(frozen=True)
class Part:
    """One shape of a patient, ready to be painted.

    Attributes:
        shape: Where.
        hu: Its HU, or a texture that gives HU by place.
        organ: Organ whose label it takes (TotalSegmentator v2); "" takes labels away, None leaves them.
        only_in: Paint only where one of these organs already is; empty paints everywhere.
    """

    shape: Shape
    hu: float | Texture
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
        self._edge_mm = np.float32(np.cbrt(abs(np.linalg.det(affine[:3, :3]))))
        self._steps = [self._along(affine, row) for row in range(3)]

    def paint(self, part: Part) -> None:
        """Blend one part over what is there."""
        window = self._window(part.shape.box_mm())
        if window is None:
            return
        x, y, z = self._coordinates(window)
        depth = part.shape.depth_mm(x, y, z)
        cover = np.clip(depth / self._edge_mm + np.float32(0.5), 0, 1)
        labels = self.organs[window]
        if part.only_in:
            cover = cover * np.isin(labels, [_label_of(organ) for organ in part.only_in])
        image_hu = self.image_hu[window]
        hu = part.hu(x, y, z, depth) if callable(part.hu) else np.float32(part.hu)
        image_hu += cover * (hu - image_hu)
        if part.organ is not None:
            labels[cover >= 0.5] = _label_of(part.organ) if part.organ else 0

    def _along(self, affine: Float[np.ndarray, "4 4"], row: int) -> tuple[np.float32, list[tuple[int, Depth]]]:
        """One world coordinate as a constant and what each array axis that matters adds to it."""
        terms = []
        for axis, column in enumerate((2, 1, 0)):
            if abs(affine[row, column]) > 1e-9:
                places = affine[row, column] * np.arange(self.image_hu.shape[axis])
                terms.append((axis, places.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])))
        return np.float32(affine[row, 3]), terms

    def _coordinates(self, window: tuple[slice, slice, slice]) -> list[Depth]:
        """World x, y, z of a window, each no larger than it must be: one axis long where the grid is straight."""
        coordinates = []
        for constant, terms in self._steps:
            total: Depth = np.full((1, 1, 1), constant, np.float32)
            for axis, places in terms:
                total = total + places[tuple(window[a] if a == axis else slice(None) for a in range(3))]
            coordinates.append(total)
        return coordinates

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
