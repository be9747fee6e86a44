"""A few scans to show, chosen by a hash of their names: before any result and alike on any number of ranks."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int16
from numpy.typing import NDArray

from ctgrounding import distributed
from ctgrounding.errors import ConfigError
from ctgrounding.types import Batch

_LARGEST_SIDE = 320
_SLAB_MM = 20.0


class Examples:
    """Keeps the ``count`` scans whose names hash lowest; of several items of a scan one, chosen alike.

    Args:
        count: How many scans to keep.
        seed: Another seed, other scans.

    Raises:
        ConfigError: If the count is below 0.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        check_examples(count)
        self.count, self.seed = count, seed
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._kept: dict[str, tuple[str, dict[str, Any]]] = {}

    def offer(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Keep an item of a scan if the scan's name qualifies.

        Args:
            key: The scan.
            make: Makes the item as JSON values; called for scans that qualify so far. Its ``text`` decides
                which of a scan's items is kept.
        """
        rank = self._hash(key)
        others = sorted(self._hash(name) for name in self._kept if name != key)
        if not self.count or (len(others) >= self.count and rank > others[self.count - 1]):
            return
        item = make()
        place = self._hash(key + str(item["text"]))
        if key not in self._kept or place < self._kept[key][0]:
            self._kept[key] = (place, item)
        for name in sorted(self._kept, key=self._hash)[self.count :]:
            del self._kept[name]

    def gathered(self) -> list[dict[str, Any]]:
        """The items of the chosen scans of all ranks; a collective."""
        mine = [json.dumps([key, place, item]) for key, (place, item) in self._kept.items()]
        found: dict[str, tuple[str, dict[str, Any]]] = {}
        for key, place, item in map(json.loads, distributed.gather_strings(mine)):
            if key not in found or place < found[key][0]:
                found[key] = (place, item)
        return [found[key][1] for key in sorted(found, key=self._hash)[: self.count]]

    def _hash(self, name: str) -> str:
        return hashlib.sha256(f"{self.seed}/{name}".encode()).hexdigest()


def check_examples(examples: int) -> None:
    """Refuse a number of examples that there cannot be.

    Raises:
        ConfigError: If it is below 0.
    """
    if examples < 0:
        raise ConfigError(f"examples is {examples}, but must be a number from 0 on; 0 shows none.")


@dataclass(frozen=True)
class CoronalView:
    """A coronal picture of a scan and where it lies.

    Attributes:
        hu: Mean HU of a slab of 20 mm through the middle of the real voxels, ``D W``: rows go up.
        spacing_mm: Of its pixels along ``D W``.
        low_mm: World z of the centre of the lowest row.
    """

    hu: Int16[np.ndarray, "D W"]
    spacing_mm: tuple[float, float]
    low_mm: float


def coronal_of(batch: Batch, scan: int) -> CoronalView | None:
    """Coronal view of a scan of a batch; None where the batch holds no volumes."""
    place = scan
    for volumes in batch["volume"]:
        if place < len(volumes):
            if not volumes.numel():  # features are stored in the place of voxels
                return None
            box = batch["valid_box"][scan].tolist()
            spacing, origin = batch["spacing_mm"][scan].tolist(), batch["origin_mm"][scan].tolist()
            return coronal_view(volumes[place].cpu().numpy(), box, spacing, origin[2])
        place -= len(volumes)
    return None


def coronal_view(
    image_hu: Float[np.ndarray, "D H W"] | Int16[np.ndarray, "D H W"],
    valid_box: list[list[int]],
    spacing_mm: list[float],
    origin_z_mm: float,
) -> CoronalView:
    """Coronal view through the middle of a scan's real voxels.

    Args:
        image_hu: The volume.
        valid_box: Half-open box of its real voxels along ``D H W``.
        spacing_mm: Along ``D H W``.
        origin_z_mm: World z of the centre of the volume's first plane.
    """
    (d0, d1), (h0, h1), (w0, w1) = valid_box
    half = max(1, round(_SLAB_MM / 2 / spacing_mm[1]))
    middle = (h0 + h1) // 2
    slab = image_hu[d0:d1, max(h0, middle - half) : min(h1, middle + half), w0:w1]
    steps = [max(1, -(-size // _LARGEST_SIDE)) for size in (d1 - d0, w1 - w0)]
    picture = slab.mean(axis=1, dtype=np.float32).round().astype(np.int16)[:: steps[0], :: steps[1]]
    spacing = (spacing_mm[0] * steps[0], spacing_mm[2] * steps[1])
    return CoronalView(picture, spacing, origin_z_mm + d0 * spacing_mm[0])


def packed_image(view: CoronalView | None) -> dict[str, Any] | None:
    """A view as JSON values."""
    if view is None:
        return None
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(view.hu, dtype="<i2").tobytes(), level=6))
    return {
        "shape": list(view.hu.shape),
        "spacing_mm": list(view.spacing_mm),
        "low_mm": view.low_mm,
        "int16_zlib_base64": packed.decode("ascii"),
    }


def unpacked_image(packed: dict[str, Any]) -> CoronalView:
    """The view that :func:`packed_image` packed."""
    raw = zlib.decompress(base64.b64decode(packed["int16_zlib_base64"]))
    picture: NDArray[np.int16] = np.frombuffer(raw, dtype="<i2").reshape(packed["shape"]).astype(np.int16)
    high, wide = packed["spacing_mm"]
    return CoronalView(picture, (high, wide), packed["low_mm"])
