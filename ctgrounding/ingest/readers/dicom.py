"""DICOM series in folders, mixed or not. Slices are placed by their tags, never by file name or number.

Messages name slices by their place, never by file name or tag, because both may identify a patient.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from ctgrounding.errors import ScanError
from ctgrounding.geometry import LPS_TO_RAS, Affine, Triple
from ctgrounding.ingest.readers.source import SourceSlice, Stored

MIN_SLICES = 3
GAP_TOLERANCE = 0.05
"""Share of the slice distance by which a gap may differ from it, besides :data:`ROUNDING_MM`."""
ROUNDING_MM = 0.05
"""What positions written with few decimals may be off by."""

_DESCRIPTIONS = frozenset(
    [
        "ORIGINAL",
        "DERIVED",
        "PRIMARY",
        "SECONDARY",
        "AXIAL",
        "HELIX",
        "VOLUME",
        "REFORMATTED",
        "MPR",
        "HFS",
        "HFP",
        "HFDL",
        "HFDR",
        "FFS",
        "FFP",
        "FFDL",
        "FFDR",
    ]
)
"""Header words that verdicts keep; anything else might identify."""

_BROKEN = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, NotImplementedError)
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Transfer syntaxes whose pixels lie in the file as little-endian numbers."""


@dataclass(frozen=True)
class DicomSource:
    """One axial series of a DICOM folder, sorted along its normal; opened by :func:`open_dicom`."""

    files: tuple["_Header", ...]
    affine: Affine
    shape_ijk: Triple
    series: int | None
    frame: str
    uid: str
    slices: Mapping[int, SourceSlice]
    facts: Mapping[str, Any]

    def load(self) -> Stored:
        """See :meth:`ctgrounding.ingest.readers.source.Source.load`.

        Slices that do not share one slope and intercept are brought to HU each by its own.
        """
        planes = []
        for number, header in enumerate(self.files, start=1):
            try:
                planes.append(_pixels(header))
            except _BROKEN as error:
                raise ScanError(
                    f"Slice {number} of {len(self.files)} is cut short or cannot be decoded "
                    f"({type(error).__name__}). Copy it again."
                ) from error
        rules = {(slope, intercept) for _, slope, intercept in planes}
        if len(rules) == 1:
            return Stored(np.stack([values for values, _, _ in planes]), *rules.pop())
        return Stored(np.stack([values.astype(np.float32) * slope + offset for values, slope, offset in planes]))


def open_dicom(folder: Path, series: int | None = None) -> DicomSource:
    """Find a series in a folder, nested or mixed, and place its slices.

    Args:
        folder: Folder with DICOM files, with or without extension.
        series: Series number wanted; None if the folder holds only one with enough slices.

    Raises:
        ScanError: If there is no such series, several fit, it is no axial CT volume, slices are missing or
            repeated, or their headers contradict each other.
    """
    by_series: dict[str, list[_Header]] = defaultdict(list)
    for header in _headers(folder, folder.stat().st_mtime_ns):
        by_series[header.uid].append(header)
    return _place(_chosen(list(by_series.values()), series))


