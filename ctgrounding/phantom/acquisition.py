"""How a scanner and its archive see a patient: field, grid, orientation, noise, padding and stored values."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int16

from ctgrounding.phantom.body import Traits, Trunk
from ctgrounding.phantom.findings import Zone
from ctgrounding.phantom.shapes import Point

MIN_NOISE_HU = 12.0
CODES = ("RAS", "LPS", "LAS", "LPI", "RPS", "PIR", "ASR", "SPL", "RSA")
"""Axis codes a NIfTI file may come in, most common first: direction in which each voxel index grows."""


@dataclass(frozen=True)
class Storage:
    """How a file holds HU: ``HU = slope * stored + intercept``.

    Attributes:
        dtype: Type of the stored numbers.
        slope: HU per stored step.
        intercept: HU at stored zero.
        padding_hu: HU outside the circular field of view, None where the scanner fills in air.
    """

    dtype: Literal["int16", "uint16"]
    slope: float
    intercept: float
    padding_hu: int | None


STORAGES = (
    Storage("int16", 1.0, -1024.0, -3024),
    Storage("int16", 1.0, 0.0, -2048),
    Storage("uint16", 1.0, -1024.0, None),
    Storage("uint16", 1.0, -8192.0, -2048),
    Storage("int16", 0.5, -1024.0, -3024),
)


@dataclass(frozen=True)
class Acquisition:
    """One reconstruction's geometry and look.

    Attributes:
        series: Series number.
        shape: Voxels along ``D H W``.
        affine: Maps ``(w, h, d, 1)`` to world mm (RAS).
        noise_hu: Standard deviation of the noise in a voxel.
        first_image: Smallest image number.
        is_downward: Whether image numbers rise from the head to the feet.
        storage: How files hold the values.
        code: Axis codes of the NIfTI file.
    """

    series: int
    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    noise_hu: float
    first_image: int
    is_downward: bool
    storage: Storage
    code: str

    @property
    def image_numbers(self) -> tuple[int, ...]:
        """Image number of each slice, from the lowest slice up."""
        rising = range(self.first_image, self.first_image + self.shape[0])
        return tuple(reversed(rising)) if self.is_downward else tuple(rising)

    @property
    def slice_z_mm(self) -> Float64[np.ndarray, "d"]:
        """World z of the middle of each slice."""
        depth, height, width = self.shape
        middle = self.affine @ np.array([(width - 1) / 2, (height - 1) / 2, 0, 1])
        z: Float64[np.ndarray, "d"] = middle[2] + self.affine[2, 2] * np.arange(depth)
        return z

    def slice_through(self, point_mm: Point) -> int:
        """Index of the slice that a world point lies in or is nearest to."""
        d = (np.linalg.inv(self.affine) @ np.array([*point_mm, 1.0]))[2]
        return int(np.clip(round(d), 0, self.shape[0] - 1))


def acquire(traits: Traits, field_mm: Zone, offset_mm: Point, voxel_mm: float, rng: np.random.Generator) -> Acquisition:
    """Draw how a patient is scanned.

    Args:
        traits: The patient.
        field_mm: Lowest and highest slice in heights of the middle body.
        offset_mm: World position of the body's origin.
        voxel_mm: Rough size of a voxel.
        rng: Source of chance.
    """
    spacing = voxel_mm * np.array([rng.uniform(0.85, 1.25), *[rng.uniform(0.85, 1.1)] * 2])
    low, high = (z * traits.scale[2] for z in field_mm)
    rotation = np.eye(3)
    if rng.uniform() < 0.08:
        rotation = _rotation(rng.uniform(3, 6) * rng.choice([-1, 1]), rng.uniform(-3, 3), rng.uniform(-4, 4))
        low, high = low - 10, high + 10
    depth = int(np.ceil((high - low) / spacing[0])) + 1
    across = int(np.ceil(_diameter_mm(traits, (low, high), rng) / spacing[1]))
    centre = np.array([rng.uniform(-8, 8), rng.uniform(-8, 8), (low + high) / 2]) + offset_mm
    axes = rotation * spacing[::-1]
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = centre - axes @ (np.array([across - 1, across - 1, depth - 1]) / 2)
    return Acquisition(
        series=int(rng.integers(2, 9)),
        shape=(depth, across, across),
        affine=affine,
        noise_hu=float(rng.uniform(MIN_NOISE_HU, 20)),
        first_image=1 if rng.uniform() < 0.8 else int(rng.integers(2, 60)),
        is_downward=bool(rng.uniform() < 0.6),
        storage=STORAGES[rng.integers(len(STORAGES))],
        code=CODES[min(int(rng.exponential(2.5)), len(CODES) - 1)],
    )


def reconstruct_again(first: Acquisition, rng: np.random.Generator) -> Acquisition:
    """A second reconstruction of the same acquisition: other slices, other sharpness, next series number."""
    is_sharp = rng.uniform() < 0.5
    step = float(rng.uniform(0.75, 0.85) if is_sharp else rng.uniform(1.25, 1.5))
    depth = int(np.ceil((first.shape[0] - 1) / step)) + 1
    affine = first.affine.copy()
    affine[:3, 2] *= step
    return Acquisition(
        series=first.series + int(rng.integers(1, 4)),
        shape=(depth, *first.shape[1:]),
        affine=affine,
        noise_hu=max(first.noise_hu * (1.35 if is_sharp else 0.85), MIN_NOISE_HU),
        first_image=1,
        is_downward=first.is_downward,
        storage=first.storage,
        code=first.code,
    )


def expose(
    clean_hu: Float[np.ndarray, "d h w"], acquisition: Acquisition, rng: np.random.Generator
) -> Int16[np.ndarray, "d h w"]:
    """Add noise, limit to the scanner's range and pad outside the circular field of view."""
    image: Int16[np.ndarray, "d h w"] = np.empty(clean_hu.shape, np.int16)
    for clean_slice, image_slice in zip(clean_hu, image, strict=True):
        noisy = rng.standard_normal(clean_slice.shape, np.float32) * np.float32(acquisition.noise_hu) + clean_slice
        image_slice[...] = np.rint(np.minimum(np.maximum(noisy, -1024), 3071))
    if acquisition.storage.padding_hu is not None:
        image[:, ~field_of_view(acquisition.shape)] = acquisition.storage.padding_hu
    return image


def field_of_view(shape: tuple[int, int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels inside the circle that fits the square matrix."""
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in shape[1:])
    inside: Bool[np.ndarray, "h w"] = rows[:, None] ** 2 + columns**2 <= (shape[1] / 2) ** 2
    return inside


def _diameter_mm(traits: Traits, levels_mm: Zone, rng: np.random.Generator) -> float:
    """Field of view: wide enough for the trunk or a little less, as technicians choose it."""
    z = np.linspace(*levels_mm, 12, dtype=np.float32)[:, None, None]
    ray = np.linspace(0, 260, 131, dtype=np.float32)[None, None]
    widest = float(ray[0, 0, (Trunk(traits).depth_mm(ray, np.zeros_like(ray), z) > 0).any((0, 1))].max())
    return 2 * widest * float(rng.uniform(0.97, 1.15))


def _rotation(about_x_deg: float, about_y_deg: float, about_z_deg: float) -> Float64[np.ndarray, "3 3"]:
    a, b, c = np.deg2rad([about_x_deg, about_y_deg, about_z_deg])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    rotation: Float64[np.ndarray, "3 3"] = about_z @ about_y @ about_x
    return rotation
