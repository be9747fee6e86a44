"""One whole synthetic patient in memory: scans, organ maps, findings, labels and report."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16, UInt8

from ctgrounding.errors import ConfigError
from ctgrounding.phantom.acquisition import Acquisition, acquire, expose, reconstruct_again
from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.assembly import build
from ctgrounding.phantom.body import draw_traits
from ctgrounding.phantom.canvas import Canvas
from ctgrounding.phantom.chance import keyed
from ctgrounding.phantom.findings import Finding
from ctgrounding.phantom.kinds import KIND_TABLE, KINDS, Plan, plan_patient
from ctgrounding.phantom.report import Report, Wording, write_report
from ctgrounding.phantom.shapes import Point

SECOND_RECONSTRUCTION = 0.12
"""Share of studies with two reconstructions."""


@dataclass(frozen=True)
class Scan:
    """One reconstruction.

    Attributes:
        scan_id: Unique name.
        acquisition: Geometry, series number, image numbers and storage.
        image_hu: HU as a reader of the file gets them, padding included.
        organs: TotalSegmentator v2 labels on the same grid.
    """

    scan_id: str
    acquisition: Acquisition
    image_hu: Int16[np.ndarray, "d h w"]
    organs: UInt8[np.ndarray, "d h w"]


@dataclass(frozen=True)
class Patient:
    """One patient with one study.

    Attributes:
        patient_id: Unique name.
        study_id: Unique name.
        plan: What the patient was dealt.
        scans: One or two reconstructions.
        findings: What is planted, in world coordinates.
        labels: Kind to 1, 0 or None where the scan does not settle it.
        report: Findings, impression and the references in them.
    """

    patient_id: str
    study_id: str
    plan: Plan
    scans: tuple[Scan, ...]
    findings: tuple[Finding, ...]
    labels: dict[str, int | None]
    report: Report


def make_patient(index: int, seed: int = 0, voxel_mm: float = 4.0, wording: Wording = "train") -> Patient:
    """Make one synthetic patient.

    Args:
        index: Number of the patient; the same number and seed give the same patient.
        seed: Seed of the data set.
        voxel_mm: Rough size of a voxel, above 0.5.
        wording: Stock of sentences for the report; validation and test patients have one of their own.

    Raises:
        ConfigError: If the number or the seed is negative, or ``voxel_mm`` too small to be meant.

    Examples:
        >>> patient = make_patient(3, voxel_mm=12.0)
        >>> scan = patient.scans[0]
        >>> scan.image_hu.shape == scan.organs.shape
        True
    """
    if index < 0 or seed < 0:
        raise ConfigError(f"Patient {index} of seed {seed} does not exist. Use zero or positive numbers.")
    if not voxel_mm >= 0.5:
        raise ConfigError(f"voxel_mm is {voxel_mm} for the phantom. Choose 0.5 or more; 4 is usual.")
    plan = plan_patient(seed, index)
    anatomy, in_body = _draw(plan, seed, index)
    rng = keyed(seed, index, "position")
    offset: Point = (float(rng.uniform(-10, 10)), float(rng.uniform(-40, 20)), float(rng.uniform(-300, 300)))
    findings = tuple(finding.moved(offset) for finding in in_body)
    patient_id = f"P{index:05d}"
    scans = _scan(plan, anatomy, offset, voxel_mm, seed, index)
    labels = {kind: int(kind in plan.sites) if kind in plan.stated else None for kind in KINDS}
    organs = _organ_places(anatomy, offset)
    report = write_report(plan, findings, organs, [s.acquisition for s in scans], wording, keyed(seed, index, "report"))
    return Patient(patient_id, f"{patient_id}_1", plan, scans, findings, labels, report)


def _draw(plan: Plan, seed: int, index: int) -> tuple[Anatomy, list[Finding]]:
    """Alter the build, draw the body, plant the rest; each kind with chance of its own."""
    traits = draw_traits(plan.sex, keyed(seed, index, "traits"))
    for name, site in plan.sites.items():
        KIND_TABLE[name].alter(traits, site, keyed(seed, index, f"alter {name}"))
    anatomy = build(traits)
    findings = [
        KIND_TABLE[name].plant(anatomy, site, keyed(seed, index, f"plant {name}")) for name, site in plan.sites.items()
    ]
    return anatomy, findings


def _scan(plan: Plan, anatomy: Anatomy, offset_mm: Point, voxel_mm: float, seed: int, index: int) -> tuple[Scan, ...]:
    rng = keyed(seed, index, "acquisition")
    acquisitions = [acquire(anatomy.traits, plan.field_mm, offset_mm, voxel_mm, rng)]
    if keyed(seed, index, "reconstructions").uniform() < SECOND_RECONSTRUCTION:
        acquisitions.append(reconstruct_again(acquisitions[0], rng))
    scans = []
    for number, acquisition in enumerate(acquisitions):
        to_body = acquisition.affine.copy()
        to_body[:3, 3] -= offset_mm
        canvas = Canvas(acquisition.shape, to_body)
        anatomy.paint(canvas)
        image = expose(canvas.image_hu, acquisition, keyed(seed, index, f"noise {number}"))
        scans.append(Scan(f"P{index:05d}_1_{number + 1}", acquisition, image, canvas.organs))
    return tuple(scans)


def _organ_places(anatomy: Anatomy, offset_mm: Point) -> dict[str, tuple[Point, Point]]:
    places = {}
    for organ in anatomy.organs:
        low, high = (
            tuple(c + o for c, o in zip(corner, offset_mm, strict=True)) for corner in anatomy.bounds_mm(organ)
        )
        places[organ] = ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    return places
