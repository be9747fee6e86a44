"""Card to shards: what goes in comes out, what cannot is named, and a rerun changes nothing."""

import csv
import hashlib
import json
import stat

import numpy as np
import pytest

from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.errors import CardError
from ctgrounding.ingest import ingest, inspect

SPACING = (5.0, 4.0, 4.0)
SHAPE = (24, 20, 12)
AFFINE = np.array([[-4.0, 0, 0, 46], [0, -4, 0, 38], [0, 0, 5, 100], [0, 0, 0, 1.0]])
REPORT = "There is a 12 mm cyst in the left kidney (series 3, image 5).\nThe liver is normal."
CARD = """
name: demo
root: {root}
scans: {{table: scans.csv, series: series, organs: organs, split: split}}
reports: {{table: reports.csv, sections: {{findings: findings}}}}
labels: {{table: labels.csv}}
slices: {{table: slices.csv}}
shared_frame: true
ids: keep
known_bad: {{bad: head CT}}
"""


@pytest.fixture
def tree(hospital, tmp_path):
    """Four good scans (one DICOM) of three patients and three broken ones."""
    root = tmp_path / "hospital"
    names = ["a1", "a2", "b1", "c1", "nan", "cut", "gone", "bad"]
    rows, slices = [], []
    for number, name in enumerate(names):
        hu = hospital["body"](SHAPE, seed=number)
        study = name[0] if name[-1].isdigit() else name
        rows.append(
            {"scan_id": name, "study_id": study, "patient_id": f"patient {study}", "path": f"ct/{name}.nii.gz"}
            | {"series": 3 if name != "a2" else 4, "organs": f"organs/{name}.nii.gz" if name != "b1" else ""}
            | {"split": "train" if study != "b" else "test"}
        )
        slices += [
            {"scan_id": name, "series": rows[-1]["series"], "image": k + 1, "z_mm": 100 + 5 * k} for k in range(12)
        ]
        stored = hu.astype(np.float32) if name == "nan" else hu
        if name == "nan":
            stored[0, 0, 0] = np.nan
        if name not in ("gone", "c1"):
            hospital["nifti"](root / "ct" / f"{name}.nii.gz", stored, AFFINE)
        organs = np.where(hu > 0, 5, 0).astype(np.uint8)
        hospital["nifti"](root / "organs" / f"{name}.nii.gz", organs, AFFINE)
    cut = root / "ct" / "cut.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-300])
    stored = (hospital["body"](SHAPE, seed=3).astype(np.int32) + 1024).astype(np.int16).T
    positions = np.array([[-46.0, -38.0, 100.0 + 5 * k] for k in range(12)])
    hospital["dicom"](root / "ct" / "c1", stored, positions, pixel_mm=(4.0, 4.0), series=3)
    rows[3]["path"] = "ct/c1"
    hospital["table"](root / "scans.csv", rows)
    hospital["table"](root / "slices.csv", [row for row in slices if row["scan_id"] != "c1"])
    reports = [
        {"study_id": "a", "findings": REPORT},
        {"study_id": "b", "findings": " "},
        {"study_id": "c", "findings": REPORT},
    ]
    hospital["table"](root / "reports.csv", reports)
    hospital["table"](root / "labels.csv", [{"study_id": "a", "cyst": 1, "mass": ""}])
    return root


@pytest.fixture
def card(tree, tmp_path):
    path = tmp_path / "card.yaml"
    path.write_text(CARD.format(root=tree))
    return path


def run(card, output, **options):
    return ingest(card=str(card), output=output, spacing_mm=SPACING, workers=1, **options)


def records(output):
    return {record.scan_id: record for path in find_shards([output]) for record in Shard(path).records}


def digests(output):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.glob("*.h5")}


