"""Reports mined again: over a card as ingest itself would, over shards what they still know, over texts the words."""

import numpy as np
import pytest
from rich.console import Console

from ctgrounding.cli import main
from ctgrounding.data.index import load_index
from ctgrounding.data.overlay import lay_over
from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.data.supervision import read_supervision, report_sha256
from ctgrounding.errors import CardError, CTGroundingError, ReportError, ShardError
from ctgrounding.ingest import ingest, mine
from ctgrounding.ingest.identity import load_identity
from ctgrounding.ingest.mining import account

SPACING = (5.0, 4.0, 4.0)
SHAPE = (24, 20, 12)
AFFINE = np.array([[-4.0, 0, 0, 46], [0, -4, 0, 38], [0, 0, 5, 100], [0, 0, 0, 1.0]])
TILT = np.radians(20)
CARD = """
name: demo
root: {root}
scans: {{table: scans.csv, series: series, split: split}}
reports: {{table: reports.csv, sections: {{findings: findings, impression: impression}}}}
slices: {{table: slices.csv}}
shared_frame: true
ids: {ids}
"""
FINDINGS = (
    "12 mm cyst in the left kidney (series 3, image 5), previously 9 mm (series 2, image 7). "
    "Nodule in the lingula (series 4, images 8-9). Stone in the gallbladder (series 9, image 2). "
    "Calcified granuloma in the spleen (series 3, image 40). No pleural effusion."
)


@pytest.fixture(params=["keep", "hash"])
def card(request, hospital, tmp_path):
    """Two reconstructions of one study in NIfTI, and a tilted DICOM series of another."""
    root = tmp_path / "hospital"
    for seed, name in enumerate(("n3", "n4")):
        hospital["nifti"](root / "ct" / f"{name}.nii.gz", hospital["body"](SHAPE, seed=seed), AFFINE)
    stored = (hospital["body"](SHAPE).astype(np.int32) + 1024).astype(np.int16).T
    positions = np.array([[-46.0, -38.0, 100.0 + 5 * k] for k in range(12)])
    lean = (1, 0, 0, 0, np.cos(TILT), np.sin(TILT))
    hospital["dicom"](root / "ct" / "t", stored, positions, pixel_mm=(4.0, 4.0), series=3, orientation=lean)
    rows = [("n3", "n", 3, "ct/n3.nii.gz"), ("n4", "n", 4, "ct/n4.nii.gz"), ("t", "t", 3, "ct/t")]
    hospital["table"](
        root / "scans.csv",
        [
            {"scan_id": scan, "study_id": study, "patient_id": study, "series": series, "path": path, "split": "train"}
            for scan, study, series, path in rows
        ],
    )
    numbers = [(name, series, image) for name, series in (("n3", 3), ("n4", 4)) for image in range(1, 13)]
    hospital["table"](
        root / "slices.csv",
        [{"scan_id": name, "series": s, "image": i, "z_mm": 95 + 5 * i} for name, s, i in numbers],
    )
    hospital["table"](
        root / "reports.csv",
        [
            {"study_id": "n", "findings": FINDINGS, "impression": ""},
            {"study_id": "t", "findings": "Liver cyst on image 4 of series 3.", "impression": "Cyst."},
        ],
    )
    path = tmp_path / "card.yaml"
    path.write_text(CARD.format(root=root, ids=request.param))
    return path


@pytest.fixture
def shards(card, tmp_path):
    ingest(card=str(card), output=tmp_path / "shards", spacing_mm=SPACING, workers=1)
    return tmp_path / "shards"


def records(folder):
    return {record.scan_id: record for path in find_shards([folder]) for record in Shard(path).records}


