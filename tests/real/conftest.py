"""Real inputs beside the checkout; every test here skips where they are absent."""

import tarfile
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def crlm_folder(shared_data, tmp_path_factory) -> Path:
    """41 DICOM slices of an abdomen, series 2, images 45 to 85 running downwards."""
    archive = shared_data / "crlm_ct_1004" / "CRLM-CT-1004.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no DICOM series at {archive}")
    folder = tmp_path_factory.mktemp("crlm")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return folder
