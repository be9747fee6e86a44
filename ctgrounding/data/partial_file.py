"""HDF5 files that are written beside their name, verified by reading back, and only then named."""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from jaxtyping import Shaped

from ctgrounding.data.patient_file import PatientFile
from ctgrounding.data.shard_format import SUFFIX
from ctgrounding.errors import ShardError

_LAYOUT = ("v110", "v110")  # pinned: a newer HDF5 writes the same bytes, and attributes may pass 64 KiB


class PartialFile(ABC):
    """Base of writers: a context manager whose file has its name only when it is whole and has been read back.

    Leaving the ``with`` block by an exception removes what was written.

    Args:
        path: Name of the finished file, ending in ``.h5``.

    Raises:
        ShardError: If the name has another ending, or the folder cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != SUFFIX:
            raise ShardError(f"Shard name '{self.path.name}' does not end in {SUFFIX}. Rename the output.")
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._file: h5py.File | None = None
        self._disk: PatientFile | None = None

    def __enter__(self) -> Self:
        try:
            with self._writing():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._disk = PatientFile(self._partial)
                self._file = h5py.File(self._disk, "w", libver=_LAYOUT, meta_block_size=1 << 20)
        except ShardError:
            self._give_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._give_up()

    @abstractmethod
    def _describe(self, file: h5py.File) -> None:
        """Write what is known when all scans are."""

    @abstractmethod
    def _verify(self, partial: Path) -> None:
        """Read everything back and let go of any open handle of either name.

        Raises:
            ShardError: If something differs from what was written.
        """

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what HDF5 or the disk refuses into one sentence."""
        error: Exception | None = None
        try:
            yield
        except ShardError:
            raise
        except (OSError, RuntimeError, ValueError) as raised:
            error = raised
        cause = (self._disk and self._disk.error) or error
        if cause is not None:
            told = getattr(cause, "strerror", None) or str(cause)
            told = "the disk is full" if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else told
            raise ShardError(f"Cannot write {self._partial}: {told}. Check the folder and its free space.") from cause

    def _store(self, group: h5py.Group, name: str, values: Shaped[np.ndarray, "..."], **options: object) -> None:
        """Write an array now: HDF5 would wait until nobody holds it any more, and its place depend on when that is."""
        group.create_dataset(name, data=values, **options).flush()

    def _open_file(self) -> h5py.File:
        if self._file is None:
            raise ShardError(f"Shard {self.path} is not open for writing. Use {type(self).__name__} in a with block.")
        return self._file

    def _finish(self) -> None:
        file = self._open_file()
        with self._writing():
            self._describe(file)
            file.close()
            self._file = None
            if self._disk is not None:
                self._disk.sync()
        self._verify(self._partial)
        self._partial.replace(self.path)

    def _give_up(self) -> None:
        """Close and remove what has not been given its name."""
        for opened in (self._file, self._disk):
            if opened is not None:
                opened.close()
        self._file, self._disk = None, None
        with suppress(FileNotFoundError):
            self._partial.unlink()
