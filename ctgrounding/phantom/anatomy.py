"""A patient as layers of parts, later ones over earlier ones.

Organs and findings both add parts here; the shapes of each organ are kept by name, so a lesion always
knows the organ it sits in.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float64

from ctgrounding.errors import ConfigError
from ctgrounding.phantom.body import Traits, sized_as
from ctgrounding.phantom.canvas import Canvas, Part
from ctgrounding.phantom.shapes import Ellipsoid, Point, Shape, tube

LAYERS = ("trunk", "cavity", "muscle", "abdomen", "lung", "pericardium", "mediastinum", "skeleton", "lesion")
"""Order of painting: what comes later lies over what comes before."""

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
