"""With hashed ids nothing that identifies leaves the source: planted in every tag, name and table, found nowhere."""

import ast
import csv
import io
import json
import logging
import re
import stat
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import h5py
import hospital_files as hospital
import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom import DataElement, Dataset, Sequence, config
from pydicom.datadict import DicomDictionary, keyword_for_tag

import ctgrounding
from ctgrounding.data.index import load_index
from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.ingest import ingest
from ctgrounding.ingest.audit.command import audit
from ctgrounding.ingest.identity import SALT_NAME

SECRET = "ZZYZX"
SECRET_UID = "1.2.826.0.1.4711.815"
PLANTED = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "SH", "ST", "UC", "UT"), SECRET),
    "PN": f"{SECRET}^{SECRET}",
    "UR": f"https://{SECRET}.example",
    "UI": f"{SECRET_UID}.9",
    "DA": "19470317",
    "DT": "19470317101112.471108",
    "TM": "101112.471108",
    "AS": "047Y",
    "IS": "471108",
    "DS": "4711.08",
    "OB": SECRET.encode() + b"\0",
    "UN": SECRET.encode() + b"\0",
}
"""VR to what is planted in every tag of it; other VRs hold binary numbers."""

SECRETS = (SECRET, SECRET_UID, "19470317", "471108", "4711.08", "047Y")
GEOMETRY = {
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID",
    "SeriesNumber", "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "NumberOfFrames",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "DirectoryRecordSequence",
}  # fmt: skip
"""What a reader must find as it is; some of it is planted below, in values that it can bear."""
REPORT = "FINDINGS: 8 mm cyst in the left kidney (series 2, image 3).\nIMPRESSION: Renal cyst."
CARD = """
name: own
root: {root}
scans: {{table: scans.csv, series: series, organs: organs}}
reports: {{table: reports.csv, text: report}}
"""


def every_tag() -> dict[str, object]:
    """Every tag of the dictionary that can hold text, a private block and nested sequences."""
    inner = Dataset()
    inner.add_new(0x00100010, "PN", PLANTED["PN"])
    inner.add_new(0x00090010, "LO", SECRET)
    inner.add_new(0x00091001, "UT", SECRET * 50)
    nested = Dataset()
    nested.add_new(0x00081140, "SQ", Sequence([inner]))
    planted: dict[str, object] = {}
    for tag, (vr, *_) in DicomDictionary.items():
        keyword = keyword_for_tag(tag)
        usable = tag >> 16 >= 8 and tag >> 16 != 0xFFFE and keyword and keyword not in GEOMETRY
        if usable and vr in PLANTED:
            planted[keyword] = PLANTED[vr]
        elif usable and vr == "SQ":
            planted[keyword] = Sequence([nested])
    return planted


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A hospital of DICOM series, a NIfTI file and refused ones, every place for text holding something secret."""
    root = tmp_path_factory.mktemp("source") / "hospital"
    stored = (hospital.body_hu((20, 24, 6)).astype(np.int32) + 1024).astype(np.int16).T
    positions = np.array([[-20.0, -30.0, 100.0 + 3.0 * index] for index in range(6)])
    planted = every_tag()
    assert len(planted) > 3500
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)  # thousands of valid values
    planted |= {"ImageType": ["ORIGINAL", "PRIMARY", SECRET], "SeriesInstanceUID": f"{SECRET_UID}.3"}
    rows = []
    for name, keep in (("good", slice(None)), ("gap", [0, 1, 2, 4, 5])):
        folder = root / f"{SECRET}_{name}"
        hospital.write_dicom(folder, stored[keep], positions[keep], extra=planted)
        slices = sorted(folder.iterdir())
        add_private(slices[0])
        for path in slices:
            path.rename(path.with_name(f"{SECRET}_{path.name}"))
        ids = {key: f"{SECRET}-{name}-{key}" for key in ("scan_id", "study_id", "patient_id")}
        rows.append(ids | {"path": folder.name, "series": 2, "organs": f"{SECRET}.nii.gz"})
    rows.append({**rows[0], "scan_id": f"{SECRET}-none", "path": f"{SECRET}-none.nii.gz", "organs": ""})
    rows.append({**rows[0], "scan_id": f"{SECRET}-nifti", "path": f"{SECRET}-ct.nii.gz", "organs": ""})
    write_secret_nifti(root / f"{SECRET}-ct.nii.gz", hospital.body_hu((20, 24, 6), seed=2))
    hospital.write_table(root / "scans.csv", rows)
    hospital.write_table(root / "reports.csv", [{"study_id": rows[0]["study_id"], "report": REPORT}])
    monkeypatch.undo()
    card = root.parent / "card.yaml"
    card.write_text(CARD.format(root=root))
    return card


def add_private(path):
    import pydicom

    tags = pydicom.dcmread(path)
    block = tags.private_block(0x0051, SECRET, create=True)
    for offset, vr in enumerate(("LO", "PN", "UT", "DA", "UI", "OB"), start=1):
        block.add_new(offset, vr, PLANTED[vr])
    inner = Dataset()
    inner.PatientName = SECRET
    block.add_new(0x20, "SQ", Sequence([inner]))
    tags.add(DataElement(0x60004000, "LT", SECRET))
    tags.file_meta.SourceApplicationEntityTitle = SECRET
    tags.file_meta.ImplementationVersionName = SECRET
    pydicom.dcmwrite(path, tags, enforce_file_format=True)


def write_secret_nifti(path, values):
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0]))
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[field] = SECRET.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SECRET.encode()))
    nib.save(image, path)


@pytest.fixture(scope="module")
def products(sources):
    """All that ctgrounding writes and says of it: shards, index, lists, notes, the audit's page, terminal and logs."""
    folder = sources.parent / "out" / "shards"
    said, logged = io.StringIO(), logging.StreamHandler(io.StringIO())
    logging.getLogger().addHandler(logged)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            summary = ingest(card=str(sources), output=folder, spacing_mm=(3.0, 2.0, 2.0), workers=1)
            load_index([folder])
            audit(card=str(sources), output=folder.parent / "audit", workers=1)
    finally:
        logging.getLogger().removeHandler(logged)
    assert (summary.planned, summary.ingested, summary.quarantined) == (4, 2, 2)
    return folder, said.getvalue() + logged.stream.getvalue()


