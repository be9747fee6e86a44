"""A normal patient as layers of parts, painted from the back of the queue to the front.

Findings add parts to a layer or alter the :class:`~ctgrounding.phantom.body.Traits` before this module
draws, so a lesion always knows the organ it sits in.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from ctgrounding.errors import ConfigError
from ctgrounding.phantom.body import Lung, LungTexture, Traits, Trunk, sized_as, table
from ctgrounding.phantom.canvas import Canvas, Part
from ctgrounding.phantom.shapes import Block, Cut, Ellipsoid, Plane, Point, Shape, tube

LAYERS = ("trunk", "cavity", "muscle", "abdomen", "lung", "pericardium", "mediastinum", "skeleton", "lesion")
"""Order of painting: what comes later lies over what comes before."""

FISSURE: Point = (0.0, 0.70, 0.714)
"""Normal of the oblique fissure, pointing out of the lower lobe."""

LOBES: dict[str, tuple[str, ...]] = {
    "right": ("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
    "left": ("lung_upper_lobe_left", "lung_lower_lobe_left"),
}

PLACES_TRIED = 40
CLEARANCE_MM = 3.0
"""How far a place chosen in an organ stays away from what is painted over that organ."""


class Anatomy:
    """The parts of one patient, by layer, and the shapes of each organ.

    Args:
        traits: Build of the patient.

    Attributes:
        traits: Build of the patient.
        layers: Parts by layer of :data:`LAYERS`.
        organs: Shapes of each organ, in body coordinates.
    """

    def __init__(self, traits: Traits) -> None:
        self.traits = traits
        self.layers: dict[str, list[Part]] = {layer: [] for layer in LAYERS}
        self.organs: dict[str, list[Shape]] = {}

    def add(self, layer: str, shapes: Sequence[Shape], hu: float, organ: str | None = None) -> None:
        """Add shapes of one tissue; with an organ's name they become part of that organ."""
        self.layers[layer].extend(Part(shape, hu, organ) for shape in shapes)
        if organ:
            self.organs.setdefault(organ, []).extend(shapes)

    def solid(
        self,
        layer: str,
        organ: str,
        centre_mm: Point,
        radii_mm: Point,
        hu: float,
        tilt_deg: tuple[float, float] = (0.0, 0.0),
    ) -> Ellipsoid:
        """Add an organ that is one rippled ellipsoid, sized and shifted as the patient's traits say."""
        traits = self.traits
        key = sized_as(organ)
        x, y, z = (a + b for a, b in zip(traits.at(*centre_mm), traits.shifts.get(key, (0, 0, 0)), strict=True))
        rx, ry, rz = (r * s for r, s in zip(radii_mm, traits.size(organ), strict=True))
        room = 150 * traits.scale[0] - rx
        x = min(max(x, -room), room)
        shape = Ellipsoid((x, y, z), (rx, ry, rz), tilt_deg, 0.09, traits.phases.get(key, 0.0))
        self.add(layer, [shape], hu, organ)
        return shape

    def vessel(self, layer: str, organ: str, points_mm: list[Point], radii_mm: list[float], hu: float) -> None:
        """Add a tube whose calibre grows with the organ's size."""
        calibre = self.traits.calibre(organ)
        shapes = tube([self.traits.at(*point) for point in points_mm], [calibre * r for r in radii_mm])
        self.add(layer, shapes, hu, organ)

    def depth_mm(self, organ: str, point_mm: Point) -> float:
        """Depth of a point below the surface of an organ, negative outside."""
        x, y, z = (np.full((1, 1, 1), c, np.float32) for c in point_mm)
        return max(shape.depth_mm(x, y, z).item() for shape in self.organs[organ])

    def bounds_mm(self, organ: str) -> tuple[Point, Point]:
        """Box of an organ."""
        boxes = np.array([shape.box_mm() for shape in self.organs[organ]])
        return tuple(boxes[:, 0].min(0).tolist()), tuple(boxes[:, 1].max(0).tolist())

    def place_in(
        self, organ: str, depth_mm: float, rng: np.random.Generator, z_mm: tuple[float, float] = (-1e4, 1e4)
    ) -> Point:
        """A random place in an organ where no other organ lies over it.

        Args:
            organ: Which organ.
            depth_mm: How far below its surface, if it is thick enough; else the deepest place tried.
            rng: Source of chance.
            z_mm: Heights that may be used.

        Raises:
            ConfigError: If this patient has no such organ.
        """
        if organ not in self.organs:
            raise ConfigError(f"This patient has no organ '{organ}'. Choose one of {', '.join(sorted(self.organs))}.")
        low, high = (np.array(corner) for corner in self.bounds_mm(organ))
        low[2], high[2] = sorted((max(low[2], z_mm[0]), min(high[2], z_mm[1])))
        tries = rng.uniform(low, high, (400, 3)).astype(np.float32)
        x, y, z = (axis[:, None, None] for axis in tries.T)
        depth = np.max([shape.depth_mm(x, y, z)[:, 0, 0] for shape in self.organs[organ]], axis=0)
        order = np.argsort(depth < depth_mm, kind="stable") if depth.max() >= depth_mm else np.argsort(-depth)
        places: list[Point] = [(float(px), float(py), float(pz)) for px, py, pz in tries[order[:PLACES_TRIED]]]
        own = [number for number, part in enumerate(self._solids) if part.organ == organ]
        over = [number for number in range(own[0] + 1, len(self._solids)) if number not in own]
        return next((place for place in places if not self._is_covered(place, over)), places[0])

    def _is_covered(self, place_mm: Point, over: list[int]) -> bool:
        """Whether one of some parts, named by their numbers, lies over a place or nearly."""
        low, high = self._boxes
        near = ((low[over] - CLEARANCE_MM <= place_mm) & (place_mm <= high[over] + CLEARANCE_MM)).all(1)
        x, y, z = (np.full((1, 1, 1), c, np.float32) for c in place_mm)
        depths = (self._solids[over[i]].shape.depth_mm(x, y, z).item() for i in np.flatnonzero(near).tolist())
        return any(depth > -CLEARANCE_MM for depth in depths)

    @cached_property
    def _solids(self) -> list[Part]:
        """What can hide an organ, in order of painting."""
        return [part for layer in LAYERS[:-1] for part in self.layers[layer] if part.organ is not None]

    @cached_property
    def _boxes(self) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3"]]:
        boxes = np.array([part.shape.box_mm() for part in self._solids])
        return boxes[:, 0], boxes[:, 1]

    def paint(self, canvas: Canvas) -> None:
        """Paint every part, layer by layer."""
        for layer in LAYERS:
            for part in self.layers[layer]:
                canvas.paint(part)


