"""Ids in shards: as given, or as keyed hashes under a salt that stays with the user.

The salt lies beside the output folder, not in it, so that shards can be handed on without it; every dataset
written to one parent folder shares it, so a patient keeps one hash. Who has the salt can tell whether a
known patient is in the shards; nobody else can.
"""

import csv
import hashlib
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctgrounding.errors import CardError
from ctgrounding.ingest.whole_files import whole_file

SALT_NAME = "ctgrounding-ids.salt"
DIGEST_BYTES = 12
IdRule = Literal["hash", "keep"]


@dataclass(frozen=True)
class Identity:
    """How ids are written.

    Attributes:
        salt: Key of the hashes; None keeps ids as given.

    Examples:
        >>> Identity(None).write("patient", "MRN 4711")
        'MRN 4711'
        >>> len(Identity(bytes(32)).write("patient", "MRN 4711"))
        24
    """

    salt: bytes | None = None

    @property
    def mark(self) -> str:
        """Tells one salt from another without giving it away; the same for all ids kept as given."""
        return self.write("mark", "salt") if self.salt else "keep"

    def write(self, kind: str, value: str) -> str:
        """An id as it goes into files; empty stays empty, and equal ids of different kinds differ.

        Args:
            kind: ``patient``, ``study``, ``scan`` or ``slice``.
            value: The id as given.
        """
        if self.salt is None or not value:
            return value
        return hashlib.blake2b(f"{kind}\0{value}".encode(), key=self.salt, digest_size=DIGEST_BYTES).hexdigest()


def load_identity(rule: str, output: Path, keep: bool = True) -> Identity:
    """The identity of an output folder; makes the salt (readable by its owner alone) at first use.

    Args:
        rule: ``hash`` or ``keep``.
        output: Folder of the shards.
        keep: Whether a salt that is made is written; without, it is forgotten with the identity.

    Raises:
        CardError: If the salt file is there but holds no salt.
    """
    if rule == "keep":
        return Identity()
    path = output.resolve().parent / SALT_NAME
    if not path.exists():
        if not keep:
            return Identity(secrets.token_bytes(32))
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_salt(path)
    try:
        salt = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError as error:
        raise CardError(
            f"{path} holds no salt. Restore it: other salts give other ids for the same patients."
        ) from error
    if len(salt) < 16:
        raise CardError(f"{path} holds a salt of {len(salt)} bytes; at least 16 are needed. Restore it.")
    return Identity(salt)


def write_private_map(output: Path, identity: Identity, ids: Iterable[tuple[str, str]]) -> Path | None:
    """Write which hash stands for which id, beside the output and readable by its owner alone.

    Args:
        output: Folder of the shards.
        identity: How ids are written; ids kept as given need no map.
        ids: Kind and id.
    """
    if identity.salt is None:
        return None
    path = output.resolve().parent / f"{output.resolve().name}.private-ids.csv"
    rows = sorted({(kind, identity.write(kind, value), value) for kind, value in ids})
    with whole_file(path, mode=0o600) as stream:
        csv.writer(stream).writerows([("kind", "written", "given"), *rows])
    return path


def _make_salt(path: Path) -> None:
    """Write a new salt, unless another ingest that begins at the same moment has just done so."""
    made = path.with_name(f".{SALT_NAME}.{os.getpid()}")
    with whole_file(made, mode=0o600) as stream:
        stream.write(secrets.token_hex(32) + "\n")
    try:
        os.link(made, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