@dataclass(frozen=True)
class _Header:
    path: Path
    uid: str
    series: int | None
    image: int | None
    sop: str
    frame: str
    modality: str
    kind: tuple[str, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    pixel_mm: tuple[float, ...]
    size: tuple[int, int]
    patient_position: str
    slope: float
    intercept: float
    syntax: str
    is_signed: bool
    bits: tuple[int, int, int]
    pixels_at: int


@lru_cache(maxsize=8)
def _headers(folder: Path, _changed_ns: int) -> tuple[_Header, ...]:
    found = []
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        try:
            with path.open("rb") as stream:
                tags = pydicom.dcmread(stream, stop_before_pixels=True)
                found.append(_header(path, tags, stream.tell()))
        except InvalidDicomError:
            continue
        except _BROKEN as error:
            raise ScanError(
                f"A DICOM header cannot be read ({type(error).__name__}). Copy the folder again."
            ) from error
    if not found:
        raise ScanError("The folder holds no DICOM file.")
    return tuple(found)


def _header(path: Path, tags: Dataset, pixels_at: int) -> _Header:
    """What places a slice. Values are taken raw, since pydicom's own conversion costs more than reading them."""

    def text(keyword: str) -> str:
        element = tags.get_item(keyword)
        value = b"" if element is None else element.value
        return value.decode("ascii", "replace").strip(" \0") if isinstance(value, bytes) else str(value or "")

    def texts(keyword: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text(keyword).split("\\")) if text(keyword) else ()

    def whole(keyword: str) -> int:
        return int(tags.get(keyword) or 0)

    return _Header(
        path=path,
        uid=text("SeriesInstanceUID"),
        series=int(text("SeriesNumber")) if text("SeriesNumber") else None,
        image=int(text("InstanceNumber")) if text("InstanceNumber") else None,
        sop=text("SOPInstanceUID"),
        frame=text("FrameOfReferenceUID"),
        modality=text("Modality"),
        kind=texts("ImageType"),
        position=tuple(map(float, texts("ImagePositionPatient"))),
        orientation=tuple(map(float, texts("ImageOrientationPatient"))),
        pixel_mm=tuple(map(float, texts("PixelSpacing"))),
        size=(whole("Rows"), whole("Columns")),
        patient_position=text("PatientPosition"),
        slope=float(text("RescaleSlope") or 1),
        intercept=float(text("RescaleIntercept") or 0),
        syntax=str(tags.file_meta.get("TransferSyntaxUID", "")),
        is_signed=whole("PixelRepresentation") == 1,
        bits=(whole("BitsAllocated"), whole("BitsStored"), whole("SamplesPerPixel")),
        pixels_at=pixels_at,
    )


def _chosen(groups: list[list[_Header]], series: int | None) -> list[_Header]:
    numbers = ", ".join(sorted({"none" if group[0].series is None else str(group[0].series) for group in groups}))
    if series is not None:
        wanted = [group for group in groups if group[0].series == series]
        if not wanted:
            raise ScanError(f"The folder has no series {series}; it has series numbers {numbers}.", "no_such_series")
    else:
        wanted = [group for group in groups if _is_volume(group)]
        if not wanted:
            raise ScanError(f"No series of the folder is a CT volume of at least {MIN_SLICES} axial slices.", "not_ct")
    if len(wanted) > 1:
        raise ScanError(
            f"{len(wanted)} series of the folder fit (series numbers {numbers}). Name one in the card.",
            "no_such_series",
        )
    return wanted[0]


def _is_volume(group: list[_Header]) -> bool:
    first = group[0]
    return first.modality == "CT" and len(group) >= MIN_SLICES and "LOCALIZER" not in first.kind


def _place(group: list[_Header]) -> DicomSource:
    first = group[0]
    _check_alike(group)
    along_row, along_column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(along_row, along_column)
    positions = np.array([header.position for header in group])
    order = np.argsort(positions @ normal, kind="stable")
    placed = positions[order]
    step = _slice_step(placed, normal)
    lps = np.eye(4)
    lps[:3, 0] = along_row * first.pixel_mm[1]
    lps[:3, 1] = along_column * first.pixel_mm[0]
    lps[:3, 2] = step
    lps[:3, 3] = placed[0]
    ordered = [group[index] for index in order]
    kept = [*first.kind, first.patient_position]
    facts = {"reader": "dicom", "described_as": [word for word in kept if word in _DESCRIPTIONS]}
    return DicomSource(
        files=tuple(ordered),
        affine=LPS_TO_RAS @ lps,
        shape_ijk=(first.size[1], first.size[0], len(ordered)),
        series=first.series,
        frame=first.frame,
        uid=first.uid,
        slices=_numbered(ordered),
        facts=facts,
    )


def _check_alike(group: list[_Header]) -> None:
    first = group[0]
    if first.modality != "CT":
        raise ScanError(f"The series is {first.modality or 'of no modality'}, not CT.", "not_ct")
    if "LOCALIZER" in first.kind:
        raise ScanError("The series is a localizer, not a volume.", "not_ct")
    if len(group) < MIN_SLICES:
        raise ScanError(f"The series has {len(group)} slices; at least {MIN_SLICES} are needed.", "too_few_slices")
    if any((len(h.position), len(h.orientation), len(h.pixel_mm)) != (3, 6, 2) or min(h.size) < 1 for h in group):
        raise ScanError("A slice has no position, orientation, pixel spacing or size in its header.", "no_header")
    if not np.isfinite([(*h.position, *h.orientation, *h.pixel_mm) for h in group]).all():
        raise ScanError("A slice has a position, orientation or pixel spacing that is no finite number.", "bad_affine")
    turned = np.ptp([header.orientation for header in group], axis=0).max()
    scaled = np.ptp([header.pixel_mm for header in group], axis=0).max()
    if turned > 1e-3 or scaled > 1e-3 or len({header.size for header in group}) > 1:
        raise ScanError(
            "The slices of the series differ in orientation, pixel spacing or size, so they are no volume.",
            "uneven_slices",
        )


def _slice_step(placed: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Vector from one slice to the next, from the first and last position; refuses uneven stacks."""
    gaps = np.diff(placed @ normal)
    usual = float(np.median(gaps))
    repeated = int((gaps < 1e-3).sum())
    if repeated:
        raise ScanError(
            f"{repeated} slices repeat the position of another one. Keep one series a folder or number.",
            "repeated_slices",
        )
    off = np.abs(gaps - usual) > GAP_TOLERANCE * usual + ROUNDING_MM
    if off.any():
        raise _uneven(gaps, usual, off)
    step: np.ndarray = (placed[-1] - placed[0]) / (len(placed) - 1)
    drift = float(np.abs(placed - placed[0] - np.arange(len(placed))[:, None] * step).max())
    if drift > GAP_TOLERANCE * usual + ROUNDING_MM:
        raise ScanError(f"The slices do not lie on one line: one is {drift:.2f} mm beside it.", "uneven_slices")
    return step


def _uneven(gaps: np.ndarray, usual: float, off: np.ndarray) -> ScanError:
    """Slices are missing where every odd gap is a multiple of the usual one; else the gaps are just uneven."""
    place = int(off.argmax())
    where = f"The gap after slice {place + 1} of {len(gaps) + 1} is {gaps[place]:.2f} mm, elsewhere {usual:.2f} mm"
    steps = np.rint(gaps[off] / usual)
    if (steps >= 2).all() and (np.abs(gaps[off] - steps * usual) <= GAP_TOLERANCE * usual + ROUNDING_MM).all():
        return ScanError(f"{where}: {int((steps - 1).sum())} slices are missing.", "missing_slices")
    return ScanError(f"{where}; {int(off.sum())} of {len(gaps)} gaps are uneven.", "uneven_slices")


def _numbered(ordered: list[_Header]) -> dict[int, SourceSlice]:
    """Image number to slice; numbers that occur twice are left out, for they name no slice."""
    numbers = [header.image for header in ordered]
    return {
        header.image: SourceSlice(index, header.sop)
        for index, header in enumerate(ordered)
        if header.image is not None and numbers.count(header.image) == 1
    }


def _pixels(header: _Header) -> tuple[np.ndarray, float, float]:
    """Stored values, slope and intercept of one file."""
    if header.syntax in _PLAIN and header.bits == (16, 16, 1):
        return _plain(header), header.slope, header.intercept
    if UID(header.syntax).is_compressed:
        return _decoded(header.path), 1.0, 0.0
    values = pydicom.dcmread(header.path).pixel_array
    if values.shape != header.size:
        raise ValueError(f"{values.shape} pixels instead of {header.size}")
    return values, header.slope, header.intercept


def _plain(header: _Header) -> np.ndarray:
    """Uncompressed pixels, read where the header ended."""
    count = header.size[0] * header.size[1]
    with header.path.open("rb") as stream:
        stream.seek(header.pixels_at)
        element = stream.read(8 if header.syntax == _PLAIN[0] else 12)
        length = int.from_bytes(element[-4:], "little")
        if element[:4] != b"\xe0\x7f\x10\x00" or length not in (2 * count, 2 * count + 1):
            raise ValueError(f"{length} bytes of pixels instead of {2 * count}")
        values = np.fromfile(stream, "<i2" if header.is_signed else "<u2", count)
    return values.reshape(header.size)


def _decoded(path: Path) -> np.ndarray:
    """A compressed slice through GDCM, which also applies slope and intercept."""
    import SimpleITK as sitk  # noqa: N813  the library's own abbreviation

    values: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    return values
