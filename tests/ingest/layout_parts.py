"""What the small trees of cards are made of: scans whose values show a flip or shift, and what should be found."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from hospital_files import write_nifti

SHAPE_IJK = (24, 20, 16)


@dataclass(frozen=True)
class Expected:
    """What ingest should find.

    Attributes:
        studies: Study to its scans.
        patients: Scan to patient.
        splits: Scan to split; None where a hash decides.
        reports: Scan to section and text; scans without report have none.
        labels: Scan to some of its labels.
        put_aside: Scan to a piece of the reason.
        organs: Organs that the shards must hold for each scan; empty if there are none.
        snippets: Scan to the depths of its snippets.
        sentences: Scan to organ and sentence.
        refused: Why snippets are refused, and how many.
    """

    studies: Mapping[str, Sequence[str]]
    patients: Mapping[str, str]
    splits: Mapping[str, str]
    reports: Mapping[str, Mapping[str, str]]
    labels: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)
    put_aside: Mapping[str, str] = field(default_factory=dict)
    organs: frozenset[str] = frozenset()
    snippets: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    sentences: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)


def chest_hu(scan: str, shape_ijk: Sequence[int] = SHAPE_IJK) -> np.ndarray:
    """HU on RAS axes: a body in air with a bone-dense cube in its right, anterior, superior part."""
    i, j, k = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_ijk), indexing="ij")
    noise = np.random.default_rng(zlib.crc32(scan.encode())).normal(0, 8, tuple(shape_ijk))
    values = np.where((i / 0.85) ** 2 + (j / 0.8) ** 2 < 1, 40.0, -1000.0) + noise
    values[(i > 0.25) & (i < 0.6) & (j > 0.1) & (j < 0.45) & (k > 0.3) & (k < 0.8)] = 700.0
    return np.rint(values).astype(np.int16)


def ras_affine(
    spacing: Sequence[float] = (3.0, 3.0, 5.0), origin: Sequence[float] = (-30.0, -25.0, -200.0)
) -> np.ndarray:
    """An affine whose axes are those of the world."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def turned(values: np.ndarray, affine: np.ndarray, codes: str) -> nib.Nifti1Image:
    """The same scan with its array in another orientation."""
    image = nib.Nifti1Image(values, affine)
    ornt = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    return image.as_reoriented(ornt)


def save(path: Path, values: np.ndarray, affine: np.ndarray, codes: str = "LPS", intercept: float = 0.0) -> None:
    """Write a scan as NIfTI in an orientation, with a header intercept."""
    image = turned(values, affine, codes)
    write_nifti(path, np.asarray(image.dataobj), image.affine, 1, intercept)
