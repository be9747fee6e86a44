"""A small hospital for every test of the room."""

from collections.abc import Callable, Mapping

import pytest
from hospital_files import body_hu, write_dicom, write_nifti, write_table


@pytest.fixture
def hospital() -> Mapping[str, Callable]:
    """The writers, so that test modules need no import from here."""
    return {"body": body_hu, "nifti": write_nifti, "dicom": write_dicom, "table": write_table}
