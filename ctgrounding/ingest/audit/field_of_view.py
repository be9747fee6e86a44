"""What the planes of a scan say without its header: slices copied, and a field that cuts the body."""

import numpy as np
from jaxtyping import Bool, Shaped

from ctgrounding.ingest.audit.hu import SOFT_HU, HuRule

PLANES = 16
"""Slices looked at for a cut field."""
RING = (0.95, 0.99)
"""Where the edge of a round field lies, as shares of its radius."""
STRIDE = 7
"""Every so many-th row and column are compared before whole slices are."""


def body_at_edge(planes: Shaped[np.ndarray, "slices rows columns"], rule: HuRule) -> float:
    """Mean share of the edge of the field that is soft tissue: 0 where the whole body lies inside.

    The edge is the inscribed ellipse where all beyond it is one value, as scanners write round fields, else
    the border of the picture.

    Args:
        planes: Stored values by axial slice.
        rule: How they become HU.
    """
    chosen = np.unique(np.linspace(0, len(planes) - 1, PLANES).round().astype(int))
    edge, beyond = _edges(planes.shape[1:])
    outside = planes[chosen][:, beyond]
    if not (outside.size and outside.min() == outside.max()):
        edge = _border(planes.shape[1:])
    values = planes[chosen][:, edge].astype(np.float32) * np.float32(rule.slope) + np.float32(rule.intercept)
    return float(((values >= SOFT_HU[0]) & (values <= SOFT_HU[1])).mean()) if values.size else 0.0


def copied_slices(planes: Shaped[np.ndarray, "slices rows columns"]) -> list[int]:
    """Slices that equal the one before them in every pixel; slices of one constant value do not count.

    Args:
        planes: Values by axial slice.
    """
    sample = planes[:, ::STRIDE, ::STRIDE]
    alike = (sample[1:] == sample[:-1]).all(axis=(1, 2))
    return [
        int(place) + 1
        for place in np.flatnonzero(alike)
        if planes[place].min() < planes[place].max() and np.array_equal(planes[place], planes[place + 1])
    ]


def _edges(shape: tuple[int, ...]) -> tuple[Bool[np.ndarray, "rows columns"], Bool[np.ndarray, "rows columns"]]:
    """The ring just inside the inscribed ellipse, and all beyond it."""
    rows, columns = (np.abs(np.arange(size) - (size - 1) / 2) / (size / 2) for size in shape)
    radius = np.hypot(rows[:, None], columns)
    return (radius >= RING[0]) & (radius <= RING[1]), radius > 1.02


def _border(shape: tuple[int, ...]) -> Bool[np.ndarray, "rows columns"]:
    border = np.ones(shape, bool)
    border[1:-1, 1:-1] = False
    return border
