"""Heart, airways, thyroid and the large vessels of the trunk."""

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.shapes import Ellipsoid, Point, tube


def add_mediastinum(anatomy: Anatomy) -> None:
    """Heart, airways, thyroid and large vessels."""
    _add_heart(anatomy)
    _add_airways(anatomy)
    _add_vessels(anatomy)


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
