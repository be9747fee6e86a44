"""Solid shapes in mm. A shape answers two questions: which box holds it, and how deep inside it a point lies."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
Box = tuple[Point, Point]
Plane = tuple[Point, float]
"""Unit normal and offset in mm: the points with ``normal . point <= offset`` lie behind it."""
Depth = NDArray[np.float32]
"""Values on a window of voxels, ``d h w``; an axis along which nothing changes may have size one."""


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
        x, y, z = self.centre_mm
        a, b, c = ((1 + self.ripple) * float(np.hypot.reduce(column * self.radii_mm)) for column in self._axes.T)
        return (x - a, y - b, z - c), (x + a, y + b, z + c)

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """First-order distance k0 (1 - k0) / k1 with k0 = |p / r| and k1 = |p / r^2|, negative outside."""
        dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), self.centre_mm, strict=True))
        if self.tilt_deg != (0.0, 0.0):
            dx, dy, dz = (a * dx + b * dy + c * dz for a, b, c in self._axes.astype(np.float32))
        inverse = [np.float32(1 / r) for r in self.radii_mm]
        u, v, w = ((d * i) ** 2 for d, i in zip((dx, dy, dz), inverse, strict=True))
        k0 = np.sqrt(u + v + w)
        k1 = np.sqrt(u * inverse[0] ** 2 + v * inverse[1] ** 2 + w * inverse[2] ** 2)
        tiny = np.float32(1e-6)  # at the very centre both vanish and the ratio is the shortest radius
        scale = (k0 + tiny * np.float32(min(self.radii_mm))) / (k1 + tiny)
        if self.ripple:
            k0 = k0 * (1 - np.float32(self.ripple / 3) * self._waves(dx, dy, dz))
        depth: Depth = scale * (1 - k0)
        return depth

    def grown(self, by_mm: float) -> "Ellipsoid":
        """The same ellipsoid with longer semi-axes and a smooth surface."""
        x, y, z = (radius + by_mm for radius in self.radii_mm)
        return Ellipsoid(self.centre_mm, (x, y, z), self.tilt_deg)

    def _waves(self, dx: Depth, dy: Depth, dz: Depth) -> Depth:
        turns = [np.float32(2.6 / r) for r in self.radii_mm]
        waves: Depth = (
            np.sin(dx * turns[0] + np.float32(self.phase))
            + np.sin(dy * turns[1] + np.float32(2 * self.phase))
            + np.sin(dz * turns[2] + np.float32(3 * self.phase))
        )
        return waves

    @cached_property
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
        t = np.minimum(np.maximum(dot / square, 0), 1)
        distance = np.sqrt(np.maximum(dx * dx + dy * dy + dz * dz - t * (2 * dot - t * square), 0))
        widening = np.float32(self.end_radius_mm - self.start_radius_mm)
        depth: Depth = np.float32(self.start_radius_mm) + t * widening - distance
        return depth


@dataclass(frozen=True)
class Block:
    """A cuboid along the body's axes.

    Attributes:
        low_mm: Lowest corner.
        high_mm: Highest corner.
    """

    low_mm: Point
    high_mm: Point

    def box_mm(self) -> Box:
        """The block itself."""
        return self.low_mm, self.high_mm

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Distance below the nearest face."""
        faces = [
            np.minimum(axis - np.float32(low), np.float32(high) - axis)
            for axis, low, high in zip((x, y, z), self.low_mm, self.high_mm, strict=True)
        ]
        depth: Depth = np.minimum(np.minimum(faces[0], faces[1]), faces[2])
        return depth


def behind_mm(plane: Plane, x: Depth, y: Depth, z: Depth) -> Depth:
    """Distance behind a plane; no larger an array than the plane needs."""
    normal, offset = plane
    behind: Depth = np.full((1, 1, 1), offset, np.float32)
    for axis, share in zip((x, y, z), normal, strict=True):
        if share:
            behind = behind - axis * np.float32(share)
    return behind


@dataclass(frozen=True)
class Cut:
    """A shape with what lies beyond some planes taken away.

    Attributes:
        shape: The whole.
        planes: What lies on the side of each that its normal points to goes.
    """

    shape: Shape
    planes: tuple[Plane, ...]

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
        for plane in self.planes:
            depth = np.minimum(depth, behind_mm(plane, x, y, z))
        return depth


def tube(points_mm: list[Point], radii_mm: list[float]) -> list[Shape]:
    """A bent tube as capsules end to end.

    Args:
        points_mm: Points of the axis.
        radii_mm: Radius at each of them.
    """
    stations = list(zip(points_mm, radii_mm, strict=True))
    return [Capsule(a, b, ra, rb) for (a, ra), (b, rb) in pairwise(stations)]
