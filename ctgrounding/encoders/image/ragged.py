"""Batches of scans of several sizes in parts: for statistics that must not see padding, and to save its cost."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor


class Group(NamedTuple):
    """Scans of a batch that are encoded together.

    Attributes:
        scans: Their places in the batch.
        low: First voxel of the part to encode, a multiple of the stride.
        high: One past its last voxel.
    """

    scans: Int64[Tensor, "g"]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def window(self) -> tuple[slice, ...]:
        """The part of the volumes to encode."""
        return (slice(None), *(slice(low, high) for low, high in zip(self.low, self.high, strict=True)))


def groups(valid_box: Int64[Tensor, "b 3 2"], stride: Sequence[int]) -> Iterator[Group]:
    """Group scans of equal valid boxes, each box reaching down to whole strides.

    The grouping looks at nothing but each scan's own box, so a scan gets the same features in any batch.
    """
    step = torch.tensor(stride, device=valid_box.device)
    low = valid_box[..., 0] // step * step
    boxes, member = torch.unique(torch.cat([low, valid_box[..., 1]], dim=1), dim=0, return_inverse=True)
    for place, box in enumerate(boxes.tolist()):
        yield Group((member == place).nonzero()[:, 0], tuple(box[:3]), tuple(box[3:]))


def by_extent(valid_box: Int64[Tensor, "b 3 2"], parts: int) -> Iterator[Group]:
    """Deal scans of similar extent into equal parts, each as large as its largest scan; nothing in front is cut."""
    ends = valid_box[..., 1]
    order = ends.prod(1).argsort(stable=True)
    for scans in order.tensor_split(min(parts, len(order))):
        yield Group(scans, (0, 0, 0), tuple(ends[scans].amax(0).tolist()))