def build(traits: Traits) -> Anatomy:
    """Draw a whole normal patient.

    Args:
        traits: Build of the patient; swellings, collapsed vertebrae and the like are already set.
    """
    from ctgrounding.phantom import skeleton, viscera

    anatomy = Anatomy(traits)
    trunk = Trunk(traits)
    anatomy.layers["trunk"] += [Part(table(traits), -650.0), Part(trunk, trunk.tissue_hu)]
    viscera.add_abdomen(anatomy)
    viscera.add_pelvis(anatomy)
    _add_lungs(anatomy)
    _add_heart(anatomy)
    _add_airways(anatomy)
    _add_vessels(anatomy)
    skeleton.add_muscles(anatomy)
    skeleton.add_bones(anatomy)
    return anatomy


def _add_lungs(anatomy: Anatomy) -> None:
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


def _add_heart(anatomy: Anatomy) -> None:
    traits = anatomy.traits
    heart = anatomy.solid("mediastinum", "heart", (-16, 26, 104), (54, 44, 46), traits.hu["heart"], (-28.0, 20.0))
    anatomy.layers["pericardium"].append(Part(heart.grown(6.0), traits.hu["fat"], ""))
    x, y, z = heart.centre_mm
    rx, ry, rz = heart.radii_mm
    ventricle = Ellipsoid(
        (x - 0.34 * rx, y + 0.1 * ry, z - 0.15 * rz), (0.52 * rx, 0.55 * ry, 0.6 * rz), heart.tilt_deg
    )
    cavity = Ellipsoid(ventricle.centre_mm, (0.33 * rx, 0.35 * ry, 0.4 * rz), heart.tilt_deg)
    anatomy.layers["mediastinum"] += [
        Part(ventricle, traits.hu["myocardium"], None, ("heart",)),
        Part(cavity, traits.hu["artery"], None, ("heart",)),
    ]


