"""Round trips between voxels, millimetres and depth bins, against independent references."""

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding import geometry
from ctgrounding.errors import GeometryError
from ctgrounding.geometry import Grid

spacings = st.tuples(*[st.floats(0.2, 12.0)] * 3)
shapes = st.tuples(*[st.integers(1, 60)] * 3)
origins = st.tuples(*[st.floats(-800.0, 800.0)] * 3)
grids = st.builds(Grid, shapes, spacings, origins)


@st.composite
def source_affines(draw: st.DrawFn) -> np.ndarray:
    """Permuted, flipped, rotated and tilted affines, as files have them."""
    permutation = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    axes = np.eye(3)[:, permutation] * np.array(signs)
    angle = draw(st.floats(-0.5, 0.5))
    rotation = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    shear = np.eye(3)
    shear[1, 2] = draw(st.floats(-0.4, 0.4))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ axes @ np.diag(draw(spacings))
    affine[:3, 3] = draw(origins)
    return affine


@given(grids, st.tuples(*[st.floats(-50, 50)] * 3))
def test_voxel_and_world_are_inverse(grid, dhw):
    np.testing.assert_allclose(grid.world_to_voxel(grid.voxel_to_world(dhw)), dhw, atol=1e-9)


@given(grids, st.tuples(*[st.integers(0, 59)] * 3))
def test_world_is_what_the_nifti_affine_says(grid, dhw):
    by_affine = nib.affines.apply_affine(grid.affine, dhw[::-1])
    np.testing.assert_allclose(grid.voxel_to_world(dhw), by_affine, atol=1e-9)


@given(grids, st.tuples(*[st.integers(-5, 20)] * 3), shapes, st.tuples(*[st.integers(0, 30)] * 3))
def test_a_crop_keeps_every_voxel_in_place(grid, start, shape, voxel):
    inside = np.add(start, voxel)
    np.testing.assert_allclose(grid.crop(start, shape).voxel_to_world(voxel), grid.voxel_to_world(inside), atol=1e-9)


@given(source_affines(), shapes, st.tuples(*[st.floats(1.0, 12.0)] * 3))
def test_covering_grid_is_centred_on_the_box_and_fills_it_to_half_a_voxel(affine, shape, spacing):
    grid = Grid.covering(affine, shape, spacing)
    corners = np.array(
        [[i, j, k] for i in (-0.5, shape[0] - 0.5) for j in (-0.5, shape[1] - 0.5) for k in (-0.5, shape[2] - 0.5)]
    )
    world = nib.affines.apply_affine(affine, corners)
    low, high = world.min(0), world.max(0)
    first, last = grid.voxel_to_world((0, 0, 0)), grid.voxel_to_world(np.subtract(grid.shape, 1))
    np.testing.assert_allclose(first + last, low + high, atol=1e-6)
    covered = np.array(grid.shape[::-1]) * np.array(spacing[::-1])
    slack = np.abs(covered - (high - low))
    enough = slack <= np.array(spacing[::-1]) / 2 + 1e-4
    assert (enough | (np.array(grid.shape[::-1]) == 1)).all()


@given(grids)
def test_a_grid_covers_itself(grid):
    again = Grid.covering(grid.affine, grid.shape[::-1], grid.spacing_mm)
    assert again.shape == grid.shape
    np.testing.assert_allclose(again.origin_mm, grid.origin_mm, atol=1e-9)


@given(source_affines())
def test_orientation_is_nibabels(affine):
    assume_clear = np.sort(np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)), axis=0)
    if (assume_clear[2] - assume_clear[1] < 0.2).any():
        return
    assert geometry.orientation(affine) == "".join(nib.aff2axcodes(affine))


@given(source_affines(), st.integers(0, 40), st.tuples(*[st.integers(1, 40)] * 2))
def test_slice_interval_is_the_range_over_all_pixels(affine, index, size):
    axis = geometry.slice_axis(affine)
    pixels = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij"), -1).reshape(-1, 2)
    z = nib.affines.apply_affine(affine, np.insert(pixels, axis, index, axis=1))[:, 2]
    box = ((0, size[0] - 1), (0, size[1] - 1))
    np.testing.assert_allclose(geometry.slice_interval(affine, axis, index, box), (z.min(), z.max()), atol=1e-9)


@given(st.floats(-500, 500), st.floats(0.5, 8), st.integers(1, 8), st.integers(1, 30))
def test_a_depth_bin_is_centred_on_its_planes(origin, spacing, cell, count):
    planes = Grid((cell * count, 1, 1), (spacing, 1.0, 1.0), (0.0, 0.0, origin)).depth_mm
    expected = planes.reshape(count, cell).mean(axis=1)
    bins = geometry.depth_bins(origin, spacing, cell, (cell - 1) / 2, count)
    np.testing.assert_allclose(bins, expected, atol=1e-9)


def test_depth_bins_of_tensors_equal_those_of_arrays():
    origin, spacing = np.array([-120.0, 33.5]), np.array([3.0, 5.0])
    arrays = geometry.depth_bins(origin, spacing, 4, 1.5, 7)
    tensors = geometry.depth_bins(torch.from_numpy(origin), torch.from_numpy(spacing), 4, 1.5, 7)
    assert arrays.shape == (2, 7)
    assert tensors.dtype == torch.float64
    np.testing.assert_array_equal(tensors.numpy(), arrays)


@settings(max_examples=30)
@given(st.floats(0.0, 30.0))
def test_tilt_is_the_angle_of_the_slices(angle_deg):
    angle = np.radians(angle_deg)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[1:3, 1] = np.cos(angle), np.sin(angle)
    assert geometry.tilt_deg(affine) == pytest.approx(angle_deg, abs=1e-6)


def test_degenerate_geometry_is_refused():
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(GeometryError, match="degenerate"):
        Grid.covering(flat, (4, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="not finite"):
        geometry.check_affine(np.full((4, 4), np.nan))
    with pytest.raises(GeometryError, match="no CT"):
        Grid.covering(np.diag([1e4, 1e4, 1e4, 1.0]), (512, 512, 300), (1.0, 1.0, 1.0))
    with pytest.raises(GeometryError, match="positive"):
        Grid((1, 1, 1), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match="no voxels"):
        Grid((0, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
