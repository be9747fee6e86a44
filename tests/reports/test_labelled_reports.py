"""Reading measured on reports and references that people labelled, where they lie beside the project."""

import json
import os
import sys
from pathlib import Path

import pytest

from ctgrounding.reports import find_references, read

sys.path.insert(0, str(Path(__file__).parent))
from report_scores import Scores, Tally, cited

SHARED = Path(os.environ.get("CTGROUNDING_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def lines(name: str) -> list[dict]:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"{path} is not there; set CTGROUNDING_SHARED_DATA to the folder that has it.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def scores() -> Scores:
    scores = Scores()
    for gold in lines("reports_gold.jsonl"):
        scores.add(gold, read(gold["text"]).to_json())
    return scores


def test_references(scores):
    assert scores.references.precision >= 0.99
    assert scores.references.recall >= 0.97


def test_snippets(scores):
    assert sum(overlap >= 0.8 for overlap in scores.snippets) / len(scores.snippets) >= 0.9


def test_organs_and_sides(scores):
    assert scores.places.f1 >= 0.9


def test_status(scores):
    assert scores.share("statuses") >= 0.92


def test_labels(scores):
    assert scores.share("labels") >= 0.92


def test_sections(scores):
    assert scores.share("sections") >= 0.97


def test_spans_are_where_they_say():
    for gold in lines("reports_gold.jsonl"):
        report = read(gold["text"])
        for statement in report.organ_statements:
            assert gold["text"][statement.start : statement.end] == statement.text


def test_reference_forms():
    tally = Tally()
    for form in lines("reference_forms.jsonl"):
        found = [
            {"series": r.series, "images": r.images, "is_prior": r.is_prior} for r in find_references(form["text"])
        ]
        prior = [{**r, "is_prior": True} for r in form.get("prior_references", ())]
        readings = [
            cited([*({**r, "is_prior": False} for r in reading), *prior])
            for reading in (form["references"], *form.get("alt", ()))
        ]
        tally.add(
            max(readings, key=lambda reading: len(reading & cited(found)) - 0.1 * len(reading ^ cited(found))),
            cited(found),
        )
    assert tally.precision >= 0.99
    assert tally.recall >= 0.97