def _add_airways(anatomy: Anatomy) -> None:
    traits = anatomy.traits
    air, wall = -990.0, 20.0
    stems: list[tuple[list[Point], list[float]]] = [
        ([(0, -2, 345), (0, -6, 270), (2, -14, 182)], [9, 9, 9]),
        ([(2, -14, 182), (26, -20, 160), (46, -18, 142)], [8, 6.5, 4.5]),
        ([(2, -14, 182), (-30, -20, 158), (-48, -22, 138)], [8, 6, 4.5]),
    ]
    for points, radii in stems:
        placed = [traits.at(*point) for point in points]
        anatomy.add("mediastinum", tube(placed, [r + 2 for r in radii]), wall, "")
        anatomy.add("mediastinum", tube(placed, radii), air, "trachea")
    gullet: list[Point] = [(-3, -24, 345), (-4, -30, 250), (-3, -30, 180), (-8, -24, 110), (-24, -10, 68)]
    anatomy.vessel("mediastinum", "esophagus", gullet, [8, 8, 8, 9, 10], traits.hu["gut"])
    for side in (1, -1):
        centre = (side * 19.0, 8.0, 292.0)
        anatomy.solid("mediastinum", "thyroid_gland", centre, (10, 11, 21), traits.hu["thyroid"])
    isthmus = tube([traits.at(-16, 14, 288), traits.at(16, 14, 288)], [5, 5])
    anatomy.add("mediastinum", isthmus, traits.hu["thyroid"], "thyroid_gland")


AORTA_MM: dict[str, tuple[list[Point], list[float]]] = {
    "ascending": ([(8, 22, 128), (22, 28, 158), (16, 20, 192)], [15, 15.5, 15]),
    "arch": ([(16, 20, 192), (2, 0, 208), (-14, -24, 196)], [15, 13.5, 13]),
    "descending": ([(-14, -24, 196), (-20, -36, 160), (-17, -36, 100), (-8, -28, 30)], [13, 12, 11.5, 11]),
    "abdominal": ([(-8, -28, 30), (-5, -20, -30), (-4, -16, -75), (0, -14, -116)], [11, 10, 9.5, 9]),
}
"""Axis and radius of each stretch of the aorta in the middle body."""


def _add_vessels(anatomy: Anatomy) -> None:
    traits = anatomy.traits
    artery, vein = traits.hu["artery"], traits.hu["vein"]
    for name, (points, radii) in AORTA_MM.items():
        widened = traits.aneurysm_mm.get(name, 0.0)
        calibre = [max(r, widened * (1.0 if 0 < i < len(radii) - 1 else 0.7)) for i, r in enumerate(radii)]
        anatomy.vessel("mediastinum", "aorta", points, calibre, artery)
    anatomy.add("mediastinum", tube([traits.at(-8, 34, 150), traits.at(-12, 22, 172)], [15, 12]), vein)
    for side in (1, -1):
        branch = [traits.at(-10, 18, 170), traits.at(side * 38, -8, 160)]
        anatomy.add("mediastinum", tube(branch, [11, 6]), vein)
        legs: list[Point] = [
            (side * 2, -14, -116),
            (side * 32, -14, -168),
            (side * 56, 32, -235),
            (side * 72, 58, -330),
        ]
        name = "right" if side > 0 else "left"
        anatomy.vessel("mediastinum", f"iliac_artery_{name}", legs, [6.5, 6, 5.5, 5], artery)
    cava: list[Point] = [(20, -12, -122), (22, -4, -40), (24, 6, 40), (26, 14, 92)]
    anatomy.vessel("mediastinum", "inferior_vena_cava", cava, [10, 11, 12, 13], vein)
    upper: list[Point] = [(26, 18, 128), (28, 16, 165), (26, 18, 212)]
    anatomy.vessel("mediastinum", "superior_vena_cava", upper, [10, 9.5, 9], vein)
    portal: list[Point] = [(-72, -16, 22), (-36, 2, -2), (8, 16, -14), (34, 18, 20), (62, 22, 30)]
    anatomy.vessel("mediastinum", "portal_vein_and_splenic_vein", portal, [5, 6, 7.5, 7.5, 5], vein)
