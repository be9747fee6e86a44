"""Every packaged card against a small tree in the layout of its dataset."""

import csv
import re

import numpy as np
import pytest
from dataset_layouts import LAYOUTS
from layout_parts import chest_hu
from own_layouts import own_nifti_with_tables

from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.errors import CardError
from ctgrounding.ingest import ingest
from ctgrounding.ingest.card_files import find_card, load_card
from ctgrounding.ingest.catalog import read_scans

SPACING = (5.0, 3.0, 3.0)
NAMES = list(LAYOUTS)
VARIABLES = {
    "ct_rate": "CT_RATE_ROOT",
    "ct_rate_fixed": "CT_RATE_ROOT",
    "radgenome_chest_ct": "RADGENOME_ROOT",
    "rad_chestct": "RAD_CHESTCT_ROOT",
    "merlin_abdominal_ct": "MERLIN_ROOT",
    "inspect": "INSPECT_ROOT",
    "own_nifti": "MY_CT_ROOT",
    "own_dicom": "MY_CT_ROOT",
}


@pytest.fixture(scope="module", params=[*NAMES, "own_nifti_with_tables"])
def ingested(request, tmp_path_factory):
    """Expected, summary, given ids of what was written, and records with shard and row by given scan id."""
    root = tmp_path_factory.mktemp(request.param)
    card = request.param
    if card == "own_nifti_with_tables":
        expected, card = own_nifti_with_tables(root / "files"), str(uncommented(root / "card.yaml"))
    else:
        expected = LAYOUTS[card](root / "files")
    summary = ingest(card=card, root=root / "files", output=root / "out", spacing_mm=SPACING, workers=1)
    given = private_ids(root / "out.private-ids.csv")
    scans = {}
    for path in find_shards([root / "out"]):
        shard = Shard(path)
        for row, record in enumerate(shard.records):
            scans[given.get(record.scan_id, record.scan_id)] = (record, shard, row)
    return expected, summary, given, scans


def uncommented(path):
    """The card of own NIfTI files with the parts that it has in comments, and with masks."""
    text = find_card("own_nifti").read_text()
    part = re.compile(r"^# (labels|slices):\n(#   .*\n)+", re.MULTILINE)
    assert len(part.findall(text)) == 2
    text = part.sub(lambda match: re.sub("^# ", "", match[0], flags=re.MULTILINE), text)
    path.write_text(text.replace('organs: "" ', 'organs_pattern: "organs/{scan_id}" '))
    return path


def private_ids(path):
    if not path.exists():
        return {}
    with path.open() as stream:
        return {row["written"]: row["given"] for row in csv.DictReader(stream)}


def test_scans_are_grouped_into_studies_of_patients(ingested):
    expected, summary, given, scans = ingested
    studies, patients = {}, {}
    for scan, (record, _, _) in scans.items():
        studies.setdefault(given.get(record.study_id, record.study_id), []).append(scan)
        patients[scan] = given.get(record.patient_id, record.patient_id)
    assert studies == {study: list(group) for study, group in expected.studies.items()}
    assert patients == {scan: expected.patients[scan] for scan in scans}
    assert summary.planned == len(scans) + len(expected.put_aside)


def test_what_is_known_to_be_bad_or_missing_is_put_aside_with_its_reason(ingested):
    expected, summary, given, _ = ingested
    found = {given.get(entry.scan_id, entry.scan_id): entry for entry in summary.put_aside if entry.part == "scan"}
    assert set(found) == set(expected.put_aside)
    for scan, reason in expected.put_aside.items():
        assert reason in found[scan].reason


def test_splits_are_the_published_ones_and_keep_patients_apart(ingested):
    expected, _, _, scans = ingested
    by_patient = {}
    for scan, (record, _, _) in scans.items():
        assert record.split == expected.splits.get(scan, record.split)
        assert by_patient.setdefault(record.patient_id, record.split) == record.split


