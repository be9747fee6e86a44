"""Whole reports: sections, columns of public datasets, snippets, files and hostile text."""

import json
import random
import time

import pytest

from ctgrounding.cli import main
from ctgrounding.errors import ReportError
from ctgrounding.reports import read
from ctgrounding.reports.cleaning import without_sizes
from ctgrounding.reports.commands import read_file
from ctgrounding.reports.sections import column_section, find_sections

REPORT = """CT CHEST

INDICATION: Cough.

COMPARISON: CT of 3/2020 (series 9, image 9).

FINDINGS: 6 mm nodule in the left upper lobe (series 4, image 88), previously 4 mm (series 3, image 71).
No pleural effusion. Cyst in the right kidney (4:150). Cyst in the right kidney (4:151).

IMPRESSION: Growing nodule.
"""


def test_sections_leave_headings_out():
    found = {name: REPORT[start:end] for name, (start, end) in find_sections(REPORT).items()}
    assert found["history"] == "Cough."
    assert found["comparison"].startswith("CT of")
    assert found["impression"] == "Growing nodule."


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Klinische Angaben: Husten.\nBefund: Leber.\nBeurteilung: Normal.", {"history", "findings", "impression"}),
        ("Technik: CT.\nVergleich: keiner.\nBefund:\nLeber.", {"technique", "comparison", "findings"}),
        ("Findings: clear. Impression: Normal.", {"findings", "impression"}),
        ("The liver is normal.", {"findings"}),
        ("", set()),
    ],
)
def test_sections_in_both_languages(text, names):
    assert set(find_sections(text)) == names


@pytest.mark.parametrize(
    ("column", "section"),
    [
        ("Findings_EN", "findings"),
        ("Impressions_EN", "impression"),
        ("ClinicalInformation_EN", "history"),
        ("Technique_EN", "technique"),
        ("impressions", "impression"),
        ("report_text", "findings"),
        ("age", "age"),
    ],
)
def test_columns_of_public_datasets(column, section):
    assert column_section(column) == section


def test_snippets_are_cleaned_merged_and_kept_apart_from_prior():
    snippets = read(REPORT).snippets
    current = [s for s in snippets if not s.is_prior]
    assert [s.text for s in current] == ["6 mm nodule in the left upper lobe", "Cyst in the right kidney"]
    assert current[0].size_mm == 6.0
    assert current[1].images == (150, 151)
    assert current[1].masks == ("kidney_right", "kidney_cyst_right")
    assert [s.images for s in snippets if s.is_prior] == [(71,)]
    assert without_sizes(current[0].text) == "nodule in the left upper lobe"


def test_history_and_comparison_point_nowhere():
    assert 9 not in {image for reference in read(REPORT).references for image in reference.images}


def test_spans_of_a_mapping_count_in_its_sections():
    parts = {
        "Findings_EN": "Nodule in the lingula (4:88).",
        "Impressions_EN": "Clear. Cyst of the left kidney (4:150).",
    }
    report = read(parts)
    by_section = {"findings": parts["Findings_EN"], "impression": parts["Impressions_EN"]}
    for name, (start, end) in report.sections.items():
        assert report.text[start:end] == by_section[name]
    for one in (*report.snippets, *report.organ_statements, *report.references):
        assert by_section[one.section][one.start : one.end].strip()
    assert by_section["impression"][report.references[1].start :].startswith("(4:150)")


def test_a_report_must_be_text():
    with pytest.raises(ReportError, match="text or a mapping"):
        read({"findings": 3})


def test_file_in_file_out_whatever_the_workers(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(json.dumps({"id": i, "text": f"{REPORT} {i}"}) for i in range(600)), encoding="utf-8")
    assert read_file(source, tmp_path / "one.jsonl") == 600
    assert read_file(source, tmp_path / "two.jsonl", workers=2) == 600
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    first = json.loads((tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {"id", "sections", "references", "organ_statements", "ct_rate_labels"} <= set(first)
    assert first["references"][0]["snippet"].startswith("6 mm nodule in the left upper lobe")


def test_the_command_writes_beside_its_input_by_default(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"id": "a", "text": REPORT}), encoding="utf-8")
    main(["read", str(source)])
    main(["read", str(source), "--output", str(tmp_path / "out.jsonl")])
    assert (tmp_path / "in.read.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    assert "Read 1 reports" in capsys.readouterr().out


def test_bad_lines_are_named(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "text": "x"}\n{"id": 2}\n', encoding="utf-8")
    with pytest.raises(ReportError, match="line 2 of"):
        read_file(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


HOSTILE = {
    "one line": "right lung nodule of 5 mm, no effusion " * 27_000,
    "no spaces": "a" * 300_000,
    "open brackets": "(" * 200_000 + "]" * 100_000,
    "binary": "".join(map(chr, range(256))) * 1_000,
    "random bytes": random.Random(0).randbytes(200_000).decode("latin-1"),
    "mixed brackets": "(4:12 [5:13 {<" * 8_000,
    "number list": "images " + "1-5, " * 30_000,
    "one compound": "leberherd" * 20_000,
    "connectives": "ober- und no, nor " * 10_000,
    "right to left": "\u200f\u202e(series 4, image 12) " * 2_000,
    "references": "Nodule (series 4, image 12). " * 10_000,
    "headings": "Findings: x. " * 10_000,
    "blank lines": ("a" + "\n" * 1_000) * 100,
    "spaces": ("a." + " " * 1_000) * 100,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_ends_in_linear_time(text):
    def seconds(part: str) -> float:
        begin = time.process_time()
        read(part)
        return time.process_time() - begin

    seconds(text[:1000])
    part = seconds(text[: len(text) // 8])  # first, since words are remembered
    assert seconds(text) < 24 * part + 0.5
