"""Files that are whole or not there: written beside their name, then named."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, TextIO


@contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[TextIO]:
    """Open a text file that takes its name, and the place of an older one, only when the block ends well.

    What a killed process left of the same file is removed, where locks tell that it was killed.

    Args:
        path: Name of the finished file.
        mode: Permissions, less the process's umask.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, whole_file(Path(folder) / "a.txt") as stream:
        ...     stream.write("a")
        1
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        _remove_if_left(left)
    with suppress(FileNotFoundError):
        partial.unlink()
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            hold(stream)
            yield stream
            stream.flush()
            os.fsync(descriptor)
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def hold(stream: IO[str] | IO[bytes], *, waits: bool = True) -> bool:
    """Lock an open file until it is closed or its process ends.

    Args:
        stream: The file.
        waits: Whether to wait for another process that holds it.

    Returns:
        Whether this process holds it now: not where another does, nor on systems that know no such locks.
    """
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        return True
    return False


def _remove_if_left(partial: Path) -> None:
    with suppress(OSError), partial.open("rb") as stream:  # another user's, or gone by now
        if hold(stream, waits=False):
            partial.unlink()
