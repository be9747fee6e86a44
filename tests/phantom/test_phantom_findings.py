"""The floors that keep the phantom honest, and that what is planted is there."""

from collections import Counter

import numpy as np
import pytest

from ctgrounding import label_sets, questions
from ctgrounding.errors import ConfigError
from ctgrounding.phantom import KINDS, make_patient
from ctgrounding.phantom.acquisition import MIN_NOISE_HU, expose
from ctgrounding.phantom.assembly import build
from ctgrounding.phantom.body import draw_traits
from ctgrounding.phantom.canvas import Canvas
from ctgrounding.phantom.findings import SMALL_MM
from ctgrounding.phantom.kinds import BLOCK, KIND_TABLE, plan_patient

SOFT_TISSUE_KINDS = (
    "thyroid_nodule", "liver_cyst", "liver_metastases", "pancreatic_cyst", "adrenal_nodule", "renal_cyst",
    "hydronephrosis", "hepatic_steatosis",
)  # fmt: skip
BRIGHT_HU = {"gallstone": 90, "kidney_stone": 250, "bone_lesion": 350, "aortic_calcification": 250}


def planted(kind: str, seed: int):
    """Anatomy with one finding, and the finding, in body coordinates."""
    rng = np.random.default_rng(seed)
    traits = draw_traits(KIND_TABLE[kind].sex or "female", rng)
    site = KIND_TABLE[kind].sites[seed % len(KIND_TABLE[kind].sites)]
    KIND_TABLE[kind].alter(traits, site, rng)
    body = build(traits)
    return body, KIND_TABLE[kind].plant(body, site, rng)


