"""Which scan does this report belong to, and which report this scan?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import mean_cases
from ctgrounding.evaluation.examples import check_examples
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.evaluation.selection import Selection
from ctgrounding.functional.bootstrap import weighted_means
from ctgrounding.functional.ranks import Ranks, TieRule, retrieval_ranks, top_candidates
from ctgrounding.types import Batch, Encoded

Duplicates = Literal["distinct", "group", "each"]
DIRECTIONS = {"report_to_scan": "Report to scan", "scan_to_report": "Scan to report"}

_DUPLICATES = {
    "distinct": "one scan for each distinct report, the first by name",
    "group": "all scans; any scan of an identical report is a hit",
    "each": "all scans; only a report's own scan is a hit, duplicates count as misses",
}


class ReportRetrieval(Evaluator):
    """Retrieval between reports and scans by cosine, in both directions.

    Three ways to treat several scans of one report (reconstructions of a study, identical normal reports):
    ``distinct`` keeps one scan a report, so that chance at k is exactly k / pool; ``group`` keeps all and
    accepts any of the report's scans; ``each`` accepts a report's own scan alone, as published figures on
    all CT-RATE volumes do. Scans without a report take no part.

    Args:
        image_head: Head of the ``global`` readout.
        text_head: Head of the report.
        k: Depths of the recall.
        duplicates: See above.
        ties: Rank of a scan that scores the same as others. Recall shares the places among them.
        resampling: Of the intervals, by patient of the query.
        examples: Queries shown with their first answers; chosen by name, not by success.
        selection: Which scans take part.

    Raises:
        ConfigError: If a ``k`` is not positive, ``examples`` is below 0, or a rule is not known.

    Examples:
        >>> evaluator = ReportRetrieval(image_head="main", text_head="main", k=(1, 5))
        >>> evaluator.compute()
        {'report_to_scan/pool': 0.0, 'scan_to_report/pool': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset(
        {"report_text", "report_group", "patient", "study", "texts", "global"}
    )

    def __init__(
        self,
        image_head: str = "main",
        text_head: str = "main",
        k: Sequence[int] = (1, 5, 10, 50, 100),
        duplicates: Duplicates = "distinct",
        ties: TieRule = "expected",
        resampling: Resampling | None = None,
        examples: int = 6,
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        if not k or min(k) < 1:
            raise ConfigError(f"Recall at k = {tuple(k)} is not defined. Give numbers from 1 on.")
        if duplicates not in _DUPLICATES:
            raise ConfigError(f"Rule '{duplicates}' for duplicates is not known. Use one of {', '.join(_DUPLICATES)}.")
        check_examples(examples)
        self.image_head, self.text_head = image_head, text_head
        self.k, self.duplicates, self.ties = tuple(k), duplicates, ties
        self.resampling = resampling or Resampling()
        self.examples, self.selection = examples, selection or Selection()

    def reads(self) -> Reads:
        """The ``global`` readout and the report."""
        return Reads(frozenset({("global", self.image_head)}), frozenset({self.text_head}))

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Add the scans of a batch that have a report."""
        has_report = batch["report_text"].cpu() >= 0
        kept = has_report.nonzero().flatten().tolist()
        rows = batch["report_text"][batch["report_text"] >= 0]
        keys = scan_keys(batch)
        self.rows.add(
            [keys[scan] for scan in kept],
            image=encoded.image("global", self.image_head).cpu()[has_report],
            text=encoded.texts(rows, self.text_head),
            group=batch["report_group"].cpu()[has_report],
            patient=batch["patient"].cpu()[has_report],
            study=batch["study"].cpu()[has_report],
            report=[batch["texts"][row] for row in rows.tolist()],
        )

    def compute(self) -> dict[str, float]:
        """Recall, median and mean rank, pool and chance of both directions."""
        numbers = {}
        for direction, (table, ranks, pool) in self._directions().items():
            if ranks is None:
                numbers[f"{direction}/pool"] = 0.0
                continue
            places = ranks.by(self.ties)
            depths = [k for k in self.k if k <= pool]
            hits = torch.stack([ranks.hits(k) for k in depths] + [places], dim=1).numpy()
            interval = self.resampling.interval(weighted_means(hits), table.array("patient"))
            for column, k in enumerate(depths):
                numbers[f"{direction}/r_at_{k}"] = float(interval.estimate[column])
                numbers |= bounds(f"{direction}/r_at_{k}", interval, column)
                numbers[f"{direction}/chance_r_at_{k}"] = k / pool
            numbers[f"{direction}/median_rank"] = float(np.median(places.numpy()))
            numbers[f"{direction}/mean_rank"] = float(interval.estimate[-1])
            numbers[f"{direction}/queries"] = float(len(table))
            numbers[f"{direction}/pool"] = float(pool)
        return numbers

    def results(self) -> Mapping[str, Any]:
        """Numbers of both directions, the share found by depth, and examples with text."""
        return {
            "title": "Retrieval",
            "protocol": {
                "score": f"cosine of global readout (head {self.image_head}) and report (head {self.text_head})",
                "scans": self.selection.described(),
                "duplicates": f"{self.duplicates}: {_DUPLICATES[self.duplicates]}",
                "ties": self.ties,
                "intervals": self.resampling.described(),
            },
            "directions": {
                direction: {"title": DIRECTIONS[direction], "pool": pool, "recall": _recall_curve(ranks, pool)}
                for direction, (_, ranks, pool) in self._directions().items()
                if ranks is not None
            },
            "examples": self._examples(),
            "cases": [
                mean_cases(
                    f"{direction}/recall",
                    table,
                    [f"r_at_{k}" for k in self.k if k <= pool],
                    torch.stack([ranks.hits(k) for k in self.k if k <= pool], dim=1).numpy(),
                )
                for direction, (table, ranks, pool) in self._directions().items()
                if ranks is not None and min(self.k) <= pool
            ],
        }

    def _directions(self) -> dict[str, tuple[Table, Ranks | None, int]]:
        table = self._pool()
        if not len(table):
            return dict.fromkeys(DIRECTIONS, (table, None, 0))
        image, text = table.tensors["image"], table.tensors["text"]
        every, first = torch.arange(len(table)), torch.from_numpy(_first_of_each(table))
        group = table.tensors["group"] if self.duplicates == "group" else every
        reports = first if self.duplicates == "group" else every
        to_scan = retrieval_ranks(text[reports], image, group[reports], group)
        to_report = retrieval_ranks(image, text[reports], group, group[reports])
        return {
            "report_to_scan": (table.take(reports.numpy()), to_scan, len(table)),
            "scan_to_report": (table, to_report, len(reports)),
        }

    def _pool(self) -> Table:
        table = self.selection.of(self.rows.table())
        return table.take(_first_of_each(table)) if len(table) and self.duplicates == "distinct" else table

    def _examples(self) -> list[dict[str, Any]]:
        table = self._pool()
        if not len(table) or not self.examples:
            return []
        step = max(1, len(table) // self.examples)
        chosen = torch.arange(0, len(table), step)[: self.examples]
        scores, found = top_candidates(table.tensors["text"][chosen], table.tensors["image"], k=3)
        ranks = self._directions()["report_to_scan"][1]
        shown = ranks.by(self.ties)[chosen].tolist() if ranks is not None and self.duplicates != "group" else None
        return [
            {
                "scan": table.keys[query],
                "report": table.texts["report"][query],
                "rank": None if shown is None else shown[place],
                "answers": [
                    _answer(table, query, *pair)
                    for pair in zip(found[place].tolist(), scores[place].tolist(), strict=True)
                ],
            }
            for place, query in enumerate(chosen.tolist())
        ]


def _answer(table: Table, query: int, row: int, score: float) -> dict[str, Any]:
    groups: Int64[Tensor, "R"] = table.tensors["group"]
    return {
        "scan": table.keys[row],
        "score": score,
        "own": bool(groups[row] == groups[query]),
        "report": table.texts["report"][row],
    }


def _first_of_each(table: Table) -> Int64[np.ndarray, "G"]:
    """First row of each distinct report, in the order of the rows."""
    if not len(table):
        return np.zeros(0, dtype=np.int64)
    return np.sort(np.unique(table.array("group"), return_index=True)[1])


def _recall_curve(ranks: Ranks, pool: int) -> dict[str, list[float]]:
    """Share found among the first k, at up to 60 depths."""
    depths = sorted(set(np.geomspace(1, pool, num=60).round().astype(int).tolist()))
    return {"k": depths, "share": [float(ranks.hits(k).mean()) for k in depths]}
