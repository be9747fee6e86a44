"""What a finding is, and the strokes with which findings are drawn."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.body import Sex, Traits
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.shapes import Cut, Ellipsoid, Point, Shape

SMALL_MM = 20.0
"""Kinds whose lesions all stay below this are the small ones."""

Zone = tuple[float, float]


@dataclass(frozen=True)
class Finding:
    """One planted finding.

    Attributes:
        kind: Column of the labels.
        organs: Organs it lies in (TotalSegmentator v2), the main one first; empty if none.
        place: Where, in words for the report: a lobe, a level, a stretch of the aorta; may be empty.
        low_mm: Lowest corner of its box, body or world coordinates as the holder says.
        high_mm: Highest corner.
        centre_mm: A point in it; the slice through it shows it.
        size_mm: Largest diameter of the largest focus, None where no one would measure it.
        contrast_hu: Difference to the tissue around, where that is soft tissue.
        count: Number of foci.
    """

    kind: str
    organs: tuple[str, ...]
    place: str
    low_mm: Point
    high_mm: Point
    centre_mm: Point
    size_mm: float | None = None
    contrast_hu: float | None = None
    count: int = 1

    @property
    def organ(self) -> str:
        """The main organ, empty if none."""
        return self.organs[0] if self.organs else ""

    @property
    def side(self) -> str:
        """``left``, ``right``, ``both`` or empty."""
        sides = {side_of(organ) for organ in self.organs}
        return "both" if sides == {"left", "right"} else "".join(sides) if len(sides) == 1 else ""

    def moved(self, by_mm: Point) -> "Finding":
        """The same finding, shifted."""
        corners = (self.low_mm, self.high_mm, self.centre_mm)
        low, high, centre = ((x + by_mm[0], y + by_mm[1], z + by_mm[2]) for x, y, z in corners)
        return replace(self, low_mm=low, high_mm=high, centre_mm=centre)


@dataclass(frozen=True)
class Site:
    """One place in which a kind can occur.

    Attributes:
        organ: Organ it lies in, empty if none.
        zone_mm: Heights of the middle body that a scan must cover to settle whether it is there.
        place: Where in words, if the organ's name does not say it.
    """

    organ: str
    zone_mm: Zone
    place: str = ""

    @property
    def organs(self) -> tuple[str, ...]:
        """The organ as a tuple, empty if none."""
        return (self.organ,) if self.organ else ()


Planter = Callable[[Anatomy, Site, np.random.Generator], Finding]
Alteration = Callable[[Traits, Site, np.random.Generator], None]


def _leave(traits: Traits, site: Site, rng: np.random.Generator) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        name: Column of the labels.
        sites: Where it can occur.
        plant: Draws it into a patient and says what it drew.
        alter: Changes the patient's build before the anatomy is drawn.
        is_small: Whether each focus is under 20 mm.
        sex: Who can have it, None for all.
    """

    name: str
    sites: tuple[Site, ...]
    plant: Planter
    alter: Alteration = field(default=_leave)
    is_small: bool = False
    sex: Sex | None = None

    def covered_sites(self, field_mm: Zone) -> tuple[Site, ...]:
        """Sites that a field of view, in heights of the middle body, covers."""
        low, high = field_mm
        return tuple(site for site in self.sites if low <= site.zone_mm[0] and site.zone_mm[1] <= high)


def side_of(organ: str) -> str:
    """Side that an organ's name tells: ``left``, ``right`` or empty."""
    return next((side for side in ("left", "right") if organ.endswith(side)), "")


def paired(organ: str, zone_mm: Zone) -> tuple[Site, ...]:
    """The right and the left organ as sites."""
    return tuple(Site(f"{organ}_{side}", zone_mm) for side in ("right", "left"))


def whole_organ(kind: str, contrast_hu: Callable[[Traits], float] | None = None) -> Planter:
    """For a kind that is an altered organ: nothing to draw, the organ's box is its extent.

    Args:
        kind: Name of the kind.
        contrast_hu: Change of the organ's HU, read off the altered build.
    """

    def describe(anatomy: Anatomy, site: Site, rng: np.random.Generator) -> Finding:
        shape = anatomy.organs[site.organ][0]
        if isinstance(shape, Cut):
            middle, low, high = middle_of(shape)
        else:
            low, high = anatomy.bounds_mm(site.organ)
            x, y, z = ((a + b) / 2 for a, b in zip(low, high, strict=True))
            middle = (x, y, z)
        contrast = contrast_hu(anatomy.traits) if contrast_hu else None
        return Finding(kind, site.organs, site.place, low, high, middle, contrast_hu=contrast)

    return describe


def swell(low: Point, high: Point) -> Alteration:
    """An alteration that gives the site's organ a size between two factors of the middle one."""

    def alter(traits: Traits, site: Site, rng: np.random.Generator) -> None:
        x, y, z = np.array(low) + rng.uniform() * (np.array(high) - np.array(low))
        traits.swelling[site.organ] = (float(x), float(y), float(z))

    return alter


def focus(
    anatomy: Anatomy,
    centre_mm: Point,
    diameter_mm: float,
    hu: float,
    rng: np.random.Generator,
    organ: str | None = None,
    only_in: tuple[str, ...] = (),
) -> Ellipsoid:
    """Draw a round focus whose largest diameter is ``diameter_mm``.

    Args:
        anatomy: Patient to draw in.
        centre_mm: Its centre.
        diameter_mm: Its largest diameter.
        hu: Its HU.
        rng: Source of chance.
        organ: Organ whose label it takes, None to leave labels.
        only_in: Organs that it does not reach out of; empty if it may.
    """
    x, y, z = (diameter_mm / 2 * np.append(rng.uniform(0.85, 1.0, 2), 1.0)[rng.permutation(3)]).tolist()
    shape = Ellipsoid(centre_mm, (x, y, z))
    anatomy.layers["lesion"].append(Part(shape, hu, organ, only_in))
    return shape


def focal(
    kind: str, site: Site, shape: Shape, centre_mm: Point, contrast_hu: float | None = None, count: int = 1
) -> Finding:
    """Describe a drawn shape as a finding as long as the shape's box."""
    low, high = shape.box_mm()
    size_mm = max(b - a for a, b in zip(low, high, strict=True))
    return Finding(kind, site.organs, site.place, low, high, centre_mm, size_mm, contrast_hu, count)


def middle_of(shape: Shape) -> tuple[Point, Point, Point]:
    """Mean, lowest and highest corner of the points inside a shape that has no simple formula."""
    low, high = shape.box_mm()
    x, y, z = np.meshgrid(*(np.linspace(a, b, 24, dtype=np.float32) for a, b in zip(low, high, strict=True)))
    inside = shape.depth_mm(x, y, z) > 0
    points = [axis[inside] for axis in (x, y, z)]
    mean_x, mean_y, mean_z = (float(axis.mean()) for axis in points)
    x0, y0, z0 = (float(axis.min()) for axis in points)
    x1, y1, z1 = (float(axis.max()) for axis in points)
    return (mean_x, mean_y, mean_z), (x0, y0, z0), (x1, y1, z1)


def zone_in(site: Site, traits: Traits, margin_mm: float = 0.0) -> Zone:
    """Heights of a site in this patient, less a margin at both ends."""
    low, high = site.zone_mm
    return low * traits.scale[2] + margin_mm, high * traits.scale[2] - margin_mm
