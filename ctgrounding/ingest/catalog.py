"""The catalogue: what a card's tables say of every scan, before any file is opened."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctgrounding.data.records import Split
from ctgrounding.errors import CardError
from ctgrounding.ingest.card_files import SPLITS, under_root
from ctgrounding.ingest.cards import Card, LabelsTable, ReportsTable
from ctgrounding.ingest.tables import Table, read_table

DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass(frozen=True)
class TableSlice:
    """A row of the ``slices`` table."""

    series: int | None
    image: int
    z_mm: float


@dataclass(frozen=True)
class PlannedScan:
    """All that the card's tables say of one scan.

    Attributes:
        scan_id: As given, like all ids here; they are hashed where they are written.
        study_id: The examination.
        patient_id: The patient.
        split: ``train``, ``val`` or ``test``.
        path: NIfTI file or DICOM folder.
        series: Series number, None if the table gives none.
        organs_path: Organ label map, None if there is none.
        report: Section to text; a whole report has the one section ``""``.
        labels: Question to 1, 0 or None for unknown.
        slices: Rows of the ``slices`` table.
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
    known_bad: str = ""


def read_scans(card: Card) -> list[PlannedScan]:
    """Everything that the card's tables say, one entry a scan.

    Raises:
        CardError: If a table lacks a column, an id occurs twice, a value cannot be, a patient is in two
            splits or a path leaves the root.
    """
    root = Path(card.root)
    table = _scans_table(card, root)
    rule = card.scans
    ids = table.column(rule.scan, "scans.scan")
    _check_unique(ids, rule.scan)
    studies, patients = table.column(rule.study, "scans.study"), table.column(rule.patient, "scans.patient")
    _check_filled({"scans.scan": ids, "scans.study": studies, "scans.patient": patients})
    splits = _splits(card, table, patients)
    paths = _paths(root, table, rule.path, rule.path_pattern, "scans.path")
    organs = _paths(root, table, rule.organs, rule.organs_pattern, "scans.organs")
    series = table.column(rule.series, "scans.series") if rule.series else [""] * len(ids)
    reports, labels, slices = _reports(card, root), _labels(card, root), _slices(card, root)
    scans = []
    for row, scan_id in enumerate(ids):
        path = paths[row]
        if path is None:
            raise CardError(f"{table.name}: scan {scan_id} has no path. Fill it in or remove the row.")
        scans.append(
            PlannedScan(
                scan_id,
                studies[row],
                patients[row],
                splits[row],
                path,
                _whole(series[row], "series", scan_id),
                organs[row],
                reports.get(scan_id if card.reports and card.reports.by == "scan" else studies[row], {}),
                labels.get(scan_id if card.labels and card.labels.by == "scan" else studies[row], {}),
                tuple(slices.get(scan_id, ())),
                card.known_bad.get(scan_id, ""),
            )
        )
    return scans


def _scans_table(card: Card, root: Path) -> Table:
    table = _table(root, card.scans.table, "scans")
    added: dict[str, list[str]] = {}
    for column, pattern in card.scans.parse.items():
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise CardError(f"scans.parse.{column} is no regular expression: {error}.") from error
        for value in table.column(column, "scans.parse"):
            match = compiled.fullmatch(value)
            if match is None:
                raise CardError(f"scans.parse.{column}: '{value}' does not match {pattern}. Correct one of them.")
            for name, part in match.groupdict(default="").items():
                added.setdefault(name, []).append(part)
    return Table(table.name, {**table.columns, **added})


def _table(root: Path, relative: str, key: str) -> Table:
    return read_table(under_root(root, relative, f"{key}.table"), relative)


def _check_unique(ids: Sequence[str], column: str) -> None:
    seen: set[str] = set()
    for value in ids:
        if value in seen:
            raise CardError(f"Scan id '{value}' occurs twice in column '{column}'. Scan ids must be unique.")
        seen.add(value)


def _check_filled(columns: Mapping[str, Sequence[str]]) -> None:
    for key, values in columns.items():
        if "" in values:
            raise CardError(f"Row {values.index('') + 2} of the table of scans has no value for {key}. Fill it in.")


