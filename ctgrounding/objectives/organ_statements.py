"""Statements of reports joined to the organs that the step shows."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ctgrounding import distributed
from ctgrounding.functional.contrast import RowIds
from ctgrounding.functional.prompts import text_keys
from ctgrounding.objectives.organ_texts import OrganTexts
from ctgrounding.types import ORGAN_IDS, Batch, Encoded

NORMAL = 2**62
"""Group of every normal organ and statement, so that they are not opposed to each other."""


@dataclass(frozen=True)
class Statements:
    """One row for each statement about an organ that is shown.

    Attributes:
        organ: Row of the organ among the step's visible ones.
        kind: Label id of the organ.
        text: Row of ``encoded.text``.
        key: Number of the text, equal on all ranks.
        normal: Whether it says normal.
        organ_keys: Numbers of all texts that the report has about each organ, and of dictionary entries that may be
            true of it, -1 where there are fewer.
    """

    organ: Int64[Tensor, "R"]
    kind: Int64[Tensor, "R"]
    text: Int64[Tensor, "R"]
    key: Int64[Tensor, "R"]
    normal: Bool[Tensor, "R"]
    organ_keys: Int64[Tensor, "O k"]

    def ids(self, entry_kinds: Int64[Tensor, "E"], entry_keys: Int64[Tensor, "E"]) -> tuple[RowIds, RowIds]:
        """What the rows are to the contrast: organs on one side, statements and dictionary entries on the other.

        An organ's own texts need no group beside these: their keys are among its keys, or both are normal.
        """
        pair = distributed.row_ids(len(self.organ), self.organ.device)
        normal = torch.where(self.normal, NORMAL, -1)
        none = torch.full_like(entry_kinds, -1)
        of_organs = torch.cat([normal[:, None], self.organ_keys[self.organ]], dim=1)
        of_texts = torch.cat([torch.stack([normal, self.key], 1), torch.stack([none, entry_keys], 1)])
        return (
            RowIds(pair, of_organs, self.kind),
            RowIds(torch.cat([pair, none]), of_texts, torch.cat([self.kind, entry_kinds])),
        )


def pair_statements(
    encoded: Encoded, batch: Batch, shown: Bool[Tensor, "O"], fixed: OrganTexts, *, unmentioned_is_normal: bool
) -> Statements:
    """Join statements to organs; see :class:`.organ_grounding.OrganGrounding` for what is left out and added."""
    device = encoded.organ_class.device
    scans = len(batch["scan_id"])
    organ_at = torch.full((scans, ORGAN_IDS), -1, device=device)
    organ_at[encoded.organ_scan[shown], encoded.organ_class[shown]] = shown.nonzero()[:, 0]
    organ = organ_at[batch["organ_text_scan"], batch["organ_text_class"]]
    on_view = organ >= 0
    organ, text, abnormal = organ[on_view], batch["organ_text"][on_view], batch["organ_text_abnormal"][on_view]
    key = text_keys(batch["texts"]).to(device)[text]

    is_abnormal = torch.zeros_like(shown).index_put((organ[abnormal],), torch.ones_like(organ[abnormal]) > 0)
    mentioned = torch.zeros_like(shown).index_put((organ,), torch.ones_like(organ) > 0)
    is_normal = mentioned & ~is_abnormal
    if unmentioned_is_normal:
        has_statement = torch.zeros(scans, dtype=torch.bool, device=device)
        has_statement[batch["organ_text_scan"]] = True
        is_normal |= shown & ~mentioned & has_statement[encoded.organ_scan]

    kept = abnormal | ~is_abnormal[organ]
    normal_fixed = fixed.normal_of.to(device)[encoded.organ_class]
    calm = (is_normal & (normal_fixed >= 0)).nonzero()[:, 0]
    rows = torch.cat([organ[kept], calm])
    known_organ, known_key = _possible(encoded, batch, organ_at, fixed)
    return Statements(
        organ=rows,
        kind=encoded.organ_class[rows],
        text=torch.cat([text[kept], fixed.rows(encoded, normal_fixed[calm])]),
        key=torch.cat([key[kept], fixed.keys(normal_fixed[calm])]),
        normal=torch.cat([~abnormal[kept], torch.ones_like(calm, dtype=torch.bool)]),
        organ_keys=_table(torch.cat([organ, known_organ]), torch.cat([key, known_key]), len(shown)),
    )


def _possible(
    encoded: Encoded, batch: Batch, organ_at: Int64[Tensor, "B 256"], fixed: OrganTexts
) -> tuple[Int64[Tensor, "R"], Int64[Tensor, "R"]]:
    """Organs with a finding, and keys of this step's dictionary entries that may be true of them."""
    names, scans, kinds = (batch.get(key) for key in ("organ_finding", "organ_finding_scan", "organ_finding_class"))
    entries = fixed.entries(encoded.planned.to(organ_at.device))
    if not isinstance(names, list) or not names or not isinstance(scans, Tensor) or not isinstance(kinds, Tensor):
        return entries[:0], entries[:0]
    organ = organ_at[scans, kinds]
    finding, entry = (fixed.may_be_true(entries, kinds, names) & (organ >= 0)[:, None]).nonzero(as_tuple=True)
    return organ[finding], fixed.keys(entries[entry])


def _table(organ: Int64[Tensor, "R"], key: Int64[Tensor, "R"], organs: int) -> Int64[Tensor, "O k"]:
    """Keys by organ, padded with -1."""
    counts = torch.bincount(organ, minlength=organs)
    order = organ.argsort(stable=True)
    place = torch.arange(len(organ), device=organ.device) - (counts.cumsum(0) - counts)[organ[order]]
    table = torch.full((organs, int(counts.max()) if organs else 0), -1, device=organ.device)
    table[organ[order], place] = key[order]
    return table
