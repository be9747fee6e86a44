"""Scans as DICOM series, one CT Image Storage file a slice, as an archive exports them."""

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int16
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from ctgrounding.phantom.acquisition import Acquisition
from ctgrounding.phantom.nifti import stored_values

_DATE = "20240115"
_UID_SLOT, _IMAGE_SLOT, _DEPTH_SLOT = "2.25." + 38 * "1", "424242", "-44444.444444"
_CORNER_SLOT = ("-11111.111111", "-22222.222222", "-33333.333333")


def write_series(
    folder: Path,
    image_hu: Int16[np.ndarray, "d h w"],
    acquisition: Acquisition,
    identity: Mapping[str, str],
    rng: np.random.Generator,
) -> None:
    """Write one series.

    File names say nothing about the order of slices: only the position tags do, and the image numbers
    run downward in some series. What the slices share is encoded once, with marks of the right length
    where they differ: encoding every file anew takes longer than drawing the patient.

    Args:
        folder: Folder of the series; made if need be.
        image_hu: HU, padding included.
        acquisition: Geometry, series and image numbers, storage.
        identity: ``patient_id``, ``study_id``, ``scan_id``, ``sex`` (F or M) and ``seed``.
        rng: Source of chance for file names and patient position.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pixels = stored_values(image_hu, acquisition.storage)[:, ::-1, ::-1]
    header = _header(_shared_tags(acquisition, identity, str(rng.choice(["HFS", "FFS"]))), pixels[0].nbytes)
    names = rng.permutation(len(pixels))
    corners = _corners_lps(acquisition)
    for d, image in enumerate(acquisition.image_numbers):
        x, y, z = (f"{c:13.6f}" for c in corners[d])
        values = {
            _UID_SLOT: _uid(identity, f"{identity['scan_id']} {d}"),
            _IMAGE_SLOT: f"{image:6d}",
            **dict(zip(_CORNER_SLOT, (x, y, z), strict=True)),
            _DEPTH_SLOT: z,
        }
        slice_header = header
        for slot, value in values.items():
            slice_header = slice_header.replace(slot.encode(), value.encode())
        (folder / f"I{names[d]:05d}.dcm").write_bytes(slice_header + pixels[d].tobytes())


def _corners_lps(acquisition: Acquisition) -> Float64[np.ndarray, "d 3"]:
    """Centre of the first pixel of every slice: the corner to the patient's right and front."""
    depth, height, width = acquisition.shape
    index = np.stack([np.full(depth, width - 1.0), np.full(depth, height - 1.0), np.arange(depth), np.ones(depth)])
    world = (acquisition.affine @ index)[:3].T
    corners: Float64[np.ndarray, "d 3"] = world * (-1.0, -1.0, 1.0)
    return corners


def _shared_tags(acquisition: Acquisition, identity: Mapping[str, str], position: str) -> Dataset:
    """What the slices of a series share, and marks where they differ."""
    storage = acquisition.storage
    is_signed = storage.dtype == "int16"
    spacing_w, spacing_h, spacing_d = np.linalg.norm(acquisition.affine[:3, :3], axis=0)
    to_lps = np.array([-1.0, -1.0, 1.0])
    cosines = [-to_lps * acquisition.affine[:3, c] / s for c, s in ((0, spacing_w), (1, spacing_h))]
    tags: dict[str, Any] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": _UID_SLOT,
        "StudyDate": _DATE,
        "SeriesDate": _DATE,
        "AcquisitionDate": _DATE,
        "StudyTime": "101500",
        "AccessionNumber": identity["study_id"],
        "Modality": "CT",
        "Manufacturer": "ctgrounding phantom",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic CT",
        "SeriesDescription": f"Series {acquisition.series}",
        "PatientName": f"Phantom^{identity['patient_id']}",
        "PatientID": identity["patient_id"],
        "PatientBirthDate": "",
        "PatientSex": identity["sex"],
        "SliceThickness": f"{spacing_d:.6f}",
        "KVP": "120",
        "PatientPosition": position,
        "StudyInstanceUID": _uid(identity, identity["study_id"]),
        "SeriesInstanceUID": _uid(identity, identity["scan_id"]),
        "StudyID": "1",
        "SeriesNumber": str(acquisition.series),
        "InstanceNumber": _IMAGE_SLOT,
        "ImagePositionPatient": list(_CORNER_SLOT),
        "ImageOrientationPatient": [f"{c:.10f}" for cosine in cosines for c in cosine],
        "FrameOfReferenceUID": _uid(identity, f"{identity['study_id']} frame"),
        "PositionReferenceIndicator": "",
        "SliceLocation": _DEPTH_SLOT,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": acquisition.shape[1],
        "Columns": acquisition.shape[2],
        "PixelSpacing": [f"{spacing_h:.6f}", f"{spacing_w:.6f}"],
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": int(is_signed),
        "WindowCenter": "40",
        "WindowWidth": "400",
        "RescaleIntercept": f"{storage.intercept:g}",
        "RescaleSlope": f"{storage.slope:g}",
        "RescaleType": "HU",
    }
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    if storage.padding_hu is not None:
        padding = stored_values(np.array([storage.padding_hu], np.int16), storage).item()
        dataset.add_new("PixelPaddingValue", "SS" if is_signed else "US", padding)
    return dataset


def _header(dataset: Dataset, pixel_bytes: int) -> bytes:
    """Everything of a file before its pixels."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = _UID_SLOT
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = bytes(pixel_bytes)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()[:-pixel_bytes]


def _uid(identity: Mapping[str, str], what: str) -> str:
    """A UID of fixed length that only depends on the seed and on what it names."""
    digest = sha256(f"ctgrounding phantom {identity['seed']} {what}".encode()).digest()
    return f"2.25.{10**37 + int.from_bytes(digest[:15]) % 10**37:d}"
