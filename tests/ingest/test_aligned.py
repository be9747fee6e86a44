"""The short way of aligned sources gives what ITK gives, for every order and direction of axes."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  the library's own abbreviation

from ctgrounding.geometry import Grid
from ctgrounding.ingest.aligned import interpolate_aligned, is_aligned
from ctgrounding.ingest.resample import resample_image

SHAPE_IJK = (13, 9, 11)
ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def affine_of(order, signs, spacing=(1.3, 0.9, 2.2)):
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * signs * spacing
    affine[:3, 3] = (-31.0, 12.0, 405.0)
    return affine


def by_itk(values, affine, grid):
    matrix = np.linalg.solve(affine, grid.affine)
    transform = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    image = sitk.GetImageFromArray(np.ascontiguousarray(values))
    resampled = sitk.Resample(image, grid.shape[::-1], transform, sitk.sitkLinear, (0, 0, 0), (1, 1, 1),
                              np.eye(3).ravel().tolist(), -1024, sitk.sitkFloat64)  # fmt: skip
    return sitk.GetArrayFromImage(resampled)


def source(dtype=np.int16):
    return np.random.default_rng(3).integers(-1024, 3071, SHAPE_IJK[::-1]).astype(dtype)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_values_are_itks_up_to_rounding(order, signs):
    affine = affine_of(order, signs)
    grid = Grid.covering(affine, SHAPE_IJK, (1.7, 1.1, 0.8))
    image = resample_image(source(), affine, grid)
    assert np.abs(image - by_itk(source(), affine, grid)).max() <= 0.501


def test_voxels_outside_the_source_get_the_value_for_outside():
    affine = affine_of((0, 1, 2), (1, -1, 1))
    inner = Grid.covering(affine, SHAPE_IJK, (2.0, 1.0, 1.0))
    grid = inner.crop((-3, -2, -4), tuple(size + 7 for size in inner.shape))
    image = resample_image(source(), affine, grid)
    box = tuple(slice(first, first + size) for first, size in zip((3, 2, 4), inner.shape, strict=True))
    np.testing.assert_array_equal(image[box], resample_image(source(), affine, inner))
    outside = np.ones(grid.shape, bool)
    outside[box] = False
    assert set(np.unique(image[outside])) == {-1024}
    elsewhere = Grid(grid.shape, grid.spacing_mm, (900.0, 900.0, 900.0))
    assert (resample_image(source(), affine, elsewhere) == -1024).all()


@pytest.mark.parametrize("shape_ijk", [(1, 9, 11), (13, 1, 11), (13, 9, 1)])
def test_one_slice_is_held_over_its_whole_thickness(shape_ijk):
    affine = affine_of((0, 1, 2), (1, 1, 1))
    values = source()[: shape_ijk[2], : shape_ijk[1], : shape_ijk[0]]
    grid = Grid.covering(affine, shape_ijk, (0.7, 0.3, 0.5))
    image = resample_image(values, affine, grid)
    assert image.min() >= values.min()
    axis = 2 - shape_ijk.index(1)
    assert (np.ptp(image, axis=axis) == 0).all()


def test_big_endian_and_float_sources_give_the_same():
    affine = affine_of((1, 0, 2), (-1, 1, 1))
    grid = Grid.covering(affine, SHAPE_IJK, (1.7, 1.1, 0.8))
    expected = resample_image(source(), affine, grid)
    for dtype in (">i2", np.float32, np.float64, np.int32):
        np.testing.assert_array_equal(resample_image(source(dtype), affine, grid), expected)


def test_oblique_matrices_are_told_apart():
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    assert not is_aligned(turned)
    assert is_aligned(np.diag([2.0, -1.0, 3.0, 1.0]))
    assert interpolate_aligned(source(), np.eye(4), SHAPE_IJK[::-1], 0).tolist() == source().tolist()
