"""Positions, values and validity after resampling, against world coordinates and SciPy."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from ctgrounding.geometry import Grid
from ctgrounding.ingest.resample import resample_image, resample_labels, valid_box

SHAPE_IJK = (14, 17, 12)


def affine_of(permutation, signs, spacing, angle_deg=0.0, tilt=0.0, origin=(-20.0, 30.0, 400.0)):
    angle = np.radians(angle_deg)
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    shear = np.eye(3)
    shear[1, 2] = tilt
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ (np.eye(3)[:, list(permutation)] * np.array(signs)) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


affines = st.builds(
    affine_of,
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(0.6, 5.0)] * 3),
    st.sampled_from([0.0, 0.0, 12.0, -25.0]),
    st.sampled_from([0.0, 0.0, 0.3]),
)
out_spacings = st.tuples(*[st.floats(0.7, 6.0)] * 3)


def ramp(affine, shape_ijk, axis):
    """HU that rise along one world axis; its slope in HU a mm and offset."""
    index = np.stack(np.meshgrid(*map(np.arange, shape_ijk), indexing="ij"), -1)
    world = nib.affines.apply_affine(affine, index)[..., axis]
    slope = 3600 / np.ptp(world)
    return (world - world.min()) * slope - 1000, slope, float(world.min())


@settings(max_examples=60, deadline=None)
@given(affines, out_spacings, st.sampled_from([0, 1, 2]))
def test_every_voxel_holds_what_lies_at_its_world_position(affine, spacing, axis):
    values, slope, start = ramp(affine, SHAPE_IJK, axis)
    grid = Grid.covering(affine, SHAPE_IJK, spacing)
    image = resample_image(values.T, affine, grid)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    world = grid.voxel_to_world(voxels)
    source = nib.affines.apply_affine(np.linalg.inv(affine), world)
    interior = ((source >= 0) & (source <= np.array(SHAPE_IJK) - 1)).all(-1)
    expected = (world[..., axis] - start) * slope - 1000
    error_hu = np.abs(image[interior] - expected[interior]) - 0.5  # stored values are whole numbers
    assert error_hu.max(initial=0.0) / slope <= 0.001


@settings(max_examples=30, deadline=None)
@given(affines, out_spacings)
def test_values_are_scipys_within_one_hu(affine, spacing):
    values = np.random.default_rng(0).integers(-1024, 3071, SHAPE_IJK).astype(np.int16)
    grid = Grid.covering(affine, SHAPE_IJK, spacing)
    image = resample_image(values.T, affine, grid)
    back = np.linalg.inv(affine) @ grid.affine
    reference = affine_transform(
        values.astype(np.float64), back[:3, :3], back[:3, 3], grid.shape[::-1], order=1, mode="nearest"
    ).T
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    source = nib.affines.apply_affine(np.linalg.inv(affine), grid.voxel_to_world(voxels))
    interior = ((source >= 0) & (source <= np.array(SHAPE_IJK) - 1)).all(-1)
    assert np.abs(image[interior] - reference[interior]).max(initial=0.0) <= 1.0


@settings(max_examples=60, deadline=None)
@given(affines, out_spacings)
def test_the_valid_box_is_the_tightest_around_what_lies_inside(affine, spacing):
    grid = Grid.covering(affine, SHAPE_IJK, spacing)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    source = nib.affines.apply_affine(np.linalg.inv(affine), grid.voxel_to_world(voxels))
    margin = 1e-7
    surely = ((source > -0.5 + margin) & (source < np.array(SHAPE_IJK) - 0.5 - margin)).all(-1)
    perhaps = ((source > -0.5 - margin) & (source < np.array(SHAPE_IJK) - 0.5 + margin)).all(-1)
    box = np.array(valid_box(affine, SHAPE_IJK, grid))
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        least = np.flatnonzero(surely.any(axis=others))
        most = np.flatnonzero(perhaps.any(axis=others))
        if len(least):
            assert most[0] <= box[axis][0] <= least[0]
            assert least[-1] + 1 <= box[axis][1] <= most[-1] + 1


@given(st.permutations(range(3)), st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3), out_spacings)
@settings(max_examples=30, deadline=None)
def test_all_of_an_axis_aligned_scan_is_valid(permutation, signs, spacing):
    affine = affine_of(permutation, signs, (1.1, 0.9, 2.3))
    grid = Grid.covering(affine, SHAPE_IJK, spacing)
    image = resample_image(np.full(SHAPE_IJK, 40, np.int16).T, affine, grid)
    assert (image == 40).all()
    assert valid_box(affine, SHAPE_IJK, grid) == tuple((0, size) for size in grid.shape)


def test_a_scan_already_on_its_grid_is_unchanged():
    values = np.random.default_rng(1).integers(-1024, 3071, (5, 6, 7)).astype(np.int16)
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    grid = Grid.covering(affine, (7, 6, 5), (3.0, 1.5, 1.5))
    np.testing.assert_array_equal(resample_image(values, affine, grid), values)
    labels = (values % 5).astype(np.uint8)
    np.testing.assert_array_equal(resample_labels(labels, affine, grid), labels)


def test_padding_does_not_bleed_because_clipping_comes_first():
    values = np.full((2, 1, 4), 40, np.int16)
    values[:, :, :2] = -3024
    grid = Grid.covering(np.diag([2.0, 2.0, 2.0, 1.0]), (4, 1, 2), (2.0, 2.0, 1.0))
    image = resample_image(values, np.diag([2.0, 2.0, 2.0, 1.0]), grid)
    between = image[0, 0]
    assert between.min() == -1024
    assert -1024 < between[3] < 40
    assert between[3] == pytest.approx(-1024 + 0.25 * 1064, abs=1)


def test_metal_is_clipped():
    image = resample_image(
        np.full((3, 3, 3), 30000, np.int16), np.eye(4), Grid.covering(np.eye(4), (3, 3, 3), (1, 1, 1))
    )
    assert (image == 3071).all()


@settings(max_examples=30, deadline=None)
@given(affines, affines)
def test_labels_of_another_grid_follow_the_world(image_affine, label_affine):
    labels = np.random.default_rng(2).integers(0, 9, SHAPE_IJK).astype(np.uint8)
    grid = Grid.covering(image_affine, SHAPE_IJK, (2.0, 2.0, 2.0))
    brought = resample_labels(labels.T, label_affine, grid)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    source = nib.affines.apply_affine(np.linalg.inv(label_affine), grid.voxel_to_world(voxels))
    nearest = np.rint(source).astype(int)
    clear = np.abs(source - np.floor(source) - 0.5).min(-1) > 1e-6
    inside = ((nearest >= 0) & (nearest < np.array(SHAPE_IJK))).all(-1)
    picked = labels[tuple(np.clip(nearest, 0, np.array(SHAPE_IJK) - 1).reshape(-1, 3).T)].reshape(grid.shape)
    np.testing.assert_array_equal(brought[clear], np.where(inside, picked, 0)[clear])
