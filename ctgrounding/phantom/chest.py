"""Findings of the chest, the neck, the aorta and the spine."""

from dataclasses import replace

import numpy as np

from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.body import Traits
from ctgrounding.phantom.canvas import Part
from ctgrounding.phantom.findings import (
    Finding,
    Kind,
    Site,
    focal,
    focus,
    middle_of,
    paired,
    side_of,
    swell,
    whole_organ,
    zone_in,
)
from ctgrounding.phantom.lungs import LOBES, Lung
from ctgrounding.phantom.shapes import Capsule, Cut, Ellipsoid
from ctgrounding.phantom.skeleton import LABELLED_LEVELS, vertebra
from ctgrounding.phantom.viscera import GAS_HU

Rng = np.random.Generator
_LOBE_SITES = tuple(
    Site(lobe, {"upper": (160, 255), "middle": (95, 145), "lower": (60, 165)}[lobe.split("_")[1]])
    for side in ("right", "left")
    for lobe in LOBES[side]
)
_LEVEL_SITES = tuple(
    Site(f"vertebrae_{level}", (z - 18, z + 18), level)
    for level, z in zip(LABELLED_LEVELS, (-153, -119, -85, -51, -17, 13, 39), strict=True)
)
_AORTA_SITES = (Site("aorta", (128, 206), "ascending"), Site("aorta", (-112, -5), "infrarenal"))


