"""Cards and their tables: what fits is read, what does not is one sentence."""

from pathlib import Path

import pytest

from ctgrounding.errors import CardError
from ctgrounding.ingest.card_files import load_card, under_root
from ctgrounding.ingest.catalog import read_scans, strangers
from ctgrounding.ingest.tables import read_table

SCANS = [
    {"scan_id": "a1", "study_id": "a", "patient_id": "p1", "path": "a1.nii.gz", "series": "3", "split": "train"},
    {"scan_id": "a2", "study_id": "a", "patient_id": "p1", "path": "a2.nii.gz", "series": "4.0", "split": "train"},
    {"scan_id": "b1", "study_id": "b", "patient_id": "p2", "path": "b1.nii.gz", "series": "", "split": "valid"},
]
CARD = """
name: demo
root: {root}
scans: {{table: scans.csv, series: series, split: split}}
reports: {{table: reports.csv, sections: {{findings: Findings_EN}}}}
labels: {{table: labels.csv, unknown: ["-1"]}}
slices: {{table: slices.csv}}
split: {{values: {{valid: val}}}}
"""


@pytest.fixture
def tree(hospital, tmp_path):
    hospital["table"](tmp_path / "scans.csv", SCANS)
    hospital["table"](tmp_path / "reports.csv", [{"study_id": "a", "Findings_EN": 'A "cyst",\nbig.'}])
    hospital["table"](tmp_path / "labels.csv", [{"study_id": "a", "cyst": "1.0", "mass": "0", "stone": "-1"}])
    hospital["table"](tmp_path / "slices.csv", [{"scan_id": "a1", "series": 3, "image": 7, "z_mm": -12.5}])
    return tmp_path


def write_card(folder: Path, text: str = CARD, **replaced: str) -> Path:
    text = text.format(root=folder)
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "card.yaml"
    path.write_text(text)
    return path


def test_tables_become_scans(tree):
    first, second, third = read_scans(load_card(write_card(tree)))
    assert (first.series, second.series, third.series) == (3, 4, None)
    assert (first.split, third.split) == ("train", "val")
    assert first.report == second.report == {"findings": 'A "cyst",\nbig.'}
    assert first.labels == {"cyst": 1, "mass": 0, "stone": None}
    assert [(row.series, row.image, row.z_mm) for row in first.slices] == [(3, 7, -12.5)]
    assert third.report == {}
    assert third.labels == {}
    assert first.path == tree / "a1.nii.gz"


def test_patterns_and_parsed_columns(hospital, tmp_path):
    hospital["table"](tmp_path / "scans.csv", [{"VolumeName": "train_12_a_1.nii.gz"}])
    card = write_card(
        tmp_path,
        "name: demo\nroot: {root}\nscans:\n  table: scans.csv\n  scan: VolumeName\n  study: study\n  patient: patient\n"
        "  path_pattern: 'dataset/{{patient}}/{{study}}/{{VolumeName}}'\n"
        "  parse: {{VolumeName: '(?P<study>(?P<patient>[a-z]+_[0-9]+)_[a-z]+)_[0-9]+[.]nii[.]gz'}}\n",
    )
    (scan,) = read_scans(load_card(card))
    assert (scan.patient_id, scan.study_id) == ("train_12", "train_12_a")
    assert scan.path == tmp_path / "dataset/train_12/train_12_a/train_12_a_1.nii.gz"


def test_patients_are_drawn_into_one_split_each_by_their_share(hospital, tmp_path):
    rows = [
        {"scan_id": f"s{n}", "study_id": f"e{n}", "patient_id": f"p{n // 2}", "path": f"{n}.nii"} for n in range(4000)
    ]
    hospital["table"](tmp_path / "scans.csv", rows)
    card = write_card(
        tmp_path,
        "name: demo\nroot: {root}\nscans: {{table: scans.csv}}\nsplit: {{fractions: {{train: 0.7, test: 0.3}}}}",
    )
    scans = read_scans(load_card(card))
    by_patient = {}
    for scan in scans:
        assert by_patient.setdefault(scan.patient_id, scan.split) == scan.split
    share = sum(split == "test" for split in by_patient.values()) / len(by_patient)
    assert share == pytest.approx(0.3, abs=0.04)
    assert "val" not in by_patient.values()
    assert [scan.split for scan in read_scans(load_card(card))] == [scan.split for scan in scans]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (
            {"Findings_EN": "Findings_DE"},
            r"reports.csv has no column 'Findings_DE'.*mean 'Findings_EN'.*It has: study_id",
        ),
        ({"series: series": "series: serie"}, r"scans.csv has no column 'serie'.*scans.series.*Did you mean 'series'"),
        ({"slices.csv": "slice.csv"}, r"slice.csv is not under the card's root"),
        ({"valid: val": "valid: validation"}, r"split is 'validation'. Use one of train, val, test"),
        ({"split: {values: {valid: val}}": ""}, r"'valid' is no split"),
        ({'unknown: ["-1"]': "unknown: []"}, r"labels.csv: '-1' in column 'stone' is no label"),
        ({"name: demo": "nmae: demo"}, r"unknown key 'nmae'. Did you mean 'name'"),
        ({"table: scans.csv": "tabel: scans.csv"}, r"unknown key 'scans.tabel'. Did you mean 'table'"),
        ({"scans.csv": "../scans.csv"}, r"leads out of the card's root"),
        ({"name: demo": "name: demo\nhu: maybe"}, r"hu is 'maybe'. Use one of auto, stored"),
        ({"name: demo": "name: demo\norgans: {classes: v3}"}, r"organs.classes is 'v3'"),
        ({"name: demo": "name: demo\nspacing_mm: [0, 1, 1]"}, r"spacing_mm is \[0.0, 1.0, 1.0\]"),
        ({"split: {": "split: {fractions: {train: 0.5}, "}, r"must not be negative and sum to 1"),
        ({"sections: {": "text: Findings_EN, sections: {"}, r"either 'sections'.*or 'text'"),
        ({"sections: {": "opening: findings, sections: {"}, r"reports.opening is for 'text'"),
        ({"series: series": "organs: path, organs_pattern: '{scan_id}'"}, r"either 'organs'.*or 'organs_pattern'"),
        ({", split: split": ""}, r"split.values and split.val_of_train are for a column of splits"),
    ],
)
def test_a_card_that_does_not_fit_says_what_and_what_there_is(tree, replaced, message):
    with pytest.raises(CardError, match=message):
        read_scans(load_card(write_card(tree, **replaced)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"scan_id": "a1"}, "'a1' occurs twice"),
        ({"patient_id": "p1"}, "Patient 'p1' is in two splits, train and val"),
        ({"path": "/etc/passwd"}, "leads out of the card's root"),
        ({"path": "../../secret.nii"}, "leads out of the card's root"),
        ({"path": ""}, "scan b1 has no path"),
        ({"patient_id": ""}, "Row 4 of the table of scans has no value for scans.patient"),
        ({"series": "three"}, "has series 'three'"),
        ({"series": "3.7"}, "has series '3.7', which is no whole number"),
        ({"study_id": "a"}, "Study 'a' has scans of two patients, 'p1' and 'p2'"),
    ],
)
def test_a_row_that_cannot_be_is_named(hospital, tree, row, message):
    hospital["table"](tree / "scans.csv", [*SCANS[:2], {**SCANS[2], **row}])
    with pytest.raises(CardError, match=message):
        read_scans(load_card(write_card(tree)))


