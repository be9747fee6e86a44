"""Tables that a dataset card names: CSV, Parquet or Excel, every value as text, every missing column explained."""

import csv
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

from ctgrounding.errors import CardError


@dataclass(frozen=True)
class Table:
    """A table of text values.

    Attributes:
        name: How the card calls it, for messages.
        columns: Column name to values, all of one length.

    Examples:
        >>> table = Table("scans.csv", {"scan_id": ["a", "b"]})
        >>> table.column("scan_id", "scans.scan")
        ['a', 'b']
    """

    name: str
    columns: Mapping[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str, key: str) -> list[str]:
        """The values of a column.

        Args:
            name: Column as the card gives it.
            key: Card key that names it, for the message.

        Raises:
            CardError: If the table has no such column; the message gives the nearest name and all that it has.
        """
        if name not in self.columns:
            near = get_close_matches(name, self.columns, n=1, cutoff=0.5)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise CardError(
                f"{self.name} has no column '{name}', which the card names under {key}.{hint} "
                f"It has: {', '.join(self.columns)}."
            )
        return self.columns[name]

    def rows(self) -> Iterator[dict[str, str]]:
        """Every row as a mapping of column to value."""
        names = list(self.columns)
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def read_table(path: Path, name: str) -> Table:
    """Read a CSV (comma, semicolon or tab, UTF-8), a Parquet table or the first sheet of an Excel workbook.

    Args:
        path: The file.
        name: How the card calls it, for messages.

    Raises:
        CardError: If the file is missing, empty, not UTF-8 or not a table.
    """
    if not path.is_file():
        raise CardError(
            f"{name} is not under the card's root ({path}). {_neighbours(path)}Check the card's root and table names."
        )
    reader = {".parquet": _read_parquet, ".xlsx": _read_excel}.get(path.suffix.lower(), _read_csv)
    table = Table(name, reader(path, name))
    if len(table) == 0:
        raise CardError(f"{name} has no rows ({path}). Fill it or take it out of the card.")
    return table


def read_tables(paths: Sequence[Path], name: str) -> Table:
    """Read tables of the same columns, in whatever order, as one.

    Args:
        paths: The files; their rows follow each other.
        name: How the card calls them, for messages.

    Raises:
        CardError: If one cannot be read, or has a column that another lacks.
    """
    tables = [read_table(path, name if len(paths) == 1 else path.name) for path in paths]
    first = tables[0]
    for path, table in zip(paths, tables, strict=True):
        odd = sorted(set(first.columns) ^ set(table.columns))
        if odd:
            raise CardError(
                f"{paths[0].name} and {path.name}, which the card names as {name}, differ in columns: only one of "
                f"them has {', '.join(odd)}. Name them apart or correct one."
            )
    columns = {column: [value for table in tables for value in table.columns[column]] for column in first.columns}
    return Table(name, columns)


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"There is no folder {path.parent}. "
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
    near = get_close_matches(path.name, names, n=3, cutoff=0.3) or names[:3]
    return f"The folder has: {', '.join(near)}. " if near else "The folder has no files. "


def _read_csv(path: Path, name: str) -> dict[str, list[str]]:
    csv.field_size_limit(2**27)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=first.count)
            rows = list(_filled_rows(stream, delimiter))
    except UnicodeDecodeError as error:
        raise CardError(f"{name} is not UTF-8 (byte {error.start} of {path}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise CardError(
            f"{name} cannot be read as a table: {error} ({path}). Close every quote, double those within, or save it "
            "anew as CSV."
        ) from error
    except OSError as error:
        raise CardError(
            f"{name} cannot be opened: {error.strerror} ({path}). Check the file and its rights."
        ) from error
    if not rows:
        raise CardError(f"{name} is empty ({path}). It must have a header line and one line a row.")
    header = [column.strip() for column in rows[0][1]]
    _check_header(header, name)
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise CardError(
                f"{name}: row {number} has {len(row)} fields, the header {len(header)} ({path}). "
                "Put values that hold the delimiter or a line break in double quotes."
            )
    return {column: [row[index].strip() for _, row in rows[1:]] for index, column in enumerate(header)}


def _filled_rows(stream: TextIO, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that hold something, and their numbers; strictly, since an open quote would swallow the rows after it."""
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    ended = 0
    try:
        for number, row in enumerate(reader, start=1):
            ended = reader.line_num
            if any(field.strip() for field in row):
                yield number, row
    except csv.Error as error:
        raise csv.Error(f"{error}, in the row that begins on line {ended + 1}") from error


def _read_parquet(path: Path, name: str) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CardError(f"{name} cannot be read as Parquet: {error} ({path}). Write it again.") from error
    _check_header(table.column_names, name)
    return {
        column: ["" if value is None else str(value).strip() for value in table.column(column).to_pylist()]
        for column in table.column_names
    }


def _read_excel(path: Path, name: str) -> dict[str, list[str]]:
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # what a writer says of them may be wrong, and cells beyond would not be read
        rows = [row for row in sheet.iter_rows(values_only=True) if any(cell is not None for cell in row)]
        book.close()
    except (InvalidFileException, zipfile.BadZipFile, OSError, KeyError, ValueError, TypeError) as error:
        raise CardError(f"{name} cannot be read as an Excel workbook ({type(error).__name__}, {path}).") from error
    if not rows:
        raise CardError(f"{name} is empty ({path}). Its first sheet must have a header line and one line a row.")
    header = ["" if cell is None else str(cell).strip() for cell in rows[0]]
    named = [index for index, column in enumerate(header) if column]
    rows = [(*row, *[None] * (len(header) - len(row))) for row in rows]
    _check_header([header[index] for index in named], name)
    return {
        header[index]: ["" if row[index] is None else str(row[index]).strip() for row in rows[1:]] for index in named
    }


def _check_header(header: Sequence[str], name: str) -> None:
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise CardError(f"{name} has several columns of one name: {', '.join(repeated)}. Rename all but one.")
