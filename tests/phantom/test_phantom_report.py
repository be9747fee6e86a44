import re
from collections import Counter

import numpy as np
import pytest
import yaml

from ctgrounding import phantom
from ctgrounding.phantom import KINDS
from ctgrounding.phantom.findings import side_of
from ctgrounding.phantom.references import IMAGE_FORMS, PAIR_FORMS, RANGE_FORMS


@pytest.fixture(scope="module")
def wording() -> dict:
    from importlib.resources import files

    return yaml.safe_load(files(phantom).joinpath("wording.yaml").read_text(encoding="utf-8"))


def stocks(wording: dict, which: str) -> list[str]:
    """Every sentence of one stock."""
    found: list[str] = []

    def collect(node) -> None:
        for key, value in node.items():
            if key == which:
                found.extend(part for item in value for part in (item if isinstance(item, list) else [item]))
            elif isinstance(value, dict):
                collect(value)

    collect(wording)
    return found


def test_every_kind_has_wording_for_both_stocks(wording):
    assert set(wording["kinds"]) == set(KINDS)
    for kind, parts in wording["kinds"].items():
        for part, least in (("findings", 3), ("impression", 2), ("absent", 2)):
            for stock in ("train", "held_out"):
                assert len(parts[part][stock]) >= least, (kind, part, stock)


def test_stocks_share_no_sentence_but_most_words(wording):
    train, held_out = stocks(wording, "train"), stocks(wording, "held_out")

    def normal(text: str) -> str:
        return " ".join(re.findall(r"[a-z{}]+", text.lower()))

    assert not {normal(text) for text in train} & {normal(text) for text in held_out}

    def words(texts: list[str]) -> Counter:
        return Counter(re.findall(r"[a-z]+", " ".join(texts).lower()))

    known, fresh = words(train), words(held_out)
    assert sum(n for word, n in fresh.items() if word in known) >= 0.97 * sum(fresh.values())


def test_held_out_reports_use_templates_that_training_reports_never_use(patients):
    train = {t for patient in patients if patient.report.wording == "train" for t in patient.report.templates}
    for patient in patients:
        if patient.report.wording == "held_out":
            assert not train & set(patient.report.templates)


def test_references_name_the_slice_through_their_subject(patients):
    total = 0
    for patient in patients:
        by_series = {scan.acquisition.series: scan.acquisition for scan in patient.scans}
        centres = {(finding.kind, finding.organ): finding.centre_mm for finding in patient.findings}
        for reference in patient.report.references:
            total += 1
            acquisition = by_series[reference.series]
            assert set(reference.images) <= set(acquisition.image_numbers)
            heights = dict(zip(acquisition.image_numbers, acquisition.slice_z_mm, strict=True))
            is_straight = np.count_nonzero(acquisition.affine[:3, :3]) == 3
            if is_straight:
                named = [heights[image] for image in reference.images]
                half = acquisition.affine[2, 2] / 2 + 1e-6
                assert min(named) - half <= reference.depth_mm <= max(named) + half
            elif reference.kind:
                point = centres[reference.kind, reference.organ]
                assert acquisition.image_numbers[acquisition.slice_through(point)] in reference.images
    assert total / len(patients) >= 3


def test_references_stand_in_the_report_as_written(patients):
    for patient in patients:
        text = patient.report.findings
        for reference in patient.report.references:
            assert reference.sentence in text
            assert reference.text in reference.sentence
            numbers = [int(number) for number in re.findall(r"\d+", reference.text)]
            first_and_last = {reference.images[0], reference.images[-1]}
            assert first_and_last <= set(numbers) <= first_and_last | {reference.series}


def test_references_come_in_many_forms(patients):
    seen = {re.sub(r"\d+", "#", ref.text) for patient in patients for ref in patient.report.references}
    known = {re.sub(r"\{.\}", "#", form) for form in PAIR_FORMS + IMAGE_FORMS + RANGE_FORMS}
    assert seen <= known
    assert len(seen) >= 12


def test_an_image_without_series_is_only_named_where_there_is_one_series(patients):
    for patient in patients:
        for reference in patient.report.references:
            if not re.search(rf"\b{reference.series}\b", reference.text):
                assert len(patient.scans) == 1


def test_most_findings_are_pointed_at(patients):
    pointed = planted = 0
    for patient in patients:
        kinds = {reference.kind for reference in patient.report.references}
        planted += len(patient.findings)
        pointed += sum(finding.kind in kinds for finding in patient.findings)
    assert pointed >= 0.75 * planted


def test_sides_in_words_are_the_sides_of_the_findings(patients):
    for patient in patients:
        for reference in patient.report.references:
            words = set(re.findall(r"right|left", reference.sentence.lower()))
            side = side_of(reference.organ)
            if side and words:
                assert words == {side}, reference.sentence


def test_reports_deny_affirm_and_call_normal(patients):
    text = " ".join(patient.report.findings for patient in patients)
    for pattern in (r"\bno\b", r"unremarkable", r"\d+ mm", r"\d\.\d cm", r"left", r"right", r"normal"):
        assert re.search(pattern, text, re.IGNORECASE), pattern
    assert all(patient.report.impression for patient in patients)


def test_nothing_is_both_normal_and_abnormal(patients):
    for patient in patients:
        abnormal = {organ for finding in patient.findings for organ in finding.organs}
        assert not abnormal & {ref.organ for ref in patient.report.references if not ref.kind}


def test_some_normal_reports_are_word_for_word_the_same(patients):
    normal = Counter((patient.plan.coverage, patient.report.findings) for patient in patients if patient.plan.is_normal)
    assert normal
    assert len(normal) <= 10  # one of few texts, whoever the patient is
    for patient in patients:
        if patient.plan.is_normal:
            assert not patient.findings
