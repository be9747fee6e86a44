"""Closed contours to voxels: what lies inside by the even-odd rule, at the voxels' centres."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Triple

Contour = Float64[np.ndarray, "points 3"]
"""Corners ``(i, j, k)`` in index coordinates; the last is joined to the first."""

OUT_OF_PLANE = 0.5
"""Slices by which the corners of one contour may differ in depth."""


def fill_contours(contours: Sequence[Contour], shape_ijk: Triple) -> Bool[np.ndarray, "k j i"]:
    """Voxels inside a structure that is drawn plane by plane.

    Contours of one plane are combined by the even-odd rule, so an inner contour is a hole. A slice takes the nearest
    plane that is drawn, if it lies within half the distance of planes; so contours on every third slice fill the
    slices between them, and finer planes than slices are thinned.

    Args:
        contours: Closed contours, each in a plane of one ``k``.
        shape_ijk: Size of the grid.

    Raises:
        ScanError: If a contour is not drawn in a plane of the grid's slices.

    Examples:
        >>> square = np.array([[0.5, 0.5, 1], [2.5, 0.5, 1], [2.5, 2.5, 1], [0.5, 2.5, 1]])
        >>> fill_contours([square], (4, 4, 3)).sum()
        np.int64(4)
    """
    filled = np.zeros(shape_ijk[::-1], bool)
    planes: dict[float, list[Contour]] = {}
    for contour in contours:
        if np.ptp(contour[:, 2]) > OUT_OF_PLANE:
            raise ScanError(
                "A contour of the masks does not lie in a slice of the scan. Take the structures of this series.",
                "mask_outside",
            )
        planes.setdefault(round(float(contour[:, 2].mean()), 2), []).append(contour)
    if not planes:
        return filled
    depths = np.array(sorted(planes))
    reach = max(float(np.median(np.diff(depths))) if len(depths) > 1 else 1.0, 1.0) / 2
    drawn: dict[float, Bool[np.ndarray, "j i"]] = {}
    for k in range(shape_ijk[2]):
        depth = float(depths[np.abs(depths - k).argmin()])
        if abs(depth - k) <= reach + 1e-6:
            if depth not in drawn:
                drawn[depth] = _even_odd(planes[depth], shape_ijk)
            filled[k] = drawn[depth]
    return filled


def _even_odd(contours: Sequence[Contour], shape_ijk: Triple) -> Bool[np.ndarray, "j i"]:
    """Pixel centres from which a ray to lower ``i`` crosses the contours an odd number of times."""
    width, height = shape_ijk[:2]
    crossings = np.zeros((height, width + 1), np.int64)
    for contour in contours:
        x0, y0 = contour[:, 0], contour[:, 1]
        x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
        first = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(int)
        last = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(int)
        edge = np.repeat(np.arange(len(contour)), last - first)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
        at = x0[edge] + (row - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
        np.add.at(crossings, (row, np.clip(np.ceil(at), 0, width).astype(int)), 1)
    inside: Bool[np.ndarray, "j i"] = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return inside
