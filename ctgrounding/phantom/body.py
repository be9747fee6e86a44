"""What one patient is like before anything is drawn: build, contrast phase, tissue HU, trunk and lungs.

Lengths are those of a grown-up of middle size, in body coordinates: x = 0 the midline, y = 0 the middle
of the trunk, z = 0 the disc between T12 and L1. Numbers are round figures for drawing, not a reference atlas.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ctgrounding.phantom.shapes import Block, Box, Depth, Point

Sex = Literal["female", "male"]
Phase = Literal["none", "arterial", "portal"]
PHASES: tuple[Phase, ...] = ("none", "arterial", "portal")

TISSUE_HU: dict[str, tuple[float, float, float]] = {
    "artery": (42, 280, 150),
    "vein": (42, 75, 155),
    "heart": (44, 190, 140),
    "myocardium": (44, 105, 110),
    "liver": (58, 72, 106),
    "spleen": (50, 115, 118),
    "kidney": (34, 145, 135),
    "pancreas": (42, 92, 88),
    "adrenal": (36, 62, 68),
    "thyroid": (98, 150, 140),
    "gut": (38, 58, 76),
    "muscle": (52, 56, 62),
    "prostate": (42, 55, 72),
    "bile": (9, 9, 9),
    "urine": (5, 5, 12),
    "lung": (-855, -850, -850),
    "marrow": (190, 195, 200),
    "fat": (-102, -102, -100),
}
"""Mean HU of each tissue without contrast, in the arterial and in the portal venous phase."""

SIZED_ORGANS = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right",
    "adrenal_gland_left", "thyroid_gland", "small_bowel", "duodenum", "colon", "urinary_bladder", "prostate",
    "heart", "aorta", "inferior_vena_cava", "superior_vena_cava", "portal_vein_and_splenic_vein", "iliac_artery",
    "esophagus", "autochthon", "iliopsoas", "gluteus_maximus", "bones",
)  # fmt: skip
"""What has a size of its own; muscles, iliac arteries and bones have it in common. The rest grow with the body."""


@dataclass
class Traits:
    """One patient's build. Findings that change a whole organ alter these before anything is drawn.

    Attributes:
        sex: Only men have a prostate.
        phase: Contrast phase.
        scale: Size of the body along x, y, z relative to the middle.
        fat_mm: Thickness of the subcutaneous fat.
        sizes: Linear size of each organ along x, y, z relative to the middle, body scale not included.
        hu: HU of each tissue in this patient and phase.
        dome_mm: Height of the right diaphragm.
        phases: Ripple of each organ's surface, in radians.
        shifts: How far each organ lies from its usual place, in mm.
        swelling: Further factor on an organ's size, set by a finding.
        aneurysm_mm: Radius of the aorta by segment name where it is widened.
        fractured: Names of vertebrae that have collapsed.
        fissure_mm: Height at which each lung's oblique fissure crosses y = 0, by side.
        fat_in_liver_hu: What fat takes from the liver's HU, zero or less.
        bowel_loop_mm: Calibre of the small bowel.
    """

    sex: Sex
    phase: Phase
    scale: Point
    fat_mm: float
    sizes: dict[str, Point]
    hu: dict[str, float]
    dome_mm: float
    phases: dict[str, float]
    shifts: dict[str, Point]
    swelling: dict[str, Point] = field(default_factory=dict)
    aneurysm_mm: dict[str, float] = field(default_factory=dict)
    fractured: tuple[str, ...] = ()
    fissure_mm: dict[str, float] = field(default_factory=lambda: {"right": 143.0, "left": 143.0})
    fat_in_liver_hu: float = 0.0
    bowel_loop_mm: float = 20.0

    def at(self, x: float, y: float, z: float) -> Point:
        """A place of the middle body in this one."""
        return x * self.scale[0], y * self.scale[1], z * self.scale[2]

    def size(self, organ: str) -> Point:
        """Linear size of an organ along x, y, z relative to the middle, everything included."""
        own = self.swelling.get(organ) or self.sizes.get(sized_as(organ), (1.0, 1.0, 1.0))
        x, y, z = (scale * factor for scale, factor in zip(self.scale, own, strict=True))
        return x, y, z

    def calibre(self, organ: str) -> float:
        """Size of an organ relative to the middle as one number, for tubes."""
        return float(np.cbrt(np.prod(self.size(organ))))


def sized_as(organ: str) -> str:
    """Entry of :data:`SIZED_ORGANS` that gives an organ its size, or the organ itself."""
    return organ if organ in SIZED_ORGANS else organ.removesuffix("_left").removesuffix("_right")


def draw_traits(sex: Sex, rng: np.random.Generator) -> Traits:
    """Draw a build: body scale within 10 %, organs within 25 % of the middle, HU within a few percent.

    Args:
        sex: Decided by the study plan, since it decides what can be found.
        rng: Source of chance.
    """
    phase = PHASES[rng.choice(3, p=[0.35, 0.15, 0.5])]
    column = PHASES.index(phase)
    hu = {tissue: values[column] + rng.normal(0, 3) for tissue, values in TISSUE_HU.items()}
    hu["lung"] += rng.normal(0, 12)
    hu["marrow"] += rng.uniform(-40, 40)
    x, y = rng.uniform(0.9, 1.1, 2)
    return Traits(
        sex=sex,
        phase=phase,
        scale=(float(x), float(y), float(rng.uniform(0.93, 1.07))),
        fat_mm=float(rng.uniform(6, 32)),
        sizes={organ: _organ_size(rng) for organ in SIZED_ORGANS},
        hu=hu,
        dome_mm=float(rng.uniform(78, 94)),
        phases={organ: float(rng.uniform(0, 2 * np.pi)) for organ in SIZED_ORGANS},
        shifts={organ: _shift(rng) for organ in SIZED_ORGANS},
        bowel_loop_mm=float(rng.uniform(17, 22)),
    )


def _organ_size(rng: np.random.Generator) -> Point:
    common = rng.uniform(0.81, 1.18)
    x, y, z = (float(common * rng.uniform(0.93, 1.07)) for _ in range(3))
    return x, y, z


def _shift(rng: np.random.Generator) -> Point:
    x, y, z = rng.uniform(-1, 1, 3) * (4, 4, 8)
    return float(x), float(y), float(z)


# z, half width and half depth of the trunk under its fat, from the thighs to the neck
_OUTLINE_MM = np.array([
    (-360, 160, 92), (-250, 172, 108), (-170, 158, 104), (-90, 146, 100), (0, 146, 104), (100, 158, 110),
    (190, 168, 108), (245, 176, 98), (275, 130, 80), (300, 66, 62), (350, 58, 62),
], np.float64)  # fmt: skip
_EXPONENT = np.float32(2.5)
WALL_MM = 13.0
"""Thickness of the muscle wall of the trunk, ribs included."""


@dataclass(frozen=True)
class Trunk:
    """The body's outline, a stack of superellipses.

    Attributes:
        traits: Whose body.
        inset_mm: How far inside the skin the surface lies.
    """

    traits: Traits
    inset_mm: float = 0.0

    def box_mm(self) -> Box:
        """Lowest and highest corner of a box that holds the trunk; it has no end upward and downward."""
        x, y = (_OUTLINE_MM[:, axis].max() * self.traits.scale[axis - 1] + self.traits.fat_mm for axis in (1, 2))
        return (-float(x), -float(y), -2000.0), (float(x), float(y), 2000.0)

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Distance below the surface; right near the skin, an underestimate in the middle."""
        levels = _OUTLINE_MM[:, 0] * self.traits.scale[2]
        fat = self.traits.fat_mm
        half_x = np.interp(z, levels, _OUTLINE_MM[:, 1] * self.traits.scale[0] + fat).astype(np.float32)
        half_y = np.interp(z, levels, _OUTLINE_MM[:, 2] * self.traits.scale[1] + fat).astype(np.float32)
        across = np.abs(x) ** _EXPONENT * half_x**-_EXPONENT
        along = np.abs(y) ** _EXPONENT * half_y**-_EXPONENT
        unit = (half_x + half_y) / (2 * _EXPONENT)
        result: Depth = (unit - np.float32(self.inset_mm)) - unit * (across + along)
        return result

    def tissue_hu(self, x: Depth, y: Depth, z: Depth, depth: Depth) -> Depth:
        """Skin fat, muscle wall with ribs in the chest, and the fat of the cavities inside."""
        fat, muscle = np.float32(self.traits.hu["fat"]), np.float32(self.traits.hu["muscle"])
        below = depth - np.float32(self.traits.fat_mm)
        wall = (below > 0) & (below < WALL_MM)
        hu = np.where(wall, muscle, fat)
        slanting = ((z + np.float32(0.55) * y) / np.float32(25.0 * self.traits.scale[2])) % 1 < 0.45
        ribs = wall & (below > 4) & slanting & (z > 10) & (z < 265 * self.traits.scale[2])
        result: Depth = np.where(ribs, np.float32(self.traits.hu["marrow"] + 160), hu)
        return result


def table(traits: Traits) -> Block:
    """The table top under the patient's back."""
    back = float(_OUTLINE_MM[:, 2].max() * traits.scale[1] + traits.fat_mm)
    return Block((-210.0, -back - 22.0, -2000.0), (210.0, -back - 4.0, 2000.0))
