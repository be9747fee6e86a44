"""Keyed randomness: every draw of a phantom is a function of the seed, the patient and its purpose."""

from zlib import crc32

import numpy as np


def keyed(seed: int, index: int, purpose: str) -> np.random.Generator:
    """A generator of its own for one purpose of one patient, the same on any machine and in any process.

    Args:
        seed: Seed of the whole data set.
        index: Number of the patient, or of the block of patients.
        purpose: What it is for; different purposes do not share a stream.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, index, crc32(purpose.encode())]))
