"""Bones and the large muscles beside them."""

from dataclasses import dataclass

import numpy as np

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.shapes import Box, Capsule, Cut, Depth, Ellipsoid, Point, Shape, tube

# level: height of its middle, y of its middle, half height, half width, half depth
_SPINE_MM: dict[str, tuple[float, float, float, float, float]] = {
    "L5": (-153, -40, 13.5, 25, 17), "L4": (-119, -37, 13.5, 24, 17), "L3": (-85, -38, 13.5, 24, 17),
    "L2": (-51, -42, 13.5, 23, 16), "L1": (-17, -47, 13, 22, 16), "T12": (13, -51, 12, 20, 15),
    "T11": (39, -55, 11, 19, 15), "T10": (64, -58, 10.5, 18, 15), "T9": (88, -61, 10.5, 17, 15),
    "T8": (112, -63, 10.5, 17, 15), "T7": (136, -64, 10, 16, 15), "T6": (159, -64, 10, 16, 14),
    "T5": (182, -62, 10, 15, 13), "T4": (204, -60, 9.5, 15, 12), "T3": (226, -56, 9.5, 15, 11),
    "T2": (248, -51, 9.5, 15, 11), "T1": (270, -44, 9, 15, 10), "C7": (290, -36, 7, 14, 9),
    "C6": (307, -29, 6.5, 13, 9), "C5": (323, -24, 6.5, 13, 9), "C4": (339, -20, 6.5, 13, 9),
}  # fmt: skip
LABELLED_LEVELS = ("L5", "L4", "L3", "L2", "L1", "T12", "T11")
"""Vertebrae that carry a label; the others are drawn without one, as ribs are."""


@dataclass(frozen=True)
class VertebralBody:
    """A short elliptical column whose upper end sinks toward the front when it has collapsed.

    Attributes:
        centre_mm: Centre before any collapse.
        radii_mm: Half width, half depth and half height.
        wedge: Share of the height lost at the front edge, in [0, 1).
    """

    centre_mm: Point
    radii_mm: Point
    wedge: float = 0.0

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds it."""
        low, high = (tuple(c + s * r for c, r in zip(self.centre_mm, self.radii_mm, strict=True)) for s in (-1, 1))
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Depth below the side, the lower or the upper end, whichever is least."""
        dx, dy, dz = (axis - np.float32(c) for axis, c in zip((x, y, z), self.centre_mm, strict=True))
        rx, ry, rz = (np.float32(r) for r in self.radii_mm)
        side = (1 - np.sqrt((dx / rx) ** 2 + (dy / ry) ** 2)) * (rx + ry) / 2
        front = np.clip((dy / ry + 1) / 2, 0, 1)
        upper = rz * (1 - np.float32(2 * self.wedge) * (np.float32(0.35) + np.float32(0.65) * front)) - dz
        result: Depth = np.minimum(np.minimum(side, upper), rz + dz)
        return result


@dataclass(frozen=True)
class BoneTexture:
    """Marrow inside a denser rim.

    Attributes:
        marrow_hu: HU inside.
        cortex_hu: HU at the surface.
        cortex_mm: Thickness of the rim.
    """

    marrow_hu: float
    cortex_hu: float
    cortex_mm: float = 3.5

    def __call__(self, x: Depth, y: Depth, z: Depth, depth: Depth) -> Depth:
        """HU by depth below the surface."""
        rim = np.clip(1 - depth / np.float32(self.cortex_mm), 0, 1)
        result: Depth = np.float32(self.marrow_hu) + rim * np.float32(self.cortex_hu - self.marrow_hu)
        return result


def add_muscles(anatomy: Anatomy) -> None:
    """Paraspinal, psoas and gluteal muscles."""
    traits = anatomy.traits
    hu = traits.hu["muscle"]
    for side, name in ((1, "right"), (-1, "left")):
        back: list[Point] = [(side * 30, -82, z) for z in (-200, -100, 0, 100, 200, 280)]
        anatomy.vessel("skeleton", f"autochthon_{name}", back, [17, 21, 19, 15, 13, 12], hu)
        front: list[Point] = [(side * 28, -36, 0), (side * 42, -24, -110), (side * 62, 6, -195), (side * 88, 34, -275)]
        anatomy.vessel("muscle", f"iliopsoas_{name}", front, [9, 19, 24, 16], hu)
        buttock = (side * 92, -72, -232), (52, 32, 62)
        anatomy.solid("muscle", f"gluteus_maximus_{name}", *buttock, hu, (0.0, side * 20.0))


