import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.phantom.canvas import Canvas, Part
from ctgrounding.phantom.shapes import Block, Capsule, Cut, Ellipsoid, Shape, tube

SHAPES: list[Shape] = [
    Ellipsoid((3.0, -4.0, 5.0), (20.0, 12.0, 30.0), (25.0, -40.0), 0.15, 1.0),
    Ellipsoid((0.0, 0.0, 0.0), (5.0, 40.0, 10.0)),
    Capsule((-20.0, 5.0, 0.0), (25.0, -10.0, 30.0), 12.0, 5.0),
    Cut(Ellipsoid((0.0, 0.0, 0.0), (30.0, 30.0, 30.0)), (((0.0, 0.6, 0.8), 5.0), ((0.0, 0.0, -1.0), 10.0))),
    Block((-10.0, -20.0, -5.0), (15.0, 20.0, 25.0)),
]


def grid_affine(spacing: float, size: int) -> np.ndarray:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (size - 1) / 2
    return affine


def painted(shape: Shape, affine: np.ndarray, size: int = 64) -> Canvas:
    canvas = Canvas((size, size, size), affine)
    canvas.paint(Part(shape, 0.0, "liver"))
    return canvas


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_nothing_of_a_shape_lies_outside_its_box(shape, seed):
    low, high = (np.array(corner) for corner in shape.box_mm())
    points = np.random.default_rng(seed).uniform(low - 25, high + 25, (500, 3)).astype(np.float32)
    depth = shape.depth_mm(*(axis[:, None, None] for axis in points.T)).ravel()
    outside = ((points < low - 1e-3) | (points > high + 1e-3)).any(1)
    assert (depth[outside] <= 1e-3).all()


@pytest.mark.parametrize(
    ("shape", "volume"),
    [
        (Ellipsoid((1.0, 2.0, 3.0), (20.0, 12.0, 30.0), (25.0, -40.0)), 4 / 3 * np.pi * 20 * 12 * 30),
        (Capsule((0.0, 0.0, -20.0), (0.0, 0.0, 20.0), 10.0, 10.0), np.pi * 100 * 40 + 4 / 3 * np.pi * 1000),
        (Block((-10.0, -20.0, -5.0), (15.0, 20.0, 25.0)), 25.0 * 40 * 30),
        (Cut(Ellipsoid((0.0, 0.0, 0.0), (30.0,) * 3), (((0.0, 0.6, 0.8), 0.0),)), 2 / 3 * np.pi * 30**3),
    ],
)
def test_painted_volume_is_the_solid_s(shape, volume):
    canvas = painted(shape, grid_affine(1.5, 64))
    assert (canvas.organs > 0).sum() * 1.5**3 == pytest.approx(volume, rel=0.02)
    blended = (canvas.image_hu + 1000).sum() / 1000 * 1.5**3
    assert blended == pytest.approx(volume, rel=0.02)


def test_a_tilted_grid_sees_the_same_solid():
    shape = Ellipsoid((5.0, -8.0, 3.0), (20.0, 12.0, 26.0), (20.0, 10.0))
    angle = np.deg2rad(17)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    centroids = []
    for affine in (grid_affine(1.5, 64), turn @ grid_affine(1.5, 64)):
        d, h, w = np.nonzero(painted(shape, affine).organs)
        centroids.append((affine @ np.stack([w, h, d, np.ones_like(d)])).mean(1)[:3])
    np.testing.assert_allclose(centroids[0], centroids[1], atol=0.1)
    np.testing.assert_allclose(centroids[0], shape.centre_mm, atol=0.1)


def test_large_parts_painted_in_slabs_have_no_seams(monkeypatch):
    shape = Ellipsoid((0.0, 0.0, 0.0), (30.0, 20.0, 40.0), ripple=0.1)
    whole = painted(shape, grid_affine(2.0, 48), 48)
    monkeypatch.setattr("ctgrounding.phantom.canvas.SLAB_VOXELS", 100)
    np.testing.assert_array_equal(painted(shape, grid_affine(2.0, 48), 48).image_hu, whole.image_hu)


def test_only_in_keeps_a_lesion_inside_its_organ():
    canvas = painted(Ellipsoid((0.0, 0.0, 0.0), (20.0,) * 3), grid_affine(2.0, 48), 48)
    before = canvas.image_hu.copy()
    canvas.paint(Part(Ellipsoid((18.0, 0.0, 0.0), (10.0,) * 3), 500.0, None, ("liver",)))
    changed = canvas.image_hu != before
    assert changed.any()
    assert (canvas.organs[changed] > 0).all()


def test_tube_joins_its_stations():
    parts = tube([(0.0, 0.0, 0.0), (0.0, 0.0, 10.0), (10.0, 0.0, 10.0)], [3.0, 4.0, 5.0])
    assert len(parts) == 2
    one = np.zeros((1, 1, 1), np.float32)
    assert max(part.depth_mm(one, one, one + 10).item() for part in parts) == pytest.approx(4.0)
