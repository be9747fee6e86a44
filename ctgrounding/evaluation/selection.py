"""Which of the collected scans a number speaks of."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.rows import Table

Rule = Literal["all", "first"]
_ENDINGS = (".nii.gz", ".nii", ".npz")


@dataclass(frozen=True)
class Selection:
    """A rule over the scans of a table, applied after all ranks' rows came together.

    Attributes:
        rule: ``all`` scans, or the ``first`` reconstruction by name of each study.
        datasets: Only scans of datasets of these names; of all if empty. Case, ``-`` and ``_`` do not matter.
        listed: Only these scan ids; all if None.

    Examples:
        >>> table = Table(["ct_rate/valid_1_a_1", "ct_rate/valid_1_a_2", "own/7"])
        >>> Selection(datasets=("CT-RATE",)).of(table).keys
        ['ct_rate/valid_1_a_1', 'ct_rate/valid_1_a_2']
    """

    rule: Rule = "all"
    datasets: tuple[str, ...] = ()
    listed: frozenset[str] | None = None

    def of(self, table: Table) -> Table:
        """The rows of the selected scans, in their order.

        Args:
            table: With a column ``study`` where the rule is ``first``.
        """
        kept = np.array([self._names(key) for key in table.keys], dtype=bool)
        if self.rule == "first" and len(table):
            kept &= _is_first(table, kept)
        return table if kept.all() else table.take(np.flatnonzero(kept))

    def described(self) -> str:
        """One line for the protocol of a number."""
        rule = {"all": "all scans", "first": "the first reconstruction of each study"}[self.rule]
        only = f" of {', '.join(self.datasets)}" if self.datasets else ""
        return rule + only + (f", on a list of {len(self.listed)}" if self.listed is not None else "")

    def _names(self, key: str) -> bool:
        dataset, _, scan = key.partition("/")
        wanted = not self.datasets or plain(dataset) in {plain(name) for name in self.datasets}
        return wanted and (self.listed is None or bare(scan) in self.listed)


def _is_first(table: Table, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of the first selected scan of each study; a scan may have several rows."""
    chosen: dict[int, str] = {}
    studies = table.array("study").tolist()
    for key, study, is_kept in zip(table.keys, studies, kept.tolist(), strict=True):
        if is_kept:
            chosen[study] = min(chosen.get(study, key), key)
    return np.array([chosen.get(study) == key for key, study in zip(table.keys, studies, strict=True)], dtype=bool)


def plain(name: str) -> str:
    """A dataset's name without case and separators."""
    return name.casefold().replace("-", "").replace("_", "")


def bare(scan: str) -> str:
    """A scan id without folder and file ending, as published lists and cards write it alike."""
    name = scan.rpartition("/")[2]
    ending = next((ending for ending in _ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending)


def read_list(path: str | Path) -> frozenset[str]:
    """Scan ids from a text file, one a line; blank lines and lines that start with ``#`` are passed over.

    Raises:
        ConfigError: If the file does not exist or names no scan.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The scan list {path} cannot be read ({type(error).__name__}). Check the path.") from error
    names = frozenset(_ids(lines))
    if not names:
        raise ConfigError(f"The scan list {path} names no scan. Write one scan id a line.")
    return names


def _ids(lines: Iterable[str]) -> Iterable[str]:
    return (bare(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#"))