def _pericardial_effusion(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    heart = anatomy.organs["heart"][0]
    assert isinstance(heart, Ellipsoid)
    width = float(rng.uniform(11, 19))
    sac = heart.grown(width)
    anatomy.layers["pericardium"].append(Part(sac, float(rng.uniform(4, 20)), ""))
    return replace(focal("pericardial_effusion", site, sac, heart.centre_mm), size_mm=width)


def _pleural_effusion(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """Fluid behind and below, with a rim of compressed lung in front of it."""
    side = side_of(site.organ)
    lung = Lung(anatomy.traits, "right" if side == "right" else "left")
    level = float(rng.uniform(-22, 14))
    fluid = Cut(lung, (((0.0, 0.86, 0.51), level),))
    squeezed = Cut(lung, (((0.0, 0.86, 0.51), level + 14),))
    anatomy.layers["lesion"] += [
        Part(squeezed, 35.0, None, LOBES[side]),
        Part(fluid, float(rng.uniform(3, 18)), "", LOBES[side]),
    ]
    middle, low, high = middle_of(fluid)
    return Finding("pleural_effusion", site.organs, site.place, low, high, middle)


def _consolidation(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    centre = anatomy.place_in(site.organ, 12, rng, zone_in(site, anatomy.traits))
    x, y, z = rng.uniform(20, 32, 3).tolist()
    shape = Ellipsoid(centre, (x, y, z), ripple=0.18, phase=float(rng.uniform(0, 6)))
    anatomy.layers["lesion"].append(Part(shape, float(rng.uniform(5, 45)), None, (site.organ,)))
    return focal("consolidation", site, shape, centre)


def _lung_nodule(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    centre = anatomy.place_in(site.organ, 14, rng, zone_in(site, anatomy.traits))
    shape = focus(anatomy, centre, float(rng.uniform(10, 19.5)), float(rng.uniform(15, 60)), rng, only_in=(site.organ,))
    return focal("lung_nodule", site, shape, centre)


def _thin_lungs(traits: Traits, site: Site, rng: Rng) -> None:
    loss = float(rng.uniform(75, 105))
    for lobes in LOBES.values():
        for lobe in lobes:
            traits.hu[lobe] = max(traits.hu["lung"] - loss * (1.0 if "upper" in lobe else 0.55), -985.0)


def _emphysema(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """Thin lungs with bullae toward the apices."""
    for lobe in ("lung_upper_lobe_right", "lung_upper_lobe_left"):
        for _ in range(int(rng.integers(4, 8))):
            centre = anatomy.place_in(lobe, 2, rng, (150 * anatomy.traits.scale[2], 1e3))
            focus(anatomy, centre, float(rng.uniform(12, 30)), -992.0, rng, only_in=(lobe,))
    upper = ("lung_upper_lobe_right", "lung_upper_lobe_left")
    others = tuple(lobe for side in LOBES.values() for lobe in side if lobe not in upper)
    return replace(whole_organ("emphysema")(anatomy, site, rng), organs=upper + others)


def _collapse(traits: Traits, site: Site, rng: Rng) -> None:
    traits.fissure_mm[side_of(site.organ)] = float(rng.uniform(52, 72))
    traits.hu[site.organ] = float(rng.uniform(10, 45))


def _widen(traits: Traits, site: Site, rng: Rng) -> None:
    stretch = "abdominal" if site.place == "infrarenal" else site.place
    traits.aneurysm_mm[stretch] = float(rng.uniform(25, 31)) / traits.calibre("aorta")


def _aneurysm(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    low, high = zone_in(site, anatomy.traits)
    widest = max(
        (shape for shape in anatomy.organs["aorta"] if isinstance(shape, Capsule) and low <= shape.end_mm[2] <= high),
        key=lambda shape: shape.end_radius_mm,
    )
    ends = Capsule(widest.end_mm, widest.end_mm, widest.end_radius_mm, widest.end_radius_mm)
    return focal("aortic_aneurysm", site, ends, widest.end_mm)


def _aortic_calcification(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """Plaques on the wall; the largest one is described."""
    low, high = zone_in(site, anatomy.traits, 8)
    stretches = [s for s in anatomy.organs["aorta"] if isinstance(s, Capsule)]
    plaques: list[Ellipsoid] = []
    while len(plaques) < 8:
        stretch = stretches[rng.integers(len(stretches))]
        along, turn = rng.uniform(), rng.uniform(0, 2 * np.pi)
        x, y, z = (a + along * (b - a) for a, b in zip(stretch.start_mm, stretch.end_mm, strict=True))
        radius = stretch.start_radius_mm + along * (stretch.end_radius_mm - stretch.start_radius_mm) - 1.5
        if low <= z <= high:
            centre = float(x + radius * np.cos(turn)), float(y + radius * np.sin(turn)), float(z)
            length = float(rng.uniform(8, 17) if plaques else 18.5)
            plaques.append(Ellipsoid(centre, (3.2, 3.2, length / 2)))
    anatomy.layers["lesion"].extend(Part(plaque, float(rng.uniform(600, 1000))) for plaque in plaques)
    largest = focal("aortic_calcification", site, plaques[0], plaques[0].centre_mm, count=len(plaques))
    return replace(largest, size_mm=None)


def _thyroid_nodule(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    contrast = -float(rng.uniform(42, 60))
    x, y, z = anatomy.place_in("thyroid_gland", 7, rng, zone_in(site, anatomy.traits, 8))
    shape = focus(
        anatomy, (x, y, z), float(rng.uniform(13, 19.5)), anatomy.traits.hu["thyroid"] + contrast, rng, organ=site.organ
    )
    place = "right" if x > anatomy.traits.shifts["thyroid_gland"][0] else "left"
    return focal("thyroid_nodule", Site(site.organ, site.zone_mm, place), shape, (x, y, z), contrast_hu=contrast)


def _hiatal_hernia(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    """A pouch of stomach behind the heart, wall, fluid and gas."""
    traits = anatomy.traits
    centre = traits.at(-16, -22, float(rng.uniform(88, 98)))
    x, y, z = rng.uniform(23, 32, 3).tolist()
    pouch = Ellipsoid(centre, (x, y, z), ripple=0.1, phase=float(rng.uniform(0, 6)))
    inner = Ellipsoid(centre, (x - 4.5, y - 4.5, z - 4.5))
    gas = Cut(inner, (((0.0, -1.0, 0.0), -(centre[1] + float(rng.uniform(-2, 8)))),))
    anatomy.layers["lesion"] += [Part(pouch, traits.hu["gut"], "stomach"), Part(inner, 22.0), Part(gas, GAS_HU)]
    return focal("hiatal_hernia", site, pouch, centre)


def _bone_lesion(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    body = vertebra(anatomy, site.place)
    x, y, z = (c + float(rng.uniform(-0.25, 0.25)) * r for c, r in zip(body.centre_mm, body.radii_mm, strict=True))
    hu = anatomy.traits.hu["marrow"] + float(rng.uniform(420, 650))
    shape = focus(anatomy, (x, y, z), float(rng.uniform(14, 19.5)), hu, rng, organ=site.organ)
    return focal("bone_lesion", site, shape, (x, y, z))


def _crush(traits: Traits, site: Site, rng: Rng) -> None:
    traits.fractured = (*traits.fractured, site.place)


def _vertebral_fracture(anatomy: Anatomy, site: Site, rng: Rng) -> Finding:
    body = vertebra(anatomy, site.place)
    return replace(focal("vertebral_fracture", site, body, body.centre_mm), size_mm=None)


_HEART = (Site("heart", (66, 145)),)
_THYROID = (Site("thyroid_gland", (266, 313)),)

CHEST_KINDS = (
    Kind("cardiomegaly", _HEART, whole_organ("cardiomegaly"), swell((1.4, 1.3, 1.2), (1.6, 1.45, 1.35))),
    Kind("pericardial_effusion", _HEART, _pericardial_effusion),
    Kind("pleural_effusion", paired("lung_lower_lobe", (12, 80)), _pleural_effusion),
    Kind("consolidation", _LOBE_SITES, _consolidation),
    Kind("lung_nodule", _LOBE_SITES, _lung_nodule, is_small=True),
    Kind("emphysema", paired("lung_upper_lobe", (120, 255)), _emphysema, _thin_lungs),
    Kind("atelectasis", paired("lung_lower_lobe", (30, 130)), whole_organ("atelectasis"), _collapse),
    Kind("hiatal_hernia", (Site("stomach", (62, 122)),), _hiatal_hernia),
    Kind("goitre", _THYROID, whole_organ("goitre"), swell((1.6, 1.6, 1.3), (1.9, 1.9, 1.5))),
    Kind("thyroid_nodule", _THYROID, _thyroid_nodule, is_small=True),
    Kind("aortic_aneurysm", _AORTA_SITES, _aneurysm, _widen),
    Kind("aortic_calcification", _AORTA_SITES, _aortic_calcification, is_small=True),
    Kind("bone_lesion", _LEVEL_SITES, _bone_lesion, is_small=True),
    Kind("vertebral_fracture", _LEVEL_SITES, _vertebral_fracture, _crush),
)