def add_bones(anatomy: Anatomy) -> None:
    """Spine, pelvis, thighs, breastbone, shoulder blades and collar bones."""
    _add_spine(anatomy)
    _bone(anatomy, "sacrum", [_lump(anatomy, (0, -58, -212), (46, 16, 50))])
    _bone(anatomy, "sternum", [_lump(anatomy, (0, 88, 165), (17, 7, 78))])
    for side, name in ((1, "right"), (-1, "left")):
        _bone(anatomy, f"hip_{name}", _hip(anatomy, side))
        head: Point = (side * 88, 6, -242)
        anatomy.add("skeleton", [_lump(anatomy, head, (25, 25, 25))], 40.0, "")
        shaft = _rods(anatomy, [head, (side * 124, -6, -272), (side * 134, 0, -420)], [15, 17, 15])
        _bone(anatomy, f"femur_{name}", [_lump(anatomy, head, (22, 22, 22)), *shaft])
        _bone(anatomy, f"scapula_{name}", [_lump(anatomy, (side * 98, -72, 222), (42, 6, 56), (0.0, side * 28.0))])
        collar: list[Point] = [(side * 16, 52, 258), (side * 60, 38, 264), (side * 104, -2, 268)]
        _bone(anatomy, f"clavicula_{name}", _rods(anatomy, collar, [8, 7, 7]))


def vertebra(anatomy: Anatomy, level: str) -> VertebralBody:
    """The body of a vertebra, in body coordinates."""
    z, y, half_height, half_width, half_depth = _SPINE_MM[level]
    wide, deep, _ = anatomy.traits.size("bones")
    radii = half_width * wide, half_depth * deep, half_height * anatomy.traits.scale[2]
    wedge = 0.62 if level in anatomy.traits.fractured else 0.0
    return VertebralBody(anatomy.traits.at(0, y, z), radii, wedge)


def _add_spine(anatomy: Anatomy) -> None:
    traits = anatomy.traits
    every_other = list(_SPINE_MM.values())[::2]
    discs = tube([traits.at(0, y, z) for z, y, *_ in every_other], [0.8 * width for *_, width, _ in every_other])
    anatomy.add("skeleton", discs, 75.0, "")
    for level, (z, y, half_height, _, half_depth) in _SPINE_MM.items():
        organ = f"vertebrae_{level}" if level in LABELLED_LEVELS else ""
        is_collapsed = level in traits.fractured
        marrow = traits.hu["marrow"] + (130 if is_collapsed else 0)
        texture = BoneTexture(marrow, traits.hu["marrow"] + 220)
        body = vertebra(anatomy, level)
        start, end = traits.at(0, y - half_depth - 16, z - 3), traits.at(0, y - half_depth - 30, z - 9)
        spine = Capsule(start, end, half_height * 0.55, half_height * 0.45)
        for shape in (body, spine):
            anatomy.layers["skeleton"].append(Part(shape, texture, organ))
            if organ:
                anatomy.organs.setdefault(organ, []).append(shape)
    canal = [traits.at(0, y - depth - 8, z) for z, y, _, _, depth in every_other[1:]]
    anatomy.add("skeleton", tube(canal, [8.0] * len(canal)), 25.0, "spinal_cord")


def _hip(anatomy: Anatomy, side: int) -> list[Shape]:
    wing = _lump(anatomy, (side * 88, -6, -186), (9, 58, 56), (side * 18.0, side * -24.0))
    socket = _lump(anatomy, (side * 84, 4, -240), (32, 30, 34))
    half = Cut(socket, (((float(side), 0.0, 0.0), 92 * anatomy.traits.scale[0]),))
    ramus = _rods(anatomy, [(side * 74, 14, -256), (side * 8, 52, -276)], [10, 9])
    seat = _rods(anatomy, [(side * 74, -18, -258), (side * 60, -30, -308)], [14, 15])
    return [wing, half, *ramus, *seat]


def _lump(anatomy: Anatomy, centre_mm: Point, radii_mm: Point, tilt_deg: tuple[float, float] = (0.0, 0.0)) -> Ellipsoid:
    x, y, z = (radius * factor for radius, factor in zip(radii_mm, anatomy.traits.size("bones"), strict=True))
    return Ellipsoid(anatomy.traits.at(*centre_mm), (x, y, z), tilt_deg)


def _rods(anatomy: Anatomy, points_mm: list[Point], radii_mm: list[float]) -> list[Shape]:
    calibre = anatomy.traits.calibre("bones")
    return tube([anatomy.traits.at(*point) for point in points_mm], [calibre * radius for radius in radii_mm])


def _bone(anatomy: Anatomy, organ: str, shapes: list[Shape]) -> None:
    marrow = anatomy.traits.hu["marrow"]
    anatomy.layers["skeleton"].extend(Part(shape, BoneTexture(marrow, marrow + 380), organ) for shape in shapes)
    anatomy.organs.setdefault(organ, []).extend(shapes)
