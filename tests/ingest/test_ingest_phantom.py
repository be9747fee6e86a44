"""Synthetic patients through ingest, against the truth file that no training path reads."""

import json

import pytest

from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.ingest import ingest
from ctgrounding.phantom import write_patients


@pytest.fixture(scope="module")
def ingested(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    write_patients(output=root / "files", patients=10, format="mixed", seed=5, voxel_mm=7.0, workers=1)
    summary = ingest(card="phantom", root=root / "files", output=root / "shards", spacing_mm=(6.0, 8.0, 8.0), workers=1)
    records = {record.scan_id: record for path in find_shards([root / "shards"]) for record in Shard(path).records}
    truth = [json.loads(line) for line in (root / "files" / "truth.jsonl").read_text().splitlines()]
    return summary, records, truth


def test_nothing_is_put_aside(ingested):
    summary, records, truth = ingested
    assert summary.put_aside == ()
    assert set(records) == {line["scan_id"] for line in truth}
    assert {record.verdict["hu"]["rule"] for record in records.values()} == {"header"}
    assert {record.verdict["reader"] for record in records.values()} == {"nifti", "dicom"}


def test_references_land_where_the_truth_says(ingested):
    """Within half a slice: the truth is the finding's own depth, an image the slice nearest to it."""
    _, records, truth = ingested
    spacing = {record.scan_id: record.verdict["source_spacing_ijk_mm"] for record in records.values()}
    checked = 0
    for line in truth:
        record = records[line["scan_id"]]
        study = [scan_id for scan_id, other in records.items() if other.study_id == record.study_id]
        half_mm = max(max(spacing[scan_id]) for scan_id in study) / 2 + 0.01
        for reference in line["references"]:
            images = set(reference["images"])
            fitting = [snippet.depth_mm for snippet in record.snippets if images & set(snippet.images)]
            if fitting:
                depth = reference["depth_mm"]
                assert any(low - half_mm <= depth <= high + half_mm for low, high in fitting), reference
                checked += 1
    assert checked >= 0.9 * sum(len(line["references"]) for line in truth) > 20


def test_organs_lie_where_the_truth_says(ingested):
    _, records, truth = ingested
    for line in truth:
        record = records[line["scan_id"]]
        large = {
            organ
            for organ, box in line["organs"].items()
            if min(high - low for low, high in zip(box["low_mm"], box["high_mm"], strict=True)) > 40
        }
        assert large <= set(record.organ_voxels)
        assert set(record.organ_voxels) <= set(line["organs"])
