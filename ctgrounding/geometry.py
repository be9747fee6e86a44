"""Affines, grids and depths: the only place that knows how voxels, millimetres and depth bins relate.

World coordinates are RAS in mm, ``(x, y, z)``. A stored scan is an axis-aligned :class:`Grid` whose arrays
are ``D H W``. A file's own affine is called *source affine* and maps its index ``(i, j, k)`` to the world.

A voxel is a cell around its centre: index ``n`` covers ``[n - 0.5, n + 0.5)``. So a scan of ``n`` voxels
extends over ``n`` spacings, from half a voxel before its first centre to half a voxel after its last.
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

from ctgrounding.errors import GeometryError

if TYPE_CHECKING:
    from torch import Tensor

Affine = Float64[np.ndarray, "4 4"]
Triple = tuple[int, int, int]
TripleMm = tuple[float, float, float]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns world coordinates of DICOM and ITK into RAS; its own inverse."""

MAX_VOXELS = 2**32
"""Largest grid that :meth:`Grid.covering` makes; beyond it an affine is wrong, not a scan large."""

_DIRECTIONS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Grid:
    """An axis-aligned RAS grid: what a stored scan, a crop of it or a feature map lies on.

    Attributes:
        shape: Voxels along ``D H W``.
        spacing_mm: Distance of neighbouring centres along ``D H W``, positive.
        origin_mm: World position ``(x, y, z)`` of the centre of voxel ``(0, 0, 0)``.

    Raises:
        GeometryError: If a size is below 1, a spacing is not positive or a number is not finite.

    Examples:
        >>> grid = Grid(shape=(4, 10, 10), spacing_mm=(5.0, 2.0, 2.0), origin_mm=(-9.0, -9.0, 100.0))
        >>> grid.depth_mm.tolist()
        [100.0, 105.0, 110.0, 115.0]
        >>> grid.voxel_to_world(np.array([1, 0, 2])).tolist()
        [-5.0, -9.0, 105.0]
    """

    shape: Triple
    spacing_mm: TripleMm
    origin_mm: TripleMm

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise GeometryError(f"A grid of shape {self.shape} (D, H, W) has no voxels. Every size must be at least 1.")
        if not np.isfinite((*self.spacing_mm, *self.origin_mm)).all() or min(self.spacing_mm) <= 0:
            raise GeometryError(
                f"A grid cannot have spacing {self.spacing_mm} mm (D, H, W) and origin {self.origin_mm} mm. "
                "Spacings must be positive and all numbers finite."
            )

    @classmethod
    def covering(cls, affine: Affine, shape_ijk: Triple, spacing_mm: TripleMm) -> "Grid":
        """The grid of a given spacing over the bounding box of a source scan in any orientation.

        The box includes the outer halves of the border voxels. Along each axis the grid has the whole
        number of voxels nearest to the box's length (at least one, a half rounded down) and lies centred
        in it. So every centre lies inside an axis-aligned source, and a source that already is
        axis-aligned RAS with this spacing is returned as it is.

        Args:
            affine: Source affine, ``(i, j, k)`` to RAS mm.
            shape_ijk: Size of the source array.
            spacing_mm: Wanted spacing along ``D H W``.

        Raises:
            GeometryError: If the affine is degenerate or the grid would exceed :data:`MAX_VOXELS`.
        """
        low, high = bounding_box(affine, shape_ijk)
        step = np.array(spacing_mm[::-1], dtype=np.float64)
        if not np.isfinite(step).all() or step.min() <= 0:
            raise GeometryError(f"Spacing {spacing_mm} mm (D, H, W) is not positive. Give three positive numbers.")
        counts = np.maximum(1, np.ceil((high - low) / step - 0.5 - 1e-6))
        if counts.prod() > MAX_VOXELS:
            extent = tuple(round(float(length), 1) for length in high - low)
            raise GeometryError(f"A scan that extends {extent} mm (x, y, z) is no CT. Check the affine in its header.")
        first = (low + high) / 2 - (counts - 1) / 2 * step
        width, height, depth = (int(count) for count in counts)
        return cls((depth, height, width), _triple(spacing_mm), _triple(first))

    @property
    def affine(self) -> Affine:
        """Maps ``(w, h, d, 1)`` to ``(x, y, z, 1)``, as NIfTI headers want it."""
        matrix = np.diag([*self.spacing_mm[::-1], 1.0])
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def depth_mm(self) -> Float64[np.ndarray, "D"]:
        """World z of the centre of every plane."""
        return self.origin_mm[2] + self.spacing_mm[0] * np.arange(self.shape[0], dtype=np.float64)

    @property
    def field_mm(self) -> tuple[float, float]:
        """Lowest and highest world z of the grid, outer halves of its voxels included."""
        half = self.spacing_mm[0] / 2
        depths = self.depth_mm
        return float(depths[0]) - half, float(depths[-1]) + half

    def voxel_to_world(self, dhw: ArrayLike) -> Float64[np.ndarray, "*points 3"]:
        """World positions ``(x, y, z)`` in mm of voxel coordinates ``(d, h, w)``, fractions allowed."""
        columns = np.asarray(dhw, dtype=np.float64)[..., ::-1]
        world: np.ndarray = np.asarray(self.origin_mm) + columns * np.asarray(self.spacing_mm[::-1])
        return world

    def world_to_voxel(self, xyz: ArrayLike) -> Float64[np.ndarray, "*points 3"]:
        """Voxel coordinates ``(d, h, w)``, with fractions, of world positions in mm."""
        offsets = np.asarray(xyz, dtype=np.float64) - np.asarray(self.origin_mm)
        voxels: np.ndarray = (offsets / np.asarray(self.spacing_mm[::-1]))[..., ::-1]
        return voxels

    def crop(self, start: Triple, shape: Triple) -> "Grid":
        """The grid of the crop that begins at voxel ``start``; may reach beyond this grid (padding)."""
        return Grid(shape, self.spacing_mm, _triple(self.voxel_to_world(start)))


