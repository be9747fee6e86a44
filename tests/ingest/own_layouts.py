"""Small trees as the cards of own data ask for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hospital_files import write_dicom, write_table
from layout_parts import SHAPE_IJK, Expected, chest_hu, ras_affine, save

from ctgrounding.ingest.snippets import (
    DERIVED,
    ELSEWHERE,
    LOCALIZER,
    NO_IMAGE,
    NO_NUMBERS,
    NO_SERIES,
    NOT_AXIAL,
    OUTSIDE,
)


def own_nifti(root: Path) -> Expected:
    """Own NIfTI files and CSV tables, with slices."""
    save(root / "ct/a.nii.gz", chest_hu("a"), ras_affine(), "LPS")
    row = {"scan_id": "a", "study_id": "s1", "patient_id": "p1", "path": "ct/a.nii.gz"}
    write_table(root / "scans.csv", [row])
    write_table(
        root / "reports.csv",
        [{"study_id": "s1", "findings": "A cyst in the left kidney (series 3, image 5).", "impression": "Cyst."}],
    )
    return Expected(
        studies={"s1": ["a"]},
        patients={"a": "p1"},
        splits={},
        reports={"a": {"findings": "A cyst in the left kidney (series 3, image 5).", "impression": "Cyst."}},
        refused={NO_NUMBERS: 1},
    )


def own_dicom(root: Path) -> Expected:
    """Own DICOM folders with several series each and CSV tables."""
    hu = chest_hu("x-3")
    lps = hu[::-1, ::-1].transpose(2, 1, 0)
    corner = ras_affine() @ [SHAPE_IJK[0] - 1, SHAPE_IJK[1] - 1, 0, 1]
    positions = np.array([[-corner[0], -corner[1], corner[2] + 5.0 * k] for k in range(SHAPE_IJK[2])])
    folder = root / "dicom/x"
    write_dicom(folder / "thin", lps + 1024, positions, pixel_mm=(3.0, 3.0), series=3)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    write_dicom(folder / "scout", lps[:1] + 1024, positions[:1], pixel_mm=(3.0, 3.0), series=1, extra=scout)
    reformat = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"]}
    down = (1, 0, 0, 0, 0, -1)
    write_dicom(folder / "coronal", lps[:4], positions[:4], series=7, orientation=down, extra=reformat)
    thick = {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}
    write_dicom(folder / "thick", lps[:4] + 1024, positions[:4], pixel_mm=(3.0, 3.0), series=8, extra=thick)
    row = {"scan_id": "x-3", "study_id": "x", "patient_id": "q1", "path": "dicom/x", "series": 3}
    write_table(root / "scans.csv", [row])
    text = " ".join(
        [
            "A lesion in the spleen (image 2).",
            "A lesion in the liver (image 12).",
            "A cyst in the left kidney (series 3, image 5).",
            "Catheter seen (series 1, image 1).",
            "A node beside the aorta (series 7, image 2).",
            "A calcification of the aorta (series 8, image 2).",
            "A stone in the gallbladder (series 9, image 2).",
            "A cyst in the right kidney (series 3, image 99).",
        ]
    )
    write_table(root / "reports.csv", [{"study_id": "x", "report": text}])
    return Expected(
        studies={"x": ["x-3"]},
        patients={"x-3": "q1"},
        splits={},
        reports={"x-3": {"findings": text}},
        snippets={"x-3": [(-145.0, -145.0), (-180.0, -180.0)]},
        refused={LOCALIZER: 1, NOT_AXIAL: 1, DERIVED: 1, NO_SERIES: 1, NO_IMAGE: 1, ELSEWHERE: 1},
    )


def own_nifti_with_tables(root: Path) -> Expected:
    """Own NIfTI files with all that the card has in comments: labels, slices and a folder of masks."""
    text = " ".join(
        [
            "A lesion in the liver (image 15).",
            "A cyst in the left kidney (series 3, image 16).",
            "Catheter seen (series 1, image 1).",
            "A node beside the aorta (series 7, image 2).",
            "A stone in the gallbladder (series 3, image 40).",
        ]
    )
    expected = own_nifti(root)
    write_table(root / "reports.csv", [{"study_id": "s1", "findings": text, "impression": "Cyst."}])
    write_table(root / "labels.csv", [{"study_id": "s1", "cyst": 1, "mass": -1, "stone": 0}])
    # Image numbers run from the head; image 40 belongs to a part of the series that was not converted.
    axial = [(3, 16 - k, -200.0 + 5.0 * k, "axial") for k in range(SHAPE_IJK[2])]
    others = [(3, 40, 400.0, "axial"), (1, 1, "", "localizer"), (7, 2, "", "not axial")]
    write_table(
        root / "slices.csv",
        [dict(zip(("scan_id", "series", "image", "z_mm", "kind"), ("a", *row), strict=True)) for row in axial + others],
    )
    hu = chest_hu("a")
    save(root / "organs/a/lung_upper_lobe_left.nii.gz", (hu < -500).astype(np.uint8), ras_affine(), "RAS")
    save(root / "organs/a/liver.nii.gz", (hu > -500).astype(np.uint8), ras_affine(), "RAS")
    return replace(
        expected,
        reports={"a": {"findings": text, "impression": "Cyst."}},
        labels={"a": {"cyst": 1, "mass": None, "stone": 0}},
        organs=frozenset({"lung_upper_lobe_left", "liver"}),
        snippets={"a": [(-195.0, -195.0), (-200.0, -200.0)]},
        refused={LOCALIZER: 1, NOT_AXIAL: 1, OUTSIDE: 1},
    )
