"""Three hundred small scans of which sixty are broken in twenty ways, each with the verdict that it deserves."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from ctgrounding import label_sets

SHAPE = (24, 20, 12)
SPACING_MM = (5.0, 4.0, 4.0)
AFFINE = np.array([[-4.0, 0, 0, 46], [0, -4, 0, 38], [0, 0, 5, 100], [0, 0, 0, 1.0]])
CARD = """
name: faulty
root: {root}
scans: {{table: {table}, series: series, organs: organs, split: split}}
ids: keep
"""

# Boxes in the source's own indices, whose first axis runs to the left, second to the back and third up.
ORGANS = {
    "liver": (4, 10, 4, 12, 4, 6),
    "spleen": (15, 19, 8, 12, 4, 6),
    "kidney_right": (6, 9, 12, 15, 1, 3),
    "kidney_left": (15, 18, 12, 15, 1, 3),
    "lung_upper_lobe_right": (4, 10, 5, 14, 9, 11),
    "lung_upper_lobe_left": (13, 19, 5, 14, 9, 11),
    "lung_lower_lobe_right": (4, 10, 5, 14, 7, 9),
    "lung_lower_lobe_left": (13, 19, 5, 14, 7, 9),
    "trachea": (11, 12, 8, 9, 9, 12),
    **{f"vertebrae_{name}": (11, 12, 14, 16, place, place + 1) for place, name in enumerate(("L3", "L2", "L1"))},
    **{f"vertebrae_T{12 - place}": (11, 12, 14, 16, place + 3, place + 4) for place in range(9)},
}


@dataclass
class Scan:
    """One scan before it is written; a fault changes it, or the files once they are there."""

    number: int
    values: np.ndarray
    organs: np.ndarray
    affine: np.ndarray = field(default_factory=AFFINE.copy)
    organs_affine: np.ndarray = field(default_factory=AFFINE.copy)
    intercept: float = 0.0
    path: str = ""

    @property
    def name(self) -> str:
        return f"s{self.number:03d}"


def label_map(names: str) -> np.ndarray:
    """The organs as numbered by a label set."""
    labels = np.zeros(SHAPE, np.uint8)
    for organ, (a, b, c, d, e, f) in ORGANS.items():
        labels[a:b, c:d, e:f] = label_sets.label_of(organ, names)
    return labels


def cut_short(scan, root, write):
    path = root / scan.path
    path.write_bytes(path.read_bytes()[:-200])


def without_header(scan, root, write):
    path = root / scan.path
    image = nib.load(path)
    image = nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header)
    image.set_sform(None, 0), image.set_qform(None, 0)
    nib.save(image, path)


def degenerate(scan, root, write):
    path = root / scan.path
    image = nib.Nifti1Image(scan.values, None)
    image.set_sform(AFFINE @ np.diag([1, 1, 0, 1]), 1)
    image.header["pixdim"][1:4] = 1
    nib.save(image, path)


def gone(scan, root, write):
    (root / scan.path).unlink()


def with_nan(scan):
    scan.values = scan.values.astype(np.float32)
    scan.values[3, 4, 5] = np.nan


def blank(scan):
    scan.values[:] = -1024


def as_picture(scan):
    scan.values = np.clip((scan.values + 160) / 400 * 255, 0, 255).astype(np.uint8)


def thin(scan):
    scan.values, scan.organs = scan.values[:, :, 4:8], scan.organs[:, :, 4:8]


def trap(intercept):
    def change(scan):
        scan.intercept = intercept

    return change


def padded(scan):
    scan.values[:3] = -2048


def cut_field(scan):
    scan.values, scan.organs = scan.values[4:20, 3:17], scan.organs[4:20, 3:17]
    scan.affine[:3, 3] = scan.organs_affine[:3, 3] = (AFFINE @ [4, 3, 0, 1])[:3]


def copied_slice(scan):
    scan.values[:, :, 7] = scan.values[:, :, 6]


def empty_mask(scan):
    scan.organs[:] = 0


def mask_elsewhere(scan):
    scan.organs_affine[2, 3] += 5000


def first_version(scan):
    scan.organs = label_map("total_v1")


def mirrored_mask(scan):
    scan.organs = scan.organs[::-1].copy()


def dicom(**changes: object) -> Callable:
    """Write the scan as a series instead; ``keep`` chooses slices, ``move`` shifts their z, the rest are tags."""

    def after(scan: Scan, root: Path, write: Mapping[str, Callable]) -> None:
        (root / scan.path).unlink()
        scan.path = f"dicom/{scan.name}"
        keep = list(changes.get("keep", range(SHAPE[2])))
        z_mm = 100.0 + 5 * np.array(keep) + np.array(changes.get("move", 0.0))
        positions = np.stack([np.full(len(keep), -46.0), np.full(len(keep), -38.0), z_mm], axis=1)
        stored = (scan.values.astype(np.int32) + 1024).astype(np.int16)[:, :, keep].T
        orientation = changes.get("orientation", (1, 0, 0, 0, 1, 0))
        tags = {key: value for key, value in changes.items() if key not in ("keep", "move", "orientation")}
        write["dicom"](
            root / scan.path, stored, positions, pixel_mm=(4.0, 4.0), series=3, orientation=orientation, extra=tags
        )

    return after


TILTED = (1, 0, 0, 0, float(np.cos(0.2)), float(np.sin(0.2)))

FAULTS: dict[str, tuple[str, Callable | None, Callable | None]] = {
    "file gone": ("missing_file", None, gone),
    "cut short": ("unreadable", None, cut_short),
    "MR": ("not_ct", None, dicom(Modality="MR")),
    "no orientation": ("no_header", None, without_header),
    "flat affine": ("bad_affine", None, degenerate),
    "four slices": ("too_few_slices", thin, None),
    "slices missing": ("missing_slices", None, dicom(keep=[0, 1, 2, 3, 6, 7, 8, 9, 10, 11])),
    "slice twice": ("repeated_slices", None, dicom(keep=[0, 1, 2, 3, 3, 4, 5, 6, 7, 8])),
    "uneven gaps": ("uneven_slices", None, dicom(keep=range(12), move=[0] * 6 + [1.7] + [0] * 5)),
    "NaN": ("not_finite", with_nan, None),
    "blank": ("blank", blank, None),
    "picture": ("not_hu", as_picture, None),
    "copy": ("duplicate", None, None),
    "HU with intercept": ("intercept_trap", trap(-1024.0), None),
    "HU with -8192": ("intercept_trap", trap(-8192.0), None),
    "mask empty": ("mask_empty", empty_mask, None),
    "mask elsewhere": ("mask_outside", mask_elsewhere, None),
    "mask of version 1": ("mask_version", first_version, None),
    "field cut": ("cut_field", cut_field, None),
    "tilted gantry": ("tilt", None, dicom(orientation=TILTED)),
}
"""Fault to the verdict it deserves, what it does to the scan, and what it does to its file."""


def write_hospital(root: Path, write: Mapping[str, Callable], scans: int, each: int) -> dict[str, str]:
    """Write a hospital whose last scans are broken, and a second table, ``clean.csv``, without these.

    Args:
        root: Folder.
        write: The writers of the ``hospital`` fixture.
        scans: How many in all.
        each: Broken ones of each fault.

    Returns:
        Scan to verdict; empty for those in order.
    """
    ways = [name for name in FAULTS for _ in range(each)]
    deserved, rows = {}, []
    for number in range(scans):
        way = ways[number - (scans - len(ways))] if number >= scans - len(ways) else ""
        seed = number if way != "copy" else number % (scans - len(ways))
        scan = Scan(number, write["body"](SHAPE, seed=seed), label_map("total_v2"))
        kind, change, after = FAULTS[way] if way else ("", None, dicom() if number % 12 == 5 else None)
        _write(scan, root, write, change, after)
        deserved[scan.name] = kind
        rows.append(
            {"scan_id": scan.name, "study_id": scan.name, "patient_id": f"p{number}", "path": scan.path}
            | {"series": 3, "organs": f"organs/{scan.name}.nii.gz", "split": ("train", "val", "test")[number % 3]}
        )
    write["table"](root / "scans.csv", rows)
    write["table"](root / "clean.csv", [row for row in rows if not deserved[row["scan_id"]]])
    return deserved


def _write(scan: Scan, root: Path, write: Mapping[str, Callable], change: Callable | None, after: Callable | None):
    if change:
        change(scan)
    scan.path = f"ct/{scan.name}.nii.gz"
    write["nifti"](root / scan.path, scan.values, scan.affine, 1, scan.intercept)
    write["nifti"](root / "organs" / f"{scan.name}.nii.gz", scan.organs, scan.organs_affine)
    if after:
        after(scan, root, write)
