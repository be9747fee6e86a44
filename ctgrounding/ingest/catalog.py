"""The catalogue: what a card's tables say of every scan, before any file is opened."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, TypeVar

from ctgrounding.data.records import Split
from ctgrounding.errors import CardError
from ctgrounding.ingest.card_files import files_under_root, under_root
from ctgrounding.ingest.cards import Card, JoinedTable, LabelsTable, ReportsTable, SentencesTable
from ctgrounding.ingest.splits import assign_splits
from ctgrounding.ingest.study_tables import (
    OrganSentence,
    TableSlice,
    open_table,
    read_labels,
    read_reports,
    read_sentences,
    read_slices,
)
from ctgrounding.ingest.tables import Table

Value = TypeVar("Value")


@dataclass(frozen=True)
class PlannedScan:
    """All that the card's tables say of one scan.

    Attributes:
        scan_id: As given, like all ids here; they are hashed where they are written.
        study_id: The examination.
        patient_id: The patient.
        split: ``train``, ``val`` or ``test``.
        path: The scan's file or DICOM folder.
        series: Series number, None if the table gives none.
        organs_path: Organ masks, None if there are none.
        report: Section to text; a whole report has the one section ``""``.
        labels: Question to 1, 0 or None for unknown.
        slices: Rows of the ``slices`` table.
        sentences: Rows of the ``sentences`` table; None if the card has none.
        organ_names: Name in the masks to organ, where they differ.
        known_bad: Why the card leaves the scan out; empty if it does not.
    """

    scan_id: str
    study_id: str
    patient_id: str
    split: Split
    path: Path
    series: int | None
    organs_path: Path | None
    report: dict[str, str]
    labels: dict[str, int | None]
    slices: tuple[TableSlice, ...] = ()
    sentences: tuple[OrganSentence, ...] | None = None
    organ_names: Mapping[str, str] = field(default_factory=dict)
    known_bad: str = ""


def read_scans(card: Card, apart: bool = True) -> list[PlannedScan]:
    """Everything that the card's tables say, one entry a scan.

    Args:
        card: The card.
        apart: Whether a patient in two splits is an error.

    Raises:
        CardError: If a table lacks a column, an id occurs twice, a value cannot be, a patient is in two
            splits, a study has two patients or a path leaves the root.
    """
    root = Path(card.root)
    table = _scans_table(card, root)
    rule = card.scans
    ids = table.column(rule.scan, "scans.scan")
    studies, patients = table.column(rule.study, "scans.study"), table.column(rule.patient, "scans.patient")
    _check_filled({"scans.scan": ids, "scans.study": studies, "scans.patient": patients})
    _check_studies(studies, patients)
    splits = assign_splits(card, table, patients, apart)
    paths = _filled_paths(ids, table, _paths(root, table, rule.path, rule.path_pattern, "scans.path"))
    organs = _paths(root, table, rule.organs, rule.organs_pattern, "scans.organs")
    series = table.column(rule.series, "scans.series") if rule.series else [""] * len(ids)
    reports = read_reports(card.reports, root) if card.reports else {}
    labels = read_labels(card.labels, root) if card.labels else {}
    sentences = read_sentences(card.sentences, card.organs, root) if card.sentences else {}
    keys = {"scan": ids, "study": studies}
    report = _looked_up(card.reports, "reports", keys, table, reports, {})
    label = _looked_up(card.labels, "labels", keys, table, labels, {})
    sentence = _looked_up(card.sentences, "sentences", keys, table, sentences, [])
    slices = read_slices(card.slices, root) if card.slices else {}
    if card.slices and not slices.keys() & set(ids):
        raise CardError(
            f"{card.slices.table}: no '{card.slices.scan}' is a scan of the card. It has {sorted(slices)[:3]}, the "
            f"scans are {ids[:3]}. Correct the column that slices.scan names."
        )
    bad = _known_bad(card, root, ids, studies, paths)
    return [
        PlannedScan(
            scan_id,
            studies[row],
            patients[row],
            splits[row],
            paths[row],
            _whole(series[row], "series", scan_id),
            organs[row],
            report[row],
            label[row],
            tuple(slices.get(scan_id, ())),
            tuple(sentence[row]) if card.sentences else None,
            card.organs.names,
            bad[row],
        )
        for row, scan_id in enumerate(ids)
    ]


def strangers(card: Card, scans: Sequence[PlannedScan]) -> str:
    """What to say of scans that ``known_bad`` names and the table does not have: empty if there are none.

    Args:
        card: The card.
        scans: All that :func:`read_scans` gave.
    """
    unknown = sorted(set(card.known_bad) - {scan.scan_id for scan in scans})
    if not unknown:
        return ""
    return (
        f"known_bad names {len(unknown)} scans that the table of scans does not have ({unknown[0]}, ...); nothing is "
        "left out for them."
    )


def _scans_table(card: Card, root: Path) -> Table:
    table = open_table(root, card.scans.table, "scans")
    for join in card.scans.joins:
        table = _joined(table, join, root)
    table = _parsed(table, card.scans.parse)
    return _one_row_a_scan(table, card)


def _joined(table: Table, join: JoinedTable, root: Path) -> Table:
    other = open_table(root, join.table, "scans.joins")
    keys = other.column(join.key, "scans.joins.key")
    wanted = table.column(join.equals or join.key, "scans.joins.equals")
    place: dict[str, int] = {}
    new = [column for column in other.columns if column not in table.columns]
    for row, key in enumerate(keys):
        first = place.setdefault(key, row)
        if key and any(other.columns[column][first] != other.columns[column][row] for column in new):
            raise CardError(f"{join.table} has several rows for '{key}', and they differ. Keep one.")
    place.pop("", None)  # a row without a key is nobody's
    if not any(value in place for value in wanted):
        raise CardError(
            f"{join.table}: no '{join.key}' is a '{join.equals or join.key}' of {table.name}. It has '{keys[0]}', ..., "
            f"and {table.name} has '{wanted[0]}', .... Correct scans.joins."
        )
    added = {column: [other.columns[column][place[key]] if key in place else "" for key in wanted] for column in new}
    return Table(table.name, {**table.columns, **added})


def _parsed(table: Table, patterns: Mapping[str, str]) -> Table:
    added: dict[str, list[str]] = {}
    for column, pattern in patterns.items():
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise CardError(f"scans.parse.{column} is no regular expression: {error}.") from error
        if repeated := sorted({*compiled.groupindex} & {*added}):
            raise CardError(f"scans.parse.{column} names '{repeated[0]}', which another pattern names too. Rename one.")
        if hidden := sorted({*compiled.groupindex} & {*table.columns}):
            raise CardError(
                f"scans.parse.{column} names '{hidden[0]}', a column that {table.name} has already. Rename the group."
            )
        for value in table.column(column, "scans.parse"):
            match = compiled.fullmatch(value)
            if match is None:
                raise CardError(f"scans.parse.{column}: '{value}' does not match {pattern}. Correct one of them.")
            for name, part in match.groupdict(default="").items():
                added.setdefault(name, []).append(part)
    return Table(table.name, {**table.columns, **added})


def _one_row_a_scan(table: Table, card: Card) -> Table:
    ids = table.column(card.scans.scan, "scans.scan")
    first: dict[str, int] = {}
    for row, value in enumerate(ids):
        if first.setdefault(value, row) != row and not card.scans.repeated:
            raise CardError(f"Scan id '{value}' occurs twice in column '{card.scans.scan}'. Scan ids must be unique.")
    if len(first) == len(ids):
        return table
    rows = list(first.values())
    return Table(table.name, {column: [values[row] for row in rows] for column, values in table.columns.items()})


def _check_filled(columns: Mapping[str, Sequence[str]]) -> None:
    for key, values in columns.items():
        if "" in values:
            raise CardError(f"Row {values.index('') + 2} of the table of scans has no value for {key}. Fill it in.")


def _check_studies(studies: Sequence[str], patients: Sequence[str]) -> None:
    """A study number that counts within each patient would hand one's report to another, and over splits."""
    owners: dict[str, str] = {}
    for study, patient in zip(studies, patients, strict=True):
        if owners.setdefault(study, patient) != patient:
            raise CardError(
                f"Study '{study}' has scans of two patients, '{owners[study]}' and '{patient}'. Name a column under "
                "scans.study whose ids are unique over all patients."
            )