def _splits(card: Card, table: Table, patients: Sequence[str]) -> list[Split]:
    if not card.scans.split:
        return [_drawn_split(card, patient) for patient in patients]
    found: dict[str, Split] = {}
    splits = []
    for value, patient in zip(table.column(card.scans.split, "scans.split"), patients, strict=True):
        split = _as_split(card.split.values.get(value, value))
        if found.setdefault(patient, split) != split:
            raise CardError(f"Patient '{patient}' is in two splits, {found[patient]} and {split}. Keep patients apart.")
        splits.append(split)
    return splits


def _as_split(value: str) -> Split:
    for split in SPLITS:
        if value == split:
            return split
    raise CardError(f"'{value}' is no split. Use {', '.join(SPLITS)}, or map it under split.values.")


def _drawn_split(card: Card, patient: str) -> Split:
    digest = hashlib.blake2b(f"{card.name}\0{patient}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    for split in SPLITS:
        place -= (card.split.fractions or DEFAULT_FRACTIONS).get(split, 0.0)
        if place < 0:
            return split
    return "train"


def _paths(root: Path, table: Table, column: str, pattern: str, key: str) -> list[Path | None]:
    if pattern:
        try:
            values = [pattern.format_map(row) for row in table.rows()]
        except (KeyError, ValueError, IndexError) as error:
            raise CardError(
                f"{key}_pattern '{pattern}' names {error}, which {table.name} does not have. "
                f"It has: {', '.join(table.columns)}."
            ) from error
    elif column:
        values = table.column(column, key)
    else:
        values = [""] * len(table)
    return [under_root(root, value, key) if value else None for value in values]


def _reports(card: Card, root: Path) -> dict[str, dict[str, str]]:
    rule: ReportsTable | None = card.reports
    if rule is None:
        return {}
    table = _table(root, rule.table, "reports")
    columns = rule.sections or {"": rule.text}
    texts = {name: table.column(column, f"reports.{name or 'text'}") for name, column in columns.items()}
    return {
        key: {name: values[row] for name, values in texts.items() if values[row]}
        for row, key in enumerate(table.column(rule.key, "reports.key"))
    }


def _labels(card: Card, root: Path) -> dict[str, dict[str, int | None]]:
    rule: LabelsTable | None = card.labels
    if rule is None:
        return {}
    table = _table(root, rule.table, "labels")
    keys = table.column(rule.key, "labels.key")
    columns = rule.columns or {name: name for name in table.columns if name != rule.key}
    values = {question: table.column(column, f"labels.columns.{question}") for question, column in columns.items()}
    return {
        key: {question: _label(answers[row], question, rule) for question, answers in values.items()}
        for row, key in enumerate(keys)
    }


def _label(value: str, question: str, rule: LabelsTable) -> int | None:
    if value in ("", "nan", "NaN") or value in rule.unknown:
        return None
    if value in ("1", "1.0", "0", "0.0"):
        return int(float(value))
    raise CardError(
        f"{rule.table}: '{value}' in column '{question}' is no label. Use 1, 0 or nothing, list the value under "
        "labels.unknown, or name the label columns under labels.columns."
    )


def _slices(card: Card, root: Path) -> dict[str, list[TableSlice]]:
    rule = card.slices
    if rule is None:
        return {}
    table = _table(root, rule.table, "slices")
    scans, images = table.column(rule.scan, "slices.scan"), table.column(rule.image, "slices.image")
    depths = table.column(rule.z_mm, "slices.z_mm")
    series = table.column(rule.series, "slices.series") if rule.series else [""] * len(scans)
    found: dict[str, list[TableSlice]] = defaultdict(list)
    for scan, number, image, depth in zip(scans, series, images, depths, strict=True):
        try:
            found[scan].append(TableSlice(int(number) if number else None, int(image), float(depth)))
        except ValueError as error:
            raise CardError(f"{rule.table}: '{number}', '{image}', '{depth}' of scan {scan} are no numbers.") from error
    return found


def _whole(value: str, what: str, scan_id: str) -> int | None:
    if not value:
        return None
    try:
        return int(float(value))
    except (ValueError, OverflowError) as error:
        raise CardError(f"Scan {scan_id} has {what} '{value}', which is no whole number.") from error
