"""Where resampled values, masks and snippets lie: against world coordinates, SimpleITK and SciPy."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import affine_transform

from ctgrounding.geometry import Grid, slice_axis
from ctgrounding.ingest.audit.hu import HuRule, to_hu
from ctgrounding.ingest.resample import resample_image, resample_labels
from ctgrounding.ingest.snippets import plane_positions

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def rotation(degrees):
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def affine_of(order=(0, 1, 2), signs=(1, 1, 1), spacing=(0.8, 0.9, 2.5), turn=(0, 0, 0), tilt_deg=0.0):
    shear = np.eye(3)
    shear[2, 1] = np.tan(np.radians(tilt_deg))  # rows climb: the gantry leans
    affine = np.eye(4)
    affine[:3, :3] = rotation(turn) @ shear @ (np.eye(3)[:, list(order)] * signs) @ np.diag(spacing)
    affine[:3, 3] = (-31.3, 20.7, 412.9)
    return affine


NAMED = {
    "axis-aligned": affine_of(),
    "flipped": affine_of(signs=(-1, -1, 1)),
    "flipped in depth": affine_of(signs=(1, -1, -1)),
    "permuted": affine_of(order=(2, 0, 1)),
    "permuted and flipped": affine_of(order=(1, 2, 0), signs=(-1, 1, -1)),
    "oblique": affine_of(turn=(7, -11, 23)),
    "oblique, permuted, flipped": affine_of(order=(2, 1, 0), signs=(1, -1, -1), turn=(-4, 9, 15)),
    "tilted": affine_of(tilt_deg=18),
    "tilted and flipped": affine_of(signs=(-1, -1, 1), tilt_deg=-25),
    "tilted and oblique": affine_of(turn=(3, 5, -8), tilt_deg=12),
}


def degrees_up_to(most):
    """Angles in thousandths of a degree: ITK's direction matrix has no inverse under subnormal ones."""
    return st.integers(-1000 * most, 1000 * most).map(lambda thousandths: thousandths / 1000)


rigid = st.builds(
    affine_of,
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    turn=st.one_of(st.just((0, 0, 0)), st.tuples(*[degrees_up_to(40)] * 3)),
)
sheared = st.builds(
    affine_of,
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1, 1])] * 3),
    spacing=st.tuples(*[st.floats(0.5, 5.0)] * 3),
    turn=st.one_of(st.just((0, 0, 0)), st.tuples(*[degrees_up_to(20)] * 3)),
    tilt_deg=degrees_up_to(30),
)
shapes = st.tuples(*[st.integers(2, 18)] * 3)
spacings = st.tuples(*[st.floats(0.6, 6.0)] * 3)
dtypes = st.sampled_from([np.int16, np.uint16, np.int32, np.float32])
rules = st.sampled_from([(1.0, 0.0), (1.0, -1024.0), (0.5, -1000.0), (2.0, -8192.0)])


def indices(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)


def interior_of(affine, shape_ijk, grid):
    """Voxels of the grid that lie between centres of the source, and their source coordinates."""
    source = nib.affines.apply_affine(np.linalg.inv(affine), grid.voxel_to_world(indices(grid.shape)))
    return ((source >= 1e-6) & (source <= np.array(shape_ijk) - 1 - 1e-6)).all(-1), source


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positions_are_within_a_thousandth_of_a_millimetre(name, axis):
    """Stored values are whole numbers; the mean over ramps that start at 16 fractions of one shows what they hide."""
    affine, shape_ijk = NAMED[name], (26, 24, 18)
    world = nib.affines.apply_affine(affine, indices(shape_ijk))[..., axis]
    slope = 3900 / np.ptp(world)
    grid = Grid.covering(affine, shape_ijk, (2.2, 1.1, 1.3))
    inside, _ = interior_of(affine, shape_ijk, grid)
    start = float(world.min())
    expected = (grid.voxel_to_world(indices(grid.shape))[inside][:, axis] - start) * slope - 950
    residual = np.zeros(len(expected))
    for fraction in np.arange(16) / 16:
        stored = ((world - start) * slope - 950 + fraction).astype(np.float32)
        residual += (resample_image(stored.T, affine, grid)[inside] - expected - fraction) / 16
    assert len(residual) > 1000
    assert np.abs(residual).max() / slope <= 0.001


