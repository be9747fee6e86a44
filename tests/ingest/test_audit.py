"""How values become HU: every way that files are known to lie about it."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.errors import CardError, ScanError
from ctgrounding.ingest import load_card
from ctgrounding.ingest.audit.field_of_view import body_at_edge
from ctgrounding.ingest.audit.hu import HuRule, to_hu
from ctgrounding.ingest.audit.rule import AuditRule
from ctgrounding.ingest.audit.verdict import judge
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.examination import Rules, examine
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


def test_of_several_lost_intercepts_air_decides(hu):
    """Values cut off at -1000 and at -1024 look alike but for where air lies besides the cut."""
    for lost in (-1000, -1024):
        verdict, values = verdict_of(np.maximum(hu, lost) - lost)
        assert (verdict.rule.name, verdict.rule.intercept) == ("lost_intercept", lost)
        np.testing.assert_array_equal(values, np.maximum(hu.T, lost))


def test_values_spread_over_what_is_empty_in_ct_are_no_lost_intercept(hu):
    """Like MR: background at 0, tissue from 0 to 2000 without order; with -1024 it has air and soft tissue."""
    spread = np.random.default_rng(0).integers(0, 2000, SHAPE)
    with pytest.raises(ScanError, match="not HU by any known rule"):
        verdict_of(np.where(hu > -500, spread, np.abs(hu) % 20).astype(np.int16))


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


def test_verdicts_say_what_the_values_needed():
    assert HuRule("header", 1.0, 0.0).verdict == "already_hu"
    assert HuRule("header", 1.0, -1024.0).verdict == "slope_and_intercept"
    assert HuRule("already_hu", 1.0, 0.0).verdict == "intercept_trap"
    assert HuRule("lost_intercept", 1.0, -1024.0).verdict == "intercept_trap"
    assert HuRule("trusted", 1.0, -1024.0).verdict == "trusted"


def reasons(values, affine=None, intercept=0.0):
    """Kind to reason of what is found about values ``[i, j, k]``."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0]) if affine is None else affine
    source = NiftiSource(None, affine, values.shape, {"reader": "nifti"})
    return {remark.kind: remark.reason for remark in judge(source, Stored(values.T, 1.0, intercept)).remarks}


def test_a_scan_in_order_has_no_remark(hu):
    assert reasons(hu) == {}


