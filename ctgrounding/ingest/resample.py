"""One affine-aware pass from a source to its RAS grid, the same for image and label map.

The pass maps voxel indices of the grid to indices of the source by one 4 x 4 matrix, so orientation,
spacing, obliquity and gantry tilt are one case. Positions are exact to double precision. Images whose axes
are the grid's take the short way of :mod:`ctgrounding.ingest.aligned`; all else goes through ITK.
"""

import numpy as np
import SimpleITK as sitk  # noqa: N813  the library's own abbreviation
from jaxtyping import Float32, Int16, Shaped, UInt8

from ctgrounding.geometry import Affine, Grid, Triple
from ctgrounding.ingest.aligned import interpolate_aligned, is_aligned

HU_RANGE = (-1024, 3071)
ValidBox = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def resample_image(hu: Shaped[np.ndarray, "k j i"], affine: Affine, grid: Grid) -> Int16[np.ndarray, "D H W"]:
    """Linear interpolation of HU, which are clipped to [-1024, 3071] first; -1024 outside the source.

    Clipping first keeps padding of -2048 or -3024 and metal from bleeding into their neighbours. Between the
    centre and the edge of a border voxel its value holds.

    Args:
        hu: HU of the source, ``hu[k, j, i]``.
        affine: Source affine.
        grid: Where to.
    """
    is_within = HU_RANGE[0] <= hu.min() and hu.max() <= HU_RANGE[1]
    clipped = hu if is_within else np.clip(hu, *HU_RANGE)
    source = clipped.astype(np.int16 if np.issubdtype(hu.dtype, np.integer) else np.float32, copy=False)
    if _is_same(affine, hu.shape, grid):
        same: np.ndarray = np.rint(source).astype(np.int16)
        return same
    matrix = _grid_to_source(affine, grid)
    if is_aligned(matrix):
        return interpolate_aligned(source, matrix, grid.shape, HU_RANGE[0])
    resampled = _resample(source, affine, grid, sitk.sitkLinear, sitk.sitkFloat32, HU_RANGE[0])
    values: Float32[np.ndarray, "D H W"] = sitk.GetArrayViewFromImage(resampled)
    image = np.empty(grid.shape, np.int16)
    for depth, plane in enumerate(values):
        image[depth] = np.rint(plane)
    return image


def resample_labels(labels: UInt8[np.ndarray, "k j i"], affine: Affine, grid: Grid) -> UInt8[np.ndarray, "D H W"]:
    """Nearest neighbour of a label map, which may lie on a grid of its own; 0 outside it."""
    if _is_same(affine, labels.shape, grid):
        return np.ascontiguousarray(labels)
    resampled = _resample(labels, affine, grid, sitk.sitkNearestNeighbor, sitk.sitkUInt8, 0)
    values: np.ndarray = sitk.GetArrayFromImage(resampled)
    return values


def valid_box(affine: Affine, shape_ijk: Triple, grid: Grid) -> ValidBox:
    """Half-open box, along ``D H W``, of the grid's voxels whose centres lie inside the source.

    For an oblique or tilted source it is the smallest box that holds them all.
    """
    matrix = _grid_to_source(affine, grid)
    if is_aligned(matrix):
        return _box_of_aligned(matrix, shape_ijk, grid.shape)
    return _box_of_oblique(matrix, shape_ijk, grid.shape)


def _grid_to_source(affine: Affine, grid: Grid) -> Affine:
    matrix: np.ndarray = np.linalg.solve(affine, grid.affine)
    return matrix


def _is_same(affine: Affine, shape: tuple[int, ...], grid: Grid) -> bool:
    return shape == grid.shape and bool(np.abs(_grid_to_source(affine, grid) - np.eye(4)).max() < 1e-6)


def _resample(
    values: Shaped[np.ndarray, "k j i"], affine: Affine, grid: Grid, interpolator: int, pixel: int, outside: int
) -> sitk.Image:
    matrix = _grid_to_source(affine, grid)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape[::-1])
    resampler.SetTransform(sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist()))
    resampler.SetInterpolator(interpolator)
    resampler.SetOutputPixelType(pixel)
    resampler.SetDefaultPixelValue(outside)
    return resampler.Execute(sitk.GetImageFromArray(np.ascontiguousarray(values)))


def _box_of_aligned(matrix: Affine, shape_ijk: Triple, shape: Triple) -> ValidBox:
    box = [(0, 0)] * 3
    for source_axis, size in enumerate(shape_ijk):
        grid_axis = int(np.abs(matrix[source_axis, :3]).argmax())
        places = matrix[source_axis, grid_axis] * np.arange(shape[2 - grid_axis]) + matrix[source_axis, 3]
        box[2 - grid_axis] = _extent((places >= -0.5) & (places <= size - 0.5))
    return box[0], box[1], box[2]


def _box_of_oblique(matrix: Affine, shape_ijk: Triple, shape: Triple) -> ValidBox:
    height, width = np.arange(shape[1])[:, None], np.arange(shape[2])
    planes, rows, columns = np.zeros(shape[0], bool), np.zeros(shape[1], bool), np.zeros(shape[2], bool)
    for depth in range(shape[0]):
        inside = np.ones(shape[1:], bool)
        for source_axis, size in enumerate(shape_ijk):
            along_w, along_h, along_d, start = matrix[source_axis]
            place = along_w * width + (along_h * height + (along_d * depth + start))
            inside &= (place >= -0.5) & (place <= size - 0.5)
        planes[depth] = inside.any()
        rows |= inside.any(axis=1)
        columns |= inside.any(axis=0)
    return _extent(planes), _extent(rows), _extent(columns)


def _extent(inside: Shaped[np.ndarray, "n"]) -> tuple[int, int]:
    found = np.flatnonzero(inside)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)
