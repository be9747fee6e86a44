"""Readers: one function opens whatever a card or a user names."""

from pathlib import Path

from ctgrounding.errors import ScanError
from ctgrounding.ingest.readers.source import Source, SourceSlice, Stored

__all__ = ["Source", "SourceSlice", "Stored", "open_source"]


def open_source(path: Path, series: int | None = None) -> Source:
    """Open a NIfTI, NRRD, MetaImage or npz file or a DICOM folder (or multi-frame file), headers only.

    Args:
        path: File or folder.
        series: Which series of a DICOM folder; for a file the number that reports cite it by.

    Raises:
        ScanError: If there is nothing at ``path``, or nothing that can be read as a scan. The message names
            no path, so that it may be stored; the caller adds one where a person reads it.

    Examples:
        >>> open_source(Path("missing.nii.gz"))
        Traceback (most recent call last):
            ...
        ctgrounding.errors.ScanError: The file or folder does not exist.
    """
    if path.is_dir():
        from ctgrounding.ingest.readers.dicom import open_dicom

        return open_dicom(path, series)
    if not path.exists():
        raise ScanError("The file or folder does not exist.", "missing_file")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        from ctgrounding.ingest.readers.nifti import open_nifti

        return open_nifti(path, series)
    if path.suffix.lower() in (".nrrd", ".mha", ".mhd"):
        from ctgrounding.ingest.readers.itk import open_itk

        return open_itk(path, series)
    if path.suffix.lower() == ".npz":
        from ctgrounding.ingest.readers.npz import open_npz

        return open_npz(path, series)
    if _is_dicom(path):
        from ctgrounding.ingest.readers.dicom import open_dicom

        return open_dicom(path, series)
    raise ScanError(
        "The file is of no known kind. NIfTI (.nii, .nii.gz), NRRD (.nrrd), MetaImage (.mha, .mhd) and npz files, and "
        "DICOM files and folders can be read."
    )


def _is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever it is called."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError as error:
        raise ScanError(f"The file cannot be opened ({type(error).__name__}).") from error
