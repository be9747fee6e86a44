"""Writes synthetic patients to disk the way hospitals and public data sets keep them."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib
from rich.console import Console
from rich.progress import track

from ctgrounding.errors import ConfigError
from ctgrounding.phantom.chance import keyed
from ctgrounding.phantom.dicom import write_series
from ctgrounding.phantom.kinds import KINDS
from ctgrounding.phantom.nifti import write_image, write_organs
from ctgrounding.phantom.patient import Patient, Scan, make_patient
from ctgrounding.phantom.report import Wording
from ctgrounding.phantom.truth import describe

Format = Literal["nifti", "dicom", "mixed"]
Split = Literal["train", "val", "test"]

DICOM_SHARE = 0.3
"""Share of patients in DICOM when the format is mixed."""
FRESH_SHARE = 0.6
"""Share of held-out reports written in sentences that no training report uses."""

TABLES: dict[str, tuple[str, ...]] = {
    "scans.csv": ("scan_id", "study_id", "patient_id", "path", "series", "organs_path", "split"),
    "reports.csv": ("study_id", "findings", "impression"),
    "labels.csv": ("study_id", *KINDS),
    "slices.csv": ("scan_id", "series", "image", "z_mm"),
}
"""Columns of each table."""


def write_patients(
    *,
    output: Path,
    patients: int = 300,
    format: Format = "mixed",  # noqa: A002  (the name of the option)
    seed: int = 0,
    voxel_mm: float = 4.0,
    split: tuple[float, float, float] = (0.7, 0.1, 0.2),
    workers: int = -1,
) -> None:
    """Write synthetic CT patients with organ masks, planted findings and reports that refer to images.

    The folder gets scans.csv, reports.csv, labels.csv, slices.csv (image number to z, for NIfTI), the
    scans under nifti/ and dicom/, organ masks under organs/ and truth.jsonl, which is for checking only.
    The same arguments give the same bytes on any number of workers.

    Args:
        output: Folder to write to; made if need be, and must be empty.
        patients: Number of patients, one study each; some studies have two reconstructions.
        format: Files to write: nifti, dicom, or mixed, that is three in ten patients as DICOM.
        seed: Seed of everything that is drawn.
        voxel_mm: Rough size of a voxel; 4 shows every finding, 8 is for quick tests.
        split: Shares of training, validation and test patients; they sum to 1.
        workers: Processes; -1 uses every core, 1 stays in this process.

    Raises:
        ConfigError: If an argument makes no sense or the folder is not empty.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_patients(output=Path(folder), patients=1, voxel_mm=16.0, workers=1)
        ...     (Path(folder) / "scans.csv").is_file()
        True
    """
    _check(output, patients, format, seed, voxel_mm, split)
    if workers == 0 or workers < -1:
        raise ConfigError(f"workers is {workers}. Give at least 1, or -1 for every core.")
    output.mkdir(parents=True, exist_ok=True)
    orders = [
        _Order(index, seed, voxel_mm, part, wording, _is_dicom(format, seed, index))
        for index, (part, wording) in enumerate(assign(patients, seed, split))
    ]
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator")
    written = parallel(joblib.delayed(_write_patient)(output, order) for order in orders)
    _write_tables(output, track(written, "Synthetic patients", total=patients, console=Console(stderr=True)))


def assign(patients: int, seed: int, split: tuple[float, float, float]) -> list[tuple[Split, Wording]]:
    """Split and stock of sentences of each patient.

    Args:
        patients: Number of patients.
        seed: Seed of the shuffle.
        split: Shares of training, validation and test patients.

    Returns:
        One pair a patient. Counts are exact: the shares times ``patients``, rounded.
    """
    order = keyed(seed, patients, "split").permutation(patients).tolist()
    train, validation = round(patients * split[0]), round(patients * (split[0] + split[1]))
    assigned: list[tuple[Split, Wording]] = [("train", "train")] * patients
    for place, index in enumerate(order[train:]):
        part: Split = "val" if train + place < validation else "test"
        is_fresh = int((place + 1) * FRESH_SHARE) > int(place * FRESH_SHARE)
        assigned[index] = (part, "held_out" if is_fresh else "train")
    return assigned


@dataclass(frozen=True)
class _Order:
    """What one process needs to know to write one patient."""

    index: int
    seed: int
    voxel_mm: float
    part: Split
    wording: Wording
    is_dicom: bool


@dataclass(frozen=True)
class _Written:
    """Rows of one patient, by table, and its lines of the truth file."""

    rows: Mapping[str, Sequence[Sequence[Any]]]
    truth: Sequence[str]


def _check(
    output: Path,
    patients: int,
    format: str,  # noqa: A002
    seed: int,
    voxel_mm: float,
    split: Sequence[float],
) -> None:
    if seed < 0:
        raise ConfigError(f"seed is {seed}. Use zero or a positive number.")
    if patients < 1:
        raise ConfigError(f"patients is {patients}. Ask for at least one.")
    if format not in ("nifti", "dicom", "mixed"):
        raise ConfigError(f"format is '{format}'. Use nifti, dicom or mixed.")
    if not 0.5 <= voxel_mm <= 50:
        raise ConfigError(f"voxel_mm is {voxel_mm}. Choose between 0.5 and 50; 4 is usual.")
    if len(split) != 3 or min(split) < 0 or abs(sum(split) - 1) > 1e-6:
        raise ConfigError(f"split is {tuple(split)}. Give three shares for train, val and test that sum to 1.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"Output {output} exists and is not an empty folder. Name another or remove it first.")


def _is_dicom(format: Format, seed: int, index: int) -> bool:  # noqa: A002
    return format == "dicom" or (format == "mixed" and keyed(seed, index, "format").uniform() < DICOM_SHARE)


def _write_patient(output: Path, order: _Order) -> _Written:
    patient = make_patient(order.index, order.seed, order.voxel_mm, order.wording)
    scans, slices = [], []
    for scan in patient.scans:
        path = _write_scan(output, patient, scan, order)
        organs = f"organs/{scan.scan_id}.nii.gz"
        series = scan.acquisition.series
        scans.append((scan.scan_id, patient.study_id, patient.patient_id, path, series, organs, order.part))
        if not order.is_dicom:
            images = zip(scan.acquisition.image_numbers, scan.acquisition.slice_z_mm, strict=True)
            slices += [(scan.scan_id, series, image, f"{z:.6f}") for image, z in sorted(images)]
    labels = ["" if patient.labels[kind] is None else patient.labels[kind] for kind in KINDS]
    return _Written(
        rows={
            "scans.csv": scans,
            "reports.csv": [(patient.study_id, patient.report.findings, patient.report.impression)],
            "labels.csv": [(patient.study_id, *labels)],
            "slices.csv": slices,
        },
        truth=[json.dumps(describe(patient, scan)) for scan in patient.scans],
    )


def _write_scan(output: Path, patient: Patient, scan: Scan, order: _Order) -> str:
    """Write a scan and its organ map; returns the scan's path relative to the output."""
    acquisition = scan.acquisition
    organs = output / "organs" / f"{scan.scan_id}.nii.gz"
    if not order.is_dicom:
        path = f"nifti/{patient.study_id}/{scan.scan_id}.nii.gz"
        write_image(output / path, scan.image_hu, acquisition.affine, acquisition.code, acquisition.storage)
        write_organs(organs, scan.organs, acquisition.affine, acquisition.code)
        return path
    path = f"dicom/{patient.patient_id}/{patient.study_id}/series_{acquisition.series:03d}"
    identity = {
        "patient_id": patient.patient_id,
        "study_id": patient.study_id,
        "scan_id": scan.scan_id,
        "sex": "F" if patient.plan.sex == "female" else "M",
        "seed": str(order.seed),
    }
    write_series(
        output / path, scan.image_hu, acquisition, identity, keyed(order.seed, order.index, f"dicom {scan.scan_id}")
    )
    write_organs(organs, scan.organs, acquisition.affine)
    return path


def _write_tables(output: Path, written: Iterable[_Written]) -> None:
    """Write the tables last, so that a run cut short has none."""
    rows: dict[str, list[Sequence[Any]]] = {name: [] for name in TABLES}
    truth: list[str] = []
    for patient in written:
        truth.extend(patient.truth)
        for name, more in patient.rows.items():
            rows[name].extend(more)
    for name, columns in TABLES.items():
        with (output / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows[name])
    (output / "truth.jsonl").write_text("".join(f"{line}\n" for line in truth), encoding="utf-8")
