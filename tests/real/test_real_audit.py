"""The audit on real, public scans and on real maps of both TotalSegmentator versions."""

from functools import partial

import numpy as np
import pytest

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Grid
from ctgrounding.ingest import read_scan
from ctgrounding.ingest.audit.hu import decide
from ctgrounding.ingest.audit.organs import contradictions
from ctgrounding.ingest.readers import Stored, open_source
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


def as_magnetic_resonance(hu, scale):
    """What each tissue is in a T1 picture with a bias field and Rician-like noise; no number of it is HU."""
    k, _, i = np.meshgrid(*(np.linspace(-1, 1, size) for size in hu.shape), indexing="ij")
    tissue = [-1024, -800, -500, -120, -60, 0, 30, 60, 120, 200, 400, 1500]
    signal = np.interp(hu, tissue, [0, 20, 60, 900, 850, 150, 320, 420, 380, 300, 120, 10])
    noise = np.random.default_rng(0).normal(0, 15 * scale, hu.shape)
    return np.abs(signal * scale * (1 + 0.4 * np.sin(2 * i + 1) * np.cos(1.5 * k)) + noise).astype(np.int16)


@pytest.fixture(scope="module", params=["chest", "abdomen"])
def hu(request, shared_data, crlm_folder):
    source = open_source(
        shared_data / "totalsegmentator_example" / "example_ct.nii.gz" if request.param == "chest" else crlm_folder
    )
    stored = source.load()
    return np.maximum(stored.values[:, ::3, ::3].astype(np.int32) + int(stored.intercept), -1024)


@pytest.mark.parametrize(
    ("lie", "slope", "intercept", "offset"),
    [
        (lambda hu: hu, 1, 0, 0),
        (lambda hu: hu + 1024, 1, -1024, -1024),
        (lambda hu: hu + 8192, 1, -8192, -8192),
        (lambda hu: hu, 1, -1024, 0),
        (lambda hu: hu, 1, -8192, 0),
        (lambda hu: hu + 1024, 1, 0, -1024),
        (lambda hu: np.maximum(hu, -1000) + 1000, 1, 0, -1000),
        (lambda hu: hu + 8192, 1, 0, -8192),
        (lambda hu: np.clip(hu, -1000, 1000), 1, 0, 0),
    ],
)
def test_real_values_become_hu_whatever_the_header_says(hu, lie, slope, intercept, offset):
    rule, _ = decide(Stored(lie(hu), slope, intercept))
    assert (rule.slope, rule.intercept) == (1, offset)


@pytest.mark.parametrize(
    "make",
    [
        *(partial(as_magnetic_resonance, scale=scale) for scale in (0.5, 1.0, 1.5, 2.0, 3.0)),
        lambda hu: np.interp(hu, [-1024, -500, 0, 100, 200], [0, 50, 300, 900, 400]) ** 1.3,  # uptake, as in PET
        lambda hu: 0.7 * hu + 250,  # cone beam, not calibrated
        lambda hu: -hu,
        lambda hu: hu - 1024,  # the intercept applied twice
        lambda hu: hu - 8192,
        lambda hu: np.clip((hu + 160) / 400, 0, 1) * 255,
        lambda hu: np.clip((hu + 1000) / 2000, 0, 1),
    ],
)
def test_what_is_not_hu_is_not_taken_for_a_lost_intercept(hu, make):
    with pytest.raises(ScanError, match="not HU by any known rule"):
        decide(Stored(make(hu).astype(np.float32)))
