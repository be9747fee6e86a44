"""Reports of synthetic patients, whose truth is known. Writer and reader share no code and no list of words."""

import ast
from pathlib import Path

import pytest

from ctgrounding import phantom, reports
from ctgrounding.phantom import make_patient

LABELS = {
    "cardiomegaly": "Cardiomegaly",
    "pericardial_effusion": "Pericardial effusion",
    "pleural_effusion": "Pleural effusion",
    "consolidation": "Consolidation",
    "lung_nodule": "Lung nodule",
    "emphysema": "Emphysema",
    "atelectasis": "Atelectasis",
    "hiatal_hernia": "Hiatal hernia",
}


@pytest.fixture(scope="module")
def patients():
    return [make_patient(i, voxel_mm=16.0, wording="held_out" if i % 2 else "train") for i in range(24)]


@pytest.fixture(scope="module")
def read_reports(patients):
    return [reports.read({"findings": p.report.findings, "impression": p.report.impression}) for p in patients]


def test_references_are_all_found_and_none_invented(patients, read_reports):
    for patient, report in zip(patients, read_reports, strict=True):
        truth = {(r.series, image) for r in patient.report.references for image in r.images}
        found = {(r.series, image) for r in report.references for image in r.images}
        assert {image for _, image in found} == {image for _, image in truth}
        assert {pair for pair in found if pair[0] is not None} <= truth


def test_planted_findings_are_placed(patients, read_reports):
    placed = total = 0
    for patient, report in zip(patients, read_reports, strict=True):
        abnormal = [s for s in report.organ_statements if s.status != "normal"]
        for finding in patient.findings:
            if not finding.organs:
                continue
            total += 1
            said = [
                s
                for s in abnormal
                if set(s.masks) & set(finding.organs) or ("pleural" in finding.kind and "pleura" in s.organs)
            ]
            placed += any(not finding.side or s.side in (finding.side, "bilateral") for s in said)
    assert placed / total >= 0.95


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_planted_kinds(patients, read_reports, kind):
    right = []
    for patient, report in zip(patients, read_reports, strict=True):
        told = report.ct_rate_labels[LABELS[kind]]
        if patient.labels[kind] is not None:
            right.append(told == 1 if patient.labels[kind] else told != 1)
    assert sum(right) / len(right) >= 0.95


def imported(package) -> set[str]:
    names: set[str] = set()
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return names


def test_writer_and_reader_do_not_know_each_other():
    assert not {name for name in imported(reports) if name.startswith("ctgrounding.phantom")}
    assert not {name for name in imported(phantom) if name.startswith("ctgrounding.reports")}
    ours = {name.split(".")[1] for name in imported(reports) if name.startswith("ctgrounding.")}
    assert ours <= {"reports", "types", "errors", "mappings", "label_sets", "questions"}
