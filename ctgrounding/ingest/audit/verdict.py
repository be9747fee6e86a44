"""The verdict on one scan: what its values, its geometry and its field of view say."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ctgrounding.geometry import Affine, orientation, slice_axis, tilt_deg
from ctgrounding.ingest.audit.field_of_view import body_at_edge, copied_slices
from ctgrounding.ingest.audit.hu import Evidence, HuRule, decide
from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.readers import Source, Stored

TILT_DEG = 0.01
CUT_SHARE = 0.08
"""Mean share of the field's edge that runs through the body, from which the field cuts it."""
PLANE_MM = (50.0, 800.0)
"""In-plane extents that a CT can have; gantries are 700 to 850 mm wide."""
HEIGHT_MM = 2500.0
QFORM_OFF_MM = 1.0
"""What the quaternion of a qform may be off by, at a corner, for its numbers are short; 0.7 mm has been seen."""
_OPPOSITE = str.maketrans("RLAPSI", "LRPAIS")


@dataclass(frozen=True)
class Verdict:
    """What the audit found about one scan.

    Attributes:
        rule: How values become HU.
        evidence: What speaks for it.
        remarks: Findings that did not stop the scan, gravest first.
        facts: Of header and geometry.
    """

    rule: HuRule
    evidence: Evidence
    remarks: tuple[Remark, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def flags(self) -> tuple[str, ...]:
        """Kinds of the remarks."""
        return tuple(remark.kind for remark in self.remarks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as stored with the scan."""
        evidence = {key: value for key, value in vars(self.evidence).items() if value is not None}
        rule = {"rule": self.rule.name, "slope": self.rule.slope, "intercept": self.rule.intercept}
        reasons = {remark.kind: remark.reason for remark in self.remarks}
        return {"hu": rule, "evidence": evidence, "flags": list(self.flags), "reasons": reasons, **self.facts}


def judge(source: Source, stored: Stored, hu: str = "auto") -> Verdict:
    """Decide how a scan's values become HU and whether it can be used.

    Args:
        source: Its header.
        stored: Its values.
        hu: ``auto`` decides by the data; ``stored`` takes the header's slope and intercept as they are.

    Raises:
        ScanError: If a value is not finite, all values are one, or no rule gives values that look like CT.
    """
    rule, evidence = decide(stored, hu)
    facts = {**source.facts, **_geometry_facts(source)}
    planes = np.moveaxis(stored.values, 2 - slice_axis(source.affine), 0)
    facts["cut_share"] = round(body_at_edge(planes, rule), 4)
    remarks = [
        *_of_values(rule, HuRule("header", stored.slope, stored.intercept), evidence),
        *_of_header(source.affine, facts),
        *_of_field(planes, facts["cut_share"]),
        *_handled(source.affine, facts["tilt_deg"], evidence),
    ]
    return Verdict(rule, evidence, tuple(remarks), facts)


def _of_values(rule: HuRule, header: HuRule, evidence: Evidence) -> Iterator[Remark]:
    if not evidence.is_ct:
        yield Remark("not_hu", "The card trusts the header (hu: stored), but its slope and intercept give no HU.")
    if rule.verdict == "intercept_trap":
        stands = "already HU" if rule.name == "already_hu" else f"HU once {rule.intercept:+g} is added"
        peak = "no air" if evidence.air_peak_hu is None else f"air at {evidence.air_peak_hu:g} HU"
        yield Remark(
            "intercept_trap",
            f"The header says slope {header.slope:g} and intercept {header.intercept:g}, but the values are {stands} "
            f"({peak}, soft tissue at {evidence.soft_peak_hu:g} HU). They were taken so.",
        )
    if not evidence.has_air:
        yield Remark(
            "no_air", f"Only {evidence.air:.1%} of the voxels are air, so only soft tissue vouches for the HU."
        )


def _of_header(affine: Affine, facts: dict[str, Any]) -> Iterator[Remark]:
    if np.array_equal(np.abs(affine), np.eye(4)):
        yield Remark(
            "lost_header", "Spacing is exactly 1 x 1 x 1 mm and the origin 0, 0, 0: what a lost header leaves behind."
        )
    if facts.get("qform_off_mm", 0.0) > QFORM_OFF_MM:
        yield Remark(
            "two_places",
            f"Its sform and its qform differ by up to {facts['qform_off_mm']:.1f} mm. The sform was taken.",
        )
    named = facts.get("anatomical_orientation", "")
    if named and named not in (facts["orientation"], facts["orientation"].translate(_OPPOSITE)):
        yield Remark(
            "two_places",
            f"Its AnatomicalOrientation {named} is neither where its axes go by its matrix, {facts['orientation']}, "
            "nor where they come from. The matrix was taken.",
        )
    extents = np.array(facts["source_spacing_ijk_mm"]) * facts["source_shape_ijk"]
    height, plane = extents[facts["slice_axis"]], np.delete(extents, facts["slice_axis"])
    if plane.min() < PLANE_MM[0] or plane.max() > PLANE_MM[1] or height > HEIGHT_MM:
        shown = " x ".join(f"{extent:.0f}" for extent in extents)
        yield Remark("odd_size", f"By its header the scan is {shown} mm large, which no CT of a body is.")


def _of_field(planes: Shaped[np.ndarray, "slices rows columns"], cut_share: float) -> Iterator[Remark]:
    copies = copied_slices(planes)
    if copies:
        yield Remark(
            "copied_slices",
            f"{len(copies)} of {len(planes)} slices equal the one before, the first is {copies[0] + 1}.",
        )
    if cut_share > CUT_SHARE:
        yield Remark("cut_field", f"{cut_share:.0%} of the edge of the field runs through the body: parts lie outside.")


def _handled(affine: Affine, tilt: float, evidence: Evidence) -> Iterator[Remark]:
    if tilt > TILT_DEG:
        lean = _lean_deg(affine)
        kind = (
            f"sheared by {lean:.1f} degrees, as by a gantry tilt"
            if lean > TILT_DEG
            else "not sheared: an oblique stack"
        )
        yield Remark("tilt", f"The slices are tilted by {tilt:.1f} degrees and {kind}.")
    if evidence.padding_hu is not None:
        yield Remark("padding", f"The field is padded with the constant {evidence.padding_hu:g}.")


def _lean_deg(affine: Affine) -> float:
    """Angle between the slices' normal and the way from slice to slice; a rotated stack has none."""
    axis = slice_axis(affine)
    first, second = (affine[:3, other] for other in range(3) if other != axis)
    normal, step = np.cross(first, second), affine[:3, axis]
    across = np.linalg.norm(np.cross(normal, step))
    return float(np.degrees(np.arctan2(across, abs(normal @ step))))


def _geometry_facts(source: Source) -> dict[str, Any]:
    lengths = np.linalg.norm(source.affine[:3, :3], axis=0)
    return {
        "orientation": orientation(source.affine),
        "tilt_deg": round(tilt_deg(source.affine), 3),
        "source_shape_ijk": list(source.shape_ijk),
        "source_spacing_ijk_mm": [round(float(length), 4) for length in lengths],
        "slice_axis": slice_axis(source.affine),
    }