def test_reports_and_labels_are_those_of_the_tables(ingested):
    expected, _, _, scans = ingested
    for scan, (record, _, _) in scans.items():
        assert record.report == expected.reports.get(scan, {})
        found = {question: record.labels[question] for question in expected.labels.get(scan, {})}
        assert found == expected.labels.get(scan, {})


def test_every_voxel_is_in_hu_and_where_it_belongs(ingested):
    """At the sources' own spacing voxels are equal; else the bright cube lies right, anterior and superior."""
    _, _, _, scans = ingested
    for scan, (record, shard, row) in scans.items():
        image = shard.read_image(row)
        expected = np.clip(chest_hu(scan).transpose(2, 1, 0), -1024, 3071)
        if record.verdict["reader"] != "npz":
            np.testing.assert_array_equal(image, expected)
            continue
        assert record.verdict["source_spacing_ijk_mm"] == [0.8, 0.8, 0.8]
        centre = np.argwhere(image > 400).mean(axis=0) / np.array(image.shape)
        assert (centre > 0.55).all()
        assert np.median(image[image > -300]) == pytest.approx(40, abs=5)


def test_masks_lie_in_the_voxels_of_their_organs(ingested):
    expected, summary, _, scans = ingested
    assert summary.with_organs == (len(scans) if expected.organs else 0)
    for _, shard, row in scans.values():
        if expected.organs:
            labels, image = shard.read_organs(row), shard.read_image(row)
            assert {shard.classes[label] for label in np.unique(labels) if label} == expected.organs
            lung = next(label for label, organ in shard.classes.items() if organ.startswith("lung"))
            np.testing.assert_array_equal(labels == lung, image < -500)
            airways = [label for label, organ in shard.classes.items() if organ == "trachea_and_bronchie"]
            np.testing.assert_array_equal(np.isin(labels, airways), (image == 700) & bool(airways))


def test_sentences_and_snippets_are_those_that_can_be_placed(ingested):
    expected, summary, _, scans = ingested
    for scan, (record, _, _) in scans.items():
        assert [snippet.depth_mm for snippet in record.snippets] == list(expected.snippets.get(scan, []))
        if expected.sentences:
            assert [(s.organs, s.text) for s in record.organ_sentences] == [
                ((organ,), text) for organ, text in expected.sentences[scan]
            ]
            lung, airways = record.organ_sentences
            assert (lung.status, lung.section, record.report[lung.section][lung.start : lung.end]) == (
                "abnormal",
                "findings",
                lung.text,
            )
            assert (airways.status, airways.section, airways.start, airways.end) == ("normal", "", 0, 0)
    assert dict(summary.refused) == dict(expected.refused)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_environment_variable_is_named(name, monkeypatch):
    monkeypatch.delenv(VARIABLES[name], raising=False)
    with pytest.raises(CardError, match=rf"{VARIABLES[name]}.*Export it or give --root"):
        load_card(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_column_is_named_with_those_that_there_are(name, tmp_path):
    """The card's column for reports or labels, spelt otherwise."""
    LAYOUTS[name](tmp_path / "files")
    text = find_card(name).read_text()
    named = {"rad_chestct": r"(MRN_DEID)", "inspect": r"(impressions)\}"}.get(
        name, r"(?:sections: .*|text: |\n    findings: )\b(Findings_EN|Findings|report|findings)\b"
    )
    start, end = re.search(named, text).span(1)
    (tmp_path / "card.yaml").write_text(f"{text[:start]}Wrong_column{text[end:]}")
    with pytest.raises(CardError, match=r"has no column 'Wrong_column', which the card names under .* It has: \w+"):
        read_scans(load_card(tmp_path / "card.yaml", root=tmp_path / "files"))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_root_says_which_table_is_missing(name, tmp_path):
    with pytest.raises(CardError, match=r"(no file under the card's root .* fits|is not under the card's root)"):
        read_scans(load_card(name, root=tmp_path))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("own")])
def test_published_cards_say_citation_licence_and_sources(name, tmp_path):
    card = load_card(name, root=tmp_path)
    assert "arXiv" in card.citation or "doi" in card.citation
    assert card.licence
    assert len(card.sources) >= 2
    assert card.ids == "keep"