def test_every_scan_is_ingested_or_named(card, tmp_path):
    summary = run(card, tmp_path / "out")
    assert (summary.planned, summary.ingested, summary.quarantined) == (8, 4, 4)
    rows = list(csv.DictReader((tmp_path / "out" / "quarantine.csv").open()))
    reasons = {(row["scan_id"], row["part"]): row["reason"] for row in rows}
    assert set(reasons) == {("nan", "scan"), ("cut", "scan"), ("gone", "scan"), ("bad", "scan"), ("b1", "report")}
    assert "1 of 5760 voxels are not finite" in reasons["nan", "scan"]
    assert "cut short" in reasons["cut", "scan"]
    assert "does not exist" in reasons["gone", "scan"]
    assert reasons["bad", "scan"] == "The card leaves it out: head CT"
    assert "no report text" in reasons["b1", "report"]
    assert set(records(tmp_path / "out")) == {"a1", "a2", "b1", "c1"}


def test_records_hold_what_the_tables_said(card, tmp_path):
    run(card, tmp_path / "out")
    found = records(tmp_path / "out")
    first = found["a1"]
    assert (first.study_id, first.patient_id, first.split, first.dataset) == ("a", "patient a", "train", "demo")
    assert first.labels == {"cyst": 1, "mass": None}
    assert first.report == {"findings": REPORT}
    assert first.verdict["hu"] == {"rule": "header", "slope": 1.0, "intercept": 0.0}
    assert first.valid_box == tuple((0, size) for size in first.shape)
    assert found["a1"].organ_voxels["liver"] > 100
    assert found["b1"].organ_voxels is None
    assert found["b1"].report == {}
    normal = [sentence for sentence in first.organ_sentences if sentence.status == "normal"]
    assert [sentence.organs for sentence in normal] == [("liver",)]
    assert first.report["findings"][normal[0].start : normal[0].end].strip(". ") == "The liver is normal"


def test_snippets_reach_their_depth_by_table_by_tag_and_in_the_other_reconstruction(card, tmp_path):
    summary = run(card, tmp_path / "out")
    found = records(tmp_path / "out")
    for scan_id in ("a1", "a2", "c1"):
        (snippet,) = found[scan_id].snippets
        assert snippet.depth_mm == pytest.approx((120.0, 120.0))
        assert (snippet.organ, snippet.size_mm, snippet.series, snippet.images) == ("kidney_left", 12.0, 3, (5,))
        assert found[scan_id].report["findings"][snippet.start : snippet.end].startswith("There is a 12 mm cyst")
    assert found["a2"].snippets[0].slice_id == "a1/3/5"
    assert summary.snippets == 3
    assert summary.refused == {}


def test_voxels_lie_where_the_file_says(card, tmp_path, hospital):
    run(card, tmp_path / "out")
    shard = Shard(find_shards([tmp_path / "out"])[0])
    row = [record.scan_id for record in shard.records].index("a1")
    record, image, organs = shard.records[row], shard.read_image(row), shard.read_organs(row)
    source = np.clip(hospital["body"](SHAPE, seed=0), -1024, 3071)[::-1, ::-1]
    assert record.origin_mm == pytest.approx((46 - 4 * 23, 38 - 4 * 19, 100))
    np.testing.assert_array_equal(image, source.T)
    np.testing.assert_array_equal(organs, np.where(source.T > 0, 5, 0))


def test_a_rerun_changes_nothing_and_a_lost_shard_comes_back_the_same(card, tmp_path):
    output = tmp_path / "out"
    run(card, output, scans_per_shard=3)
    before = digests(output)
    assert len(before) == 3
    stamps = {path: path.stat().st_mtime_ns for path in output.glob("*.h5")}
    again = run(card, output, scans_per_shard=3)
    assert (again.shards_kept, again.shards_written, again.ingested, again.quarantined) == (3, 0, 4, 4)
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.h5")} == stamps
    (output / "shard-00001.h5").unlink()
    third = run(card, output, scans_per_shard=3)
    assert (third.shards_kept, third.shards_written) == (2, 1)
    assert digests(output) == before
    assert len(list(csv.DictReader((output / "quarantine.csv").open()))) == 5