def test_a_card_gives_what_ingest_gave(card, shards):
    summary = mine(str(card), output=shards)
    own = records(shards)
    rows = {row.scan_id: row for row in read_supervision(summary.path)}
    assert set(rows) == set(own)
    assert len(own) == 3
    for scan_id, record in own.items():
        assert rows[scan_id].snippets == record.snippets
        assert rows[scan_id].organ_sentences == record.organ_sentences
        assert rows[scan_id].report_sha256 == report_sha256(record.report)
        for snippet in rows[scan_id].snippets:
            assert record.report[snippet.section][snippet.start : snippet.end].startswith(snippet.text[:8])
    laid = lay_over(load_index([shards]), "mined")
    assert {laid.record(place).snippets for place in range(3)} == {record.snippets for record in own.values()}
    tilted = next(record for record in own.values() if "liver" in record.report["findings"].lower())
    low_mm, high_mm = tilted.snippets[0].depth_mm
    assert high_mm - low_mm > 10


def test_the_account_says_what_was_found_refused_and_why(card, shards):
    tally = mine(str(card), output=shards).tally
    assert (tally.scans, tally.reports, tally.citing) == (3, 2, 2)
    assert (tally.references, tally.prior, tally.unnumbered) == (6, 1, 0)
    assert (tally.snippets, tally.resolved) == (5, 3)
    assert dict(tally.refused) == {
        "names a series that is no scan of the study": 1,
        "names an image that its series does not have": 1,
    }
    assert tally.statuses["abnormal"] >= 4
    assert tally.labels["absent"] >= 1


def test_shards_alone_know_the_slices_that_they_were_written_with(card, shards):
    over_card = {row.scan_id: row for row in read_supervision(mine(str(card), output=shards).path)}
    summary = mine(str(shards), name="again")
    again = {row.scan_id: row for row in read_supervision(summary.path)}
    for scan_id, row in over_card.items():
        assert [(s.text, s.depth_mm, s.images) for s in again[scan_id].snippets] == [
            (s.text, s.depth_mm, s.images) for s in row.snippets
        ]
        assert again[scan_id].organ_sentences == row.organ_sentences
    assert [why.startswith("names a slice whose place these shards do not hold") for why in summary.tally.refused] == [
        True
    ]


def test_the_grid_is_that_of_the_shards_not_the_cards(hospital, tmp_path):
    """Twelve slices of 1 mm fill four planes of 3 mm, but two of 5 mm end before the outermost slices."""
    root = tmp_path / "hospital"
    affine = AFFINE @ np.diag([1, 1, 0.2, 1])
    hospital["nifti"](root / "a.nii.gz", hospital["body"](SHAPE), affine)
    row = {"scan_id": "a", "study_id": "a", "patient_id": "a", "series": 3, "path": "a.nii.gz", "split": "train"}
    hospital["table"](root / "scans.csv", [row])
    slices = [{"scan_id": "a", "series": 3, "image": image, "z_mm": 99 + image} for image in range(1, 13)]
    hospital["table"](root / "slices.csv", slices)
    findings = "Nodule (series 3, image 1). Cyst (series 3, image 6)."
    hospital["table"](root / "reports.csv", [{"study_id": "a", "findings": findings, "impression": ""}])
    card = tmp_path / "card.yaml"
    card.write_text(CARD.format(root=root, ids="keep"))
    for spacing_mm, depths in (((5.0, 4.0, 4.0), [105.0]), ((3.0, 1.5, 1.5), [100.0, 105.0])):
        output = tmp_path / f"{spacing_mm[0]:g} mm"
        ingest(card=str(card), output=output, spacing_mm=spacing_mm, workers=1)
        summary = mine(str(card), output=output)
        (mined,) = read_supervision(summary.path)
        assert mined.snippets == records(output)["a"].snippets
        assert [snippet.depth_mm[0] for snippet in mined.snippets] == depths
    (mined,) = read_supervision(mine(str(card), output=tmp_path / "none").path)  # no shards: the card's 3 mm
    assert len(mined.snippets) == 2


def test_labels_can_be_left_to_the_shards(card, shards):
    assert all(not row.labels for row in read_supervision(mine(str(card), output=shards, labels=False).path))
    rows = list(read_supervision(mine(str(card), output=shards).path))
    assert {row.labels["Pleural effusion"] for row in rows} == {0, None}


