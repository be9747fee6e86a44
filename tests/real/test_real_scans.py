"""Real, public scans through the readers: HU, sides and slice positions."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy.ndimage import binary_erosion

from ctgrounding import label_sets
from ctgrounding.ingest import read_scan
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.scan import bring_organs

SPACING_MM = (3.0, 1.5, 1.5)


@pytest.fixture(scope="session")
def example(shared_data) -> Path:
    folder = shared_data / "totalsegmentator_example"
    if not folder.is_dir():
        pytest.skip(f"no NIfTI example at {folder}")
    return folder


def scan_and_organs(example, spacing_mm):
    scan = read_scan(example / "example_ct.nii.gz", spacing_mm)
    return scan, bring_organs(open_source(example / "example_seg_v2.nii.gz"), scan.grid, "total_v2")


@pytest.fixture(scope="session")
def organs_v2(example):
    return scan_and_organs(example, SPACING_MM)


def mean_hu(scan, organs, organ):
    return float(scan.image_hu[organs == label_sets.label_of(organ)].mean())


def test_organs_keep_their_hu_at_the_spacing_of_the_file(example):
    scan, organs = scan_and_organs(example, (3.0, 3.0, 3.0))
    assert scan.verdict.rule.name == "header"
    for organ, expected in {"liver": 44.5, "spleen": 32.8, "aorta": 42.0, "vertebrae_L1": 197.0}.items():
        assert mean_hu(scan, organs, organ) == pytest.approx(expected, abs=0.6), organ


def test_organs_lose_at_most_the_partial_volume_of_their_rim_at_another_spacing(organs_v2):
    """Between a rim voxel of the liver and lung the image is interpolated while the label is not: 1.5 HU."""
    scan, organs = organs_v2
    assert mean_hu(scan, organs, "liver") == pytest.approx(44.5, abs=2.0)
    core = binary_erosion(organs == label_sets.label_of("liver"), iterations=3)
    assert scan.image_hu[core].mean() == pytest.approx(46.3, abs=0.6)


def test_the_liver_is_on_the_right(organs_v2):
    scan, organs = organs_v2
    centre = {
        organ: scan.grid.voxel_to_world(np.argwhere(organs == label_sets.label_of(organ)).mean(axis=0))
        for organ in ("liver", "spleen")
    }
    assert centre["liver"][0] == pytest.approx(67, abs=2)
    assert centre["spleen"][0] == pytest.approx(-113, abs=2)


def test_a_dicom_series_lands_at_the_positions_of_its_instances(crlm_folder):
    scan = read_scan(crlm_folder, SPACING_MM, series=2)
    tags = [pydicom.dcmread(path, stop_before_pixels=True) for path in crlm_folder.rglob("*") if path.is_file()]
    depth = {int(tag.InstanceNumber): float(tag.ImagePositionPatient[2]) for tag in tags}
    assert sorted(depth) == list(range(45, 86))
    for image, z_mm in depth.items():
        found = scan.slice_at(z_mm)
        assert found.image == image
        assert found.depth_mm == pytest.approx(z_mm, abs=0.01)
    assert depth[45] > depth[85]
    low, high = scan.grid.field_mm
    assert low <= min(depth.values()) <= max(depth.values()) <= high


def test_a_dicom_series_is_ct_in_hu(crlm_folder):
    scan = read_scan(crlm_folder, SPACING_MM, series=2)
    assert scan.verdict.evidence.is_ct
    assert scan.verdict.evidence.air_peak_hu == pytest.approx(-1000, abs=60)
    assert "padding" in scan.verdict.flags
    assert scan.image_hu.min() == -1024
