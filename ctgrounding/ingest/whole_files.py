"""Files that are whole or not there: written beside their name, then named."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[TextIO]:
    """Open a text file that takes its name, and the place of an older one, only when the block ends well.

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
    with suppress(FileNotFoundError):
        partial.unlink()
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(descriptor)
        partial.replace(path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
