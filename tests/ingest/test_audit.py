"""How values become HU: every way that files are known to lie about it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.errors import ScanError
from ctgrounding.ingest.audit.hu import HuRule, to_hu
from ctgrounding.ingest.audit.verdict import judge
from ctgrounding.ingest.readers.nifti import NiftiSource
from ctgrounding.ingest.readers.source import Stored

SHAPE = (32, 36, 10)


def verdict_of(values, slope=1.0, intercept=0.0, hu="auto"):
    source = NiftiSource(None, np.diag([2.0, 2.0, 3.0, 1.0]), SHAPE, {"reader": "nifti"})
    stored = Stored(values.T, slope, intercept)
    verdict = judge(source, stored, hu)
    return verdict, to_hu(stored.values, verdict.rule)


@pytest.fixture
def hu(hospital):
    return hospital["body"](SHAPE)


@pytest.mark.parametrize(
    ("stored", "slope", "intercept", "rule"),
    [
        (lambda hu: hu, 1, 0, "header"),
        (lambda hu: (hu + 1024).astype(np.uint16), 1, -1024, "header"),
        (lambda hu: (hu + 8192).astype(np.int32), 1, -8192, "header"),
        (lambda hu: ((hu + 1024) / 2).astype(np.float32), 2, -1024, "header"),
        (lambda hu: hu, 1, -1024, "already_hu"),
        (lambda hu: hu, 1, -8192, "already_hu"),
        (lambda hu: hu + 1024, 1, 0, "lost_intercept"),
        (lambda hu: hu.astype(np.int32) + 8192, 1, 0, "lost_intercept"),
    ],
)
def test_the_data_decide_how_values_become_hu(hu, stored, slope, intercept, rule):
    verdict, values = verdict_of(stored(np.maximum(hu, -1024)), slope, intercept)
    assert verdict.rule.name == rule
    np.testing.assert_allclose(values, np.maximum(hu, -1024).T, atol=1e-3)
    assert ("intercept_trap" in verdict.flags) == (rule != "header")
    assert verdict.evidence.soft_peak_hu == pytest.approx(45, abs=15)
    assert verdict.evidence.air_peak_hu == pytest.approx(-1000, abs=15)


@pytest.mark.parametrize("padding", [-2048, -3024, -1500])
@pytest.mark.parametrize("intercept", [0, -1024])
def test_padding_is_named_and_does_not_mislead(hu, padding, intercept):
    padded = hu.copy()
    padded[:6] = padding
    verdict, values = verdict_of((padded.astype(np.int32) - intercept).astype(np.int16), 1, intercept)
    assert verdict.rule.name == "header"
    assert "padding" in verdict.flags
    assert verdict.evidence.padding_hu == padding
    np.testing.assert_array_equal(values, np.clip(padded.T, -1024, 3071))


def test_a_trap_with_padding_is_seen_through(hu):
    padded = hu.copy()
    padded[:6] = -3024
    verdict, _ = verdict_of(padded, 1, -1024)
    assert verdict.rule.name == "already_hu"


def test_a_body_without_air_goes_by_the_header():
    soft = np.random.default_rng(0).normal(40, 15, SHAPE).astype(np.int16)
    soft[:8] -= 140  # fat
    verdict, _ = verdict_of(soft + 1024, 1, -1024)
    assert verdict.rule.name == "header"
    assert "no_air" in verdict.flags


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(hu, value):
    broken = hu.astype(np.float32)
    broken[3, 4, 5] = value
    with pytest.raises(ScanError, match="1 of 11520 voxels are not finite"):
        verdict_of(broken)


def test_blank_and_foreign_values_are_refused(hu):
    with pytest.raises(ScanError, match="blank: every voxel is -1024"):
        verdict_of(np.full(SHAPE, -1024, np.int16))
    with pytest.raises(ScanError, match="not HU by any known rule"):
        verdict_of(np.random.default_rng(0).integers(20000, 30000, SHAPE).astype(np.int16))
    with pytest.raises(ScanError, match="not HU by any known rule"):
        verdict_of((hu.astype(np.float32) + 1000) / 2000)
    with pytest.raises(ScanError, match="not HU by any known rule"):
        verdict_of(np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8))


def test_a_card_may_overrule_the_data(hu):
    verdict, values = verdict_of(hu, 1, -1024, hu="stored")
    assert verdict.rule.name == "trusted"
    assert "not_hu" in verdict.flags
    np.testing.assert_array_equal(values, np.clip(hu.T - 1024, -1024, 3071))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64]),
    st.sampled_from([1.0, 1.0, 2.0, 0.5]),
    st.sampled_from([0.0, -1024.0, -1000.5, -8192.0, 8192.0, -40000.0, 40000.0]),
    st.data(),
)
def test_conversion_is_exact_and_clipped_for_every_type(dtype, slope, intercept, data):
    limits = np.iinfo(dtype) if np.issubdtype(dtype, np.integer) else np.iinfo(np.int16)
    numbers = st.integers(max(int(limits.min), -50000), min(int(limits.max), 50000))
    values = np.array(data.draw(st.lists(numbers, min_size=8, max_size=8))).astype(dtype).reshape(2, 2, 2)
    expected = np.clip(values.astype(np.float64) * slope + intercept, -1024, 3071)
    np.testing.assert_allclose(to_hu(values, HuRule("header", slope, intercept)), expected, atol=0.01)
