"""Rows of an evaluation, collected batch by batch, the same on every rank whatever the cut.

Each row belongs to a scan. When all ranks' rows are brought together they are sorted by scan, and by place
within the scan; a scan that was seen twice, as padded samplers do, counts once. What is computed from the
result therefore does not depend on the number of ranks, on batch size or on order.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from numpy.typing import NDArray
from torch import Tensor

from ctgrounding import distributed
from ctgrounding.errors import BatchError
from ctgrounding.types import Batch

_TEXT = "text"


def scan_keys(batch: Batch) -> list[str]:
    """Name of each scan of a batch, unique over datasets."""
    return [f"{dataset}/{scan}" for dataset, scan in zip(batch["dataset"], batch["scan_id"], strict=True)]


@dataclass(frozen=True)
class Table:
    """All ranks' rows, sorted by scan.

    Attributes:
        keys: Scan of each row.
        tensors: Number columns by name, one row each.
        texts: String columns by name.
    """

    keys: list[str]
    tensors: dict[str, Shaped[Tensor, "R ..."]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def array(self, column: str) -> NDArray[Any]:
        """A number column as NumPy array."""
        values: NDArray[Any] = self.tensors[column].numpy()
        return values

    def take(self, rows: NDArray[np.int64]) -> "Table":
        """Some rows, in the order given."""
        index = torch.from_numpy(rows)
        return Table(
            [self.keys[row] for row in rows],
            {name: column[index] for name, column in self.tensors.items()},
            {name: [column[row] for row in rows] for name, column in self.texts.items()},
        )


class Rows:
    """Collects columns on this rank and brings those of all ranks together.

    Examples:
        >>> rows = Rows()
        >>> rows.add(["b", "a"], error_mm=torch.tensor([3.0, 1.0]))
        >>> rows.table().keys, rows.table().array("error_mm").tolist()
        (['a', 'b'], [1.0, 3.0])
    """

    def __init__(self) -> None:
        self._parts: list[Table] = []
        self._places: list[int] = []
        self._table: Table | None = None

    def add(self, keys: Sequence[str], **columns: Tensor | Sequence[str]) -> None:
        """Append rows; the order of rows of one scan must be the same wherever it is evaluated.

        Args:
            keys: Scan of each row, as :func:`scan_keys` names it.
            **columns: One entry for each row; tensors are copied to host memory, narrow floats widened.

        Raises:
            BatchError: If a column has another length than ``keys``, or the table was made already: one rank
                would then wait for others that have nothing new.
        """
        if self._table is not None:
            raise BatchError("These rows were brought together already. Reset the evaluator before another pass.")
        for name, column in columns.items():
            if len(column) != len(keys):
                raise BatchError(f"Column '{name}' has {len(column)} rows where there are {len(keys)} scans named.")
        seen: Counter[str] = Counter()
        for key in keys:
            self._places.append(seen[key])
            seen[key] += 1
        tensors = {name: _on_host(column) for name, column in columns.items() if isinstance(column, Tensor)}
        texts = {name: list(column) for name, column in columns.items() if not isinstance(column, Tensor)}
        self._parts.append(Table(list(keys), tensors, texts))

    def table(self) -> Table:
        """All ranks' rows; a collective the first time.

        Raises:
            BatchError: If ranks or batches collected different columns.
        """
        if self._table is None:
            self._table = self._gathered()
        return self._table

    def _gathered(self) -> Table:
        columns = self._columns()
        if columns is None:
            return Table([])
        keys = distributed.gather_strings([key for part in self._parts for key in part.keys])
        places = distributed.gather(torch.tensor(self._places, dtype=torch.int64)).tolist()
        tensors, texts = {}, {}
        for name, kind in columns.items():
            if kind == _TEXT:
                texts[name] = distributed.gather_strings([text for part in self._parts for text in part.texts[name]])
            else:
                tensors[name] = distributed.gather(self._joined(name, *kind))
        first = dict.fromkeys(zip(keys, places, strict=True))
        index = {identity: row for row, identity in reversed(list(enumerate(zip(keys, places, strict=True))))}
        return Table(keys, tensors, texts).take(np.array([index[row] for row in sorted(first)], dtype=np.int64))

    def _joined(self, name: str, dtype: str, shape: list[int]) -> Shaped[Tensor, "R ..."]:
        empty = torch.empty((0, *shape), dtype=getattr(torch, dtype))
        return torch.cat([empty, *(part.tensors[name] for part in self._parts)])

    def _columns(self) -> dict[str, Any] | None:
        """Name and kind of every column, agreed by all ranks that have any; None where none has."""
        mine = {json.dumps(_kinds(part), sort_keys=True) for part in self._parts}
        kinds = sorted(set(distributed.gather_strings(sorted(mine))))
        if len(kinds) > 1:
            raise BatchError(f"Batches of one evaluation gave different columns: {kinds[0]} and {kinds[1]}.")
        columns: dict[str, Any] | None = json.loads(kinds[0]) if kinds else None
        return columns


def _kinds(part: Table) -> dict[str, Any]:
    numbers = {name: [str(column.dtype)[6:], list(column.shape[1:])] for name, column in part.tensors.items()}
    return {**numbers, **dict.fromkeys(part.texts, _TEXT)}


def _on_host(column: Tensor) -> Tensor:
    host = column.detach().cpu()
    return host.float() if host.dtype in (torch.bfloat16, torch.float16) else host