def around(finding, spacing: float = 2.0, reach: int = 24) -> Canvas:
    """An empty canvas centred on a finding."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = np.array(finding.centre_mm) - spacing * reach
    return Canvas((2 * reach + 1,) * 3, affine)


def test_there_are_enough_kinds_and_a_third_are_small():
    small = [kind for kind in KIND_TABLE.values() if kind.is_small]
    assert len(KINDS) >= 18
    assert 3 * len(small) >= len(KINDS)
    for kind in small:
        sizes = []
        for seed in range(12):
            _, finding = planted(kind.name, seed)
            sizes.append(max(b - a for a, b in zip(finding.low_mm, finding.high_mm, strict=True)))
        assert max(sizes) < SMALL_MM, kind.name


@pytest.mark.parametrize("kind", SOFT_TISSUE_KINDS)
def test_soft_tissue_lesions_differ_by_20_to_60_hu(kind):
    for seed in range(12):
        body, finding = planted(kind, seed)
        assert 20 <= abs(finding.contrast_hu) <= 60
        if kind == "hepatic_steatosis":
            continue
        with_it = around(finding)
        body.paint(with_it)
        centre = with_it.image_hu[24, 24, 24]
        tissue = {"thyroid_nodule": "thyroid", "adrenal_nodule": "adrenal", "pancreatic_cyst": "pancreas"}.get(kind)
        tissue = tissue or ("liver" if kind.startswith("liver") else "kidney")
        assert centre - body.traits.hu[tissue] == pytest.approx(finding.contrast_hu, abs=1.0)


def test_every_other_kind_in_soft_tissue_is_declared():
    """A kind with a contrast is tested above, so none can slip in with an easier one."""
    with_contrast = {kind for kind in KINDS if planted(kind, 1)[1].contrast_hu is not None}
    assert with_contrast == set(SOFT_TISSUE_KINDS)


def test_noise_is_at_least_12_hu_in_the_file_s_voxels(patients):
    for patient in patients[:20]:
        acquisition = patient.scans[0].acquisition
        clean = np.full(acquisition.shape, 50.0, np.float32)
        noisy = expose(clean, acquisition, np.random.default_rng(0)).astype(np.float64)
        inside = noisy[:, noisy.shape[1] // 2, 10:-10]
        assert inside.std() >= MIN_NOISE_HU - 0.7  # sampling error
        assert acquisition.noise_hu >= 12


def test_no_kind_is_more_frequent_than_a_quarter():
    plans = [plan_patient(11, index) for index in range(3 * BLOCK)]
    stated = Counter(kind for plan in plans for kind in plan.stated)
    present = Counter(kind for plan in plans for kind in plan.sites)
    for kind in KINDS:
        assert present[kind] <= 0.25 * stated[kind], kind
        assert present[kind] >= 0.15 * stated[kind], kind
    assert sum(present[kind] >= 24 for kind in KINDS) >= 20  # 8 in each hundred


def test_coverage_starts_at_levels_150_mm_apart_and_more():
    plans = [plan_patient(5, index) for index in range(60)]
    starts = [plan.field_mm[0] for plan in plans]
    assert max(starts) - min(starts) >= 150
    assert {plan.coverage for plan in plans} == {"chest", "abdomen", "both"}


def test_slices_reach_over_the_planned_field(patients):
    for patient in patients[:20]:
        scan = patient.scans[0]
        length = np.ptp(scan.acquisition.slice_z_mm)
        low, high = patient.plan.field_mm
        assert 0.9 * (high - low) <= length <= 1.1 * (high - low) + 40


def test_labels_agree_with_what_is_planted(patients):
    for patient in patients:
        assert set(patient.labels) == set(KINDS)
        assert {kind for kind, label in patient.labels.items() if label == 1} == {f.kind for f in patient.findings}
        assert {kind for kind, label in patient.labels.items() if label is None} == set(KINDS) - set(
            patient.plan.stated
        )
        if patient.plan.coverage == "chest":
            assert patient.labels["bladder_distension"] is None


def test_findings_lie_within_the_scan(patients):
    for patient in patients:
        z = patient.scans[0].acquisition.slice_z_mm
        for finding in patient.findings:
            assert z.min() <= finding.centre_mm[2] <= z.max(), finding
            assert all(a <= c <= b for a, c, b in zip(finding.low_mm, finding.centre_mm, finding.high_mm, strict=True))


def test_sided_findings_are_on_their_side(patients):
    for patient in patients:
        canal = label_sets.label_of("spinal_cord")
        scan = patient.scans[0]
        d, h, w = np.nonzero(scan.organs == canal)
        middle_x = (scan.acquisition.affine @ np.stack([w, h, d, np.ones_like(d)]))[0].mean()
        for finding in patient.findings:
            if finding.side in ("left", "right"):
                is_right = finding.centre_mm[0] > middle_x
                assert finding.side == ("right" if is_right else "left"), finding


@pytest.mark.parametrize("kind", BRIGHT_HU)
def test_dense_lesions_shine_where_the_truth_says(kind):
    for seed in range(6):
        body, finding = planted(kind, seed)
        canvas = around(finding)
        body.paint(canvas)
        assert canvas.image_hu[22:27, 22:27, 22:27].max() >= BRIGHT_HU[kind]


def test_lung_lesions_are_not_hidden_by_what_is_painted_later():
    for kind in ("lung_nodule", "consolidation"):
        for seed in range(10):
            body, finding = planted(kind, seed)
            canvas = around(finding)
            body.paint(canvas)
            assert canvas.image_hu[24, 24, 24] > -100
            assert canvas.organs[24, 24, 24] == label_sets.label_of(finding.organ)


@pytest.mark.parametrize(
    ("kind", "organ", "ratio"),
    [
        ("splenomegaly", "spleen", 1.7),
        ("cardiomegaly", "heart", 1.4),
        ("bladder_distension", "urinary_bladder", 2.0),
        ("prostate_enlargement", "prostate", 1.6),
    ],
)
def test_organ_changing_kinds_change_the_organ(kind, organ, ratio):
    def volume(with_finding: bool) -> float:
        volumes = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            traits = draw_traits(KIND_TABLE[kind].sex or "female", rng)
            if with_finding:
                KIND_TABLE[kind].alter(traits, KIND_TABLE[kind].sites[0], rng)
            low, high = build(traits).bounds_mm(organ)
            volumes.append(np.prod(np.subtract(high, low)))
        return float(np.mean(volumes))

    assert volume(True) >= ratio * volume(False)


def test_questions_are_the_kinds_and_name_their_organs():
    listed = questions.load("phantom")
    assert tuple(question.name for question in listed) == KINDS
    for question in listed:
        assert len(question.positive) == len(question.negative) == 3
        hosts = {site.organ for site in KIND_TABLE[question.name].sites if site.organ}
        assert hosts <= set(question.organs)


def test_the_same_number_and_seed_give_the_same_patient():
    first, again, other = make_patient(4, 1, 14.0), make_patient(4, 1, 14.0), make_patient(4, 2, 14.0)
    np.testing.assert_array_equal(first.scans[0].image_hu, again.scans[0].image_hu)
    assert first.report == again.report
    assert first.findings == again.findings
    assert first.scans[0].image_hu.shape != other.scans[0].image_hu.shape or first.report != other.report


@pytest.mark.parametrize("arguments", [{"index": -1}, {"index": 0, "seed": -1}, {"index": 0, "voxel_mm": 0.1}])
def test_patients_that_cannot_be_are_refused(arguments):
    with pytest.raises(ConfigError, match=r"does not exist|Choose 0\.5"):
        make_patient(**arguments)
