"""Open files kept per process: opened when first read, the least recently used closed, never shared by fork."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """Whatever :class:`Handles` keeps open."""

    def close(self) -> None:
        """Release the file."""


File = TypeVar("File", bound=Closable)


class Handles(Generic[File]):
    """The least recently used files of this process, each opened once.

    A forked child inherits the parent's handles, whose file positions and caches it would share; they are
    closed in the child (the parent's stay open) and opened anew. Reads of one process take turns, so that no
    thread closes a file that another one reads.

    Args:
        opener: Opens a file for reading.
        limit: Files kept open at most.
    """

    def __init__(self, opener: Callable[[Path], File], limit: int = 16) -> None:
        self._opener = opener
        self._limit = limit
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._files: OrderedDict[Path, File] = OrderedDict()

    @contextmanager
    def borrow(self, path: Path) -> Iterator[File]:
        """The open file at ``path``, for the length of a ``with`` block."""
        if self._pid != os.getpid():
            self._leave_parent()
        with self._lock:
            if path not in self._files:
                self._files[path] = self._opener(path)
            self._files.move_to_end(path)
            while len(self._files) > self._limit:
                self._files.popitem(last=False)[1].close()
            yield self._files[path]

    def drop(self, path: Path) -> None:
        """Close the file at ``path`` if it is open, because it is about to change."""
        if self._pid != os.getpid():
            self._leave_parent()
        with self._lock:
            file = self._files.pop(path, None)
            if file is not None:
                file.close()

    def _leave_parent(self) -> None:
        inherited = self._files
        self._start()
        for file in inherited.values():
            file.close()
