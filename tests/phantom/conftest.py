"""Some patients for every test of the phantom; coarse voxels keep them quick."""

import pytest

from ctgrounding.phantom import Patient, make_patient

SEED = 7


@pytest.fixture(scope="session")
def patients() -> list[Patient]:
    """Sixty-four patients, every other one written in the words kept for held-out patients."""
    return [make_patient(i, SEED, voxel_mm=12.0, wording="train" if i % 2 else "held_out") for i in range(64)]
