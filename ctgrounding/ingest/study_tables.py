"""What a card's further tables say of a study or scan: its report, labels, slices and organ sentences."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ctgrounding.errors import CardError
from ctgrounding.ingest.card_files import files_under_root
from ctgrounding.ingest.cards import LabelsTable, OrgansRule, ReportsTable, SentencesTable, SlicesTable
from ctgrounding.ingest.readers.source import SeriesKind
from ctgrounding.ingest.tables import Table, read_tables

SLICE_KINDS: dict[str, SeriesKind] = {
    "": "axial",
    "axial": "axial",
    "derived": "derived",
    "localizer": "localizer",
    "not axial": "not axial",
}
_ANSWERS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}
_NOTHING = ("", "nan", "none", "<na>")

Row = TypeVar("Row")


@dataclass(frozen=True)
class TableSlice:
    """A row of the ``slices`` table.

    Attributes:
        series: Series number; None takes the scan's.
        image: Image number.
        z_mm: World z; not used where ``kind`` says that no depth is read there.
        kind: What its series is.
    """

    series: int | None
    image: int
    z_mm: float
    kind: SeriesKind = "axial"


@dataclass(frozen=True)
class OrganSentence:
    """A row of the ``sentences`` table."""

    organ: str
    text: str


def open_table(root: Path, pattern: str, key: str) -> Table:
    """The table that a card names under a key.

    Raises:
        CardError: If it is not there or is none.
    """
    return read_tables(files_under_root(root, pattern, f"{key}.table"), pattern)


def read_reports(rule: ReportsTable, root: Path) -> dict[str, dict[str, str]]:
    """Key to report: section to text, or ``""`` to the whole.

    Raises:
        CardError: If the table or a column is missing, or two rows of one key differ.
    """
    table = open_table(root, rule.table, "reports")
    columns = rule.sections or {"": rule.text}
    texts = {name: table.column(column, f"reports.{name or 'text'}") for name, column in columns.items()}
    absent = {"", *rule.missing}
    keys = table.column(rule.key, "reports.key")
    heading = f"{rule.opening.capitalize()}:\n" if rule.opening and rule.text else ""
    rows = [
        {name: heading + values[row] for name, values in texts.items() if values[row] not in absent}
        for row in range(len(keys))
    ]
    return _unique(keys, rows, rule.table)


def read_labels(rule: LabelsTable, root: Path) -> dict[str, dict[str, int | None]]:
    """Key to labels: question to 1, 0 or None for unknown.

    Raises:
        CardError: If the table or a column is missing, a value is no label, or two rows of one key differ.
    """
    table = open_table(root, rule.table, "labels")
    keys = table.column(rule.key, "labels.key")
    answers = {
        question: [_any([_label(value, question, rule) for value in row]) for row in zip(*columns, strict=True)]
        for question, columns in _label_columns(rule, table).items()
    }
    rows = [{question: values[row] for question, values in answers.items()} for row in range(len(keys))]
    return _unique(keys, rows, rule.table)


def read_slices(rule: SlicesTable, root: Path) -> dict[str, list[TableSlice]]:
    """Scan id to the rows of its slices.

    Raises:
        CardError: If the table or a column is missing or a value cannot be.
    """
    table = open_table(root, rule.table, "slices")
    scans, images = table.column(rule.scan, "slices.scan"), table.column(rule.image, "slices.image")
    depths = table.column(rule.z_mm, "slices.z_mm")
    series = table.column(rule.series, "slices.series") if rule.series else [""] * len(scans)
    kinds = table.column(rule.kind, "slices.kind") if rule.kind else [""] * len(scans)
    found: dict[str, list[TableSlice]] = defaultdict(list)
    for scan, number, image, depth, kind in zip(scans, series, images, depths, kinds, strict=True):
        if kind not in SLICE_KINDS:
            raise CardError(f"{rule.table}: '{kind}' is no kind of slice. Use {', '.join(filter(None, SLICE_KINDS))}.")
        try:
            z_mm = float(depth) if depth or SLICE_KINDS[kind] == "axial" else 0.0
            if not math.isfinite(z_mm):
                raise ValueError(depth)
            found[scan].append(TableSlice(_whole(number) if number else None, _whole(image), z_mm, SLICE_KINDS[kind]))
        except ValueError as error:
            raise CardError(
                f"{rule.table}: '{number}', '{image}', '{depth}' of scan {scan} are no numbers. Write whole numbers of "
                "series and image, and z in mm with a decimal point."
            ) from error
    return found


def _whole(text: str) -> int:
    """A whole number, also as 4.0, which tables with gaps make of it."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def read_sentences(rule: SentencesTable, organs: OrgansRule, root: Path) -> dict[str, list[OrganSentence]]:
    """Key to the sentences of its organs.

    Raises:
        CardError: If the table or a column is missing.
    """
    table = open_table(root, rule.table, "sentences")
    keys = table.column(rule.key, "sentences.key")
    named, texts = table.column(rule.organ, "sentences.organ"), table.column(rule.text, "sentences.text")
    found: dict[str, list[OrganSentence]] = defaultdict(list)
    for key, organ, text in zip(keys, named, texts, strict=True):
        if key and organ and text:
            found[key].append(OrganSentence(organs.names.get(organ, organ), text))
    return found


def _label_columns(rule: LabelsTable, table: Table) -> Mapping[str, Sequence[Sequence[str]]]:
    """Question to the columns that answer it."""
    names = {name: name for name in table.columns if name != rule.key}
    if not rule.part:
        chosen = rule.columns or names
        return {question: [table.column(column, f"labels.columns.{question}")] for question, column in chosen.items()}
    parts: dict[str, list[Sequence[str]]] = defaultdict(list)
    for name in names:
        head, found, _ = name.partition(rule.part)
        if found:
            parts[head].append(table.columns[name])
    if not parts:
        raise CardError(
            f"{rule.table}: no column has '{rule.part}' in its name, which labels.part says. It has: "
            f"{', '.join(list(names)[:12])}."
        )
    missing = sorted(set(rule.columns.values()) - set(parts))
    if missing:
        raise CardError(
            f"{rule.table} has no column '{missing[0]}{rule.part}...', which the card names under labels.columns. "
            f"It has such columns for: {', '.join(sorted(parts))}."
        )
    return {question: parts[head] for question, head in rule.columns.items()} if rule.columns else parts


def _label(value: str, question: str, rule: LabelsTable) -> int | None:
    if value in rule.unknown or value.lower() in _NOTHING:
        return None
    if value.lower() not in _ANSWERS:
        raise CardError(
            f"{rule.table}: '{value}' in column '{question}' is no label. Use 1, 0 or nothing, list the value under "
            "labels.unknown, or name the label columns under labels.columns."
        )
    return _ANSWERS[value.lower()]


def _any(answers: Sequence[int | None]) -> int | None:
    return max((answer for answer in answers if answer is not None), default=None)


def _unique(keys: Sequence[str], rows: Sequence[Row], name: str) -> dict[str, Row]:
    """Key to row; a row without a key is nobody's."""
    found: dict[str, Row] = {}
    for key, row in zip(keys, rows, strict=True):
        if key and found.setdefault(key, row) != row:
            raise CardError(f"{name} has several rows for '{key}', and they differ. Keep one.")
    return found
