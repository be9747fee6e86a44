"""Findings of the abdomen and the pelvis."""

from dataclasses import dataclass, replace

import numpy as np

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.body import WALL_MM, Traits, Trunk
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.findings import Finding, Kind, Site, focal, focus, paired, side_of, swell, whole_organ, zone_in
from ctgrounding.phantom.shapes import Box, Depth, Ellipsoid

Rng = np.random.Generator
_LIVER = (Site("liver", (-32, 66)),)
_KIDNEYS = paired("kidney", (-98, 10))


@dataclass(frozen=True)
class PeritonealRim:
    """The outermost layer of the abdominal cavity, where free fluid lies.

    Attributes:
        cavity: Surface of the cavity.
        width_mm: Thickness of the layer.
        levels_mm: Lowest and highest height.
    """

    cavity: Trunk
    width_mm: float
    levels_mm: tuple[float, float]

    def box_mm(self) -> Box:
        """Box of the cavity between the levels."""
        low, high = self.cavity.box_mm()
        return (low[0], low[1], self.levels_mm[0]), (high[0], high[1], self.levels_mm[1])

    def depth_mm(self, x: Depth, y: Depth, z: Depth) -> Depth:
        """Depth below the nearer of the layer's two surfaces; thicker behind, where fluid sinks."""
        depth = self.cavity.depth_mm(x, y, z)
        width = np.float32(self.width_mm) * np.clip(1 - y / np.float32(110), 0.35, 1.6)
        low, high = (np.float32(level) for level in self.levels_mm)
        result: Depth = np.minimum(np.minimum(depth, width - depth), np.minimum(z - low, high - z))
        return result


def _fatten(traits: Traits, site: Site, rng: Rng) -> None:
    traits.fat_in_liver_hu = -float(rng.uniform(34, 52))
    traits.hu["liver"] += traits.fat_in_liver_hu