def _filled_paths(ids: Sequence[str], table: Table, paths: Iterable[Path | None]) -> list[Path]:
    filled = []
    for scan_id, path in zip(ids, paths, strict=True):
        if path is None:
            raise CardError(f"{table.name}: scan {scan_id} has no path. Fill it in or remove the row.")
        filled.append(path)
    return filled


def _paths(root: Path, table: Table, column: str, pattern: str, key: str) -> list[Path | None]:
    if pattern:
        try:
            values = [_filled(pattern, row) for row in table.rows()]
        except (KeyError, ValueError) as error:
            raise CardError(
                f"{key}_pattern '{pattern}' names {error}, which {table.name} does not have. "
                f"It has: {', '.join(table.columns)}."
            ) from error
    elif column:
        values = table.column(column, key)
    else:
        values = [""] * len(table)
    return [under_root(root, value, key) if value else None for value in values]


class _Columns(Formatter):
    """Formats ``{column}``, whatever signs a column's name has."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        return kwargs[field_name], field_name


def _filled(pattern: str, row: Mapping[str, str]) -> str:
    """The path of a row; empty where a whole name in it is, lest the folder around stand for the file."""
    parts = [(part, _Columns().vformat(part, (), row)) for part in pattern.split("/")]
    return "" if any(part and not filled for part, filled in parts) else "/".join(filled for _, filled in parts)


def _looked_up(
    rule: ReportsTable | LabelsTable | SentencesTable | None,
    key: str,
    ids: Mapping[str, Sequence[str]],
    table: Table,
    found: Mapping[str, Value],
    none: Value,
) -> list[Value]:
    """For each scan what a table keyed by scan, study or another column says of it."""
    if rule is None:
        return [none] * len(table)
    wanted = ids[rule.by] if rule.by in ids else table.column(rule.by, f"{key}.by")
    if found and not any(value in found for value in wanted):
        raise CardError(
            f"{rule.table}: no '{rule.key}' is a {rule.by} of {table.name}. It has '{next(iter(found))}', ..., and "
            f"{table.name} has '{wanted[0]}', .... Correct {key}.key or {key}.by."
        )
    return [found.get(value, none) for value in wanted]


def _known_bad(card: Card, root: Path, ids: Sequence[str], studies: Sequence[str], paths: Sequence[Path]) -> list[str]:
    listed: dict[str, str] = {}
    for pattern, reason in card.known_bad_lists.items():
        for path in files_under_root(root, pattern, "known_bad_lists"):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else None
            if lines is None:
                raise CardError(
                    f"known_bad_lists: {pattern} is not under the card's root {root}. Fetch it with the dataset, or "
                    "take it out of the card."
                )
            listed |= {PurePosixPath(line.strip()).name: reason for line in lines if line.strip()}
    return [
        card.known_bad.get(scan) or next((listed[name] for name in (scan, study, path.name) if name in listed), "")
        for scan, study, path in zip(ids, studies, paths, strict=True)
    ]


def _whole(value: str, what: str, scan_id: str) -> int | None:
    if not value:
        return None
    try:
        number = float(value)
        if number != int(number):
            raise ValueError(value)
        return int(number)
    except (ValueError, OverflowError) as error:
        raise CardError(f"Scan {scan_id} has {what} '{value}', which is no whole number.") from error
