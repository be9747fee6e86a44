"""What an ingest remembers of every shard: its account, how far it has come, and who writes it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.whole_files import hold, whole_file

NOTES = ".ingest"
"""Folder in the output for notes of finished shards and progress; may be deleted, then all is done again."""


@dataclass(frozen=True)
class PutAside:
    """Something that could not be used.

    Attributes:
        scan_id: The scan, as ids are written.
        part: ``scan``, ``organs`` or ``report``; without the last two a scan goes in all the same.
        kind: Name of the audit's finding.
        reason: Why, without anything that identifies.
    """

    scan_id: str
    part: str
    kind: str
    reason: str

    @classmethod
    def of(cls, scan_id: str, part: str, remark: Remark) -> "PutAside":
        """What a finding of the audit put aside."""
        return cls(scan_id, part, remark.kind, remark.reason)


@dataclass
class ShardNote:
    """What is left to say of a finished shard; kept beside it so that a rerun need not do it again.

    Attributes:
        name: File name.
        causes: What decided its content; see :class:`ctgrounding.ingest.plan.ShardPlan`.
        planned: Scans planned.
        ingested: Scans written.
        with_organs: Of them, those with organ map.
        with_report: Of them, those with report.
        snippets: Snippets resolved, counted once for every scan that carries them.
        organ_sentences: Likewise.
        flags: Audit flags and how many scans have them.
        refused: Study, as ids are written, to reasons and how many of its snippets were refused for each.
        put_aside: What could not be used.
    """

    name: str
    causes: dict[str, str]
    planned: int = 0
    ingested: int = 0
    with_organs: int = 0
    with_report: int = 0
    snippets: int = 0
    organ_sentences: int = 0
    flags: dict[str, int] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    put_aside: list[PutAside] = field(default_factory=list)

    @classmethod
    def of(cls, output: Path, name: str) -> "ShardNote | None":
        """The note of a finished shard, None where there is no shard or no note that can be read."""
        path = note_path(output, name)
        if not path.is_file() or not (output / name).is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            values["put_aside"] = [PutAside(**entry) for entry in values["put_aside"]]
            return cls(**values)
        except (ValueError, TypeError, KeyError):
            return None

    def keep(self, output: Path) -> None:
        """Write the note, last of all, so that it vouches for a finished shard."""
        with whole_file(note_path(output, self.name)) as stream:
            json.dump(asdict(self), stream, ensure_ascii=False, sort_keys=True)


def note_path(output: Path, shard: str) -> Path:
    """Where the note of a shard lies."""
    return output / NOTES / f"{Path(shard).stem}.json"


def progress_path(output: Path, shard: str) -> Path:
    """A file that grows by one byte for every scan that is done."""
    return output / NOTES / f"{Path(shard).stem}.progress"


@contextmanager
def locked(output: Path, shard: str) -> Iterator[None]:
    """Hold a shard, so that whatever an interrupted ingest has left running does not write it at the same time.

    Waits for the other one to end. Systems that know no such locks go without.
    """
    with (output / NOTES / f"{Path(shard).stem}.lock").open("wb") as stream:
        hold(stream)
        yield
