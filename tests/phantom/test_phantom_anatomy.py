import numpy as np
import pytest

from ctgrounding import label_sets
from ctgrounding.errors import ConfigError
from ctgrounding.phantom.assembly import build
from ctgrounding.phantom.body import SIZED_ORGANS, draw_traits
from ctgrounding.phantom.canvas import Canvas
from ctgrounding.phantom.shapes import Capsule, Ellipsoid

SPACING_MM = 6.0
PLAUSIBLE_HU = {  # soft tissue with or without contrast, air, blood, bone
    "liver": (40, 130), "spleen": (35, 140), "kidney_left": (15, 170), "urinary_bladder": (-10, 40),
    "gallbladder": (-5, 40), "lung_upper_lobe_left": (-950, -700), "trachea": (-1000, -500), "heart": (25, 220),
    "aorta": (25, 300), "autochthon_left": (30, 90), "hip_left": (120, 700), "vertebrae_L3": (120, 600),
}  # fmt: skip


@pytest.fixture(scope="module")
def bodies() -> list[tuple[Canvas, np.ndarray]]:
    """Whole bodies without noise, all organs in the field."""
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = (-204, -156, -360)
    painted = []
    for seed in range(6):
        traits = draw_traits("male" if seed % 2 else "female", np.random.default_rng(seed))
        canvas = Canvas((124, 52, 68), affine)
        build(traits).paint(canvas)
        painted.append((canvas, affine))
    return painted


def centroid(canvas: Canvas, affine: np.ndarray, organ: str) -> np.ndarray:
    d, h, w = np.nonzero(canvas.organs == label_sets.label_of(organ))
    return (affine @ np.stack([w, h, d, np.ones_like(d)])).mean(1)[:3]


def test_at_least_26_organs_of_the_label_set_in_everyone(bodies):
    known = label_sets.load("total_v2")
    for canvas, _ in bodies:
        labels = set(np.unique(canvas.organs).tolist()) - {0}
        assert len(labels) >= 26
        assert labels <= set(known)


def test_organs_are_on_their_side_and_in_their_order(bodies):
    for canvas, affine in bodies:

        def at(organ, canvas=canvas, affine=affine):
            return centroid(canvas, affine, organ)

        assert at("liver")[0] > 30
        assert at("spleen")[0] < -50
        assert at("heart")[0] < 0
        for pair in ("kidney", "adrenal_gland", "lung_lower_lobe", "hip", "femur", "iliopsoas", "autochthon"):
            assert at(f"{pair}_right")[0] > 0 > at(f"{pair}_left")[0], pair
        stack = ["urinary_bladder", "kidney_right", "liver", "heart", "thyroid_gland"]
        heights = [at(organ)[2] for organ in stack]
        assert heights == sorted(heights)
        levels = [at(f"vertebrae_{level}")[2] for level in ("L5", "L4", "L3", "L2", "L1", "T12", "T11")]
        assert levels == sorted(levels)
        assert at("vertebrae_L3")[1] < at("aorta")[1] < at("stomach")[1]


def test_only_men_have_a_prostate(bodies):
    prostate = label_sets.label_of("prostate")
    assert [bool((canvas.organs == prostate).any()) for canvas, _ in bodies] == [False, True] * 3


@pytest.mark.parametrize("organ", PLAUSIBLE_HU)
def test_hu_are_those_of_the_tissue(bodies, organ):
    low, high = PLAUSIBLE_HU[organ]
    for canvas, _ in bodies:
        inside = canvas.image_hu[canvas.organs == label_sets.label_of(organ)]
        assert low <= np.median(inside) <= high


def test_organ_sizes_vary_by_a_quarter_each_way():
    factors = {organ: [] for organ in SIZED_ORGANS}
    for seed in range(150):
        for organ, size in draw_traits("female", np.random.default_rng(seed)).sizes.items():
            factors[organ].extend(size)
    for organ, values in factors.items():
        assert 0.74 <= min(values) <= 0.8, organ
        assert 1.2 <= max(values) <= 1.27, organ


def test_drawn_extents_follow_the_sizes():
    """The spread is in the drawn anatomy, not only in the numbers that it starts from."""
    spans = {"spleen": [], "liver": [], "heart": [], "aorta": []}
    for seed in range(80):
        body = build(draw_traits("male", np.random.default_rng(seed)))
        for organ, values in spans.items():
            shape = body.organs[organ][0]
            assert isinstance(shape, Ellipsoid | Capsule)
            values.append(shape.radii_mm[0] if isinstance(shape, Ellipsoid) else shape.start_radius_mm)
    for organ, values in spans.items():
        middle = (max(values) + min(values)) / 2
        assert (max(values) - min(values)) / 2 / middle >= 0.2, organ


def test_place_in_lies_in_the_organ_and_in_the_heights_asked_for():
    body = build(draw_traits("female", np.random.default_rng(3)))
    rng = np.random.default_rng(0)
    for organ in ("liver", "kidney_left", "pancreas", "lung_lower_lobe_right"):
        low, high = body.bounds_mm(organ)
        middle = (low[2] + high[2]) / 2
        for _ in range(20):
            place = body.place_in(organ, 2.0, rng, (middle - 15, middle + 15))
            assert body.depth_mm(organ, place) > 0
            assert abs(place[2] - middle) <= 15


def test_a_missing_organ_is_named():
    body = build(draw_traits("female", np.random.default_rng(3)))
    with pytest.raises(ConfigError, match="no organ 'prostate'"):
        body.place_in("prostate", 1.0, np.random.default_rng(0))
