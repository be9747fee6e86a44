"""Organs of the abdomen and the pelvis."""

from dataclasses import dataclass

import numpy as np

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.shapes import Box, Capsule, Cut, Depth, Ellipsoid, Point, Shape

GAS_HU = -950.0


@dataclass(frozen=True)
class BowelLoops:
    """Small bowel as a knot of loops: where three crossing waves add up high enough.

    Attributes:
        region: What holds the knot.
        loop_mm: Calibre of a loop.
        phase: Where the waves start, in radians.
    """

    region: Ellipsoid
    loop_mm: float
    phase: float

    def box_mm(self) -> Box:
        """Box of the region."""
        return self.region.box_mm()

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Depth in the loops or in the region, whichever is less."""
        loops = (self.waves(x, y, z) + np.float32(0.45)) * np.float32(self.loop_mm / 3.6)
        result: Depth = np.minimum(loops, self.region.depth_mm(x, y, z))
        return result

    def waves(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Sum of three waves, in [-3, 3]; positive in the lumen."""
        turn, phase = np.float32(2.1 / self.loop_mm), np.float32(self.phase)
        waves: Depth = (
            np.sin(x * turn + phase + np.float32(0.03) * z)
            + np.sin(y * turn + 2 * phase + np.float32(0.02) * x)
            + np.sin(z * turn + 3 * phase)
        )
        return waves


@dataclass(frozen=True)
class BowelContent:
    """HU inside the loops: wall, then fluid, then a little gas where the loops are widest and to the front.

    Attributes:
        loops: The bowel.
        wall_hu: HU of the wall.
        fluid_hu: HU of what is inside.
        gas_above: Gas where the waves exceed this; wide loops hold more.
    """

    loops: BowelLoops
    wall_hu: float
    fluid_hu: float
    gas_above: float

    def __call__(self, x: Depth, y: Depth, z: Depth, depth: Depth) -> Depth:
        """HU by place."""
        waves = self.loops.waves(x, y, z)
        hu = np.where(depth < 3, np.float32(self.wall_hu), np.float32(self.fluid_hu))
        rises = np.float32(0.012) * (y - np.float32(self.loops.region.centre_mm[1]))
        result: Depth = np.where(waves + rises > self.gas_above, np.float32(GAS_HU), hu)
        return result


def add_abdomen(anatomy: Anatomy) -> None:
    """Liver, spleen, kidneys, adrenals, pancreas, gallbladder, stomach and bowel."""
    _add_bowel(anatomy)
    _add_solid_organs(anatomy)
    _add_stomach(anatomy)
    _add_pancreas(anatomy)


def _add_solid_organs(anatomy: Anatomy) -> None:
    hu = anatomy.traits.hu
    anatomy.solid("abdomen", "liver", (70, 8, 16), (72, 74, 74), hu["liver"], (24.0, 0.0))
    anatomy.solid("abdomen", "liver", (6, 40, 34), (52, 32, 32), hu["liver"], (-12.0, 0.0))
    anatomy.solid("abdomen", "spleen", (-98, -34, 34), (25, 40, 48), hu["spleen"], (18.0, 24.0))
    for side, name in ((1, "right"), (-1, "left")):
        drop = 0 if side > 0 else 12
        kidney = anatomy.solid(
            "abdomen", f"kidney_{name}", (side * 60, -40, -48 + drop), (27, 25, 54), hu["kidney"], (side * 12.0, 0.0)
        )
        x, y, z = kidney.centre_mm
        rx, ry, rz = kidney.radii_mm
        sinus = Ellipsoid((x - side * 0.42 * rx, y + 0.2 * ry, z), (0.42 * rx, 0.36 * ry, 0.5 * rz), kidney.tilt_deg)
        anatomy.layers["abdomen"].append(Part(sinus, -45.0))
        _add_adrenal(anatomy, side, f"adrenal_gland_{name}")
    anatomy.solid("abdomen", "gallbladder", (52, 46, -28), (15, 17, 27), hu["bile"], (-16.0, 0.0))


def _add_adrenal(anatomy: Anatomy, side: int, organ: str) -> None:
    """An inverted V above the kidney."""
    apex: Point = (side * 37, -26, 28 if side > 0 else 26)
    for dx, dy, dz in ((5, -10, -22), (-3, -8, -22), (0, 8, -8)):
        limb: list[Point] = [apex, (apex[0] + side * dx, apex[1] + dy, apex[2] + dz)]
        anatomy.vessel("abdomen", organ, limb, [4.5, 3.5], anatomy.traits.hu["adrenal"])


