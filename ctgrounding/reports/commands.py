"""Files of reports in, files of what they say out."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from rich.console import Console

from ctgrounding.errors import ReportError
from ctgrounding.reports import reader
from ctgrounding.reports.report import Report

BATCH = 256


def read(reports: Path, output: Path | None = None, workers: int = 1) -> None:
    """Read reports: references, snippets, organ sentences, labels.

    Args:
        reports: One JSON object a line with ``id`` and ``text``, the text a string or an object of sections.
        output: JSON-lines file to write, one object a report; by default beside the input, as ``NAME.read.jsonl``.
        workers: Processes to read with; they change neither order nor content.

    Raises:
        ReportError: If a line holds no report; it names the line.
    """
    output = output or reports.with_suffix(".read.jsonl")
    count = read_file(reports, output, workers)
    Console().print(f"Read {count} reports into {output}.", soft_wrap=True)


def read_file(reports: Path, output: Path, workers: int = 1) -> int:
    """Read reports from a JSON-lines file and write what each says.

    Lines are streamed, so memory does not grow with the file, and come out in the order they went in, whatever the
    number of workers.

    Args:
        reports: One JSON object a line with ``id`` and ``text``, the text a string or an object of sections.
        output: One object a line: ``id``, ``sections``, ``references``, ``snippets``, ``organ_statements``,
            ``ct_rate_labels``. Written beside its name and renamed when complete.
        workers: Processes to read with.

    Returns:
        Number of reports read.

    Raises:
        ReportError: If a line is no such object; it names the line.
    """
    if not reports.is_file():
        raise ReportError(f"There is no file '{reports}'. Name a JSON-lines file of reports.")
    if workers < 1:
        raise ReportError(f"workers is {workers}. Give one or more.")
    count = 0
    partial = output.with_name(f"{output.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as sink:
        for line in read_lines(_numbered(reports), workers):
            sink.write(line + "\n")
            count += 1
    partial.replace(output)
    return count


def read_training_reports(reports: Path) -> Iterator[Report]:
    """Reports of the training split, read.

    Args:
        reports: One JSON object a line with ``id``, ``text`` and ``split``, which must be ``train``.

    Raises:
        ReportError: If a line is of another split or holds no report.
    """
    for where, line in _numbered(reports):
        entry = _parse(where, line)
        if entry.get("split") != "train":
            split = entry.get("split")
            raise ReportError(f"The {where} is of split '{split}'. Dictionaries are built from 'train' alone.")
        yield reader.read(entry["text"])


def read_lines(lines: Iterable[tuple[str, str]], workers: int = 1) -> Iterator[str]:
    """What each JSON line of ``(where, line)`` pairs says, as a JSON line, in order."""
    if workers == 1:
        for where, line in lines:
            yield _read_line(where, line)
        return
    parallel = Parallel(n_jobs=workers, return_as="generator", pre_dispatch="4*n_jobs")
    for batch in parallel(delayed(_read_batch)(batch) for batch in _batches(lines)):
        yield from batch


def _numbered(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number} of {path}", line


def _batches(lines: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_batch(batch: list[tuple[str, str]]) -> list[str]:
    return [_read_line(where, line) for where, line in batch]


def _read_line(where: str, line: str) -> str:
    entry = _parse(where, line)
    return json.dumps({"id": entry["id"], **reader.read(entry["text"]).to_json()}, ensure_ascii=False)


def _parse(where: str, line: str) -> dict[str, Any]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ReportError(f"The {where} is no JSON ({error.msg}). Write one object a line.") from None
    if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("text"), str | dict):
        raise ReportError(f"The {where} lacks 'id' or 'text'. Write one object with both a line.")
    return entry
