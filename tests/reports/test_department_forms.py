"""Statements, labels and references as departments write them: headings, lists, capitals, abbreviations."""

from pathlib import Path

import pytest
import yaml

from ctgrounding.reports import find_references, read

FORMS = yaml.safe_load(Path(__file__).with_name("department_forms.yaml").read_text(encoding="utf-8"))


def cited(text: str) -> list:
    return [[one.series, image] for one in find_references(text) if not one.is_prior for image in one.images]


@pytest.mark.parametrize(("text", "expected"), FORMS["statements"])
def test_statements(text, expected):
    found = [(set(one.organs), one.side, one.status) for one in read({"findings": text}).organ_statements]
    told = [row.split(" / ") for row in expected]
    assert found == [(set(organs.split()), None if side == "-" else side, status) for organs, side, status in told]


@pytest.mark.parametrize(("text", "expected"), FORMS["labels"])
def test_labels(text, expected):
    labels = read({"findings": text}).ct_rate_labels
    assert {name: value for name, value in labels.items() if value is not None} == expected


@pytest.mark.parametrize(("text", "expected"), FORMS["cited"])
def test_references(text, expected):
    assert sorted(cited(text), key=str) == expected


@pytest.mark.parametrize("text", FORMS["uncited"])
def test_no_references(text):
    assert find_references(text) == []


@pytest.mark.parametrize("text", [text for text, _ in FORMS["cited"]])
def test_capitals_change_no_reference(text):
    assert cited(text.upper()) == cited(text)
