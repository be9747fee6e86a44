"""Retrieval in small pools drawn many times over, as Merlin reports it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.selection import Selection
from ctgrounding.functional.ranks import Ranks
from ctgrounding.types import Batch, Encoded

_DIRECTIONS = ("report_to_scan", "scan_to_report")


class PooledRetrieval(Evaluator):
    """Recall among disjoint pools of a few scans, over repeated shuffles.

    Each repeat shuffles all scans once and cuts them into pools of each size; scans that fill no pool are left
    out of that repeat. The bounds beside a number are quantiles over repeats: they show what the draw of pools
    does, not what another sample of patients would. One scan for each distinct report takes part, so that a pool
    holds one right answer; published pools keep duplicates.

    Args:
        image_head: Head of the ``global`` readout.
        text_head: Head of the report.
        pools: Scans of a pool.
        k: Depths of the recall.
        repeats: Shuffles.
        seed: Of the shuffles.
        distinct_reports: Whether duplicates of a report are left out.
        selection: Which scans take part.

    Raises:
        ConfigError: If a number is not positive, or the seed below 0.

    Examples:
        >>> PooledRetrieval(pools=(32,)).compute()
        {'pooled_retrieval/scans': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset(
        {"report_text", "report_group", "patient", "study", "texts", "global"}
    )

    def __init__(
        self,
        image_head: str = "main",
        text_head: str = "main",
        pools: Sequence[int] = (32, 64, 128),
        k: Sequence[int] = (1, 8),
        repeats: int = 100,
        seed: int = 42,
        distinct_reports: bool = True,
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        if not pools or not k or min(*pools, *k, repeats) < 1:
            raise ConfigError(f"Pools of {tuple(pools)}, k = {tuple(k)} and {repeats} repeats must all be positive.")
        if seed < 0:
            raise ConfigError(f"seed is {seed}, but must be a number from 0 on.")
        self.image_head, self.text_head = image_head, text_head
        self.pools, self.k, self.repeats, self.seed = tuple(pools), tuple(k), repeats, seed
        self.distinct_reports, self.selection = distinct_reports, selection or Selection()

    def reads(self) -> Reads:
        """The ``global`` readout and the report."""
        return Reads(frozenset({("global", self.image_head)}), frozenset({self.text_head}))

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Add the scans of a batch that have a report."""
        has_report = batch["report_text"].cpu() >= 0
        keys, kept = scan_keys(batch), has_report.nonzero().flatten().tolist()
        rows = batch["report_text"][batch["report_text"] >= 0]
        self.rows.add(
            [keys[scan] for scan in kept],
            image=encoded.image("global", self.image_head).cpu()[has_report],
            text=encoded.texts(rows, self.text_head),
            group=batch["report_group"].cpu()[has_report],
            patient=batch["patient"].cpu()[has_report],
            study=batch["study"].cpu()[has_report],
        )

    def compute(self) -> dict[str, float]:
        """Mean recall over repeats, and quantiles over repeats, of both directions."""
        table = self._taking_part()
        numbers = {"pooled_retrieval/scans": float(len(table))}
        found: dict[str, dict[int, dict[int, list[float]]]] = {
            direction: {size: {k: [] for k in self._depths(size)} for size in self.pools} for direction in _DIRECTIONS
        }
        for size, images, texts in self._drawn(table):
            for direction, sides in zip(_DIRECTIONS, ((texts, images), (images, texts)), strict=True):
                ranks = _ranks(*sides)
                for k in self._depths(size):
                    found[direction][size][k].append(float(ranks.hits(k).mean()))
        for direction, pools in found.items():
            for size, depths in pools.items():
                for k, values in depths.items():
                    if values:
                        numbers |= _over_repeats(f"pooled_retrieval/{direction}/r_at_{k}_of_{size}", values)
        return numbers

    def results(self) -> Mapping[str, Any]:
        """How pools were drawn."""
        return {
            "title": "Retrieval in pools",
            "protocol": {
                "score": f"cosine of global readout (head {self.image_head}) and report (head {self.text_head})",
                "scans": self.selection.described(),
                "pools": f"disjoint pools of {', '.join(map(str, self.pools))}, {self.repeats} shuffles, "
                f"seed {self.seed}",
                "duplicates": "one scan a distinct report"
                if self.distinct_reports
                else "kept; only the own scan is right",
                "bounds": "quantiles 2.5 % and 97.5 % over shuffles",
            },
        }

    def _depths(self, size: int) -> tuple[int, ...]:
        return tuple(k for k in self.k if k <= size)

    def _taking_part(self) -> Table:
        table = self.selection.of(self.rows.table())
        if not len(table) or not self.distinct_reports:
            return table
        return table.take(np.sort(np.unique(table.array("group"), return_index=True)[1]))

    def _drawn(self, table: Table) -> Iterator[tuple[int, Float[Tensor, "P n M"], Float[Tensor, "P n M"]]]:
        """All pools of one size and shuffle at a time."""
        if not len(table):
            return
        image, text = table.tensors["image"].double(), table.tensors["text"].double()
        if not bool(torch.isfinite(image).all() & torch.isfinite(text).all()):
            raise BatchError("An embedding is not finite, so it has no rank. Find what made it so.")
        random = np.random.default_rng(self.seed)
        for _ in range(self.repeats):
            order = np.arange(len(table))
            random.shuffle(order)
            for size in self.pools:
                count = len(table) // size
                if count:
                    rows = torch.from_numpy(order[: count * size].reshape(count, size))
                    yield size, image[rows], text[rows]


def _ranks(queries: Float[Tensor, "P n M"], candidates: Float[Tensor, "P n M"]) -> Ranks:
    scores = queries @ candidates.transpose(1, 2)
    own = scores.diagonal(dim1=1, dim2=2)[..., None]
    return Ranks((scores > own).sum(2).flatten(), (scores == own).sum(2).flatten() - 1)


def _over_repeats(name: str, values: list[float]) -> dict[str, float]:
    shares: Float64[np.ndarray, "R"] = np.array(values)
    low, high = np.quantile(shares, [0.025, 0.975])
    mean: NDArray[np.float64] = shares.mean()
    return {name: float(mean), f"{name}_repeats_low": float(low), f"{name}_repeats_high": float(high)}
