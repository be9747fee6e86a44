"""The abnormality dictionary, and the question lists held against the reader's labels."""

import json
import random

import pytest
import yaml

from ctgrounding import label_sets, questions
from ctgrounding.cli import main
from ctgrounding.commands.dictionary import dictionary as command
from ctgrounding.errors import ReportError
from ctgrounding.reports import read
from ctgrounding.reports.dictionary import Dictionary, contradicts
from ctgrounding.reports.labels import CT_RATE_LABELS
from ctgrounding.testing.shards import write_tiny_shards

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


def test_a_file_that_was_edited_wrongly_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text("liver: [{finding: cyst, text: ")
    with pytest.raises(ReportError, match=r"own\.yaml' cannot be read as YAML: while parsing"):
        Dictionary.load(tmp_path / "own.yaml")


def test_saved_edited_and_loaded(dictionary, tmp_path):
    dictionary.save(tmp_path / "full.yaml")
    table = yaml.safe_load((tmp_path / "full.yaml").read_text(encoding="utf-8"))
    table["liver"][0]["text"] = "The liver is fatty."
    (tmp_path / "full.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    loaded = Dictionary.load(tmp_path / "full.yaml")
    assert loaded.entries["liver"][0].text == "The liver is fatty."
    assert loaded.known == dictionary.known
    assert [one.may_be for one in loaded.entries["liver"]] == [one.may_be for one in dictionary.entries["liver"]]


def test_an_entry_says_what_else_it_may_be(dictionary):
    by_finding = {one.finding: one for one in dictionary.entries["liver"]}
    assert "steatosis" in dictionary.known
    assert by_finding["steatosis"].may_be == ()
    assert "hypodense lesion" in by_finding["hepatic cyst"].may_be


def write_lines(path, lines):
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def test_the_command_reads_training_reports_alone(tmp_path, capsys):
    lines = [{"id": i, "text": text, "split": "train"} for i, text in enumerate(TEXTS)]
    source = write_lines(tmp_path / "reports.jsonl", lines)
    main(["dictionary", source, "--output", str(tmp_path / "out.yaml"), "--least", "2"])
    assert "steatosis (3)" in capsys.readouterr().out
    assert [one.finding for one in Dictionary.load(tmp_path / "out.yaml").entries["liver"]] == ["steatosis"]
    write_lines(tmp_path / "reports.jsonl", [{**lines[0], "split": "val"}])
    with pytest.raises(SystemExit):
        main(["dictionary", source, "--output", str(tmp_path / "no.yaml"), "--least", "1"])
    assert "split 'val'" in capsys.readouterr().err
    assert not (tmp_path / "no.yaml").exists()


def test_the_command_counts_studies_of_the_training_split(tmp_path, capsys):
    write_tiny_shards(tmp_path / "shards", scans=20, scans_per_study=2)
    built = command(str(tmp_path / "shards"), output=tmp_path / "out.yaml")
    train = 10 * 3 // 5
    assert sum(one.count for entries in built.entries.values() for one in entries) == train
    assert set(built.entries) <= {"kidney_left", "kidney_right"}
    assert {one.finding for entries in built.entries.values() for one in entries} == {"ball"}
    assert Dictionary.load(tmp_path / "out.yaml").entries == built.entries
    with pytest.raises(ReportError, match="stands in 99 training reports"):
        command(str(tmp_path / "shards"), output=tmp_path / "out.yaml", least=99)


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