def test_the_root_may_come_from_the_environment_or_the_caller(tree, monkeypatch):
    path = write_card(tree, **{f"root: {tree}": "root: ${oc.env:DEMO_CT_ROOT}"})
    monkeypatch.delenv("DEMO_CT_ROOT", raising=False)
    with pytest.raises(
        CardError, match=r"root: Environment variable 'DEMO_CT_ROOT' not found. Export it or give --root"
    ):
        load_card(path)
    assert load_card(path, root=tree).root == str(tree)
    monkeypatch.setenv("DEMO_CT_ROOT", str(tree))
    assert load_card(path).root == str(tree)
    monkeypatch.setenv("DEMO_CT_ROOT", str(tree / "nowhere"))
    with pytest.raises(CardError, match="is no folder"):
        load_card(path)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "[1, 2]", "name: [a", "just words"])
def test_a_card_that_is_none(tmp_path, text):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(CardError, match=r"card.yaml"):
        load_card(path)


def test_a_missing_card_lists_those_that_come_along():
    with pytest.raises(CardError, match=r"ct_rate, .*own_dicom, own_nifti, phantom"):
        load_card("phantm")


@pytest.mark.parametrize("name", ["phantom", "own_nifti", "own_dicom"])
def test_packaged_cards_load(name, tmp_path):
    assert load_card(name, root=tmp_path).name == name


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "outside.nii").write_bytes(b"")
    (tmp_path / "root" / "link.nii").symlink_to(tmp_path / "outside.nii")
    with pytest.raises(CardError, match="leads out"):
        under_root(tmp_path / "root", "link.nii", "scans.path")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_every_delimiter(tmp_path, delimiter):
    path = tmp_path / "t.csv"
    path.write_bytes(
        b"\xef\xbb\xbf" + delimiter.join(["a", "b"]).encode() + b"\r\n" + delimiter.join(["1", "ä"]).encode()
    )
    assert read_table(path, "t.csv").columns == {"a": ["1"], "b": ["ä"]}


def test_parquet_is_a_table_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1, None], "b": ["x", "y"]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", "t").columns == {"a": ["1", ""], "b": ["x", "y"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a,b\n", "has no rows"),
        (b"a,b\n1\n", "row 2 has 1 fields, the header 2"),
        (b"a,b\n\n1,2\n1\n", "row 4 has 1 fields, the header 2"),
        (b'a,b\n1,2\n3,"open\n4,5\n6,7\n', "unexpected end of data, in the row that begins on line 3"),
        (b'a,b\n1,2\n3,"open\n4,"closed"\n', "expected after '\"', in the row that begins on line 3"),
        (b"a,a\n1,2\n", "several columns of one name: a"),
        (b"a,b\n\xe4,1\n", "is not UTF-8"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(CardError, match=message):
        read_table(path, "t.csv")


def test_lines_that_excel_left_empty_are_no_rows(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid;text\r\n;\r\na;1\r\n ; \r\n\r\nb;2\r\n;\r\n")
    assert read_table(tmp_path / "t.csv", "t").columns == {"id": ["a", "b"], "text": ["1", "2"]}


def test_bad_scans_that_are_none_are_told(tree):
    card = load_card(write_card(tree, **{"name: demo": "name: demo\nknown_bad: {a1: blank, a9: blank}"}))
    scans = read_scans(card)
    assert [bool(scan.known_bad) for scan in scans] == [True, False, False]
    assert strangers(card, scans).startswith("known_bad names 1 scans that the table of scans does not have (a9, ...)")
    assert strangers(load_card(write_card(tree)), scans) == ""
