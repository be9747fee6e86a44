"""Which split a patient is in: by the card's column or by a hash, never in two."""

import hashlib
from collections.abc import Sequence

from ctgrounding.data.records import Split
from ctgrounding.errors import CardError
from ctgrounding.ingest.card_files import SPLITS
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.tables import Table

DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def assign_splits(card: Card, table: Table, patients: Sequence[str], apart: bool = True) -> list[Split]:
    """The split of each scan.

    Args:
        card: The card.
        table: Its table of scans.
        patients: Patient of each row.
        apart: Whether a patient in two splits is an error; the audit names them all instead.

    Raises:
        CardError: If a value is no split, or a patient is in two.
    """
    fractions = card.split.fractions or DEFAULT_FRACTIONS
    if not card.scans.split:
        return [_drawn(f"{card.name}\0{patient}", fractions) for patient in patients]
    found: dict[str, Split] = {}
    splits = []
    for value, patient in zip(table.column(card.scans.split, "scans.split"), patients, strict=True):
        split = _as_split(card.split.values.get(value, value))
        if found.setdefault(patient, split) != split and apart:
            raise CardError(f"Patient '{patient}' is in two splits, {found[patient]} and {split}. Keep patients apart.")
        splits.append(split)
    share = card.split.val_of_train
    moved = {"val": share, "train": 1 - share}
    return [
        _drawn(f"{card.name}\0val of train\0{patient}", moved) if share and split == "train" else split
        for split, patient in zip(splits, patients, strict=True)
    ]


def _as_split(value: str) -> Split:
    for split in SPLITS:
        if value == split:
            return split
    raise CardError(f"'{value}' is no split. Use {', '.join(SPLITS)}, or map it under split.values.")


def _drawn(key: str, fractions: dict[str, float]) -> Split:
    """A split by the place of a hash between 0 and 1, so that other patients do not matter."""
    place = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    for split in SPLITS:
        place -= fractions.get(split, 0.0)
        if place < 0:
            return split
    return "train"
