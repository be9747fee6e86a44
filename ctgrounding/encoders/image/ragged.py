"""Scans of one size at a time: for networks whose statistics or borders would see padding."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor


class Group(NamedTuple):
    """Scans of a batch whose valid boxes cover the same cells.

    Attributes:
        scans: Their places in the batch.
        low: First voxel of the part to encode, a multiple of the stride.
        high: One past its last voxel.
    """

    scans: Int64[Tensor, "g"]
    low: tuple[int, ...]
    high: tuple[int, ...]


def groups(valid_box: Int64[Tensor, "b 3 2"], stride: Sequence[int]) -> Iterator[Group]:
    """Group scans by valid box, each box reaching down to whole strides.

    The grouping looks at nothing but each scan's own box, so a scan gets the same features in any batch.
    """
    step = torch.tensor(stride, device=valid_box.device)
    low = valid_box[..., 0] // step * step
    boxes, member = torch.unique(torch.cat([low, valid_box[..., 1]], dim=1), dim=0, return_inverse=True)
    for place, box in enumerate(boxes.tolist()):
        yield Group((member == place).nonzero()[:, 0], tuple(box[:3]), tuple(box[3:]))