def decoded(path: Path) -> str:
    """All that a file holds, as text: raw bytes, and what its own reader makes of it."""
    texts = [path.read_bytes().decode("latin-1")]
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            found = [file]
            file.visititems(lambda _, item: found.append(item))
            for item in found:
                texts += [item.name, *(f"{name} {as_text(value)}" for name, value in item.attrs.items())]
                if isinstance(item, h5py.Dataset):
                    texts.append(np.asarray(item[()]).tobytes().decode("latin-1"))
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        texts += [str(table.schema), json.dumps(table.to_pydict(), default=as_text)]
    if path.suffix == ".json":
        texts.append(json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False))
    return "\n".join(texts)


def as_text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def without_hashes(text: str) -> str:
    """The text without hexadecimal hashes, in which digits of a secret may stand by chance."""
    return re.sub(r"\b[0-9a-f]{24,64}\b", "", text)


def test_the_secrets_are_in_every_source(sources):
    slices = list(sources.parent.rglob(f"{SECRET}_IM*"))
    assert len(slices) == 11
    for path in slices:
        content = path.read_bytes()
        assert content.count(SECRET.encode()) > 2000
        assert all(secret.encode() in content for secret in SECRETS)


def test_nothing_identifying_is_in_any_file(products):
    folder, _ = products
    files = [path for path in folder.parent.rglob("*") if path.is_file() and path.parent != folder.parent]
    names = {path.name for path in files}
    assert {"shard-00000.h5", "index.parquet", "plan.csv", "quarantine.csv", "audit.json", "audit.html"} <= names
    for path in files:
        text = without_hashes(decoded(path))
        found = [secret for secret in SECRETS if secret in text or secret in path.name]
        assert found == [], path


def test_nothing_identifying_is_said_on_the_terminal_or_in_logs(products):
    folder, said = products
    text = without_hashes(said.replace(str(folder.parent), ""))
    assert "scans planned" in text
    assert [secret for secret in SECRETS if secret in text] == []


def test_ids_are_hashes_in_shard_plan_and_quarantine_list(products):
    folder, _ = products
    records = [record for path in find_shards([folder]) for record in Shard(path).records]
    assert len(records) == 2
    hashed = re.compile(r"[0-9a-f]{24}")
    for record in records:
        assert all(hashed.fullmatch(value) for value in (record.scan_id, record.study_id, record.patient_id))
        assert all(hashed.fullmatch(snippet.slice_id) for snippet in record.snippets)
    assert sum(len(record.snippets) for record in records) == 1
    for name in ("plan.csv", "quarantine.csv"):
        rows = list(csv.DictReader((folder / name).open()))
        assert rows
        assert all(hashed.fullmatch(row["scan_id"]) for row in rows)


def test_the_way_back_lies_beside_the_output_for_its_owner_alone(products):
    folder, _ = products
    salt, back = folder.parent / SALT_NAME, folder.parent / "shards.private-ids.csv"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (salt, back)] == [0o600, 0o600]
    given = {row["written"]: row["given"] for row in csv.DictReader(back.open())}
    records = [record for path in find_shards([folder]) for record in Shard(path).records]
    assert {given[record.patient_id] for record in records} == {f"{SECRET}-good-patient_id"}
    assert not any(salt.read_text().strip() in decoded(path) for path in folder.rglob("*") if path.is_file())


def test_the_map_is_there_before_the_shards(sources, tmp_path, monkeypatch):
    """A killed ingest leaves shards; without the map nobody could tell whose they are."""
    from ctgrounding.errors import ShardError

    def stop(*_):
        raise ShardError("stopped.")
        yield

    monkeypatch.setattr("ctgrounding.ingest.pipeline.fill_shards", stop)
    with pytest.raises(ShardError):
        ingest(card=str(sources), output=tmp_path / "shards", workers=1)
    assert f"{SECRET}-good-patient_id" in (tmp_path / "shards.private-ids.csv").read_text()


def test_nothing_is_unpickled():
    """Files of others are read by formats that hold no code. What our own processes send each other does not count."""
    package = Path(ctgrounding.__file__).parent
    for path in [*(package / "ingest").rglob("*.py"), *(package / "data").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cPickle", "dill", "shelve", "marshal"} & {name.split(".")[0] for name in modules}
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                allowed = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert allowed.get("allow_pickle") == "False", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pd.read_pickle", "joblib.load"):
                raise AssertionError(path)
