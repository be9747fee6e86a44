"""Small trees in the very layouts of published datasets, one writer a card.

Each writes files with the names, folders and columns of the real set and returns what ingest should make of it. Values
of a scan encode where they lie, so that a flip, a shift or a doubled intercept shows.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import openpyxl
from hospital_files import write_table
from layout_parts import Expected, chest_hu, ras_affine, save
from own_layouts import own_dicom, own_nifti


def _reports(volumes: Mapping[str, str]) -> list[dict[str, object]]:
    return [
        {
            "VolumeName": volume,
            "ClinicalInformation_EN": "Cough",
            "Technique_EN": "Not given.",
            "Findings_EN": text,
            "Impressions_EN": "Not given.",
        }
        for volume, text in volumes.items()
    ]


CT_RATE_LABELS = [
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
]


def ct_rate(root: Path, suffix: str = "") -> Expected:
    """CT-RATE; ``suffix`` is ``_fixed`` for version 2. Three files are right, one is known to be bad, one is a head."""
    parts = {
        "train": ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3821_a_5"],
        "valid": ["valid_1_a_1", "valid_9_a_1"],
    }
    names = {"train": ("train", "train"), "valid": ("valid", "validation")}
    for half, volumes in parts.items():
        label_rows, texts = [], {}
        for volume in volumes:
            patient, study = volume.rsplit("_", 2)[0], volume.rsplit("_", 1)[0]
            path = root / f"dataset/{half}{suffix}" / patient / study / f"{volume}.nii.gz"
            # Version 1 files carry the scanner's intercept although they are in HU already, some of -8192.
            trap = {"train_1_a_1": -1024.0, "train_2_a_1": -8192.0}.get(volume, 0.0) if not suffix else 0.0
            save(path, chest_hu(volume), ras_affine(), "LPS", trap)
            label_rows.append(
                {"VolumeName": path.name, **{name: int(name == "Lung nodule") for name in CT_RATE_LABELS}}
            )
            texts[path.name] = f"A nodule in the right lung of {study}."
        write_table(root / f"dataset/multi_abnormality_labels/{names[half][0]}_predicted_labels.csv", label_rows)
        write_table(root / f"dataset/radiology_text_reports/{names[half][1]}_reports.csv", _reports(texts))
        listed = root / f"dataset/metadata/no_chest_{half}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("valid_9_a_1.nii.gz\n" if half == "valid" else "")
    scans = [volume for volumes in parts.values() for volume in volumes]
    return Expected(
        studies={
            "train_1_a": ["train_1_a_1", "train_1_a_2"],
            "train_2_a": ["train_2_a_1"],
            "valid_1_a": ["valid_1_a_1"],
        },
        patients={scan: scan.rsplit("_", 2)[0] for scan in scans},
        splits={"valid_1_a_1": "test"},
        reports={
            scan: {"history": "Cough", "findings": f"A nodule in the right lung of {scan[:-2]}."} for scan in scans
        },
        labels={"train_1_a_2": {"Lung nodule": 1, "Cardiomegaly": 0}},
        put_aside={"train_3821_a_5": "too few slices", "valid_9_a_1": "no chest CT"},
    )


def ct_rate_fixed(root: Path) -> Expected:
    """CT-RATE version 2."""
    return ct_rate(root, "_fixed")


def radgenome_chest_ct(root: Path) -> Expected:
    """RadGenome-Chest CT: masks in a folder a scan, sentences a region."""
    scans = {"train_5_b_1": "train", "valid_7_a_1": "valid"}
    for scan, half in scans.items():
        patient, letter = scan.rsplit("_", 2)[0], scan.rsplit("_", 2)[1]
        save(
            root / f"dataset/{half}_preprocessed/{patient}/{patient}{letter}/{scan}.nii.gz",
            chest_hu(scan),
            ras_affine(),
        )
        folder = root / f"dataset/{half}_region_mask/seg_{scan}"
        hu = chest_hu(scan)
        masks = {"lung": hu < -500, "mediastinum": hu > -500, "trachea and bronchie": hu == 700}
        for region, mask in masks.items():
            save(folder / f"{region}.nii.gz", mask.astype(np.uint8), ras_affine(), "LPS")
        rows = [
            {"Volumename": f"{scan}.nii.gz", "Anatomy": "lung", "Sentence": "There is a nodule in the right lung."},
            {"Volumename": f"{scan}.nii.gz", "Anatomy": "", "Sentence": "The scan is of good quality."},
            {
                "Volumename": f"{scan}.nii.gz",
                "Anatomy": "trachea and bronchie",
                "Sentence": "Trachea and both main bronchi are open.",
            },
        ]
        table = {"train": "train", "valid": "validation"}[half]
        write_table(root / f"dataset/radgenome_files/{table}_region_report.csv", rows)
        write_table(
            root / f"dataset/radiology_text_reports/{table}_reports.csv",
            _reports({f"{scan}.nii.gz": "There is a nodule in the right lung. Trachea open."}),
        )
        (root / "dataset/metadata").mkdir(exist_ok=True)
        (root / f"dataset/metadata/no_chest_{half}.txt").write_text("")
    return Expected(
        studies={"train_5_b": ["train_5_b_1"], "valid_7_a": ["valid_7_a_1"]},
        patients={"train_5_b_1": "train_5", "valid_7_a_1": "valid_7"},
        splits={"valid_7_a_1": "test"},
        reports={scan: {"findings": "There is a nodule in the right lung. Trachea open."} for scan in scans},
        organs=frozenset({"lung", "mediastinum", "trachea_and_bronchie"}),
        sentences={
            scan: [
                ("lung", "There is a nodule in the right lung."),
                ("trachea_and_bronchie", "Trachea and both main bronchi are open."),
            ]
            for scan in scans
        },
    )


def rad_chestct(root: Path) -> Expected:
    """Rad-ChestCT: npz at 0.8 mm with axes inferior, posterior, left; findings by location; a table of all scans."""
    parts = {"imgtrain": ["trn00001", "trn00002"], "imgvalid": ["val00001"], "imgtest": ["tst00001"]}
    root.mkdir(parents=True, exist_ok=True)
    patients = {}
    for table, scans in parts.items():
        rows = []
        for scan in scans:
            inferior_posterior_left = chest_hu(scan, (50, 40, 40))[::-1, ::-1, ::-1].transpose(2, 1, 0)
            np.savez_compressed(root / f"{scan}.npz", ct=np.ascontiguousarray(inferior_posterior_left))
            patients[scan] = f"mrn_{scan[:3]}"
            rows.append(
                {
                    "NoteAcc_DEID": scan,
                    "nodule*right_upper_lobe": 1,
                    "nodule*other_location": 0,
                    "mass*right_upper_lobe": 0,
                    "mass*other_location": 0,
                }
            )
        write_table(root / f"{table}_Abnormality_and_Location_Labels.csv", rows)
    unreleased = [{"NoteAcc_DEID": "trn09999", "MRN_DEID": "mrn_x", "PatientAge": "070Y"}]
    released = [{"NoteAcc_DEID": scan, "MRN_DEID": mrn, "PatientAge": "061Y"} for scan, mrn in patients.items()]
    write_table(root / "CT_Scan_Metadata_Complete_35747.csv", unreleased + released)
    return Expected(
        studies={scan: [scan] for scan in patients},
        patients=patients,
        splits={"trn00001": "train", "trn00002": "train", "val00001": "val", "tst00001": "test"},
        reports={},
        labels={scan: {"nodule": 1, "mass": 0} for scan in patients},
    )


def merlin_abdominal_ct(root: Path) -> Expected:
    """Merlin: a workbook of reports, labels with -1; one listed scan was never released."""
    splits = {"AC42": "train", "AC43": "val", "AC44": "test", "AC45": "test"}
    text = "Liver: Normal. Kidneys: A cyst in the left kidney. IMPRESSION: 1. Renal cyst."
    root.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.append(["study id", "Findings", "Split", "Few Shot"])
    for scan, split in splits.items():
        book.active.append([scan, text, split, 0])
        if scan != "AC45":
            save(root / "merlin_data" / f"{scan}.nii.gz", chest_hu(scan), ras_affine(), "LAS")
    book.save(root / "reports_final.xlsx")
    rows = [{"study id": scan, "renal_cyst": 1, "ascites": -1, "gallstones": 0} for scan in splits]
    write_table(root / "zero_shot_findings_disease_cls.csv", rows)
    usable = ["AC42", "AC43", "AC44"]
    return Expected(
        studies={scan: [scan] for scan in usable},
        patients={scan: scan for scan in usable},
        splits={scan: splits[scan] for scan in usable},
        reports={
            scan: {
                "findings": "Liver: Normal. Kidneys: A cyst in the left kidney.",
                "impression": "1. Renal cyst.",
            }
            for scan in usable
        },
        labels={"AC42": {"renal_cyst": 1, "ascites": None, "gallstones": 0}},
        put_aside={"AC45": "does not exist"},
    )


def inspect_ctpa(root: Path) -> Expected:
    """INSPECT: tab-separated tables keyed by impression; a repeated row among the splits, as in the release."""
    people = {"IMG1": ("1001", "p1", "train"), "IMG2": ("1002", "p1", "train"), "IMG3": ("1003", "p2", "valid")}

    def write(name: str, rows: Sequence[Mapping[str, object]]) -> None:
        root.mkdir(parents=True, exist_ok=True)
        with (root / f"{name}_20250611.tsv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)

    for image in people:
        save(root / "CTPA" / f"{image}.nii.gz", chest_hu(image), ras_affine(), "LPS", -1024.0)
    write(
        "study_mapping",
        [
            {"impression_id": i, "person_id": p, "image_id": image, "procedure_DATETIME": "2001-01-01"}
            for image, (i, p, _) in people.items()
        ],
    )
    split_rows = [{"impression_id": i, "split": split} for i, _, split in people.values()]
    write("splits", [*split_rows, split_rows[0]])
    write("impressions", [{"impression_id": i, "impressions": f"1. No embolism, {i}."} for i, _, _ in people.values()])
    answers = ["True", "False", "Censored"]
    write(
        "labels",
        [
            {"impression_id": i, "pe_positive_nlp": answer, "12_month_mortality": "False"}
            for (i, _, _), answer in zip(people.values(), answers, strict=True)
        ],
    )
    return Expected(
        studies={i: [image] for image, (i, _, _) in people.items()},
        patients={image: p for image, (_, p, _) in people.items()},
        splits={"IMG1": "train", "IMG2": "train", "IMG3": "val"},
        reports={image: {"impression": f"1. No embolism, {i}."} for image, (i, _, _) in people.items()},
        labels={image: {"pulmonary embolism": label} for image, label in zip(people, (1, 0, None), strict=True)},
    )


LAYOUTS: Mapping[str, Callable[[Path], Expected]] = {
    "ct_rate": ct_rate,
    "ct_rate_fixed": ct_rate_fixed,
    "radgenome_chest_ct": radgenome_chest_ct,
    "rad_chestct": rad_chestct,
    "merlin_abdominal_ct": merlin_abdominal_ct,
    "inspect": inspect_ctpa,
    "own_nifti": own_nifti,
    "own_dicom": own_dicom,
}
