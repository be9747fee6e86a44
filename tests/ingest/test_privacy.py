"""With hashed ids nothing that identifies leaves the source: planted in every tag, name and table, found nowhere."""

import numpy as np
import pytest

from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.ingest import ingest
from ctgrounding.ingest.identity import SALT_NAME

SECRET = "ZZYZX"
TEXT_TAGS = [
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "InstitutionName",
    "InstitutionAddress",
    "ReferringPhysicianName",
    "OperatorsName",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "StationName",
    "StudyID",
    "PatientAddress",
    "PatientComments",
    "OtherPatientIDs",
    "ImageComments",
    "ContrastBolusAgent",
    "BodyPartExamined",
    "Manufacturer",
    "DeviceSerialNumber",
]
SECRET_UID = "1.2.826.0.1.4711.815"
CARD = """
name: own
root: {root}
scans: {{table: scans.csv, series: series, organs: organs}}
reports: {{table: reports.csv, text: report}}
"""
REPORT = "FINDINGS: 8 mm cyst in the left kidney (series 2, image 3).\nIMPRESSION: Renal cyst."


@pytest.fixture
def output(hospital, tmp_path, capsys):
    root = tmp_path / "hospital"
    stored = (hospital["body"]((20, 24, 6)).astype(np.int32) + 1024).astype(np.int16).T
    positions = np.array([[-20.0, -30.0, 100.0 + 3.0 * index] for index in range(6)])
    planted = dict.fromkeys(TEXT_TAGS, SECRET) | {
        "ImageType": ["ORIGINAL", "PRIMARY", SECRET],
        "PatientPosition": SECRET,
        "StudyInstanceUID": SECRET_UID + ".1",
        "FrameOfReferenceUID": SECRET_UID + ".2",
        "StudyDate": "19470317",
        "PatientBirthDate": "19470317",
    }
    rows = []
    for name, keep in (("good", slice(None)), ("gap", [0, 1, 2, 4, 5])):
        folder = root / f"{SECRET}_{name}"
        hospital["dicom"](folder, stored[keep], positions[keep], extra=planted)
        ids = {key: f"{SECRET}-{name}-{key}" for key in ("scan_id", "study_id", "patient_id")}
        rows.append(ids | {"path": folder.name, "series": 2, "organs": f"{SECRET}.nii.gz"})
    rows.append({**rows[0], "scan_id": f"{SECRET}-none", "path": f"{SECRET}-none.nii.gz"})
    hospital["table"](root / "scans.csv", rows)
    hospital["table"](root / "reports.csv", [{"study_id": rows[0]["study_id"], "report": REPORT}])
    card = tmp_path / "card.yaml"
    card.write_text(CARD.format(root=root))
    folder = tmp_path / "out" / "shards"
    summary = ingest(card=str(card), output=folder, spacing_mm=(3.0, 2.0, 2.0), workers=1)
    assert (summary.ingested, summary.quarantined) == (1, 2)
    return folder, capsys.readouterr().out


def test_nothing_identifying_is_written_or_printed(output):
    folder, printed = output
    (record,) = (record for path in find_shards([folder]) for record in Shard(path).records)
    assert len(record.snippets) == 1
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    names = "".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    for content in (written, repr(record).encode(), names.encode(), printed.encode()):
        for secret in (SECRET, SECRET_UID, "19470317"):
            assert secret.encode() not in content


def test_the_way_back_lies_beside_the_output(output):
    folder, _ = output
    private = (folder.parent / "shards.private-ids.csv").read_text()
    assert f"{SECRET}-good-patient_id" in private
    assert (folder.parent / SALT_NAME).is_file()
