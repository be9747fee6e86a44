"""``ctgrounding audit`` as a user meets it: the table, the JSON, the page, and what none of them may tell."""

import base64
import html
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from ctgrounding.cli import main
from ctgrounding.ingest.audit import command
from ctgrounding.ingest.audit.command import audit
from ctgrounding.ingest.audit.copies import Seen, find_copies, patients_in_two_splits
from ctgrounding.ingest.audit.entries import ScanAudit, audit_scan
from ctgrounding.ingest.audit.kinds import CHOOSABLE, EFFECTS, FIRM, KINDS, Remark
from ctgrounding.ingest.audit.page import render
from ctgrounding.ingest.audit.picture import refused_picture

AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
SHAPE = (24, 20, 12)
CARD = "name: demo\nroot: {root}\nscans: {{table: scans.csv, split: split}}\nids: {ids}\n"


@pytest.fixture
def tree(hospital, tmp_path):
    """One scan in order, a trap, a blank one, an MR series, and a patient in two splits; names in every id and path."""
    root = tmp_path / "Smith"
    good = hospital["body"](SHAPE, seed=1)
    hospital["nifti"](root / "Smith_good.nii.gz", good, AFFINE)
    hospital["nifti"](root / "Smith_trap.nii.gz", hospital["body"](SHAPE, seed=2), AFFINE, 1, -8192)
    hospital["nifti"](root / "Smith_blank.nii.gz", np.full(SHAPE, -1024, np.int16), AFFINE)
    hospital["nifti"](root / "Smith_again.nii.gz", good, AFFINE)
    positions = np.array([[0.0, 0.0, 5.0 * k] for k in range(12)])
    hospital["dicom"](root / "Smith_mr", good.T, positions, extra={"Modality": "MR", "PatientName": "Smith"})
    rows = [
        {"scan_id": f"Smith {name}", "study_id": f"Smith {name}", "patient_id": f"Smith {patient}", "path": path}
        | {"split": split}
        for name, patient, path, split in (
            ("good", 1, "Smith_good.nii.gz", "train"),
            ("trap", 2, "Smith_trap.nii.gz", "train"),
            ("blank", 3, "Smith_blank.nii.gz", "train"),
            ("mr", 4, "Smith_mr", "train"),
            ("again", 5, "Smith_again.nii.gz", "test"),
            ("gone", 5, "Smith_gone.nii.gz", "val"),
        )
    ]
    hospital["table"](root / "scans.csv", rows)
    return root


def card_of(tree, ids="keep"):
    path = tree.parent / f"{ids}.yaml"
    path.write_text(CARD.format(root=tree, ids=ids))
    return str(path)


def test_every_scan_has_one_verdict_in_the_order_of_the_table(tree, tmp_path):
    found = audit(card=card_of(tree), output=tmp_path / "out", workers=1)
    assert [(scan.scan_id.removeprefix("Smith "), scan.verdict, scan.outcome) for scan in found.scans] == [
        ("good", "already_hu", "usable"),
        ("trap", "intercept_trap", "flagged"),
        ("blank", "blank", "quarantined"),
        ("mr", "not_ct", "quarantined"),
        ("again", "duplicate", "quarantined"),
        ("gone", "missing_file", "quarantined"),
    ]
    assert found.outcomes == {"quarantined": 4, "flagged": 1, "usable": 1}
    assert found.scans[4].remarks[0].reason == "Its voxels are those of scan Smith good (another patient, split train)."
    assert [remark.kind for remark in found.scans[5].remarks] == ["missing_file", "two_splits"]


def test_json_says_what_python_says(tree, tmp_path):
    found = audit(card=card_of(tree), output=tmp_path / "out", workers=1)
    account = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert account["outcomes"] == found.outcomes
    assert account["hu"] == {"already_hu": 2, "intercept_trap": 1, "unknown": 3}
    assert account["findings"] == {
        **{"missing_file": 1, "not_ct": 1, "blank": 1, "duplicate": 1, "two_splits": 2, "intercept_trap": 1},
    }
    trap = account["scans"][1]
    assert trap["evidence"]["hu"] == {"rule": "already_hu", "slope": 1.0, "intercept": 0.0}
    assert trap["evidence"]["evidence"]["soft_peak_hu"] == pytest.approx(45, abs=15)
    assert trap["findings"][0]["reason"].startswith("The header says slope 1 and intercept -8192")


def test_the_page_needs_nothing_else_and_pictures_what_it_flags(tree, tmp_path):
    found = audit(card=card_of(tree), output=tmp_path / "out", workers=1)
    page = found.page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    concerned = [scan for scan in found.scans if scan.remarks]
    assert len(pictures) == len([scan for scan in concerned if scan.picture]) == 3
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert {scan.verdict for scan in concerned if not scan.picture} == {"not_ct", "missing_file"}
    for scan in concerned:
        for remark in scan.remarks:
            assert html.escape(remark.reason) in page
    anchors = set(re.findall(r'id="([^"]+)"', page))
    assert {link.removeprefix("#") for link in re.findall(r'href="([^"]+)"', page)} <= anchors