@settings(max_examples=60, deadline=None)
@given(rigid, shapes, spacings, dtypes, rules, st.integers(0, 2**31))
def test_rigid_scans_agree_with_simpleitk_within_one_hu(affine, shape_ijk, spacing, dtype, rule, seed):
    """ITK's own image geometry (origin, spacing, direction) does the work there, a matrix between indices here."""
    values = stored_values(shape_ijk, dtype, rule, seed)
    hu = to_hu(values.T, HuRule("header", *rule))
    grid = Grid.covering(affine, shape_ijk, spacing)
    image = resample_image(hu, affine, grid)

    source = sitk.GetImageFromArray(np.clip(values.T.astype(np.float64) * rule[0] + rule[1], -1024, 3071))
    axes = LPS_TO_RAS @ affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    source.SetSpacing(lengths.tolist())
    source.SetDirection((axes / lengths).ravel().tolist())
    source.SetOrigin((LPS_TO_RAS @ affine[:3, 3]).tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape[::-1])
    resampler.SetOutputSpacing(grid.spacing_mm[::-1])
    resampler.SetOutputDirection(LPS_TO_RAS.ravel().tolist())
    resampler.SetOutputOrigin((LPS_TO_RAS @ np.array(grid.origin_mm)).tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    expected = sitk.GetArrayFromImage(resampler.Execute(source))
    inside, _ = interior_of(affine, shape_ijk, grid)
    assert np.abs(image[inside] - expected[inside]).max(initial=0.0) <= 1.0


@settings(max_examples=60, deadline=None)
@given(sheared, shapes, spacings, dtypes, rules, st.integers(0, 2**31))
def test_sheared_scans_agree_with_scipy_within_one_hu(affine, shape_ijk, spacing, dtype, rule, seed):
    values = stored_values(shape_ijk, dtype, rule, seed)
    hu = to_hu(values.T, HuRule("header", *rule))
    grid = Grid.covering(affine, shape_ijk, spacing)
    image = resample_image(hu, affine, grid)
    clipped = np.clip(values.astype(np.float64) * rule[0] + rule[1], -1024, 3071)
    back = np.linalg.inv(affine) @ grid.affine
    expected = affine_transform(clipped, back[:3, :3], back[:3, 3], grid.shape[::-1], order=1, mode="nearest").T
    inside, _ = interior_of(affine, shape_ijk, grid)
    assert np.abs(image[inside] - expected[inside]).max(initial=0.0) <= 1.0


def stored_values(shape_ijk, dtype, rule, seed):
    """Values whose HU go beyond both ends of what is kept, so that clipping must come first to agree."""
    hu = np.random.default_rng(seed).uniform(-3024, 6000, shape_ijk)
    stored = (hu - rule[1]) / rule[0]
    if np.issubdtype(dtype, np.integer):
        stored = np.clip(np.rint(stored), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return stored.astype(dtype)


def ball(affine, shape_ijk, centre_mm, radius_mm):
    """Whether voxels' centres lie in a ball of the world."""
    world = nib.affines.apply_affine(affine, indices(shape_ijk))
    return np.linalg.norm(world - centre_mm, axis=-1) < radius_mm


@settings(max_examples=25, deadline=None)
@given(sheared, sheared, st.tuples(*[st.floats(1.0, 2.5)] * 3))
def test_a_mask_of_any_grid_lies_on_what_it_marks(image_affine, mask_affine, spacing):
    """A ball is drawn into a scan and, on a grid of another spacing and orientation, into its mask."""
    shape_ijk = (24, 24, 24)
    middle = image_affine @ [*(np.array(shape_ijk) / 2 - 0.5), 1]
    reach = 11 * np.linalg.norm(image_affine[:3, :3], axis=0).min()
    radius = min(reach, 0.75 * shortest_half_width(image_affine, shape_ijk))
    scale = 1.2 * np.linalg.norm(image_affine[:3, :3], axis=0).max() / np.linalg.norm(mask_affine[:3, :3], axis=0).min()
    mask_affine = mask_affine.copy()
    mask_affine[:3, :3] *= scale
    mask_affine[:3, 3] = middle[:3] - mask_affine[:3, :3] @ (np.array((30, 30, 30)) / 2 - 0.5)
    grid = Grid.covering(image_affine, shape_ijk, spacing)
    hu = np.where(ball(image_affine, shape_ijk, middle[:3], radius), 1000, -1000).astype(np.int16)
    image = resample_image(hu.T, image_affine, grid)
    drawn = ball(mask_affine, (30, 30, 30), middle[:3], radius)
    mask = resample_labels(drawn.T.astype(np.uint8), mask_affine, grid)
    if mask.sum() < 30 or drawn.sum() < 30:
        return
    coarsest = max(np.linalg.norm(a[:3, :3], axis=0).max() for a in (image_affine, mask_affine))
    for marked in (image > 0, mask > 0):
        centre = grid.voxel_to_world(np.argwhere(marked)).mean(axis=0)
        assert np.linalg.norm(centre - middle[:3]) < 0.5 * coarsest + 0.5 * max(spacing)


def shortest_half_width(affine, shape_ijk):
    """Half the distance of the closest pair of opposite faces of a scan."""
    across = np.linalg.inv(affine[:3, :3])
    return min(size / np.linalg.norm(row) for size, row in zip(shape_ijk, across, strict=True)) / 2


@settings(max_examples=40, deadline=None)
@given(rigid, st.floats(0.4, 0.9), st.data())
def test_a_snippet_lies_where_its_slice_went(affine, share, data):
    """One bright slice: its brightness on the grid is centred on the depth interval that the snippet gets.

    A tilted slice is seen by whole columns of the grid alone: half a column's climb may be missing at one end.
    """
    shape_ijk = (18, 17, 16)
    axis = slice_axis(affine)
    index = data.draw(st.integers(3, shape_ijk[axis] - 4))
    step = abs(affine[2, axis])
    out_mm, in_plane_mm = share * step, 1.5
    across = np.linalg.inv(affine[:3, :3])[axis]
    climb_mm = in_plane_mm * np.abs(across[:2] / across[2]).sum()
    hu = np.full(shape_ijk, -1000, np.int16)
    bright = [slice(None)] * 3
    bright[axis] = index
    hu[tuple(bright)] = 3000
    grid = Grid.covering(affine, shape_ijk, (out_mm, in_plane_mm, in_plane_mm))
    image = resample_image(hu.T, affine, grid).astype(np.float64) + 1000
    image[image < 0] = 0  # outside the source
    position = plane_positions(affine, shape_ijk, {index: "a"})[index]
    weights = image.sum(axis=(1, 2))
    depth = float((weights * grid.depth_mm).sum() / weights.sum())
    assert position.low_mm - step <= depth <= position.high_mm + step
    assert abs(depth - (position.low_mm + position.high_mm) / 2) <= out_mm / 2 + 0.1 * step + climb_mm / 2
    lit = grid.depth_mm[weights > 0.05 * weights.max()]
    assert lit.min() >= position.low_mm - step - out_mm
    assert lit.max() <= position.high_mm + step + out_mm
