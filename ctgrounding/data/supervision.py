"""Supervision files: what a later reading of the reports found, to be laid over the shards' own.

One Parquet file ``supervision/<name>.parquet`` beside the shards, one row a scan::

    dataset, scan_id            whose
    report_sha256               hash of the report that was read, see :func:`report_sha256`
    snippets, organ_sentences   as in :mod:`ctgrounding.data.records`; ``start:end`` counts in ``section``
    labels                      question and 1, 0 or null
    refused                     snippets without a depth, and why

Shards stay as they are; ``data.supervision: <name>`` lays a file over them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ctgrounding.data.records import OrganSentenceRecord, SnippetRecord
from ctgrounding.errors import ConfigError

FOLDER = "supervision"
_VERSION = "1"
_SPAN = [("start", pa.int64()), ("end", pa.int64()), ("section", pa.string())]
_CITED = [("text", pa.string()), ("series", pa.int64()), ("images", pa.list_(pa.int64()))]
_SNIPPET = [
    *_CITED,
    ("slice_id", pa.string()),
    ("depth_mm", pa.list_(pa.float64(), 2)),
    *_SPAN,
    ("organ", pa.string()),
    ("size_mm", pa.float64()),
]
_SENTENCE = [
    ("text", pa.string()),
    ("organs", pa.list_(pa.string())),
    ("status", pa.string()),
    ("finding", pa.string()),
    *_SPAN,
]
_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("scan_id", pa.string()),
        ("report_sha256", pa.string()),
        ("snippets", pa.list_(pa.struct(_SNIPPET))),
        ("organ_sentences", pa.list_(pa.struct(_SENTENCE))),
        ("labels", pa.list_(pa.struct([("name", pa.string()), ("value", pa.int8())]))),
        ("refused", pa.list_(pa.struct([*_CITED, *_SPAN, ("reason", pa.string())]))),
    ],
    metadata={"supervision_version": _VERSION},
)


@dataclass(frozen=True)
class RefusedSnippet:
    """A snippet that has no depth.

    Attributes:
        text: The snippet.
        series: Series number as written, None if the text named none.
        images: Image numbers as written.
        start: First character in its section.
        end: One past its last character.
        section: Report section the span counts in.
        reason: Why.
    """

    text: str
    series: int | None
    images: tuple[int, ...]
    start: int
    end: int
    section: str
    reason: str


@dataclass(frozen=True)
class ScanSupervision:
    """What a report says about one scan.

    Attributes:
        dataset: Name of the dataset card.
        scan_id: The scan.
        report_sha256: Hash of the report that it was read from.
        snippets: Snippets with their depth.
        organ_sentences: Statements about organs.
        labels: Question to 1, 0 or None for unknown.
        refused: Snippets without a depth.
    """

    dataset: str
    scan_id: str
    report_sha256: str
    snippets: tuple[SnippetRecord, ...] = ()
    organ_sentences: tuple[OrganSentenceRecord, ...] = ()
    labels: Mapping[str, int | None] = field(default_factory=dict)
    refused: tuple[RefusedSnippet, ...] = ()


def report_sha256(report: Mapping[str, str]) -> str:
    """Hash of a report's sections, whatever their order.

    Examples:
        >>> report_sha256({"findings": "a", "impression": "b"}) == report_sha256({"impression": "b", "findings": "a"})
        True
    """
    return hashlib.sha256(json.dumps(dict(report), sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def supervision_path(folder: Path, name: str) -> Path:
    """Where the supervision of that name lies beside the shards of a folder.

    Raises:
        ConfigError: If the name would leave the folder.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ConfigError(f"'{name}' cannot name a supervision file. Use a plain name, for example mined.")
    return folder / FOLDER / f"{name.removesuffix('.parquet')}.parquet"


class SupervisionWriter:
    """Writes a supervision file beside its name, in parts, and renames it when it is complete.

    Leaving the ``with`` block by an exception removes what was written.

    Args:
        path: The finished file.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = supervision_path(Path(folder.name), "mined")
        >>> with SupervisionWriter(path) as writer:
        ...     writer.write([ScanSupervision("demo", "scan1", report_sha256({"findings": "Normal."}))])
        >>> [row.scan_id for row in read_supervision(path)]
        ['scan1']
        >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "SupervisionWriter":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._partial, _SCHEMA, compression="zstd")
        except OSError as error:
            raise self._unwritten(error) from error
        return self

    def _unwritten(self, error: OSError) -> ConfigError:
        return ConfigError(f"Cannot write {self.path}: {error}. Check the folder and its free space.")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._finish(is_complete=error is None)
        except OSError as failure:
            self._partial.unlink(missing_ok=True)
            if error is None:
                raise self._unwritten(failure) from failure

    def _finish(self, *, is_complete: bool) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        if is_complete:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)

    def write(self, rows: Iterable[ScanSupervision]) -> None:
        """Append rows."""
        if self._writer is None:
            raise ConfigError(f"{self.path} is not open for writing. Use SupervisionWriter in a with block.")
        values = [{**asdict(row), "labels": _named(row.labels)} for row in rows]
        if not values:
            return
        try:
            self._writer.write_table(pa.Table.from_pylist(values, _SCHEMA))
        except OSError as error:
            raise self._unwritten(error) from error


def read_supervision(path: Path) -> Iterator[ScanSupervision]:
    """The rows of a supervision file, in order.

    Raises:
        ConfigError: If it is no such file, or of a newer version.
    """
    try:
        with pq.ParquetFile(path) as file:
            found = (file.schema_arrow.metadata or {}).get(b"supervision_version", b"").decode()
            if found != _VERSION:
                raise ConfigError(
                    f"{path} is no supervision file of version {_VERSION}. Write it with ctgrounding mine."
                )
            for batch in file.iter_batches():
                yield from (_row(values) for values in batch.to_pylist())
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path} cannot be read as a supervision file: {error}") from error


def _named(labels: Mapping[str, int | None]) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in labels.items()]


def _row(values: dict[str, Any]) -> ScanSupervision:
    return ScanSupervision(
        values["dataset"],
        values["scan_id"],
        values["report_sha256"],
        tuple(
            SnippetRecord(**{**one, "images": tuple(one["images"]), "depth_mm": tuple(one["depth_mm"])})
            for one in values["snippets"]
        ),
        tuple(OrganSentenceRecord(**{**one, "organs": tuple(one["organs"])}) for one in values["organ_sentences"]),
        {one["name"]: one["value"] for one in values["labels"]},
        tuple(RefusedSnippet(**{**one, "images": tuple(one["images"])}) for one in values["refused"]),
    )
