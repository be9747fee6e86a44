"""What is true of a patient, as plain values for the truth file. No training path reads it."""

from collections.abc import Iterable
from typing import Any, SupportsFloat

import numpy as np

from ctgrounding import label_sets
from ctgrounding.phantom.patient import Patient, Scan


def describe(patient: Patient, scan: Scan) -> dict[str, Any]:
    """One line of the truth file.

    Args:
        patient: Whose scan it is.
        scan: One of the patient's scans.

    Returns:
        Identity, acquisition, extent of every organ in the field, findings, references and templates;
        places in world mm (RAS).
    """
    acquisition = scan.acquisition
    z_mm = acquisition.slice_z_mm
    return {
        "scan_id": scan.scan_id,
        "study_id": patient.study_id,
        "patient_id": patient.patient_id,
        "coverage": patient.plan.coverage,
        "field_of_middle_body_mm": _rounded(patient.plan.field_mm),
        "z_mm": _rounded((float(z_mm[0]), float(z_mm[-1]))),
        "noise_hu": round(acquisition.noise_hu, 3),
        "padding_hu": acquisition.storage.padding_hu,
        "code": acquisition.code,
        "organs": _organ_extents(scan),
        "findings": [
            {
                "kind": finding.kind,
                "organs": list(finding.organs),
                "side": finding.side,
                "place": finding.place,
                "centre_mm": _rounded(finding.centre_mm),
                "low_mm": _rounded(finding.low_mm),
                "high_mm": _rounded(finding.high_mm),
                "z_range_mm": _rounded((finding.low_mm[2], finding.high_mm[2])),
                "size_mm": None if finding.size_mm is None else round(finding.size_mm, 3),
                "contrast_hu": None if finding.contrast_hu is None else round(finding.contrast_hu, 3),
                "count": finding.count,
            }
            for finding in patient.findings
        ],
        "references": [
            {
                "text": reference.text,
                "sentence": reference.sentence,
                "series": reference.series,
                "images": list(reference.images),
                "depth_mm": round(reference.depth_mm, 3),
                "organ": reference.organ,
                "kind": reference.kind,
            }
            for reference in patient.report.references
        ],
        "wording": patient.report.wording,
        "templates": list(patient.report.templates),
    }


def _organ_extents(scan: Scan) -> dict[str, dict[str, list[float]]]:
    """Box of each organ's voxel centres in world mm."""
    from scipy.ndimage import find_objects

    names = label_sets.load("total_v2")
    extents = {}
    for label, box in enumerate(find_objects(scan.organs), 1):
        if box is None:
            continue
        d, h, w = ((span.start, span.stop - 1) for span in box)
        corners = np.array([(i, j, k, 1.0) for i in w for j in h for k in d]) @ scan.acquisition.affine.T
        low, high = corners[:, :3].min(0), corners[:, :3].max(0)
        extents[names[label]] = {"low_mm": _rounded(low), "high_mm": _rounded(high)}
    return extents


def _rounded(values: Iterable[SupportsFloat]) -> list[float]:
    return [round(float(value), 3) for value in values]
