"""The box of a scan that a sample shows, and where that box lies in the world."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from jaxtyping import Int64

from ctgrounding.data.records import ScanRecord
from ctgrounding.geometry import Grid

Triple = tuple[int, int, int]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class View:
    """A crop of a scan, mirrored or not.

    A mirrored view shows the scan reflected in its own middle plane between left and right, so the crop's
    place in the world is reflected with it.

    Attributes:
        record: The scan.
        start: First voxel of the box as stored.
        shape: Its extent along ``D H W``.
        is_mirrored: Whether left and right are exchanged.
    """

    record: ScanRecord
    start: Triple
    shape: Triple
    is_mirrored: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the box is the whole scan."""
        return self.shape == self.record.shape

    def cut(self, voxels: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The voxels of the box as shown."""
        return np.ascontiguousarray(voxels[:, :, ::-1]) if self.is_mirrored else voxels

    def valid_box(self) -> Int64[np.ndarray, "3 2"]:
        """Half-open box of the real voxels among those shown."""
        start, shape = np.asarray(self.start)[:, None], np.asarray(self.shape)[:, None]
        box: npt.NDArray[np.int64] = np.clip(np.asarray(self.record.valid_box, np.int64) - start, 0, shape)
        if self.is_mirrored:
            box[2] = self.shape[2] - box[2, ::-1]
        return box

    @property
    def grid(self) -> Grid:
        """The grid of the voxels shown."""
        d, h, w = self.start
        if self.is_mirrored:
            w = self.record.shape[2] - w - self.shape[2]
        whole = Grid(self.record.shape, self.record.spacing_mm, self.record.origin_mm)
        return whole.crop((d, h, w), self.shape)

    def depth_range_mm(self) -> tuple[float, float]:
        """Lowest and highest world z of the real voxels shown, to their outer faces."""
        low, high = self.valid_box()[0] - 0.5
        ends = self.grid.voxel_to_world([(low, 0, 0), (high, 0, 0)])
        return float(ends[0, 2]), float(ends[1, 2])
