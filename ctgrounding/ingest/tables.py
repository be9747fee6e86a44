"""Tables that a dataset card names: CSV or Parquet, every value as text, every missing column explained."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

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
    """Read a CSV (comma, semicolon or tab, UTF-8) or Parquet table.

    Args:
        path: The file.
        name: How the card calls it, for messages.

    Raises:
        CardError: If the file is missing, empty, not UTF-8 or not a table.
    """
    if not path.is_file():
        raise CardError(f"{name} is not under the card's root ({path}). Check the card's root and table names.")
    columns = _read_parquet(path, name) if path.suffix == ".parquet" else _read_csv(path, name)
    table = Table(name, columns)
    if len(table) == 0:
        raise CardError(f"{name} has no rows ({path}). Fill it or take it out of the card.")
    return table


def _read_csv(path: Path, name: str) -> dict[str, list[str]]:
    csv.field_size_limit(2**27)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=first.count)
            rows = [row for row in csv.reader(stream, delimiter=delimiter) if row]
    except UnicodeDecodeError as error:
        raise CardError(f"{name} is not UTF-8 (byte {error.start} of {path}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise CardError(f"{name} cannot be read as a table: {error} ({path}).") from error
    if not rows:
        raise CardError(f"{name} is empty ({path}). It must have a header line and one line a row.")
    header = [column.strip() for column in rows[0]]
    _check_header(header, name)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise CardError(
                f"{name}: row {number} has {len(row)} fields, the header {len(header)} ({path}). "
                "Put values that hold the delimiter or a line break in double quotes."
            )
    return {column: [row[index].strip() for row in rows[1:]] for index, column in enumerate(header)}


def _read_parquet(path: Path, name: str) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise CardError(f"{name} cannot be read as Parquet: {error} ({path}).") from error
    _check_header(table.column_names, name)
    return {
        column: ["" if value is None else str(value) for value in table.column(column).to_pylist()]
        for column in table.column_names
    }


def _check_header(header: Sequence[str], name: str) -> None:
    repeated = sorted({column for column in header if header.count(column) > 1})
    if repeated:
        raise CardError(f"{name} has several columns of one name: {', '.join(repeated)}. Rename all but one.")
