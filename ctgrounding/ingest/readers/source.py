"""What every reader yields: a source's geometry first, from headers alone, and its voxels when asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from jaxtyping import Shaped

from ctgrounding.geometry import Affine, Triple


@dataclass(frozen=True)
class SourceSlice:
    """One slice of a series, as reports cite it.

    Attributes:
        index: Its place along the third index axis of the source.
        slice_id: SOP instance UID, or a key of the ``slices`` table.
    """

    index: int
    slice_id: str


SeriesKind = Literal["axial", "derived", "localizer", "not axial"]
"""What a series is as far as a reference to it goes; ``not axial`` is a coronal or sagittal reformat."""


@dataclass(frozen=True)
class ListedSeries:
    """A series of an examination, whether it is a scan of the card or not.

    Attributes:
        kind: What it is.
        images: Its image numbers.
    """

    kind: SeriesKind
    images: frozenset[int]


@dataclass(frozen=True)
class Stored:
    """Voxels as a file holds them, and what its header says makes them HU.

    Attributes:
        values: ``values[k, j, i]`` belongs to index ``(i, j, k)`` of the source affine.
        slope: The header's slope.
        intercept: The header's intercept.
    """

    values: Shaped[np.ndarray, "k j i"]
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def scaled(self) -> Shaped[np.ndarray, "k j i"]:
        """Values by the header's slope and intercept, as masks are meant; an image's HU are the audit's to decide."""
        is_plain = self.slope == 1 and self.intercept == 0
        return self.values if is_plain else self.values * self.slope + self.intercept


class Source(Protocol):
    """An image or label map on disk. Made by :func:`ctgrounding.ingest.readers.open_source`."""

    @property
    def affine(self) -> Affine:
        """Maps index ``(i, j, k)`` to RAS mm."""

    @property
    def shape_ijk(self) -> Triple:
        """Size along ``i, j, k``."""

    @property
    def series(self) -> int | None:
        """Series number, where the file has one."""

    @property
    def frame(self) -> str:
        """Identifier of the world frame; empty where the file has none."""

    @property
    def uid(self) -> str:
        """Identifier of the series (SeriesInstanceUID); empty where the file has none."""

    @property
    def slices(self) -> Mapping[int, SourceSlice]:
        """Image number to slice; empty where the file numbers none."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the header says that the verdict keeps: kind, orientation and the like; nothing that identifies."""

    def load(self) -> Stored:
        """Read the voxels.

        Raises:
            ScanError: If they are cut short or cannot be decoded.
        """


@dataclass(frozen=True)
class ArrayFile:
    """What sources of formats that hold one array have in common: no image numbers, no frame, no identifier.

    Attributes:
        path: The file.
        affine: Maps index ``(i, j, k)`` to RAS mm.
        shape_ijk: Size along ``i, j, k``.
        facts: What the header says, for the audit.
        series: Series number that reports cite it by, where the card has one.
        frame: Always empty.
        uid: Always empty.
    """

    path: Path
    affine: Affine
    shape_ijk: Triple
    facts: Mapping[str, Any]
    series: int | None = None
    frame: str = ""
    uid: str = ""

    @property
    def slices(self) -> Mapping[int, SourceSlice]:
        """Empty: the format knows no image numbers."""
        return {}
