"""Organ masks of every kind as one label map: a map, a folder with a file a class, DICOM SEG or RTSTRUCT.

Where two structures claim a voxel, the smaller one has it: an organ before the region around it. Structures that
neither the label set nor the card's names name are left out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from ctgrounding.errors import ScanError
from ctgrounding.geometry import Affine, Triple
from ctgrounding.ingest.readers import Source, open_source
from ctgrounding.ingest.readers.source import SourceSlice, Stored

Structure = tuple[int, Bool[np.ndarray, "k j i"]]
"""Label and mask."""

_MASK_FILES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class MaskSource:
    """Structures that become a label map when they are loaded."""

    affine: Affine
    shape_ijk: Triple
    structures: Callable[[], Iterable[Structure]]
    facts: Mapping[str, Any]
    frame: str = ""
    uid: str = ""
    series: int | None = None
    slices: Mapping[int, SourceSlice] = field(default_factory=dict)

    def load(self) -> Stored:
        """See :meth:`ctgrounding.ingest.readers.source.Source.load`."""
        return Stored(combine(self.structures(), self.shape_ijk))


def open_organs(path: Path, classes: Mapping[int, str], names: Mapping[str, str], image: Source) -> Source:
    """Open organ masks, headers only.

    Args:
        path: A label map (NIfTI, NRRD, MetaImage); a folder with such a file for each class, named after it; a DICOM
            SEG or RTSTRUCT file, or a folder that holds one.
        classes: The label set, label to organ.
        names: Name in the files to organ, where they differ; an empty organ leaves a structure out.
        image: The scan that they belong to.

    Returns:
        A source whose values are labels, on a grid of its own.

    Raises:
        ScanError: If there is nothing of that kind, it names no organ of the label set, its files lie on different
            grids, or it was drawn in another frame of reference than the scan.
    """
    from ctgrounding.ingest.readers.dicom_masks import find_dicom_masks

    labels = Labels(classes, names)
    files = _class_files(path) if path.is_dir() else []
    if files:
        return _folder(files, labels)
    if path.is_dir() or (path.exists() and not path.name.lower().endswith((*_MASK_FILES, ".npz"))):
        return find_dicom_masks(path, labels, image)
    return open_source(path)


class Labels:
    """Which label a structure's name means.

    Args:
        classes: Label to organ.
        names: Name in the files to organ.

    Examples:
        >>> Labels({2: "kidney_right"}, {}).of("Right Kidney")
        2
    """

    def __init__(self, classes: Mapping[int, str], names: Mapping[str, str]) -> None:
        self._names = names
        self._labels = {_words(organ): label for label, organ in classes.items()}

    def of(self, name: str) -> int | None:
        """The label of a structure, whatever the order and case of its words; None if the label set has none."""
        return self._labels.get(_words(self._names.get(name, name)))

    def named(self, names: Iterable[str]) -> dict[str, int]:
        """Those of some names that have a label.

        Raises:
            ScanError: If none has, or two have the same, be it under one name.
        """
        given = list(names)
        told = [(name, label) for name in given if (label := self.of(name)) is not None]
        found = dict(told)
        if not found:
            raise ScanError(
                f"The label set names none of the {len(given)} structures of the masks. Translate their names under "
                "organs.names.",
                "mask_labels",
            )
        if len(set(found.values())) < len(told):
            raise ScanError(
                "Two structures of the masks mean one organ. Leave one out under organs.names.", "mask_labels"
            )
        return found


def combine(structures: Iterable[Structure], shape_ijk: Triple) -> UInt8[np.ndarray, "k j i"]:
    """One label map of several masks; where two overlap the smaller structure has the voxel.

    Args:
        structures: Label and mask, each label once.
        shape_ijk: Size of the masks.
    """
    merged = np.zeros(shape_ijk[::-1], np.uint8)
    sizes = np.zeros(256, np.int64)
    for label, mask in structures:
        sizes[label] = np.count_nonzero(mask)
        there = merged[mask]
        merged[mask] = np.where((there == 0) | (sizes[there] > sizes[label]), np.uint8(label), there)
    return merged


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(name.lower().replace("-", "_").replace(" ", "_").split("_")))


def _class_files(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.name.lower().endswith(_MASK_FILES) and entry.is_file())


def _stem(path: Path) -> str:
    return path.name[: -len(next(end for end in (".nii.gz", *_MASK_FILES) if path.name.lower().endswith(end)))]


def _folder(files: list[Path], labels: Labels) -> MaskSource:
    named = labels.named(_stem(path) for path in files)
    opened = [(named[_stem(path)], open_source(path)) for path in files if _stem(path) in named]
    first = opened[0][1]
    for _, source in opened:
        if source.shape_ijk != first.shape_ijk or np.abs(source.affine - first.affine).max() > 1e-3:
            raise ScanError(
                "The masks of the folder lie on different grids. Make them from one scan.", "mask_unreadable"
            )

    def structures() -> Iterator[Structure]:
        for label, source in opened:
            yield label, source.load().scaled > 0.5

    facts = {"reader": "mask files", "structures": len(named), "left_out": len(files) - len(named)}
    return MaskSource(first.affine, first.shape_ijk, structures, facts)
