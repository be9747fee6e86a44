"""What cards can say of tables: several files, joins, keys of any column, parted labels, lists of bad scans."""

import csv
import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ctgrounding.errors import CardError
from ctgrounding.ingest.card_files import load_card
from ctgrounding.ingest.catalog import read_scans
from ctgrounding.ingest.supervision import read_report
from ctgrounding.ingest.tables import read_table

SCANS = [
    {"scan_id": "a1", "study_id": "a", "patient_id": "p1", "path": "a1.nii.gz"},
    {"scan_id": "a2", "study_id": "a", "patient_id": "p1", "path": "a2.nii.gz"},
    {"scan_id": "b1", "study_id": "b", "patient_id": "p2", "path": "b1.nii.gz"},
]


def write_card(folder, text):
    path = folder / "card.yaml"
    path.write_text(text.format(root=folder))
    return path


def scans_of(folder, rest, rows=SCANS, fields="table: scans.csv"):
    """Scans of a card whose table of scans stands in the folder, with further keys."""
    with (folder / "scans.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return read_scans(load_card(write_card(folder, f"name: demo\nroot: {{root}}\nscans: {{{{{fields}}}}}\n{rest}")))


def test_tables_of_several_files_are_one(hospital, tmp_path):
    for name, row in (("b", SCANS[0]), ("a", dict(reversed(SCANS[2].items())))):
        hospital["table"](tmp_path / f"{name}_scans.csv", [row])
    card = write_card(tmp_path, "name: demo\nroot: {root}\nscans: {{table: '*_scans.csv'}}")
    assert [scan.scan_id for scan in read_scans(load_card(card))] == ["b1", "a1"]
    hospital["table"](tmp_path / "c_scans.csv", [{**SCANS[1], "age": 3}])
    with pytest.raises(CardError, match=r"a_scans.csv and c_scans.csv.*only one of them has age"):
        read_scans(load_card(card))
    with pytest.raises(CardError, match=r"fits '\*_reports.csv'.* holds a_scans.csv, b_scans.csv"):
        scans_of(tmp_path, "reports: {{table: '*_reports.csv', text: text}}")


def test_a_workbook_is_a_table_too(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["study id", None, "Findings"], ["a", 1, "x"], [None, None, None], ["b", 2, None]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx", "t").columns == {"study id": ["a", "b"], "Findings": ["x", ""]}
    (tmp_path / "t.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(CardError, match="cannot be read as an Excel workbook"):
        read_table(tmp_path / "t.xlsx", "t")


def test_columns_may_come_from_a_joined_table(hospital, tmp_path):
    rows = [{"scan_id": row["scan_id"], "path": row["path"], "accession": row["study_id"]} for row in SCANS]
    people = [{"acc": "a", "study_id": "a", "patient_id": "p1"}, {"acc": "b", "study_id": "b", "patient_id": "p2"}]
    hospital["table"](tmp_path / "people.csv", [people[0], *people])
    fields = "table: scans.csv, joins: [{{table: people.csv, key: acc, equals: accession}}]"
    assert [scan.patient_id for scan in scans_of(tmp_path, "", rows, fields)] == ["p1", "p1", "p2"]
    hospital["table"](tmp_path / "people.csv", [*people, {**people[1], "patient_id": "p3"}])
    with pytest.raises(CardError, match=r"people.csv has several rows for 'b', and they differ"):
        scans_of(tmp_path, "", rows, fields)
    hospital["table"](tmp_path / "people.csv", [{**people[0], "acc": "A-17"}])
    with pytest.raises(CardError, match=r"no 'acc' is a 'accession' of scans.csv. It has 'A-17'.*has 'a'"):
        scans_of(tmp_path, "", rows, fields)
    with pytest.raises(CardError, match=r"unknown key 'kee'. Did you mean 'key'"):
        scans_of(tmp_path, "", rows, fields.replace("key:", "kee:"))


def test_rows_that_repeat_a_scan_are_one_only_if_the_card_says_so(tmp_path):
    rows = [SCANS[0], SCANS[0], SCANS[2]]
    assert [scan.scan_id for scan in scans_of(tmp_path, "", rows, "table: scans.csv, repeated: true")] == ["a1", "b1"]
    with pytest.raises(CardError, match="'a1' occurs twice"):
        scans_of(tmp_path, "", rows)


def test_keys_may_be_any_column_of_the_scans(hospital, tmp_path):
    hospital["table"](
        tmp_path / "r.csv", [{"file": "b1.nii.gz", "text": "Not given."}, {"file": "a2.nii.gz", "text": "x"}]
    )
    rest = "reports: {{table: r.csv, key: file, by: path, text: text, missing: [Not given.]}}"
    assert [scan.report for scan in scans_of(tmp_path, rest)] == [{}, {"": "x"}, {}]
    with pytest.raises(CardError, match=r"scans.csv has no column 'volume'.*under reports.by"):
        scans_of(tmp_path, rest.replace("by: path", "by: volume"))
    hospital["table"](tmp_path / "r.csv", [{"file": "b1.nii.gz", "text": text} for text in "xy"])
    with pytest.raises(CardError, match=r"several rows for 'b1.nii.gz', and they differ"):
        scans_of(tmp_path, rest)


def test_a_row_without_a_key_is_nobodys(hospital, tmp_path):
    rows = [{**row, "accession": number} for row, number in zip(SCANS, ("", "", "17"), strict=True)]
    nobodys = {"number": "", "text": "of somebody else"}
    hospital["table"](tmp_path / "r.csv", [nobodys, {"number": "17", "text": "x"}, {**nobodys, "text": "of a third"}])
    rest = "reports: {{table: r.csv, key: number, by: accession, text: text}}"
    assert [scan.report for scan in scans_of(tmp_path, rest, rows)] == [{}, {}, {"": "x"}]
    joined = "table: scans.csv, joins: [{{table: r.csv, key: number, equals: accession}}], split: text"
    rest = 'split: {{values: {{"": train, x: test}}}}'
    assert [scan.split for scan in scans_of(tmp_path, rest, rows, joined)] == ["train", "train", "test"]


def test_a_text_may_begin_without_its_heading(hospital, tmp_path):
    hospital["table"](tmp_path / "r.csv", [{"study_id": "a", "text": "Liver normal. IMPRESSION: Normal."}])
    first = scans_of(tmp_path, "reports: {{table: r.csv, text: text, opening: findings}}")[0]
    assert read_report(first.report).sections == {"findings": "Liver normal.", "impression": "Normal."}


def test_labels_in_parts_are_true_if_any_part_is(hospital, tmp_path):
    parts = {
        "nodule*left": "0",
        "nodule*right": "1",
        "mass*left": "0",
        "mass*right": "",
        "cyst*left": "-1",
        "age": "60",
    }
    hospital["table"](tmp_path / "l.csv", [{"study_id": "a", **parts}])
    rest = "labels: {{table: l.csv, part: '*', unknown: ['-1']}}"
    assert scans_of(tmp_path, rest)[0].labels == {"nodule": 1, "mass": 0, "cyst": None}
    chosen = rest.replace("part: '*'", "part: '*', columns: {{Lung nodule: nodule}}")
    assert scans_of(tmp_path, chosen)[0].labels == {"Lung nodule": 1}
    with pytest.raises(CardError, match=r"no column 'stone\*...'.*such columns for: cyst, mass, nodule"):
        scans_of(tmp_path, chosen.replace(": nodule", ": stone"))
    with pytest.raises(CardError, match="no column has '/' in its name"):
        scans_of(tmp_path, rest.replace("'*'", "'/'"))


@pytest.mark.parametrize(("value", "label"), [("True", 1), ("false", 0), ("1.0", 1), ("nan", None), ("Censored", None)])
def test_labels_may_be_words(hospital, tmp_path, value, label):
    hospital["table"](tmp_path / "l.csv", [{"study_id": "a", "pe": value}])
    assert scans_of(tmp_path, "labels: {{table: l.csv, unknown: [Censored]}}")[0].labels == {"pe": label}


def test_lists_of_bad_scans_name_scans_studies_or_files(tmp_path):
    (tmp_path / "bad.txt").write_text("a2.nii.gz\n\ntrain/x/b\n")
    found = [
        scan.known_bad for scan in scans_of(tmp_path, "known_bad_lists: {{bad.txt: no chest}}\nknown_bad: {{a1: cut}}")
    ]
    assert found == ["cut", "no chest", "no chest"]
    with pytest.raises(CardError, match=r"worse.txt is not under the card's root.*take it out"):
        scans_of(tmp_path, "known_bad_lists: {{worse.txt: no chest}}")


def test_val_is_drawn_out_of_train_and_nothing_else_moves(tmp_path):
    rows = [
        {"scan_id": f"s{n}", "study_id": f"e{n}", "patient_id": f"p{n // 2}", "path": "x", "split": "train"}
        for n in range(4000)
    ]
    rows += [
        {**row, "scan_id": f"t{n}", "study_id": f"f{n}", "patient_id": f"q{n}", "split": "valid"}
        for n, row in enumerate(rows[:50])
    ]
    rest = "split: {{values: {{valid: test}}, val_of_train: 0.1}}"
    scans = scans_of(tmp_path, rest, rows, "table: scans.csv, split: split")
    assert {scan.split for scan in scans if scan.patient_id.startswith("q")} == {"test"}
    by_patient = {}
    for scan in scans:
        assert by_patient.setdefault(scan.patient_id, scan.split) == scan.split
    drawn = [split for patient, split in by_patient.items() if patient.startswith("p")]
    assert drawn.count("val") / len(drawn) == pytest.approx(0.1, abs=0.02)
    assert "test" not in drawn
    with pytest.raises(CardError, match=r"val_of_train is 1.5"):
        scans_of(tmp_path, rest.replace("0.1", "1.5"), rows)


def test_names_of_organs_must_be_in_the_label_set(tmp_path):
    with pytest.raises(CardError, match=r"'Leber' is 'livr', which label set total_v2 does not have. Nearest: liver"):
        scans_of(tmp_path, "organs: {{names: {{Leber: livr}}}}")
    assert scans_of(tmp_path, "organs: {{names: {{couch: ''}}}}")[0].organ_names == {"couch": ""}


def test_kinds_of_slices_are_checked(hospital, tmp_path):
    hospital["table"](tmp_path / "s.csv", [{"scan_id": "a1", "series": 1, "image": 1, "z_mm": "", "kind": "scout"}])
    with pytest.raises(CardError, match=r"'scout' is no kind of slice. Use axial, derived, localizer, not axial"):
        scans_of(tmp_path, "slices: {{table: s.csv, kind: kind}}")


def test_a_workbook_is_read_whole_whatever_it_says_of_its_size(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    for row in (["study id", "Findings", "Split"], ["a", "x", "train"], ["b"]):
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx", "t").columns == {
        "study id": ["a", "b"],
        "Findings": ["x", ""],
        "Split": ["train", ""],
    }


@pytest.mark.parametrize(
    "what", ["labels: {{table: t.csv, key: acc}}", "reports: {{table: t.csv, key: acc, text: cyst}}"]
)
def test_a_table_that_fits_no_scan_is_not_lost_without_a_word(hospital, tmp_path, what):
    hospital["table"](tmp_path / "t.csv", [{"acc": "a1", "cyst": 1}])
    with pytest.raises(CardError, match=r"t.csv: no 'acc' is a study of scans.csv. It has 'a1'.*has 'a'.*key or"):
        scans_of(tmp_path, what)


@pytest.mark.parametrize("z_mm", ["nan", "inf"])
def test_a_slice_without_a_depth_is_refused(hospital, tmp_path, z_mm):
    hospital["table"](tmp_path / "s.csv", [{"scan_id": "a1", "series": 2, "image": 1, "z_mm": z_mm}])
    with pytest.raises(CardError, match=f"'{z_mm}' of scan a1 are no numbers"):
        scans_of(tmp_path, "slices: {{table: s.csv}}")


def test_a_pattern_of_files_that_is_none_is_named(tmp_path):
    with pytest.raises(CardError, match=r"labels.table: 'labels/\*\*.csv' is no pattern of files"):
        scans_of(tmp_path, "labels: {{table: 'labels/**.csv'}}")


def test_a_name_that_would_hide_a_column_is_refused(hospital, tmp_path):
    fields = r"table: scans.csv, parse: {{path: '(?P<study_id>.)(?P<part>.*)'}}"
    with pytest.raises(CardError, match=r"names 'study_id', a column that scans\.csv has already\. Rename the group\."):
        scans_of(tmp_path, "", SCANS, fields)
    hospital["table"](tmp_path / "more.csv", [{"scan_id": row["scan_id"], "part": "x"} for row in SCANS])
    joined = fields.replace("study_id", "letter") + ", joins: [{{table: more.csv, key: scan_id}}]"
    with pytest.raises(CardError, match=r"scans\.parse\.path names 'part'"):
        scans_of(tmp_path, "", SCANS, joined)


def test_a_name_that_two_patterns_parse_is_refused(tmp_path):
    fields = "table: scans.csv, parse: {{scan_id: '(?P<half>.)1', path: '(?P<half>.*)'}}"
    with pytest.raises(CardError, match=r"scans.parse.path names 'half', which another pattern names too"):
        scans_of(tmp_path, "", SCANS[::2], fields)


def test_slices_of_no_scan_are_refused(hospital, tmp_path):
    hospital["table"](tmp_path / "slices.csv", [{"scan_id": "A-1", "series": 1, "image": 2, "z_mm": 3.0}])
    with pytest.raises(CardError, match=r"slices.csv: no 'scan_id' is a scan of the card. It has \['A-1'\].*'a1'"):
        scans_of(tmp_path, "slices: {{table: slices.csv}}")


def test_a_table_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "scans.csv").write_text("scan_id\na1\n")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CardError, match=r"scans cannot be opened: Permission denied .*scans.csv.*Check the file"):
        read_table(tmp_path / "scans.csv", "scans")


def test_values_of_parquet_are_stripped_as_those_of_csv(tmp_path):
    pq.write_table(pa.table({"scan_id": [" a1 ", None]}), tmp_path / "scans.parquet")
    assert read_table(tmp_path / "scans.parquet", "scans").columns["scan_id"] == ["a1", ""]


def test_columns_of_a_pattern_may_have_any_name_and_be_empty(tmp_path):
    rows = [{**row, "Series.No": number, "Series": "x"} for row, number in zip(SCANS, ("4", "", "7"), strict=True)]
    fields = "table: scans.csv, organs_pattern: 'organs/{{Series.No}}'"
    scans = scans_of(tmp_path, "", rows, fields)
    assert [scan.organs_path and scan.organs_path.name for scan in scans] == ["4", None, "7"]
    with pytest.raises(CardError, match="scan a2 has no path"):
        scans_of(tmp_path, "", rows, "table: scans.csv, path_pattern: 'ct/{{Series.No}}'")
    with pytest.raises(CardError, match=r"names 'Series.Nr', which scans.csv does not have"):
        scans_of(tmp_path, "", rows, "table: scans.csv, path_pattern: 'ct/{{Series.Nr}}'")
    optional = [{**row, "suffix": suffix} for row, suffix in zip(SCANS, ("", "_b", ""), strict=True)]
    scans = scans_of(tmp_path, "", optional, "table: scans.csv, path_pattern: 'ct/{{scan_id}}{{suffix}}.nii'")
    assert [scan.path.name for scan in scans] == ["a1.nii", "a2_b.nii", "b1.nii"]


def test_numbers_of_slices_may_come_as_floats_but_whole(hospital, tmp_path):
    row = {"scan_id": "a1", "series": "4.0", "image": "38.0", "z_mm": "-1.5"}
    hospital["table"](tmp_path / "s.csv", [row])
    found = scans_of(tmp_path, "slices: {{table: s.csv}}")[0].slices[0]
    assert (found.series, found.image, found.z_mm) == (4, 38, -1.5)
    for wrong in ({"image": "38.5"}, {"series": "inf"}, {"z_mm": "1,5"}):
        hospital["table"](tmp_path / "s.csv", [{**row, **wrong}])
        with pytest.raises(CardError, match="with a decimal point"):
            scans_of(tmp_path, "slices: {{table: s.csv}}")
