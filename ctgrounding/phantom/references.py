"""Image references as radiologists write them."""

from dataclasses import dataclass

import numpy as np

from ctgrounding.phantom.acquisition import Acquisition
from ctgrounding.phantom.shapes import Point

PAIR_FORMS = (
    " (series {s}, image {i})",
    " (se {s}, im {i})",
    " ({s}:{i})",
    " (image {i} of series {s})",
    ", image {i} of series {s}",
    " (series {s}/image {i})",
    " (ser. {s} img {i})",
    " (Se: {s}, Im: {i})",
    ", see series {s}, image {i}",
)
"""Ways to name one image of one series."""
IMAGE_FORMS = (" (image {i})", " (img {i})", ", see image {i}")
"""Ways to name one image where the study has a single series."""
RANGE_FORMS = (
    " (series {s}, images {a}-{b})",
    ", ser. {s} img {a}-{b}",
    " ({s}:{a}-{b})",
    " (images {a}-{b} of series {s})",
)
"""Ways to name some images in a row."""
LONGEST_RANGE = 6


@dataclass(frozen=True)
class Reference:
    """A reference as it stands in the report, and what it truly points at.

    Attributes:
        text: As written, with the brackets or the comma before it.
        sentence: The sentence that holds it.
        series: Series that is meant, named or not.
        images: Image numbers that are meant, in rising order.
        depth_mm: World z of what the sentence speaks of.
        organ: Organ that the sentence speaks of, empty if none.
        kind: Kind of the finding, empty for a normal organ.
    """

    text: str
    sentence: str
    series: int
    images: tuple[int, ...]
    depth_mm: float
    organ: str
    kind: str


class Pointer:
    """Writes references in one author's hand: a favourite form and now and then another.

    Args:
        acquisitions: The study's reconstructions.
        rng: Source of chance.
    """

    def __init__(self, acquisitions: list[Acquisition], rng: np.random.Generator) -> None:
        self._acquisitions = acquisitions
        self._rng = rng
        self._favourite = int(rng.integers(len(PAIR_FORMS)))

    def point(self, centre_mm: Point, extent_mm: tuple[Point, Point] | None = None) -> tuple[str, int, tuple[int, ...]]:
        """Refer to the slice through a point, or sometimes to all slices through an extent.

        Args:
            centre_mm: World position of what is meant.
            extent_mm: Box around it, where a range of images may be named.

        Returns:
            The text, the series and the image numbers.
        """
        rng = self._rng
        scan = self._acquisitions[int(rng.integers(len(self._acquisitions)))]
        image = scan.image_numbers[scan.slice_through(centre_mm)]
        if extent_mm is not None and rng.uniform() < 0.2:
            x, y, _ = centre_mm
            ends = sorted(scan.image_numbers[scan.slice_through((x, y, corner[2]))] for corner in extent_mm)
            if 2 <= ends[1] - ends[0] < LONGEST_RANGE:
                form = RANGE_FORMS[rng.integers(len(RANGE_FORMS))]
                text = form.format(s=scan.series, a=ends[0], b=ends[1])
                return text, scan.series, tuple(range(ends[0], ends[1] + 1))
        if len(self._acquisitions) == 1 and rng.uniform() < 0.15:
            text = IMAGE_FORMS[rng.integers(len(IMAGE_FORMS))].format(i=image)
        else:
            habit = self._favourite if rng.uniform() < 0.6 else int(rng.integers(len(PAIR_FORMS)))
            text = PAIR_FORMS[habit].format(s=scan.series, i=image)
        return text, scan.series, (image,)
