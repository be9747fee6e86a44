"""Which label set an organ map is of, and whether left is left, by where its organs lie."""

import numpy as np
import pytest
from faulty_hospital import AFFINE, SHAPE, SPACING_MM, label_map

from ctgrounding import label_sets
from ctgrounding.errors import ScanError
from ctgrounding.geometry import Grid
from ctgrounding.ingest.audit.organs import contradictions, of_other_version
from ctgrounding.ingest.readers.nifti import open_nifti
from ctgrounding.ingest.resample import resample_labels
from ctgrounding.ingest.scan import bring_organs
from ctgrounding.phantom import write_patients

GRID = Grid.covering(AFFINE, SHAPE, SPACING_MM)


def on_grid(organs):
    return resample_labels(np.ascontiguousarray(organs.T), AFFINE, GRID)


def numbered_as(organs, before, after):
    """A label map of one version numbered as another numbers the same organs; those it lacks are left out."""
    new = {organ: label for label, organ in label_sets.load(after).items()}
    table = np.zeros(256, np.uint8)
    for label, organ in label_sets.load(before).items():
        table[label] = new.get(organ, 0)
    return table[organs]


def kind(organs, grid, class_map):
    remark = contradictions(organs, grid, class_map)
    return remark.kind if remark else None


def test_a_small_map_read_rightly_is_in_order():
    for version in ("total_v1", "total_v2"):
        assert kind(on_grid(label_map(version)), GRID, version) is None


def test_the_reason_counts_what_is_impossible_under_each_version():
    reason = contradictions(on_grid(label_map("total_v1")), GRID, "total_v2").reason
    assert reason.startswith("As total_v2, 6 of 61 relations of place and size between its organs are impossible")
    assert reason.endswith("as total_v1, 0 of 62. It is a map of total_v1.")


def test_a_mirrored_map_is_told_from_one_of_another_version():
    organs = on_grid(label_map("total_v2"))[:, :, ::-1].copy()
    assert kind(organs, GRID, "total_v2") == "mirrored"


@pytest.mark.parametrize("names", [["liver"], ["liver", "spleen", "kidney_left", "kidney_right"], []])
def test_a_few_organs_that_both_versions_number_alike_say_nothing(names):
    organs = on_grid(label_map("total_v2"))
    organs[~np.isin(organs, [label_sets.label_of(name) for name in names])] = 0
    assert kind(organs, GRID, "total_v1") is None


def test_an_organ_of_impossible_size_counts():
    """A lung lobe of version 2 is an adrenal gland in version 1."""
    grid = Grid((30, 30, 30), (8.0, 8.0, 8.0), (0.0, 0.0, 0.0))
    organs = np.zeros(grid.shape, np.uint8)
    organs[15:25, 5:25, 2:12] = label_sets.label_of("lung_lower_lobe_left")
    organs[5:15, 5:25, 2:12] = label_sets.label_of("lung_upper_lobe_left")
    organs[15:25, 5:25, 16:26] = label_sets.label_of("lung_upper_lobe_right")
    organs[1:4, 5:10, 2:8] = label_sets.label_of("kidney_left")
    organs[1:4, 5:10, 20:26] = label_sets.label_of("kidney_right")
    assert label_sets.load("total_v1")[11] == "adrenal_gland_right"
    assert kind(organs, grid, "total_v2") is None
    assert kind(organs, grid, "total_v1") == "mask_version"
    organs[organs > 3] = 0
    assert kind(organs, grid, "total_v1") is None


def test_labels_beyond_a_version_name_the_other():
    assert of_other_version([0, 5, 117], "total_v1") == "total_v2"
    assert of_other_version([0, 5, 118], "total_v2") is None
    assert of_other_version([0, 5, 118], "total_v1") is None
    assert of_other_version([1], "radgenome_regions") is None


def test_a_map_with_labels_of_the_other_version_is_refused_as_such(hospital, tmp_path):
    organs = label_map("total_v2")
    organs[12, 15, 5] = 116
    source = open_nifti(hospital["nifti"](tmp_path / "organs.nii.gz", organs, AFFINE))
    with pytest.raises(ScanError, match="holds 116, which total_v1 does not name but total_v2 does") as caught:
        bring_organs(source, GRID, "total_v1")
    assert caught.value.kind == "mask_version"


@pytest.mark.slow
def test_synthetic_patients_are_told_apart_in_every_field_and_direction(tmp_path):
    """Chest, abdomen and both: read rightly nothing contradicts, read wrongly enough does, mirrored all sides do."""
    write_patients(output=tmp_path, patients=6, voxel_mm=12.0)
    paths = sorted((tmp_path / "organs").glob("*.nii.gz"))
    assert len(paths) >= 6
    for path in paths:
        source = open_nifti(path)
        grid = Grid.covering(source.affine, source.shape_ijk, (8.0, 8.0, 8.0))
        second = bring_organs(source, grid, "total_v2")
        first = numbered_as(second, "total_v2", "total_v1")
        assert kind(second, grid, "total_v2") is None, path.name
        assert kind(first, grid, "total_v1") is None, path.name
        assert kind(second, grid, "total_v1") == "mask_version", path.name
        assert kind(first, grid, "total_v2") == "mask_version", path.name
        assert kind(second[:, :, ::-1].copy(), grid, "total_v2") == "mirrored", path.name
