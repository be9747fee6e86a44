"""Randomness and identity that depend on names alone, never on process, order or platform."""

import hashlib

import numpy as np

Part = int | str


def keyed_generator(*parts: Part) -> np.random.Generator:
    """A random generator that is a pure function of its key.

    Args:
        parts: The key, for example ``("crop", seed, epoch, scan_id)``. Start with a word for the purpose,
            so that two purposes do not share a stream.

    Examples:
        >>> bool(keyed_generator("crop", 0, 3, "a").random() == keyed_generator("crop", 0, 3, "a").random())
        True
    """
    return np.random.default_rng(int.from_bytes(_digest(parts, 16), "little"))


def stable_hash(*parts: Part) -> int:
    """A hash in ``[0, 2**63)`` that is equal in every process and version.

    Two different keys among n collide with probability of about ``n**2 / 2**64``.
    """
    return int.from_bytes(_digest(parts, 8), "little") >> 1


def _digest(parts: tuple[Part, ...], size: int) -> bytes:
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).digest()