def test_an_intercept_trap_says_what_the_header_said_and_where_air_lies(hu):
    assert (
        "intercept -8192, but the values are already HU (air at -1002.5 HU"
        in reasons(hu, intercept=-8192.0)["intercept_trap"]
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_cut_field_is_the_share_of_its_border_inside_the_body(share):
    """A slab of soft tissue across the whole field: its cuts through the two sides are all of it on the border."""
    values = np.full((40, 40, 6), -1000, np.int16)
    values[:, : int(40 * share)] = 40
    values[12:28, 12:28] = 40
    border = np.ones((40, 40), bool)
    border[1:-1, 1:-1] = False
    expected = (values[:, :, 0][border] == 40).mean()
    assert body_at_edge(values.T, HuRule("header", 1.0, 0.0)) == pytest.approx(expected)
    assert ("cut_field" in reasons(values)) == (share > 0)


@pytest.mark.parametrize("outside", [-2048, -1024])
def test_a_round_field_is_cut_where_its_circle_is(outside):
    i, j = np.meshgrid(*(np.linspace(-1, 1, 64),) * 2, indexing="ij")
    field = np.full((64, 64, 6), -1000, np.int16)
    field[np.hypot(i, j) > 1] = outside
    inside, cut = field.copy(), field.copy()
    inside[np.hypot(i, j) < 0.7] = 40
    cut[(np.abs(j) < 0.4) & (np.hypot(i, j) < 1)] = 40
    assert "cut_field" not in reasons(inside)
    assert "cut_field" in reasons(cut)


def test_slices_that_repeat_the_one_before_are_counted(hu):
    copied = hu.copy()
    copied[:, :, 4] = copied[:, :, 3]
    copied[:, :, 8] = copied[:, :, 7]
    assert reasons(copied)["copied_slices"] == "2 of 10 slices equal the one before, the first is 5."
    blank_ends = hu.copy()
    blank_ends[:, :, :3] = -1024
    assert "copied_slices" not in reasons(blank_ends)
    sideways = np.moveaxis(copied, 2, 0)
    turned = np.array([[0, 3.0, 0, 0], [0, 0, 3.0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    assert reasons(sideways, turned)["copied_slices"].startswith("2 of 10")


@pytest.mark.parametrize(
    ("spacing", "kind"), [((1, 1, 1), "lost_header"), ((0.7, 0.7, 3), "odd_size"), ((30, 30, 3), "odd_size")]
)
def test_a_header_that_cannot_be_is_flagged(hu, spacing, kind):
    assert kind in reasons(hu, np.diag([*map(float, spacing), 1.0]))


def test_a_gantry_tilt_is_told_from_an_oblique_stack(hu):
    sheared = np.diag([3.0, 3.0, 3.0, 1.0])
    sheared[2, 1] = 3.0 * np.tan(np.radians(10))
    turn = np.radians(10)
    oblique = np.diag([3.0, 3.0, 3.0, 1.0])
    oblique[1:3, 1:3] = 3 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert reasons(hu, sheared)["tilt"] == (
        "The slices are tilted by 10.0 degrees and sheared by 10.0 degrees, as by a gantry tilt."
    )
    assert "tilted by 10.0 degrees and not sheared" in reasons(hu, oblique)["tilt"]


def planned(path, **more):
    return PlannedScan("s", "s", "p", "train", path, None, None, {}, {}, **more)


def rules(**audit):
    return Rules((5.0, 4.0, 4.0), "auto", "total_v2", AuditRule(**audit))


PLACED = np.array([[-2.0, 0, 0, 31], [0, -2, 0, 35], [0, 0, 3, 100], [0, 0, 0, 1]])


def nifti_of_two(path, values, sform, qform, codes=(1, 1), unit="mm"):
    image = nib.Nifti1Image(values, None)
    image.set_qform(qform, codes[1])
    image.set_sform(sform, codes[0])
    image.header.set_xyzt_units(unit)
    nib.save(image, path)
    return path


def moved(affine, *, by=(0, 0, 0), about_z_deg=0.0, shear=0.0):
    turn, (c, s) = np.eye(4), (np.cos(np.radians(about_z_deg)), np.sin(np.radians(about_z_deg)))
    turn[:2, :2] = (c, -s), (s, c)
    turn[2, 1] = shear
    turn[:3, 3] = by
    return turn @ affine


@pytest.mark.parametrize(
    ("change", "off_mm"),
    [
        ({"by": (0, 0, 40)}, 40),
        ({"by": (1.2, 0, -1.6)}, 2),
        ({"about_z_deg": 180}, 2 * np.hypot(31, 35)),
        ({"by": (0.3, 0.2, 0)}, None),
        ({"about_z_deg": 0.01}, None),
    ],
)
@pytest.mark.parametrize("unit", ["mm", "meter"])
def test_a_nifti_whose_two_affines_differ_is_flagged_with_how_far(hu, tmp_path, change, off_mm, unit):
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) if unit == "meter" else np.eye(4)
    path = nifti_of_two(tmp_path / "ct.nii", hu, metres @ PLACED, metres @ moved(PLACED, **change), unit=unit)
    scan = examine(planned(path), rules()).scan
    np.testing.assert_allclose(scan.source.affine, PLACED, atol=1e-3)
    said = {remark.kind: remark.reason for remark in scan.verdict.remarks}
    assert set(said) == (set() if off_mm is None else {"two_places"})
    if off_mm is not None:
        assert f"differ by up to {off_mm:.1f} mm" in said["two_places"]
        assert scan.verdict.to_json()["qform_off_mm"] == pytest.approx(off_mm, abs=0.1)
        assert examine(planned(path), rules(quarantine=["two_places"])).refusal.kind == "two_places"


def test_a_nifti_of_one_affine_or_of_a_shear_is_not_taken_for_one_of_two_places(hu, tmp_path):
    elsewhere = moved(PLACED, by=(0, 0, 40))
    for codes, affine in (((1, 0), PLACED), ((0, 1), elsewhere)):
        scan = examine(planned(nifti_of_two(tmp_path / "ct.nii", hu, PLACED, elsewhere, codes)), rules()).scan
        np.testing.assert_allclose(scan.source.affine, affine, atol=1e-3)
        assert scan.verdict.flags == ()
    tilted = moved(PLACED, shear=0.3)  # which no qform can say
    assert examine(planned(nifti_of_two(tmp_path / "ct.nii", hu, tilted, tilted)), rules()).scan.verdict.flags == (
        "tilt",
    )


def test_rounding_of_a_quaternion_is_no_second_place(hu, tmp_path):
    wide = np.zeros((512, 512, 6), np.int16) - 1000
    wide[100:400, 100:400] = 40
    for about_z_deg in (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10):
        affine = moved(np.diag([-0.8, -0.8, 1.5, 1]), about_z_deg=about_z_deg, by=(200, 180, -900))
        path = nifti_of_two(tmp_path / "ct.nii", wide, affine, affine)
        assert "two_places" not in examine(planned(path), rules()).scan.verdict.flags


@pytest.mark.parametrize("name", ["ct.mha", "ct.mhd"])
def test_a_metaimage_that_names_other_axes_than_its_matrix_is_flagged(hu, tmp_path, name):
    """ITK writes where axes come from (RAI), others where they go (LPS); of both it takes the matrix alone."""
    sitk.WriteImage(sitk.GetImageFromArray(hu.T), str(tmp_path / "itk.mha"))
    written = (tmp_path / "itk.mha").read_bytes().replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 2 2 3")
    matrix = b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    assert b"AnatomicalOrientation = RAI\n" in written
    assert matrix in written
    if name == "ct.mhd":
        (tmp_path / "ct.raw").write_bytes(hu.T.tobytes())
        written = written.partition(b"LOCAL")[0] + b"ct.raw\n"
    for axes, is_flagged in ((b"RAI", False), (b"LPS", False), (b"???", False), (b"RAS", True), (b"ALI", True)):
        for header in (written, written.replace(matrix, b"")):
            (tmp_path / name).write_bytes(header.replace(b"= RAI", b"= " + axes))
            scan = examine(planned(tmp_path / name), rules()).scan
            assert scan.verdict.facts["orientation"] == "LPS"
            reasons = {remark.kind: remark.reason for remark in scan.verdict.remarks}
            assert ("two_places" in reasons) == is_flagged
            assert not is_flagged or f"AnatomicalOrientation {axes.decode()}" in reasons["two_places"]


def test_a_card_decides_what_flags_leave_out_and_how_few_slices_do(hu, hospital, tmp_path):
    padded = hu.copy()
    padded[:5] = -2048
    path = hospital["nifti"](tmp_path / "ct.nii.gz", padded, np.diag([3.0, 3.0, 3.0, 1.0]))
    assert examine(planned(path), rules()).scan.verdict.flags == ("padding",)
    refused = examine(planned(path), rules(quarantine=["padding"]))
    assert refused.scan is None
    assert refused.refusal.kind == "padding"
    few = examine(planned(path), rules(min_slices=11))
    assert few.refusal.reason == "The scan has 10 axial slices; the card wants at least 11."


def test_whatever_a_library_throws_ends_in_a_verdict_without_its_words(tmp_path, monkeypatch):
    def explode(path, series):
        raise ZeroDivisionError(f"secret {path}")

    monkeypatch.setattr("ctgrounding.ingest.examination.open_source", explode)
    found = examine(planned(tmp_path / "Smith.nii.gz"), rules())
    assert (found.refusal.kind, found.refusal.reason) == ("unreadable", "It cannot be read (ZeroDivisionError).")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{quarantine: [not_ct]}", "audit.quarantine is 'not_ct'. Use one of duplicate, mask_missing"),
        ("{min_slices: 0}", "audit.min_slices is 0. It must be at least 1"),
        ("{min_slice: 3}", "unknown key 'audit.min_slice'.* Did you mean 'min_slices'"),
    ],
)
def test_a_card_with_a_wrong_audit_rule_says_so(tmp_path, given, words):
    card = tmp_path / "card.yaml"
    card.write_text(f"name: demo\nroot: {tmp_path}\nscans: {{table: scans.csv}}\naudit: {given}\n")
    with pytest.raises(CardError, match=words):
        load_card(card)