def test_a_picture_shows_the_head_up_and_the_right_on_the_left(hospital, tmp_path):
    from matplotlib import image

    values = hospital["body"](SHAPE)
    values[14:17, 8:12, 9:11] = 1500  # bright, on the patient's right in RAS, high up
    root = tmp_path / "root"
    hospital["nifti"](root / "ct.nii.gz", values, AFFINE, 1, -1024)
    hospital["table"](
        root / "scans.csv", [{"scan_id": "a", "study_id": "a", "patient_id": "a", "path": "ct.nii.gz", "split": "val"}]
    )
    (scan,) = audit(card=card_of(root), output=tmp_path / "out", workers=1).scans
    path = tmp_path / "picture.png"
    path.write_bytes(scan.picture)
    coronal = image.imread(path)[:, :128]
    rows, columns = np.nonzero(coronal > 0.9)
    assert rows.mean() < 64
    assert columns.mean() < 64


def test_hashed_ids_leave_no_name_in_files_or_terminal(tree, tmp_path, capsys):
    found = audit(card=card_of(tree, "hash"), output=tmp_path / "out", workers=1)
    shown = capsys.readouterr()
    for text in (shown.out, shown.err, *(path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir())):
        without_own_paths = text.replace("\n", "").replace(str(tmp_path), "")
        assert "Smith" not in without_own_paths
    private = tmp_path / "out.private-ids.csv"
    assert private.stat().st_mode & 0o077 == 0
    assert f"{found.scans[0].scan_id},Smith good" in private.read_text(encoding="utf-8")


def test_text_of_cards_and_ids_is_escaped():
    entry = ScanAudit("<b>&", "s", "p", "train", left_out=True, remarks=(Remark("blank", '"<i>'),))
    page = render("<script>", [entry], command.HU_WORDS)
    assert "<script>" not in page
    assert "<b>&<" not in page
    assert "&quot;&lt;i&gt;" in page


def dies_of_the_trap(planned, rules, identity):
    """Stands in for the audit of a scan; one of them is too much for its process."""
    if "trap" in planned.scan_id:
        os.kill(os.getpid(), signal.SIGKILL)
    return audit_scan(planned, rules, identity)


@pytest.mark.slow
def test_a_scan_that_kills_its_worker_is_named_and_the_rest_go_on(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "audit_scan", dies_of_the_trap)
    found = audit(card=card_of(tree), output=tmp_path / "out", workers=2)
    assert [scan.verdict for scan in found.scans] == [
        *("already_hu", "worker_killed", "blank", "not_ct", "duplicate", "missing_file")
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "{file}"], "is a file. Give a folder"),
        (["--workers", "0"], "workers is 0"),
        (["--limit", "0"], "limit 0"),
        (["--root", "nowhere"], "is no folder"),
    ],
)
def test_wrong_input_is_one_sentence(tree, tmp_path, capsys, words, said):
    file = tmp_path / "file"
    file.touch()
    given = [word.format(file=file) for word in words]
    with pytest.raises(SystemExit) as caught:
        main(["audit", "--card", card_of(tree), "--output", str(tmp_path / "out"), *given])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_the_first_of_a_chain_of_copies_is_the_original():
    scans = [Seen(str(number), "p", "train", "same") for number in range(3)]
    assert set(find_copies(scans)) == {"1", "2"}
    assert find_copies(scans)["2"].reason == "Its voxels are those of scan 0 (the same patient)."
    series = [Seen("a", "p", "train", "x", "1.2"), Seen("b", "p", "train", "y", "1.2"), Seen("c", "p", "train", "z")]
    assert find_copies(series)["b"].reason == "Its series UID is that of scan a (the same patient)."
    assert set(find_copies(series)) == {"b"}


def test_patients_in_two_splits_are_found_whatever_their_order():
    pairs = [("p", "train"), ("q", "val"), ("p", "train"), ("q", "test"), ("r", "val")]
    assert patients_in_two_splits(pairs) == {"q": ("val", "test")}


def test_the_page_on_the_audit_lists_every_kind_with_its_effect():
    text = (Path(__file__).parents[2] / "docs" / "reference" / "audit.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([a-z ]+?)\*? \|", text, re.MULTILINE))
    assert rows == {kind: entry.effect for kind, entry in KINDS.items()}
    assert {entry.effect for entry in KINDS.values()} == set(EFFECTS)
    assert {*CHOOSABLE} | FIRM | {"no_report"} == {*KINDS}
    assert not {*CHOOSABLE} & FIRM


@pytest.mark.parametrize("words", [["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY"]])
def test_a_single_dicom_file_is_shown_only_where_it_is_original(hospital, tmp_path, words):
    plane = np.arange(64, dtype=np.int16).reshape(1, 8, 8)
    hospital["dicom"](tmp_path / "ct", plane, np.zeros((1, 3)), extra={"ImageType": words})
    (path,) = (tmp_path / "ct").iterdir()
    assert bool(refused_picture(path, 2, "too_few_slices")) is (words[0] == "ORIGINAL")


def test_an_output_that_cannot_be_made_is_one_sentence(tree, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "--card", card_of(tree), "--output", str(tmp_path / "file" / "x"), "--workers", "1"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "Not a directory" in said or "File exists" in said