def test_a_changed_input_redoes_its_shard_alone(card, tree, tmp_path, hospital):
    output = tmp_path / "out"
    run(card, output, scans_per_shard=3)
    before = digests(output)
    hospital["nifti"](tree / "ct" / "cut.nii.gz", hospital["body"](SHAPE, seed=9), AFFINE)
    again = run(card, output, scans_per_shard=3)
    assert (again.shards_written, again.ingested) == (1, 5)
    assert {name for name, digest in digests(output).items() if before[name] != digest} == {"shard-00001.h5"}


def test_several_workers_write_what_one_writes(card, tmp_path):
    run(card, tmp_path / "one", scans_per_shard=3)
    ingest(card=str(card), output=tmp_path / "two", spacing_mm=SPACING, workers=2, scans_per_shard=3)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_another_output_is_not_mixed_in(card, tmp_path):
    output = tmp_path / "out"
    run(card, output, scans_per_shard=3)
    with pytest.raises(CardError, match=r"holds 2 shards that this card does not plan \(shard-00001.h5"):
        run(card, output, scans_per_shard=64)


def test_hashed_ids_leave_no_given_id_in_the_output(card, tmp_path):
    card.write_text(card.read_text().replace("ids: keep", "ids: hash"))
    output = tmp_path / "private" / "out"
    run(card, output)
    for record in records(output).values():
        assert len(record.scan_id) == len(record.patient_id) == len(record.study_id) == 24
        assert all(len(snippet.slice_id) == 24 for snippet in record.snippets)
        assert record.verdict["hu"]["rule"] == "header"
    for path in [entry for entry in output.rglob("*") if entry.is_file()]:
        assert b"patient a" not in path.read_bytes()
    texts = (
        json.dumps([record.to_json() for record in records(output).values()]) + (output / "quarantine.csv").read_text()
    )
    assert not any(f'"{given}"' in texts or f",{given}," in texts for given in ("a1", "a2", "nan", "cut", "gone"))
    assert stat.S_IMODE((tmp_path / "private" / "out.private-ids.csv").stat().st_mode) == 0o600


def test_a_bad_organ_map_is_put_aside_and_the_scan_stays(card, tree, tmp_path, hospital):
    organs = tree / "organs"
    hospital["nifti"](organs / "a1.nii.gz", np.full(SHAPE, 200, np.uint8), AFFINE)
    hospital["nifti"](organs / "a2.nii.gz", np.zeros(SHAPE, np.uint8), AFFINE)
    far = AFFINE.copy()
    far[2, 3] = 9000
    hospital["nifti"](organs / "c1.nii.gz", np.full(SHAPE, 5, np.uint8), far)
    summary = run(card, tmp_path / "out")
    reasons = {entry.scan_id: entry.reason for entry in summary.put_aside if entry.part == "organs"}
    assert "holds 200, which the class map does not name" in reasons["a1"]
    assert "is empty" in reasons["a2"]
    assert "outside its scan" in reasons["c1"]
    assert summary.ingested == 4
    assert all(record.organ_voxels is None for record in records(tmp_path / "out").values())


def test_inspect_counts_what_is_there_and_verifies(card, tmp_path):
    run(card, tmp_path / "out")
    found = inspect(str(tmp_path / "out"), verify=True)
    assert (found.scans, found.patients, found.studies, found.verified) == (4, 3, 3, 4)
    assert found.splits == {"train": 3, "test": 1}
    assert found.labels == {"cyst": (2, 0, 2), "mass": (0, 0, 4)}
    assert found.spacing_mm == {SPACING: 4}
    assert found.hu_rules == {"header": 4}
    assert (found.snippets, found.reports) == (3, 3)
    assert found.organs["liver"] == 3


def test_limit_takes_the_first_scans(card, tmp_path):
    assert run(card, tmp_path / "out", limit=2).planned == 2
    with pytest.raises(CardError, match="must be at least 1"):
        run(card, tmp_path / "out", limit=0)