def _add_pancreas(anatomy: Anatomy) -> None:
    axis: list[Point] = [(30, 22, -42), (24, 26, -24), (2, 32, -14), (-28, 22, -4), (-68, -8, 12)]
    anatomy.vessel("abdomen", "pancreas", axis, [15, 14, 10, 11, 9], anatomy.traits.hu["pancreas"])


def _hollow(
    anatomy: Anatomy, organ: str, points_mm: list[Point], radii_mm: list[float], content_hu: float, wall_mm: float
) -> list[Shape]:
    """Add a tube with a wall; returns its shapes."""
    anatomy.vessel("abdomen", organ, points_mm, radii_mm, anatomy.traits.hu["gut"])
    shapes = [s for s in anatomy.organs[organ][1 - len(points_mm) :] if isinstance(s, Capsule)]
    lumen = [
        Capsule(s.start_mm, s.end_mm, max(s.start_radius_mm - wall_mm, 2), max(s.end_radius_mm - wall_mm, 2))
        for s in shapes
    ]
    anatomy.layers["abdomen"].extend(Part(shape, content_hu) for shape in lumen)
    return list(lumen)


def _gas(lumen: Shape, level_mm: float, organ: str) -> Part:
    """Gas above a fluid level: the patient lies on the back, so gas is in front."""
    return Part(Cut(lumen, (((0.0, -1.0, 0.0), -level_mm),)), GAS_HU, None, (organ,))


def _add_stomach(anatomy: Anatomy) -> None:
    traits = anatomy.traits
    axis: list[Point] = [(-48, -8, 62), (-66, 8, 46), (-62, 34, 6), (-36, 54, -24), (2, 50, -22), (22, 44, -12)]
    lumen = _hollow(anatomy, "stomach", axis, [24, 30, 27, 21, 15, 9], 22.0, 5.0)
    level = traits.scale[1] * 26
    anatomy.layers["abdomen"].extend(_gas(shape, level, "stomach") for shape in lumen[:3])
    sweep: list[Point] = [(22, 44, -12), (40, 32, -18), (46, 20, -58), (24, 10, -76), (-14, 8, -70)]
    _hollow(anatomy, "duodenum", sweep, [11, 12, 12, 11, 10], 18.0, 3.5)


def _add_bowel(anatomy: Anatomy) -> None:
    traits = anatomy.traits
    rx, ry, rz = (r * s for r, s in zip((92, 52, 76), traits.size("small_bowel"), strict=True))
    region = Ellipsoid(traits.at(0, 34, -128), (rx, ry, rz), (0.0, 0.0), 0.1, traits.phases["small_bowel"])
    loops = BowelLoops(region, traits.bowel_loop_mm, traits.phases["small_bowel"])
    is_dilated = traits.bowel_loop_mm > 26
    content = BowelContent(loops, traits.hu["gut"], 10.0 if is_dilated else 34.0, 1.5 if is_dilated else 2.35)
    anatomy.layers["abdomen"].append(Part(loops, content, "small_bowel"))
    anatomy.organs["small_bowel"] = [loops]
    frame: list[Point] = [
        (78, 22, -176), (92, 0, -120), (92, 4, -66), (78, 38, -46), (30, 66, -62), (-30, 66, -58), (-82, 34, -22),
        (-100, -8, 2), (-104, -14, -70), (-96, 4, -140), (-66, 20, -190), (-20, 0, -196), (4, -28, -206),
        (0, -40, -290),
    ]  # fmt: skip
    calibre = [27, 25, 24, 22, 20, 20, 20, 19, 16, 15, 15, 15, 17, 18]
    lumen = _hollow(anatomy, "colon", frame, [float(r) for r in calibre], 28.0, 4.0)
    turn = traits.phases["colon"]
    for number, shape in enumerate(lumen):
        if np.sin(turn + 2.3 * number) > -0.35:
            middle = float(np.mean([shape.box_mm()[0][1], shape.box_mm()[1][1]]))
            anatomy.layers["abdomen"].append(_gas(shape, middle - 4 * float(np.cos(turn + number)), "colon"))


def add_pelvis(anatomy: Anatomy) -> None:
    """Bladder, and prostate or womb."""
    traits = anatomy.traits
    anatomy.solid("abdomen", "urinary_bladder", (0, 42, -238), (36, 27, 28), traits.hu["urine"])
    if traits.sex == "male":
        anatomy.solid("abdomen", "prostate", (0, 16, -283), (23, 17, 18), traits.hu["prostate"])
    else:
        womb = Ellipsoid(traits.at(0, 4, -222), (26, 20, 26))
        anatomy.layers["abdomen"].append(Part(womb, traits.hu["prostate"] + 10, ""))