def _liver_cyst(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    contrast = -float(rng.uniform(45, 60))
    centre = anatomy.place_in("liver", 16, rng, zone_in(site, anatomy.traits))
    hu = anatomy.traits.hu["liver"] + contrast
    shape = focus(anatomy, centre, float(rng.uniform(14, 19.5)), hu, rng, only_in=("liver",))
    return focal("liver_cyst", site, shape, centre, contrast_hu=contrast)


def _liver_metastases(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """Several dark masses; the largest one is described."""
    contrast = -float(rng.uniform(30, 50))
    hu = anatomy.traits.hu["liver"] + contrast
    diameters = np.sort(rng.uniform(20, 44, rng.integers(6, 11)))[::-1]
    shapes = []
    for diameter in diameters.tolist():
        centre = anatomy.place_in("liver", 14, rng, zone_in(site, anatomy.traits))
        shapes.append(focus(anatomy, centre, diameter, hu, rng, only_in=("liver",)))
    return focal("liver_metastases", site, shapes[0], shapes[0].centre_mm, contrast_hu=contrast, count=len(diameters))


def _gallstone(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """One to three stones on the dependent wall."""
    diameters = np.sort(rng.uniform(9, 18, rng.integers(1, 4)))[::-1]
    shapes = []
    for diameter in diameters:
        x, y, z = anatomy.place_in("gallbladder", diameter / 2, rng)
        shapes.append(focus(anatomy, (x, y - 3, z), float(diameter), float(rng.uniform(170, 330)), rng))
    return focal("gallstone", site, shapes[0], shapes[0].centre_mm, count=len(shapes))


def _pancreatic_cyst(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    contrast = -float(rng.uniform(45, 60))
    centre = anatomy.place_in("pancreas", 7, rng)
    hu = anatomy.traits.hu["pancreas"] + contrast
    shape = focus(anatomy, centre, float(rng.uniform(14, 19.5)), hu, rng, organ="pancreas")
    x = centre[0] / anatomy.traits.scale[0]
    place = "head" if x > 12 else "body" if x > -34 else "tail"
    return focal("pancreatic_cyst", Site("pancreas", site.zone_mm, place), shape, centre, contrast_hu=contrast)


def _adrenal_nodule(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    contrast = -float(rng.uniform(22, 40))
    centre = anatomy.place_in(site.organ, 3, rng)
    hu = anatomy.traits.hu["adrenal"] + contrast
    shape = focus(anatomy, centre, float(rng.uniform(14, 19.5)), hu, rng, organ=site.organ)
    return focal("adrenal_nodule", site, shape, centre, contrast_hu=contrast)


def _renal_cyst(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    contrast = -float(rng.uniform(45, 60))
    centre = anatomy.place_in(site.organ, 3, rng, zone_in(site, anatomy.traits, 10))
    hu = anatomy.traits.hu["kidney"] + contrast
    shape = focus(anatomy, centre, float(rng.uniform(15, 19.5)), hu, rng, organ=site.organ)
    return focal("renal_cyst", site, shape, centre, contrast_hu=contrast)


def _kidney_stone(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    kidney = anatomy.organs[site.organ][0]
    assert isinstance(kidney, Ellipsoid)
    inward = -1 if side_of(site.organ) == "right" else 1
    offset = np.array([inward * 0.35, 0.1, rng.uniform(-0.4, 0.4)]) * kidney.radii_mm
    x, y, z = (np.array(kidney.centre_mm) + offset).tolist()
    shape = focus(anatomy, (x, y, z), float(rng.uniform(9, 15)), float(rng.uniform(700, 1300)), rng)
    return focal("kidney_stone", site, shape, (x, y, z))


def _hydronephrosis(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """A wide collecting system that bulges out at the hilum."""
    kidney = anatomy.organs[site.organ][0]
    assert isinstance(kidney, Ellipsoid)
    contrast = -float(rng.uniform(48, 60))
    inward = -1 if side_of(site.organ) == "right" else 1
    (x, y, z), (rx, ry, rz) = kidney.centre_mm, kidney.radii_mm
    basin = Ellipsoid(
        (x + inward * 0.2 * rx, y, z), (0.68 * rx, 0.62 * ry, 0.72 * rz), kidney.tilt_deg, 0.15, rng.uniform(0, 6)
    )
    pelvis = Ellipsoid((x + inward * 0.95 * rx, y + 6, z - 6), (0.5 * rx, 0.5 * ry, 0.34 * rz))
    hu = anatomy.traits.hu["kidney"] + contrast
    anatomy.layers["lesion"] += [Part(basin, hu), Part(pelvis, hu)]
    return replace(focal("hydronephrosis", site, basin, (x, y, z), contrast_hu=contrast), size_mm=None)


def _shrink(traits: Traits, site: Site, rng: Rng) -> None:
    x, y, z = rng.uniform(0.5, 0.6, 3).tolist()
    traits.swelling[site.organ] = (x, y, z)


def _ascites(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    traits = anatomy.traits
    levels = -285 * traits.scale[2], 60 * traits.scale[2]
    rim = PeritonealRim(Trunk(traits, traits.fat_mm + WALL_MM), float(rng.uniform(16, 28)), levels)
    pelvic = Ellipsoid(traits.at(0, 10, -225), (88 * traits.scale[0], 62, 52))
    hu = float(rng.uniform(3, 18))
    anatomy.layers["cavity"] += [Part(rim, hu), Part(pelvic, hu)]
    low, high = zone_in(site, traits)
    return Finding(
        "ascites", (), site.place, (-120.0, -90.0, levels[0]), (120.0, 90.0, levels[1]), (0.0, 0.0, (low + high) / 2)
    )


def _dilate(traits: Traits, site: Site, rng: Rng) -> None:
    traits.bowel_loop_mm = float(rng.uniform(34, 42))


ABDOMEN_KINDS = (
    Kind("hepatic_steatosis", _LIVER, whole_organ("hepatic_steatosis", lambda t: t.fat_in_liver_hu), _fatten),
    Kind("liver_cyst", _LIVER, _liver_cyst, is_small=True),
    Kind("liver_metastases", _LIVER, _liver_metastases),
    Kind("gallstone", (Site("gallbladder", (-58, 4)),), _gallstone, is_small=True),
    Kind("splenomegaly", (Site("spleen", (-20, 80)),), whole_organ("splenomegaly"),
         swell((1.45, 1.45, 1.5), (1.65, 1.6, 1.75))),
    Kind("pancreatic_cyst", (Site("pancreas", (-58, 24)),), _pancreatic_cyst, is_small=True),
    Kind("adrenal_nodule", paired("adrenal_gland", (-2, 36)), _adrenal_nodule, is_small=True),
    Kind("renal_cyst", _KIDNEYS, _renal_cyst, is_small=True),
    Kind("kidney_stone", _KIDNEYS, _kidney_stone, is_small=True),
    Kind("hydronephrosis", _KIDNEYS, _hydronephrosis),
    Kind("renal_atrophy", _KIDNEYS, whole_organ("renal_atrophy"), _shrink),
    Kind("ascites", (Site("", (-120, 30)),), _ascites),
    Kind("small_bowel_dilatation", (Site("small_bowel", (-190, -60)),), whole_organ("small_bowel_dilatation"), _dilate),
    Kind("bladder_distension", (Site("urinary_bladder", (-272, -205)),), whole_organ("bladder_distension"),
         swell((1.5, 1.5, 1.6), (1.75, 1.75, 1.9))),
    Kind("prostate_enlargement", (Site("prostate", (-302, -262)),), whole_organ("prostate_enlargement"),
         swell((1.55, 1.5, 1.45), (1.85, 1.8, 1.7)), sex="male"),
)  # fmt: skip