def bounding_box(affine: Affine, shape_ijk: Triple) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Lowest and highest world corner of a source scan, outer halves of its border voxels included.

    Raises:
        GeometryError: If the affine is degenerate or the array is empty.
    """
    check_affine(affine)
    if min(shape_ijk) < 1:
        raise GeometryError(f"An array of shape {shape_ijk} holds no voxels.")
    corners = np.array(list(product(*((-0.5, size - 0.5) for size in shape_ijk))))
    world = corners @ affine[:3, :3].T + affine[:3, 3]
    return world.min(axis=0), world.max(axis=0)


def check_affine(affine: Affine) -> None:
    """Refuse what cannot be a scan's affine.

    Raises:
        GeometryError: If it holds a number that is not finite, or its axes have no length or lie in one plane.
    """
    axes = affine[:3, :3]
    if not np.isfinite(affine).all():
        raise GeometryError(f"The affine holds a number that is not finite: {affine.tolist()}. Check the header.")
    lengths = np.linalg.norm(axes, axis=0)
    if lengths.min() < 1e-6 or abs(np.linalg.det(axes / lengths)) < 1e-3:
        raise GeometryError(f"The affine is degenerate: {axes.tolist()} maps space onto a plane. Check the header.")


def orientation(affine: Affine) -> str:
    """Where the three index axes point, for example ``"LPS"``: the nearest world direction of each.

    Examples:
        >>> orientation(np.diag([-1.5, -1.5, 3.0, 1.0]))
        'LPS'
    """
    check_affine(affine)
    codes = [""] * 3
    for index_axis, world_axis in enumerate(_matching_axes(affine)):
        codes[index_axis] = _DIRECTIONS[world_axis][int(affine[world_axis, index_axis] > 0)]
    return "".join(codes)


def slice_axis(affine: Affine) -> int:
    """The index axis that runs most nearly along world z, so that its planes are the axial slices."""
    return _matching_axes(affine).index(2)


def tilt_deg(affine: Affine) -> float:
    """Angle in degrees between world z and the normal of the axial slices; zero for an untilted scan."""
    axis = slice_axis(affine)
    first, second = (affine[:3, other] for other in range(3) if other != axis)
    normal = np.cross(first, second)
    across = float(np.hypot(normal[0], normal[1]))
    return float(np.degrees(np.arctan2(across, abs(normal[2]))))


def slice_interval(
    affine: Affine, axis: int, index: float, box: tuple[tuple[float, float], tuple[float, float]]
) -> tuple[float, float]:
    """Lowest and highest world z of the pixel centres of one slice, inside a box of its pixels.

    An untilted slice gives one number twice; a tilted one an interval.

    Args:
        affine: Source affine.
        axis: Index axis that counts slices.
        index: Slice number along it, from 0.
        box: Closed range of pixel indices along the other two axes, in their order.

    Examples:
        >>> slice_interval(np.diag([1.0, 1.0, 5.0, 1.0]), axis=2, index=3, box=((0, 511), (0, 511)))
        (15.0, 15.0)
    """
    others = [other for other in range(3) if other != axis]
    flat = float(affine[2, 3] + affine[2, axis] * index)
    low = high = flat
    for other, bounds in zip(others, box, strict=True):
        reach = sorted(float(affine[2, other] * bound) for bound in bounds)
        low, high = low + reach[0], high + reach[1]
    return low, high


@overload
def depth_bins(
    origin_z_mm: "Tensor", spacing_d_mm: "Tensor", cell_vox: float, offset_vox: float, count: int
) -> "Tensor": ...


@overload
def depth_bins(
    origin_z_mm: ArrayLike,
    spacing_d_mm: ArrayLike,
    cell_vox: float,
    offset_vox: float,
    count: int,
) -> Float64[np.ndarray, "*scans Z"]: ...


def depth_bins(origin_z_mm: Any, spacing_d_mm: Any, cell_vox: float, offset_vox: float, count: int) -> Any:
    """World z in mm of the centre of each depth bin, by the cell-centre convention.

    Bin ``k`` is centred on voxel coordinate ``offset_vox + k * cell_vox``; a bin of four voxels that starts
    at the first one has ``offset_vox`` 1.5.

    Args:
        origin_z_mm: World z of the first plane, one number a scan: a number, an array or a torch tensor.
        spacing_d_mm: Distance of planes, likewise.
        cell_vox: Voxels of a bin.
        offset_vox: Voxel coordinate of the centre of bin 0.
        count: Number of bins.

    Returns:
        Centres with one axis more than the input; a float64 tensor on the input's device for tensors.

    Examples:
        >>> depth_bins(100.0, 3.0, cell_vox=4, offset_vox=1.5, count=3).tolist()
        [104.5, 116.5, 128.5]
    """
    voxels = offset_vox + cell_vox * np.arange(count, dtype=np.float64)
    if hasattr(origin_z_mm, "new_tensor"):
        import torch

        steps = torch.from_numpy(voxels).to(origin_z_mm.device)
        return origin_z_mm.double()[..., None] + spacing_d_mm.double()[..., None] * steps
    return np.asarray(origin_z_mm, dtype=np.float64)[..., None] + np.asarray(spacing_d_mm)[..., None] * voxels


def _matching_axes(affine: Affine) -> list[int]:
    """World axis of each index axis, each used once; the strongest match is settled first."""
    strength = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    world = [0, 0, 0]
    for _ in range(3):
        row, column = np.unravel_index(int(strength.argmax()), strength.shape)
        world[int(column)] = int(row)
        strength[row, :] = strength[:, column] = -1
    return world


def _triple(values: ArrayLike) -> TripleMm:
    first, second, third = (float(value) for value in np.asarray(values))
    return first, second, third
