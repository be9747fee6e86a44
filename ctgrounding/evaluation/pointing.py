"""Which organ of this scan does a sentence speak of?"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from ctgrounding import label_sets
from ctgrounding.errors import BatchError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import mean_cases
from ctgrounding.evaluation.rows import Table, scan_keys
from ctgrounding.functional.bootstrap import weighted_means
from ctgrounding.functional.prompts import text_keys
from ctgrounding.functional.ranks import Ranks
from ctgrounding.types import Batch, Encoded

_PREFIX = "organ_pointing"


class OrganPointing(Evaluator):
    """The organ of the scan that is most like a statement of its report, against the organs it speaks of.

    A statement that speaks of several organs is right with any of them. Candidates are all visible organs of the
    scan, so chance differs from scan to scan and stands beside the number. Statements of which no organ is
    visible have no right answer: they are left out and counted. The names of organs stand in most statements,
    so this measures whether words and organs meet, not whether the abnormality was seen.

    Args:
        image_head: Head of the ``organ`` readout.
        text_head: Head of the statements.
        label_set: Organ label set of the masks.
        resampling: Of the intervals, by patient.

    Raises:
        ConfigError: If the label set does not exist.

    Examples:
        >>> OrganPointing().compute()
        {'organ_pointing/statements': 0.0, 'organ_pointing/not_visible': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset(
        {"patient", "texts", "organ_text", "organ_text_scan", "organ_text_class", "organ_text_abnormal", "organ"}
    )

    def __init__(
        self,
        image_head: str = "organ",
        text_head: str = "organ",
        label_set: str = "total_v2",
        resampling: Resampling | None = None,
    ) -> None:
        super().__init__()
        self.image_head, self.text_head = image_head, text_head
        self._names = label_sets.load(label_set)
        self.resampling = resampling or Resampling()

    def reads(self) -> Reads:
        """The ``organ`` readout and the statements."""
        return Reads(frozenset({("organ", self.image_head)}), frozenset({self.text_head}))

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Rank the organs of each statement's scan.

        Raises:
            ConfigError: If a head or readout does not exist.
            BatchError: If an embedding is not finite.
        """
        image = encoded.image("organ", self.image_head).detach().double().cpu().numpy()
        text = encoded.texts(batch["organ_text"], self.text_head).detach().double().cpu().numpy()
        if not np.isfinite(image).all() or not np.isfinite(text).all():
            raise BatchError("An organ or statement embedding is not finite. Find what made it so.")
        organ, scan = encoded.organ_class.cpu().numpy(), encoded.organ_scan.cpu().numpy()
        found = [
            (place, *_pointed(np.einsum("om,m->o", image[scan == place], text[first]), organ[scan == place], owners))
            for (place, first), owners in self._statements(batch).items()
        ]
        keys = scan_keys(batch)
        numbers = torch.tensor([row[1:] for row in found], dtype=torch.int64).reshape(-1, 5)
        scans = torch.tensor([row[0] for row in found], dtype=torch.int64)
        abnormal = [bool(batch["organ_text_abnormal"][first]) for _, first in self._statements(batch)]
        self.rows.add(
            [keys[place] for place in scans.tolist()],
            above=numbers[:, 0],
            tied=numbers[:, 1],
            own=numbers[:, 2],
            candidates=numbers[:, 3],
            organ=numbers[:, 4],
            item=self._items(batch),
            abnormal=torch.tensor(abnormal, dtype=torch.bool),
            patient=batch["patient"].cpu()[scans],
        )

    def _items(self, batch: Batch) -> Int64[Tensor, "R"]:
        """What each statement is among those of its scan: a number of its text and of the organs it speaks of."""
        return text_keys(
            f"{batch['texts'][int(batch['organ_text'][first])]} {sorted(owners)}"
            for (_, first), owners in self._statements(batch).items()
        )

    def _statements(self, batch: Batch) -> dict[tuple[int, int], list[int]]:
        """Scan and first row of each statement, with all organs that it speaks of."""
        columns = (batch[name].tolist() for name in ("organ_text_scan", "organ_text", "organ_text_class"))
        first: dict[tuple[int, int], int] = {}
        owners: dict[tuple[int, int], list[int]] = {}
        for row, (scan, text, organ) in enumerate(zip(*columns, strict=True)):
            key = (scan, first.setdefault((scan, text), row))
            owners.setdefault(key, []).append(organ)
        return owners

    def compute(self) -> dict[str, float]:
        """Share of statements whose organ is first, mean rank, chance, and the same for abnormal ones."""
        table = self._visible()
        left_out = len(self.rows.table()) - len(table)
        counts = {f"{_PREFIX}/statements": float(len(table)), f"{_PREFIX}/not_visible": float(left_out)}
        if not len(table):
            return counts
        ranks = self._ranks(table)
        hits, abnormal = ranks.hits(1).numpy(), table.array("abnormal")
        chance = table.array("own") / table.array("candidates")
        values = np.stack([hits, np.where(abnormal, hits, np.nan), chance, ranks.by("expected").numpy()], axis=1)
        interval = self.resampling.interval(weighted_means(values), table.array("patient"))
        numbers = {
            **counts,
            f"{_PREFIX}/abnormal_statements": float(abnormal.sum()),
            f"{_PREFIX}/top1": float(interval.estimate[0]),
            **bounds(f"{_PREFIX}/top1", interval),
            f"{_PREFIX}/chance_top1": float(interval.estimate[2]),
            f"{_PREFIX}/mean_rank": float(interval.estimate[3]),
            f"{_PREFIX}/mean_candidates": float(table.array("candidates").mean()),
        }
        if abnormal.any():
            numbers |= {
                f"{_PREFIX}/abnormal_top1": float(interval.estimate[1]),
                **bounds(f"{_PREFIX}/abnormal_top1", interval, 1),
            }
        return numbers

    def results(self) -> Mapping[str, Any]:
        """Hits by organ, and the protocol."""
        table = self._visible()
        hits = self._ranks(table).hits(1).numpy() if len(table) else np.zeros(0)
        organ = table.array("organ") if len(table) else np.zeros(0, dtype=np.int64)
        return {
            "title": "Text to organ",
            "protocol": {
                "score": f"cosine of organ readout (head {self.image_head}) and statement (head {self.text_head})",
                "candidates": "all organs that the scan shows",
                "ties": "share the places",
                "intervals": self.resampling.described(),
            },
            "organs": [
                {
                    "name": label_sets.spoken(self._names.get(label, f"label {label}")),
                    "statements": int((organ == label).sum()),
                    "top1": float(hits[organ == label].mean()),
                }
                for label in sorted(set(organ.tolist()))
            ],
            "cases": self._cases(table, hits) if len(table) else [],
        }

    def _cases(self, table: Table, hits: NDArray[np.float64]) -> list[dict[str, Any]]:
        return [mean_cases(f"{_PREFIX}/top1", table, [""], hits[:, None], items=table.array("item"))]

    def _visible(self) -> Table:
        table = self.rows.table()
        return table.take(np.flatnonzero(table.array("own") > 0)) if len(table) else table

    def _ranks(self, table: Table) -> Ranks:
        return Ranks(table.tensors["above"], table.tensors["tied"])


def _pointed(
    scores: NDArray[np.float64], organs: NDArray[np.int64], owners: list[int]
) -> tuple[int, int, int, int, int]:
    """Rivals above and level, visible organs of the statement, candidates, and the statement's first organ."""
    own = np.isin(organs, owners)
    if not own.any():
        return 0, 0, 0, len(organs), owners[0]
    best = scores[own].max()
    rivals = scores[~own]
    return int((rivals > best).sum()), int((rivals == best).sum()), int(own.sum()), len(organs), owners[0]