def test_texts_have_statements_but_no_depths(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.txt").write_text("BEFUND: Zyste der Leber (Serie 4, Bild 12).", encoding="utf-8")
    (tmp_path / "two.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "three.txt").write_text(" \n")
    summary = mine(str(tmp_path), ids="keep")
    (row,) = read_supervision(tmp_path / "supervision" / "mined.parquet")
    assert (row.scan_id, row.snippets, row.refused[0].reason) == ("deep/one", (), "stands in a text without a scan")
    assert row.organ_sentences[0].organs == ("liver",)
    assert dict(summary.tally.put_aside) == {"The file is not UTF-8.": 1, "The file holds no text.": 1}
    console = Console(width=90, record=True)
    console.print(account(summary))
    printed = console.export_text()
    assert "put aside: The file is not UTF-8." in printed
    assert "refused: stands in a text without a scan" in printed


def test_names_of_texts_are_hashed_as_ids_are(tmp_path, capsys):
    """A department may name its reports after the patient."""
    texts, output = tmp_path / "texts", tmp_path / "shards"
    (texts / "Smith").mkdir(parents=True)
    for name in ("Smith/one", "Smith^John"):
        (texts / f"{name}.txt").write_text("Cyst of the liver (series 4, image 12).")
    (tmp_path / "shards.private-ids.csv").write_text("of an ingest")
    path = mine(str(texts), output=output).path
    identity = load_identity("hash", output)
    assert [row.scan_id for row in read_supervision(path)] == [
        identity.write("scan", "Smith/one"),
        identity.write("scan", "Smith^John"),
    ]
    assert "Smith" not in path.read_bytes().decode("latin-1")
    private = tmp_path / "shards-mined.private-ids.csv"
    assert f"{identity.write('scan', 'Smith/one')},Smith/one" in private.read_text()
    assert private.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "shards.private-ids.csv").read_text() == "of an ingest"
    printed = capsys.readouterr().out
    assert "ids are hashed" in printed
    assert "Smith" not in printed

    kept = read_supervision(mine(str(texts), output=output, name="named", ids="keep").path)
    assert [row.scan_id for row in kept] == ["Smith/one", "Smith^John"]
    assert not (tmp_path / "shards-named.private-ids.csv").exists()


def test_a_card_and_shards_say_themselves_how_ids_are_written(tmp_path):
    with pytest.raises(CardError, match=r"The card says under ids how ids are written\. Leave out --ids\."):
        mine("phantom", output=tmp_path, root=tmp_path, ids="keep")
    with pytest.raises(ShardError, match=r"Shards keep the ids that they have\. Leave out --ids\."):
        mine(str(tmp_path / "a.h5"), ids="hash")


def test_workers_change_nothing(tmp_path):
    for number in range(40):
        (tmp_path / f"{number:02}.txt").write_text(f"{number} mm cyst in the liver (series 2, image {number + 1}).")
    one = mine(str(tmp_path), name="one")
    two = mine(str(tmp_path), name="two", workers=2)
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.tally == two.tally


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"source": "nowhere"}, CardError, "There is no card 'nowhere'"),
        ({"source": "phantom"}, CardError, "needs --output"),
        ({"source": "{empty}"}, ReportError, "holds neither shards"),
        ({"source": "{empty}", "workers": 0}, ReportError, "workers is 0"),
    ],
)
def test_what_cannot_be_mined_is_refused(tmp_path, given, error, match):
    given = {key: str(tmp_path) if value == "{empty}" else value for key, value in given.items()}
    with pytest.raises(error, match=match):
        mine(**given)
    assert not (tmp_path / "supervision" / "mined.parquet").exists()


def test_a_name_that_leaves_its_folder_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("Normal liver.")
    with pytest.raises(CTGroundingError, match="cannot name a supervision file"):
        mine(str(tmp_path), name="../a")


def test_the_command_ends_with_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["mine", str(tmp_path)])
    assert ended.value.code == 2
    assert "holds neither shards" in capsys.readouterr().err
    with pytest.raises(ShardError, match="Leave out --output"):
        mine(str(tmp_path / "a.h5"), output=tmp_path)
