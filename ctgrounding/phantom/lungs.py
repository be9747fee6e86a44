"""The lungs: their outline, their lobes and the vessels in them."""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.body import WALL_MM, Traits, Trunk
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.shapes import Block, Box, Cut, Depth, Ellipsoid, Plane, Point, behind_mm

FISSURE: Point = (0.0, 0.70, 0.714)
"""Normal of the oblique fissure, pointing out of the lower lobe."""

LOBES: dict[str, tuple[str, ...]] = {
    "right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
}


@dataclass(frozen=True)
class Lung:
    """One lung: what is inside the chest wall, beside the mediastinum and above the diaphragm."""

    traits: Traits
    side: Literal["right", "left"]

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds the lung."""
        low, high = self._apex().box_mm()
        near, far = sorted((self._sign * 14.0, self._sign * 190.0))
        return (near, low[1], 0.0), (far, high[1], high[2])

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Depth below the nearest of chest wall, mediastinum, diaphragm and apex."""
        wall = Trunk(self.traits, self.traits.fat_mm + WALL_MM).depth_mm(x, y, z)
        mediastinum = self._sign * x - np.float32(20 * self.traits.scale[0])
        depth = np.minimum(np.minimum(wall, mediastinum), self._apex().depth_mm(x, y, z))
        result: Depth = np.minimum(depth, np.float32(0.8) * (z - self.diaphragm_mm(x, y)))
        return result

    def diaphragm_mm(self, x: Depth, y: Depth) -> Depth:
        """Height of the dome: highest in the middle of the lung, down to the recesses at its rim."""
        sx, sy, sz = self.traits.scale
        top = self.traits.dome_mm - (0 if self.side == "right" else 11)
        across = ((x - np.float32(self._sign * 62 * sx)) / np.float32(92 * sx)) ** 2
        along = ((y - np.float32(15 * sy)) / np.float32(105 * sy)) ** 2
        result: Depth = np.maximum(
            np.float32(sz) * (np.float32(top) - np.float32(95) * (across + along)), np.float32(4)
        )
        return result

    @property
    def _sign(self) -> float:
        return 1.0 if self.side == "right" else -1.0

    def _apex(self) -> Ellipsoid:
        sx, sy, sz = self.traits.scale
        centre = self.traits.at(self._sign * 68, -8, 115)
        return Ellipsoid(centre, (88 * sx, 112 * sy, 165 * sz))


@dataclass(frozen=True)
class LungTexture:
    """HU of aerated lung: vessels run outward from the hilum, where two fans of wavy sheets cross.

    Attributes:
        lobe_hu: Planes that bound a lobe, and the HU between its vessels.
        hilum_mm: Where the vessels start.
        phase: Where the fans start, in radians.
    """

    lobe_hu: tuple[tuple[tuple[Plane, ...], float], ...]
    hilum_mm: Point
    phase: float

    def __call__(self, x: Depth, y: Depth, z: Depth, depth: Depth) -> Depth:
        """HU by place; vessels keep their calibre of some 5 mm while their number falls outward."""
        dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), self.hilum_mm, strict=True))
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) + np.float32(1)
        bend = np.float32(0.5) * np.sin(distance * np.float32(0.06) + np.float32(self.phase))
        one = np.sin(np.float32(8) * dy / distance + bend + np.float32(self.phase))
        two = np.sin(np.float32(8) * dz / distance - bend + np.float32(2 * self.phase))
        apart = (one * one + two * two) * (distance / np.float32(24)) ** 2
        air = self._between_vessels(x, y, z)
        hu: Depth = air + (np.float32(50) - np.float32(0.85) * air) * np.exp(-apart) * (distance < 105)
        return hu

    def _between_vessels(self, x: Depth, y: Depth, z: Depth) -> Depth:
        hu: Depth = np.zeros((1, 1, 1), np.float32)
        for planes, lobe_hu in self.lobe_hu:
            inside = reduce(np.minimum, [behind_mm(plane, x, y, z) for plane in planes]) >= 0
            hu = np.where(inside, np.float32(lobe_hu), hu)
        return hu


def add_lungs(anatomy: Anatomy) -> None:
    """Five lobes: oblique fissures from high behind to low in front, on the right a horizontal one too."""
    traits = anatomy.traits
    level = traits.scale[2] * 152
    for side, z in traits.fissure_mm.items():
        oblique = FISSURE[2] * traits.scale[2] * z
        below, above = (FISSURE, oblique), ((0.0, -FISSURE[1], -FISSURE[2]), -oblique)
        beneath, over = ((0.0, 0.0, 1.0), level), ((0.0, 0.0, -1.0), -level)
        lobes: dict[str, tuple[Plane, ...]] = {"lower": (below,)}
        lobes |= {"middle": (above, beneath), "upper": (above, over)} if side == "right" else {"upper": (above,)}
        _add_lung(anatomy, Lung(traits, "right" if side == "right" else "left"), lobes)


def _add_lung(anatomy: Anatomy, lung: Lung, lobes: dict[str, tuple[Plane, ...]]) -> None:
    """Paint a lung once, with the HU of each lobe, then hand out the labels."""
    traits = anatomy.traits
    names = {lobe: f"lung_{lobe}_lobe_{lung.side}" for lobe in lobes}
    hilum = traits.at(30 if lung.side == "right" else -30, -14, 155)
    lobe_hu = tuple((planes, traits.hu.get(names[lobe], traits.hu["lung"])) for lobe, planes in lobes.items())
    texture = LungTexture(lobe_hu, hilum, traits.phases["heart"])
    anatomy.layers["lung"].append(Part(lung, texture, names["upper"]))
    for lobe, planes in lobes.items():
        anatomy.organs[names[lobe]] = [Cut(lung, planes)]
        if lobe != "upper":
            region = Cut(Block(*lung.box_mm()), planes)
            anatomy.layers["lung"].append(Part(region, None, names[lobe], (names["upper"],)))
