"""The headers of all slices in a DICOM folder: one a file, or one a frame of a multi-frame file."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import MediaStorageDirectoryStorage

from ctgrounding.errors import ScanError

BROKEN = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, NotImplementedError)
"""What pydicom throws at a damaged file."""


@dataclass(frozen=True)
class SliceHeader:
    """What places one slice and makes its values HU.

    Attributes:
        path: Its file.
        frame_index: Which frame of a multi-frame file, from 0; None for a file of one slice.
        uid: SeriesInstanceUID.
        series: SeriesNumber.
        image: InstanceNumber; in a multi-frame file the frame's number, from 1.
        sop: SOPInstanceUID, with the frame's number in a multi-frame file.
        frame: FrameOfReferenceUID.
        modality: Modality.
        kind: ImageType, or FrameType.
        position: ImagePositionPatient, mm; empty if missing, like all below.
        orientation: ImageOrientationPatient.
        pixel_mm: PixelSpacing.
        size: Rows and columns.
        patient_position: PatientPosition.
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        syntax: TransferSyntaxUID.
        is_signed: Whether PixelRepresentation says so.
        bits: BitsAllocated, BitsStored and SamplesPerPixel.
        pixels_at: Byte at which the pixel data element starts.
    """

    path: Path
    frame_index: int | None
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


def read_headers(folder: Path) -> tuple[SliceHeader, ...]:
    """The headers of all DICOM images under a folder, nested or not, whatever the files are called.

    Args:
        folder: The folder; or a single file.

    Raises:
        ScanError: If there is no DICOM image, or a header cannot be read.
    """
    entries = sorted(entry for entry in folder.rglob("*") if entry.is_file()) if folder.is_dir() else [folder]
    return _read(tuple(_State.of(entry) for entry in entries))


class _State(NamedTuple):
    """A file as it was found: one that is overwritten in its place leaves its folder's time as it was."""

    path: Path
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "_State":
        seen = path.stat()
        return cls(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(files: tuple[_State, ...]) -> tuple[SliceHeader, ...]:
    found: list[SliceHeader] = []
    for path, *_ in files:
        try:
            with path.open("rb") as stream:
                tags = pydicom.dcmread(stream, stop_before_pixels=True)
                pixels_at = stream.tell()
            if tags.file_meta.get("MediaStorageSOPClassUID") != MediaStorageDirectoryStorage:
                found.extend(_headers(path, tags, pixels_at))
        except InvalidDicomError:
            continue
        except BROKEN as error:
            raise ScanError(
                f"A DICOM header cannot be read ({type(error).__name__}). Copy the folder again."
            ) from error
    if not found:
        raise ScanError("The folder holds no DICOM file.")
    return tuple(found)


def _headers(path: Path, tags: Dataset, pixels_at: int) -> Iterator[SliceHeader]:
    if "PerFrameFunctionalGroupsSequence" in tags:
        yield from _frames(path, tags, pixels_at)
    else:
        yield _one(path, tags, pixels_at)


def _one(path: Path, tags: Dataset, pixels_at: int) -> SliceHeader:
    """What places a slice. Values are taken raw, since pydicom's own conversion costs more than reading them."""

    def text(keyword: str) -> str:
        return _text(tags, keyword)

    def texts(keyword: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text(keyword).split("\\")) if text(keyword) else ()

    return SliceHeader(
        path=path,
        frame_index=None,
        uid=text("SeriesInstanceUID"),
        series=_number(tags, "SeriesNumber"),
        image=_number(tags, "InstanceNumber"),
        sop=text("SOPInstanceUID"),
        frame=text("FrameOfReferenceUID"),
        modality=text("Modality"),
        kind=texts("ImageType"),
        position=tuple(map(float, texts("ImagePositionPatient"))),
        orientation=tuple(map(float, texts("ImageOrientationPatient"))),
        pixel_mm=tuple(map(float, texts("PixelSpacing"))),
        size=(_whole(tags, "Rows"), _whole(tags, "Columns")),
        patient_position=text("PatientPosition"),
        slope=float(text("RescaleSlope") or 1),
        intercept=float(text("RescaleIntercept") or 0),
        syntax=str(tags.file_meta.get("TransferSyntaxUID", "")),
        is_signed=_whole(tags, "PixelRepresentation") == 1,
        bits=(_whole(tags, "BitsAllocated"), _whole(tags, "BitsStored"), _whole(tags, "SamplesPerPixel")),
        pixels_at=pixels_at,
    )


def _frames(path: Path, tags: Dataset, pixels_at: int) -> Iterator[SliceHeader]:
    """The frames of an enhanced CT object; what a frame does not say is shared by all."""
    shared = next(iter(tags.get("SharedFunctionalGroupsSequence") or [Dataset()]))
    before = _whole(tags, "ConcatenationFrameOffsetNumber")
    for index, own in enumerate(tags.PerFrameFunctionalGroupsSequence):
        rescale = _group(own, shared, "PixelValueTransformationSequence")
        kind = _group(own, shared, "CTImageFrameTypeSequence").get("FrameType") or tags.get("ImageType") or ()
        number = before + index + 1
        yield SliceHeader(
            path=path,
            frame_index=index,
            uid=str(tags.get("SeriesInstanceUID", "")),
            series=_number(tags, "SeriesNumber"),
            image=number,
            sop=f"{tags.get('SOPInstanceUID', '')}/{number}",
            frame=str(tags.get("FrameOfReferenceUID", "")),
            modality=str(tags.get("Modality", "")),
            kind=tuple(map(str, kind)),
            position=_numbers(_group(own, shared, "PlanePositionSequence"), "ImagePositionPatient"),
            orientation=_numbers(_group(own, shared, "PlaneOrientationSequence"), "ImageOrientationPatient"),
            pixel_mm=_numbers(_group(own, shared, "PixelMeasuresSequence"), "PixelSpacing"),
            size=(_whole(tags, "Rows"), _whole(tags, "Columns")),
            patient_position=str(tags.get("PatientPosition", "")),
            slope=float(rescale.get("RescaleSlope", 1)),
            intercept=float(rescale.get("RescaleIntercept", 0)),
            syntax=str(tags.file_meta.get("TransferSyntaxUID", "")),
            is_signed=_whole(tags, "PixelRepresentation") == 1,
            bits=(_whole(tags, "BitsAllocated"), _whole(tags, "BitsStored"), _whole(tags, "SamplesPerPixel")),
            pixels_at=pixels_at,
        )


def _group(own: Dataset, shared: Dataset, name: str) -> Dataset:
    """A functional group of a frame: its own, else the shared one."""
    items = own.get(name) or shared.get(name) or [Dataset()]
    return items[0]


def _numbers(group: Dataset, keyword: str) -> tuple[float, ...]:
    return tuple(map(float, group.get(keyword) or ()))


def _text(tags: Dataset, keyword: str) -> str:
    element = tags.get_item(keyword)
    value = b"" if element is None else element.value
    if isinstance(value, bytes):
        return value.decode("ascii", "replace").strip(" \0")
    return "" if value is None else str(value)


def _number(tags: Dataset, keyword: str) -> int | None:
    """An integer string; archives hold some that are written as decimals, such as ``2.0``."""
    text = _text(tags, keyword)
    if text and not float(text).is_integer():
        raise ValueError(f"{keyword} is no whole number")
    return int(float(text)) if text else None


def _whole(tags: Dataset, keyword: str) -> int:
    return int(tags.get(keyword) or 0)
