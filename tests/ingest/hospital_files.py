"""A small hospital: sources of known geometry, written as NIfTI, DICOM and tables."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

RNG_SEED = 7


def body_hu(shape_ijk: Sequence[int], seed: int = RNG_SEED) -> np.ndarray:
    """An ellipse of soft tissue in air, with noise, ``hu[i, j, k]``."""
    noise = np.random.default_rng(seed).normal(0, 12, tuple(shape_ijk))
    i, j = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape_ijk[:2]), indexing="ij")
    inside = (i / 0.8) ** 2 + (j / 0.7) ** 2 < 1
    return np.rint(np.where(inside[:, :, None], 45.0, -1000.0) + noise).astype(np.int16)


def write_nifti(path: Path, values: np.ndarray, affine: np.ndarray, slope: float = 1, intercept: float = 0) -> Path:
    """Write stored values with a header's slope and intercept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_data_dtype(values.dtype)
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, path)
    return path


def write_dicom(
    folder: Path,
    stored_kji: np.ndarray,
    positions_lps: np.ndarray,
    *,
    pixel_mm: tuple[float, float] = (2.0, 2.0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    series: int = 2,
    first_image: int = 1,
    intercept: float = -1024,
    frame: str = "1.2.3",
    extra: Mapping[str, object] | None = None,
) -> list[str]:
    """Write one file a slice, names in random order; returns the SOP instance UIDs by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    series_uid, uids = generate_uid(), []
    names = np.random.default_rng(series).permutation(len(stored_kji)) + 1000 * series
    for index, (plane, position) in enumerate(zip(stored_kji, positions_lps, strict=True)):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        tags = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        tags.SOPClassUID, tags.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        tags.Modality, tags.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        tags.SeriesInstanceUID, tags.SeriesNumber = series_uid, series
        tags.StudyInstanceUID, tags.FrameOfReferenceUID = "1.2.4", frame
        tags.InstanceNumber, tags.PatientPosition = first_image + index, "HFS"
        tags.ImagePositionPatient, tags.ImageOrientationPatient = list(map(float, position)), list(orientation)
        tags.PixelSpacing, tags.SliceThickness = list(pixel_mm), 2.0
        tags.Rows, tags.Columns = plane.shape
        tags.SamplesPerPixel, tags.PhotometricInterpretation = 1, "MONOCHROME2"
        tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 16, 16, 15, 1
        tags.RescaleSlope, tags.RescaleIntercept = 1, intercept
        tags.PixelData = np.ascontiguousarray(plane, dtype="<i2").tobytes()
        for name, value in (extra or {}).items():
            setattr(tags, name, value)
        uids.append(str(tags.SOPInstanceUID))
        pydicom.dcmwrite(folder / f"IM{names[index]:05d}", tags, enforce_file_format=True)
    return uids


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
