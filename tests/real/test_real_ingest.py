"""Real, public scans through the whole of ingest, with a report written here."""

import csv
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ctgrounding import label_sets
from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.ingest import ingest

CARD = """
name: real
root: {root}
scans: {{table: scans.csv, series: series, organs: organs, split: split}}
reports: {{table: reports.csv, text: report}}
ids: keep
"""
ABDOMEN = (
    "FINDINGS: There is a hypodense lesion in the liver measuring 18 mm (series 2, image 60). "
    "The spleen is unremarkable.\n\nIMPRESSION: Liver lesion."
)


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def shard(shared_data, crlm_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    example = shared_data / "totalsegmentator_example"
    for name in ("example_ct.nii.gz", "example_seg_v2.nii.gz"):
        (root / name).write_bytes((example / name).read_bytes())
    series = root / "crlm"
    series.mkdir()
    for path in crlm_folder.rglob("*"):
        if path.is_file():
            (series / path.name).write_bytes(path.read_bytes())
    rows = [
        {"scan_id": "crlm", "study_id": "crlm", "patient_id": "crlm", "path": "crlm", "series": 2, "organs": ""},
        {"scan_id": "ts", "study_id": "ts", "patient_id": "ts", "path": "example_ct.nii.gz", "series": ""}
        | {"organs": "example_seg_v2.nii.gz"},
    ]
    write_rows(root / "scans.csv", [row | {"split": "train"} for row in rows])
    write_rows(root / "reports.csv", [{"study_id": "crlm", "report": ABDOMEN}])
    card = root / "card.yaml"
    card.write_text(CARD.format(root=root))
    ingest(card=str(card), output=root / "shards", spacing_mm=(3.0, 3.0, 3.0), workers=1)
    return Shard(find_shards([root / "shards"])[0])


def row_of(shard, scan_id):
    return [record.scan_id for record in shard.records].index(scan_id)


def test_a_cited_image_lands_at_the_z_of_its_instance(shard, crlm_folder):
    tags = [pydicom.dcmread(path, stop_before_pixels=True) for path in crlm_folder.rglob("*") if path.is_file()]
    (wanted,) = [tag for tag in tags if int(tag.InstanceNumber) == 60]
    (snippet,) = shard.records[row_of(shard, "crlm")].snippets
    z_mm = float(wanted.ImagePositionPatient[2])
    assert snippet.depth_mm == pytest.approx((z_mm, z_mm), abs=0.01)
    assert snippet.slice_id == str(wanted.SOPInstanceUID)
    assert (snippet.series, snippet.images, snippet.organ, snippet.size_mm) == (2, (60,), "liver", 18.0)


def test_the_plane_of_that_depth_holds_that_instance(shard, crlm_folder):
    """The stored plane nearest to the depth looks more like its instance than like those two slices away."""
    row = row_of(shard, "crlm")
    record, image = shard.records[row], shard.read_image(row).astype(np.float64)
    depth = record.snippets[0].depth_mm[0]
    plane = image[round((depth - record.origin_mm[2]) / record.spacing_mm[0])]
    likeness = {}
    for path in filter(Path.is_file, crlm_folder.rglob("*")):
        tags = pydicom.dcmread(path)
        if abs(int(tags.InstanceNumber) - 60) in (0, 2):
            hu = np.clip(tags.pixel_array * float(tags.RescaleSlope) + float(tags.RescaleIntercept), -1024, 3071)
            x0, y0, _ = map(float, tags.ImagePositionPatient)
            spacing = float(tags.PixelSpacing[0])
            x = record.origin_mm[0] + 3.0 * np.arange(plane.shape[1])
            y = record.origin_mm[1] + 3.0 * np.arange(plane.shape[0])
            columns = np.clip(np.rint((-x - x0) / spacing), 0, 511).astype(int)
            rows = np.clip(np.rint((-y - y0) / spacing), 0, 511).astype(int)
            likeness[int(tags.InstanceNumber)] = np.corrcoef(hu[np.ix_(rows, columns)].ravel(), plane.ravel())[0, 1]
    assert max(likeness, key=likeness.get) == 60


def test_liver_and_spleen_after_ingest(shard):
    row = row_of(shard, "ts")
    record, image, organs = shard.records[row], shard.read_image(row), shard.read_organs(row)
    liver, spleen = (organs == label_sets.label_of(organ) for organ in ("liver", "spleen"))
    assert image[liver].mean() == pytest.approx(44.5, abs=1.0)
    centre = {name: np.argwhere(mask).mean(axis=0) for name, mask in (("liver", liver), ("spleen", spleen))}
    x = {name: record.origin_mm[0] + value[2] * record.spacing_mm[2] for name, value in centre.items()}
    assert x["liver"] > 50
    assert x["spleen"] < -90
    assert record.organ_voxels["liver"] == liver.sum()
    assert len(record.organ_voxels) == 61
