"""The audit on real, public scans and on real maps of both TotalSegmentator versions."""

import pytest

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Grid
from ctgrounding.ingest import read_scan
from ctgrounding.ingest.audit.organs import contradictions
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.scan import bring_organs

SPACING_MM = (6.0, 6.0, 6.0)


def example_map(shared_data, version):
    source = open_source(shared_data / "totalsegmentator_example" / f"example_seg_{version}.nii.gz")
    grid = Grid.covering(source.affine, source.shape_ijk, SPACING_MM)
    return bring_organs(source, grid, f"total_{version}"), grid


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_maps_contradict_nothing_as_themselves_and_much_as_the_other_version(shared_data, version):
    organs, grid = example_map(shared_data, version)
    other = {"v1": "total_v2", "v2": "total_v1"}[version]
    assert contradictions(organs, grid, f"total_{version}") is None
    assert contradictions(organs[:, :, ::-1].copy(), grid, f"total_{version}").kind == "mirrored"
    organs[organs > 104] = 0
    assert contradictions(organs, grid, other).kind == "mask_version"


def test_a_real_second_version_holds_labels_that_the_first_does_not_name(shared_data):
    source = open_source(shared_data / "totalsegmentator_example" / "example_seg_v2.nii.gz")
    with pytest.raises(ScanError, match="which total_v1 does not name but total_v2 does"):
        bring_organs(source, Grid.covering(source.affine, source.shape_ijk, SPACING_MM), "total_v1")


def test_real_scans_have_the_flags_that_they_deserve(shared_data, crlm_folder):
    chest = read_scan(shared_data / "totalsegmentator_example" / "example_ct.nii.gz", SPACING_MM).verdict
    abdomen = read_scan(crlm_folder, SPACING_MM).verdict
    assert chest.rule.verdict == "already_hu"
    assert abdomen.rule.verdict == "slope_and_intercept"
    assert not {"mirrored", "copied_slices", "odd_size", "lost_header", "tilt"} & {*chest.flags, *abdomen.flags}
