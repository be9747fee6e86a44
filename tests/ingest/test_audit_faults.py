"""The fault run: what is broken is named rightly, what is not comes through untouched."""

import csv
import json

import numpy as np
import pytest
from faulty_hospital import CARD, FAULTS, SPACING_MM, write_hospital

from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.ingest import ingest
from ctgrounding.ingest.audit.command import audit
from ctgrounding.ingest.audit.kinds import KINDS


def run(root, output, table="scans.csv"):
    card = root / f"{table}.yaml"
    card.write_text(CARD.format(root=root, table=table))
    return ingest(card=str(card), output=output, spacing_mm=SPACING_MM, workers=1)


def content(output):
    """Everything that shards hold, by scan."""
    found = {}
    for path in find_shards([output]):
        shard = Shard(path)
        for row, record in enumerate(shard.records):
            voxels = shard.read_image(row), shard.read_organs(row)
            found[record.scan_id] = (record.to_json(), *(v if v is None else v.tobytes() for v in voxels))
    return found


def named(output, found):
    """What an ingest says of each scan: kinds put aside and kinds in the shard."""
    said = {scan: set(values[0]["verdict"]["flags"]) for scan, values in found.items()}
    for row in csv.DictReader((output / "quarantine.csv").open(encoding="utf-8")):
        said.setdefault(row["scan_id"], set()).add(row["kind"])
    return said


def check(tmp_path, hospital, scans, each):
    deserved = write_hospital(tmp_path / "faulty", hospital, scans, each)
    summary = run(tmp_path / "faulty", tmp_path / "shards")
    found = content(tmp_path / "shards")
    said = named(tmp_path / "shards", found)
    assert len(deserved) == scans
    assert sum(bool(kind) for kind in deserved.values()) == each * len(FAULTS)
    assert said == {scan: {kind} if kind else set() for scan, kind in deserved.items()}
    left_out = {scan for scan, kind in deserved.items() if kind and KINDS[kind].effect == "quarantine"}
    assert set(found) == set(deserved) - left_out
    assert (summary.planned, summary.ingested) == (scans, scans - len(left_out))

    run(tmp_path / "faulty", tmp_path / "clean shards", table="clean.csv")
    clean = content(tmp_path / "clean shards")
    assert set(clean) == {scan for scan, kind in deserved.items() if not kind}
    assert {scan: found[scan] for scan in clean} == clean

    verdicts = audit(card=str(tmp_path / "faulty" / "scans.csv.yaml"), output=tmp_path / "audit", workers=1)
    assert {scan.scan_id: {remark.kind for remark in scan.remarks} for scan in verdicts.scans} == said
    assert {scan.scan_id for scan in verdicts.scans if scan.left_out} == left_out
    account = json.loads((tmp_path / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert [entry["scan_id"] for entry in account["scans"]] == list(deserved)


def test_one_of_each_fault(tmp_path, hospital):
    assert len(FAULTS) == 20
    check(tmp_path, hospital, scans=24, each=1)


@pytest.mark.slow
def test_sixty_of_three_hundred(tmp_path, hospital):
    check(tmp_path, hospital, scans=300, each=3)


def test_a_rerun_keeps_shards_that_left_copies_out(tmp_path, hospital):
    root, output = tmp_path / "root", tmp_path / "shards"
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    rows = []
    for number, (seed, flipped) in enumerate([(0, False), (1, False), (0, True)]):
        values = hospital["body"]((24, 20, 12), seed=seed)
        turn = np.diag([-1.0, 1, 1, 1])
        turn[0, 3] = 23
        if flipped:
            hospital["nifti"](root / f"{number}.nii.gz", values[::-1].copy(), affine @ turn)
        else:
            hospital["nifti"](root / f"{number}.nii.gz", values, affine)
        rows.append({"scan_id": f"s{number}", "study_id": number, "patient_id": number, "path": f"{number}.nii.gz"})
    hospital["table"](root / "scans.csv", rows)
    card = root / "card.yaml"
    card.write_text(f"name: copies\nroot: {root}\nscans: {{table: scans.csv}}\nids: keep\n")
    first = ingest(card=str(card), output=output, spacing_mm=SPACING_MM, workers=1, scans_per_shard=1)
    assert [(entry.scan_id, entry.kind) for entry in first.put_aside] == [("s2", "duplicate")]
    assert "those of scan s0 (another patient" in first.put_aside[0].reason
    before = {path.name: path.read_bytes() for path in output.glob("*.h5")}
    again = ingest(card=str(card), output=output, spacing_mm=SPACING_MM, workers=1, scans_per_shard=1)
    assert (again.shards_kept, again.shards_written) == (3, 0)
    assert again.put_aside == first.put_aside
    assert {path.name: path.read_bytes() for path in output.glob("*.h5")} == before

    card.write_text(card.read_text() + "audit: {quarantine: []}\n")
    lenient = ingest(card=str(card), output=tmp_path / "lenient", spacing_mm=SPACING_MM, workers=1)
    assert (lenient.ingested, lenient.flags["duplicate"]) == (3, 1)
