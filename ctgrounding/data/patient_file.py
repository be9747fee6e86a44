"""A file that outlives a full disk. HDF5 cannot close one whose last bytes found no room, and holds it for ever."""

import os
from pathlib import Path


class PatientFile:
    """A file for h5py that remembers the first error of writing and lets HDF5 go on to its orderly end.

    Whoever writes asks :attr:`error` and gives the file up.

    Args:
        path: File to make.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._place = 0
        self._end = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, which counts from the start or from the end of all that was to be written."""
        self._place = offset + (self._end if whence == os.SEEK_END else self._place if whence == os.SEEK_CUR else 0)
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def write(self, data: bytes | memoryview) -> int:
        """Write all of the data, or remember why not."""
        room = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(room) and self.error is None:
                done += os.pwrite(self._descriptor, room[done:], self._place + done)
        except OSError as error:
            self.error = error
        self._place += len(room)
        self._end = max(self._end, self._place)
        return len(room)

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes from the place on, all that follow if it is negative."""
        room = bytearray(max(0, self._end - self._place) if size < 0 else size)
        self.readinto(memoryview(room))
        return bytes(room)

    def readinto(self, room: memoryview) -> int:
        """Fill the room from the place on; zeros where nothing was written."""
        found = os.pread(self._descriptor, len(room), self._place)
        room[: len(found)] = found
        room[len(found) :] = bytes(len(room) - len(found))
        self._place += len(room)
        return len(room)

    def truncate(self, size: int | None = None) -> int:
        """Make the file end at a size; the place where None is given."""
        self._end = self._place if size is None else size
        try:
            os.ftruncate(self._descriptor, self._end)
        except OSError as error:
            self.error = self.error or error
        return self._end

    def flush(self) -> None:
        """Nothing is held back."""

    def sync(self) -> None:
        """See that the disk has everything.

        Raises:
            OSError: If it has not.
        """
        if self.error is not None:
            raise self.error
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Release the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
