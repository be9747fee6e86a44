"""Vectors of a frozen text encoder on disk, so that each text is encoded once by each set of weights."""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ctgrounding.errors import ConfigError

_REMEMBERED = 2**28
"""Bytes of vectors that a process remembers for each folder."""

_ASKED = 500
"""Keys of one question to the database, which takes so many parameters at least."""


class VectorCache:
    """A folder with one SQLite file for each set of weights; several processes may use it at once.

    Args:
        folder: Where the files are; made when needed.

    Examples:
        >>> import tempfile
        >>> cache = VectorCache(tempfile.mkdtemp())
        >>> cache.write("weights", {b"text": torch.tensor([1.0, 2.0])})
        >>> cache.read("weights", [b"text", b"other"])
        {b'text': tensor([1., 2.])}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._open: dict[tuple[int, str], sqlite3.Connection] = {}
        self._remembered: dict[tuple[str, bytes], Tensor] = {}
        self._room = _REMEMBERED

    def read(self, weights: str, keys: Sequence[bytes]) -> dict[bytes, Float[Tensor, "E"]]:
        """Vectors of those keys that are there.

        Args:
            weights: What tells one set of weights from another.
            keys: Texts, see :func:`row_keys`.

        Raises:
            ConfigError: If the file is no cache.
        """
        here = {key: self._remembered.get((weights, key)) for key in keys}
        found = {key: vector for key, vector in here.items() if vector is not None}
        asked = [key for key in here if key not in found]
        for start in range(0, len(asked), _ASKED):
            part = asked[start : start + _ASKED]
            marks = ",".join("?" * len(part))
            rows = self._run(weights, f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part)
            read = {key: torch.from_numpy(np.frombuffer(vector, np.float32).copy()) for key, vector in rows}
            self._remember(weights, read)
            found |= read
        return found

    def write(self, weights: str, vectors: Mapping[bytes, Float[Tensor, "E"]]) -> None:
        """Keep vectors; those that are there already stay as they are.

        Raises:
            ConfigError: If the file is no cache or cannot be written.
        """
        rows = [(key, vector.detach().cpu().float().numpy().tobytes()) for key, vector in vectors.items()]
        try:
            with self._connection(weights) as connection:
                connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            raise self._refusal(weights, error) from error

    def _remember(self, weights: str, vectors: Mapping[bytes, Tensor]) -> None:
        for key, vector in vectors.items():
            if vector.nbytes <= self._room:
                self._remembered[weights, key] = vector
                self._room -= vector.nbytes

    def __getstate__(self) -> dict[str, object]:
        return {"folder": self.folder, "_open": {}, "_remembered": {}, "_room": _REMEMBERED}

    def _run(self, weights: str, question: str, values: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
        try:
            return self._connection(weights).execute(question, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            raise self._refusal(weights, error) from error

    def _connection(self, weights: str) -> sqlite3.Connection:
        """One connection a process: SQLite's do not survive a fork."""
        place = (os.getpid(), weights)
        if place not in self._open:
            self.folder.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._file(weights), timeout=60)
            connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL)")
            self._open[place] = connection
        return self._open[place]

    def _file(self, weights: str) -> Path:
        return self.folder / f"{weights[:32]}.sqlite"

    def _refusal(self, weights: str, error: sqlite3.Error | OSError) -> ConfigError:
        if isinstance(error, OSError):
            return ConfigError(f"The text cache {self.folder} cannot be made ({error.strerror}). Name another folder.")
        return ConfigError(
            f"The text cache {self._file(weights)} cannot be used ({error}). Remove that file or name another folder."
        )


def weights_digest(module: nn.Module, *about: object) -> str:
    """SHA-256 of every tensor of a module by name, and of what else decides its vectors."""
    digest = hashlib.sha256(repr(about).encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def row_keys(tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> list[bytes]:
    """SHA-256 of the real tokens of each row, whatever its padding."""
    real = mask.cpu().numpy()
    raw, ends = tokens.cpu().numpy()[real].tobytes(), (8 * real.sum(1).cumsum()).tolist()
    return [hashlib.sha256(raw[start:end]).digest() for start, end in zip([0, *ends[:-1]], ends, strict=True)]
