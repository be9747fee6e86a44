"""Stored values of DICOM slices: uncompressed ones straight from the file, others by pydicom's decoders or GDCM.

Transfer syntaxes that can be read with what the package installs: uncompressed, RLE, JPEG-LS (pyjpegls), JPEG 2000
(Pillow), and lossless or lossy JPEG (GDCM, in SimpleITK). Others, such as HTJ2K, need a decoder that pydicom finds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID

from ctgrounding.errors import ScanError
from ctgrounding.ingest.readers.dicom_headers import BROKEN, SliceHeader
from ctgrounding.ingest.readers.source import Stored

_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Transfer syntaxes whose pixels lie in the file as little-endian numbers."""

Plane = Shaped[np.ndarray, "j i"]


def read_pixels(headers: Sequence[SliceHeader]) -> Stored:
    """The values of a series, with the slope and intercept that its slices share.

    Slices that do not share one are brought to HU each by its own.

    Args:
        headers: At least one slice, in their order.

    Raises:
        ScanError: If one is cut short, or nothing that is installed decodes its transfer syntax.
    """
    rules = {(header.slope, header.intercept) for header in headers}
    values: Shaped[np.ndarray, "k j i"] = np.empty((len(headers), *headers[0].size), np.int16)
    for index, (header, plane) in enumerate(zip(headers, _planes(headers), strict=True)):
        own = plane if len(rules) == 1 else plane.astype(np.float32) * header.slope + header.intercept
        if own.dtype != values.dtype:
            values = values.astype(own.dtype if index == 0 else np.promote_types(own.dtype, values.dtype))
        values[index] = own
    return Stored(values, *rules.pop()) if len(rules) == 1 else Stored(values)


def _planes(headers: Sequence[SliceHeader]) -> Iterator[Plane]:
    """Each slice's values; a multi-frame file is decoded once."""
    path: Path | None = None
    frames: Shaped[np.ndarray, "k j i"] | None = None
    for number, header in enumerate(headers, start=1):
        try:
            if header.frame_index is None:
                plane = _plane(header)
            else:
                if frames is None or path != header.path:
                    path, frames = header.path, _all_frames(header)
                plane = frames[header.frame_index]
            if plane.shape != header.size:
                raise ValueError(f"{plane.shape} pixels instead of {header.size}")
        except ScanError:
            raise
        except (*BROKEN, IndexError) as error:
            raise ScanError(
                f"Slice {number} of {len(headers)} is cut short or cannot be decoded ({type(error).__name__}). "
                "Copy it again."
            ) from error
        yield plane


def _plane(header: SliceHeader) -> Plane:
    if header.syntax in _PLAIN and header.bits == (16, 16, 1):
        return _uncompressed(header)
    return _decoded(header)


def _all_frames(header: SliceHeader) -> Shaped[np.ndarray, "k j i"]:
    values = _decoded(header)
    return values.reshape(-1, *header.size)


def _uncompressed(header: SliceHeader) -> Plane:
    """Pixels read where the header ended."""
    count = header.size[0] * header.size[1]
    with header.path.open("rb") as stream:
        stream.seek(header.pixels_at)
        element = stream.read(8 if header.syntax == _PLAIN[0] else 12)
        length = int.from_bytes(element[-4:], "little")
        if element[:4] != b"\xe0\x7f\x10\x00" or length not in (2 * count, 2 * count + 1):
            raise ValueError(f"{length} bytes of pixels instead of {2 * count}")
        values = np.fromfile(stream, "<i2" if header.is_signed else "<u2", count)
    return values.reshape(header.size)


def _decoded(header: SliceHeader) -> Shaped[np.ndarray, "..."]:
    """Values of a file as stored, by the first decoder that knows its transfer syntax."""
    syntax = UID(header.syntax)
    if not syntax.is_encapsulated:
        return np.asarray(pixel_array(header.path))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ScanError(f"The pixels are in the transfer syntax {syntax.name}, which is no picture.") from error
    if decoder.is_available:
        return np.asarray(pixel_array(header.path))
    try:
        return _by_gdcm(header)
    except RuntimeError as error:
        raise ScanError(
            f"Nothing that is installed decodes the transfer syntax {syntax.name}. pydicom would with one of: "
            f"{'; '.join(decoder.missing_dependencies)}. Install it, or decompress the files."
        ) from error


def _by_gdcm(header: SliceHeader) -> Shaped[np.ndarray, "..."]:
    """GDCM, through ITK, which applies slope and intercept; they are taken off again."""
    import SimpleITK as sitk  # noqa: N813  the library's own abbreviation

    values = sitk.GetArrayFromImage(sitk.ReadImage(str(header.path)))
    stored = np.rint((values - np.float64(header.intercept)) / header.slope)
    dtype = np.int16 if header.is_signed else np.uint16
    whole: np.ndarray = stored.astype(dtype if header.bits[0] <= 16 else np.int32)
    return whole[0] if header.frame_index is None else whole
