"""The abnormality dictionary, and the question lists held against the reader's labels."""

import json
import random

import pytest
import yaml

from ctgrounding import label_sets, questions
from ctgrounding.errors import ReportError
from ctgrounding.reports import read
from ctgrounding.reports.commands import build_dictionary
from ctgrounding.reports.dictionary import Dictionary, contradicts
from ctgrounding.reports.labels import CT_RATE_LABELS

TEXTS = [
    "Fatty liver. 12 mm cyst in the left kidney (series 3, image 40), previously 10 mm.",
    "Hepatic steatosis. Cyst of the left kidney, 3 cm. No hydronephrosis.",
    "Hepatic steatosis. Hypodense lesion in the liver. Hydronephrosis of the left kidney.",
    "Liver cyst. Liver metastases. The spleen is normal.",
]


@pytest.fixture
def dictionary() -> Dictionary:
    return Dictionary.build([read(text) for text in TEXTS], least=1)


def test_counts_reports_and_merges_wordings(dictionary):
    steatosis = next(one for one in dictionary.entries["liver"] if one.finding == "steatosis")
    assert steatosis.count == 3
    assert {steatosis.text, *steatosis.synonyms} == {"Hepatic steatosis", "Fatty liver"}


def test_wordings_are_cleaned_and_normal_is_left_out(dictionary):
    every = [text for entries in dictionary.entries.values() for one in entries for text in (one.text, *one.synonyms)]
    assert not [text for text in every if "mm" in text or "image" in text or "previously" in text]
    assert "spleen" not in dictionary.entries
    assert set(dictionary.entries) <= set(label_sets.load("total_v2").values())


def test_negatives_never_contradict_the_scan(dictionary):
    for text in TEXTS:
        present = [s.finding for s in read(text).organ_statements if s.status != "normal" and "liver" in s.masks]
        for seed in range(20):
            drawn = dictionary.negatives("liver", present, 3, random.Random(seed))
            findings = {one.finding for one in dictionary.entries["liver"] if one.text in drawn}
            assert not {(a, b) for a in findings for b in present if contradicts(a, b)}


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("hepatic cyst", "hypodense lesion", True),
        ("lesion", "liver metastases", True),
        ("hepatic cyst", "steatosis", False),
        ("renal cyst", "hydronephrosis", False),
        ("something unheard of", "steatosis", True),
    ],
)
def test_what_may_be_another_word_for_it(one, other, expected):
    assert contradicts(one, other) is contradicts(other, one) is expected


def test_nothing_is_drawn_where_a_finding_has_no_name(dictionary):
    assert dictionary.negatives("liver", [""], 5, random.Random(0)) == []


def test_saved_edited_and_loaded(dictionary, tmp_path):
    dictionary.save(tmp_path / "full.yaml")
    table = yaml.safe_load((tmp_path / "full.yaml").read_text(encoding="utf-8"))
    table["liver"][0]["text"] = "The liver is fatty."
    (tmp_path / "full.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    loaded = Dictionary.load(tmp_path / "full.yaml")
    assert loaded.entries["liver"][0].text == "The liver is fatty."
    loaded.save_sentences(tmp_path / "plain.yaml")
    plain = yaml.safe_load((tmp_path / "plain.yaml").read_text(encoding="utf-8"))
    assert plain["liver"][0] == "The liver is fatty."


def test_only_training_reports_are_taken(tmp_path):
    source = tmp_path / "reports.jsonl"
    lines = [{"id": i, "text": text, "split": "train"} for i, text in enumerate(TEXTS)]
    source.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert build_dictionary(source, tmp_path / "out.yaml", tmp_path / "plain.yaml", least=1) > 3
    source.write_text(json.dumps({**lines[0], "split": "val"}), encoding="utf-8")
    with pytest.raises(ReportError, match="split 'val'"):
        build_dictionary(source, tmp_path / "no.yaml", least=1)


def test_questions_cover_the_classes():
    assert tuple(question.name for question in questions.load("ct_rate18")) == CT_RATE_LABELS
    further = questions.load("chest_abdomen")
    assert len(further) >= 60
    sentences = [text for q in (*questions.load("ct_rate18"), *further) for text in (*q.positive, *q.negative)]
    assert len(sentences) == len(set(sentences)) == 6 * (len(further) + 18)


@pytest.mark.parametrize("question", questions.load("ct_rate18"), ids=lambda question: question.name)
def test_reader_understands_the_plain_questions(question):
    for text in question.positive[:2]:
        assert read(text).ct_rate_labels[question.name] == 1, text
    for text in question.negative[:2]:
        assert read(text).ct_rate_labels[question.name] == 0, text
