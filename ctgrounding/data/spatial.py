"""A torchio spatial transform of image, label map and snippets together."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int16, Int64, UInt8

from ctgrounding.errors import ConfigError
from ctgrounding.geometry import Grid

if TYPE_CHECKING:
    from torchio import Transform

_SIDED = ("Flip", "Transpose", "ToOrientation")
_AIR_HU = -1024


@dataclass(frozen=True)
class Moved:
    """What a transform made of a crop.

    Attributes:
        image_hu: The image on the same voxels.
        organs: The label map, None where there is none.
        source_plane: For each voxel, one more than the plane along ``D`` that it shows; 0 outside the crop.
        grid: The crop's grid.
    """

    image_hu: Int16[np.ndarray, "D H W"]
    organs: UInt8[np.ndarray, "D H W"] | None
    source_plane: Int64[np.ndarray, "D H W"]
    grid: Grid

    def depth_mm(self, interval_mm: tuple[float, float]) -> tuple[float, float] | None:
        """Where a depth interval of the crop lies now: the planes that show any of it, to half a voxel.

        Args:
            interval_mm: Lowest and highest world z before.

        Returns:
            Lowest and highest z after, never thinner than before; None where none of it is shown any more.
        """
        bottom_mm, step_mm = self.grid.origin_mm[2], self.grid.spacing_mm[0]
        low, high = ((z_mm - bottom_mm) / step_mm for z_mm in interval_mm)
        first, last = round(low), round(high)
        is_shown = ((self.source_plane >= first + 1) & (self.source_plane <= last + 1)).any((1, 2))
        shows = np.flatnonzero(is_shown)
        if not len(shows):
            return None
        middle_mm = bottom_mm + (shows[0] + shows[-1]) / 2 * step_mm
        half_mm = max((shows[-1] - shows[0] + first - last) * step_mm, 0.0) / 2 + (interval_mm[1] - interval_mm[0]) / 2
        return float(middle_mm - half_mm), float(middle_mm + half_mm)


class SpatialTransform:
    """Applies a torchio transform to what a training sample shows.

    Image, label map and depth move together: snippets get the depth interval of the planes that show theirs, and those
    that left the crop are dropped and counted. What comes from outside is air. The number of voxels in the whole
    scan, by which the visible share of an organ is judged, stays what it was.

    Args:
        transform: Any torchio transform that keeps the grid, such as ``torchio.RandomAffine`` or
            ``torchio.RandomElasticDeformation``.

    Raises:
        ConfigError: If it, or a part of it, exchanges sides or axes: ``data.mirror_probability`` mirrors words too.

    Examples:
        >>> import torchio
        >>> transform = SpatialTransform(torchio.RandomAffine(scales=0, degrees=0, translation=(0, 0, 0, 0, 6, 6)))
        >>> image = np.full((8, 4, 4), 40, np.int16)
        >>> moved = transform(image, None, Grid((8, 4, 4), (3.0, 1.5, 1.5), (0.0, 0.0, 0.0)), seed=0)
        >>> moved.depth_mm((6.0, 6.0))
        (12.0, 12.0)
    """

    def __init__(self, transform: "Transform") -> None:
        for part in _parts(transform):
            if type(part).__name__.removeprefix("Random") in _SIDED:
                raise ConfigError(
                    f"data.spatial has torchio's {type(part).__name__}, which would exchange sides in the image but "
                    "not in the words. Remove it; data.mirror_probability mirrors both."
                )
        self.transform = transform

    def __call__(
        self, image_hu: Int16[np.ndarray, "D H W"], organs: UInt8[np.ndarray, "D H W"] | None, grid: Grid, seed: int
    ) -> Moved:
        """Transform a crop.

        Args:
            image_hu: Image in HU.
            organs: Label map on the same voxels.
            grid: Where they lie.
            seed: What torchio's draws are seeded with; the generators outside stay as they are.

        Raises:
            ConfigError: If the transform changed the number of voxels.
        """
        import torchio

        planes = np.broadcast_to(np.arange(1, len(image_hu) + 1, dtype=np.int32)[:, None, None], image_hu.shape)
        content: dict[str, Any] = {
            "image": torchio.ScalarImage(tensor=_to_torchio(image_hu.astype(np.float32)), affine=grid.affine),
            "planes": torchio.LabelMap(tensor=_to_torchio(planes), affine=grid.affine),
        }
        if organs is not None:
            content["organs"] = torchio.LabelMap(tensor=_to_torchio(organs), affine=grid.affine)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices too, for good
            made = self.transform(torchio.Subject(**content))
        found = {name: made[name].data[0].numpy().transpose(2, 1, 0) for name in content}
        if found["image"].shape != image_hu.shape:
            raise ConfigError(
                f"data.spatial changed a crop from {image_hu.shape} to {found['image'].shape} voxels (D, H, W). "
                "Use transforms that keep the grid; data.crop sets the extent."
            )
        inside = found["planes"] > 0
        hu = np.where(inside, np.rint(found["image"]), _AIR_HU).clip(_AIR_HU, 3071).astype(np.int16)
        labels = found["organs"].astype(np.uint8) if organs is not None else None
        return Moved(hu, labels, found["planes"].astype(np.int64), grid)


def _to_torchio(voxels: np.ndarray) -> torch.Tensor:
    """Voxels ``D H W`` as torchio's ``1 W H D``."""
    return torch.from_numpy(np.ascontiguousarray(voxels.transpose(2, 1, 0)))[None]


def _parts(transform: "Transform") -> Iterator["Transform"]:
    yield transform
    children: Iterable[Transform] = getattr(transform, "transforms", getattr(transform, "transforms_dict", ()))
    for child in children:
        yield from _parts(child)
