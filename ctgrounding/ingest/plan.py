"""The plan: which scan goes to which shard and row, from the card's tables alone, before any voxel is read."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctgrounding.errors import CardError
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.catalog import PlannedScan, read_scans

PLAN_VERSION = 1
"""Raised when the same inputs would give other shards."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write.

    Attributes:
        name: File name.
        scans: Its scans, by row.
        studies: All scans of every study in it, those of other shards included.
        digest: Hash of everything that decides its content.
    """

    name: str
    scans: tuple[PlannedScan, ...]
    studies: dict[str, tuple[PlannedScan, ...]] = field(repr=False)
    digest: str


def plan_shards(card: Card, settings: Mapping[str, Any], scans_per_shard: int, limit: int | None) -> list[ShardPlan]:
    """Read the card's tables and assign every scan a shard and a row, in the order of the table.

    Args:
        card: The card.
        settings: What else decides the shards' content: spacing, codec, versions.
        scans_per_shard: Places of a shard.
        limit: Take only so many scans.

    Raises:
        CardError: See :func:`ctgrounding.ingest.catalog.read_scans`.
    """
    if scans_per_shard < 1 or (limit is not None and limit < 1):
        raise CardError(f"scans_per_shard is {scans_per_shard} and limit {limit}. Both must be at least 1.")
    scans = read_scans(card)[:limit]
    studies = {study: tuple(group) for study, group in _grouped(scans).items()}
    shards = []
    for number, start in enumerate(range(0, len(scans), scans_per_shard)):
        part = tuple(scans[start : start + scans_per_shard])
        concerned = {scan.study_id: studies[scan.study_id] for scan in part}
        name = f"shard-{number:05d}.h5"
        shards.append(ShardPlan(name, part, concerned, _digest(card, settings, part, concerned)))
    return shards


def rule_digest(card: Card) -> str:
    """Hash of what a card decides; where its files lie and how it is cited do not matter."""
    rule = {key: value for key, value in asdict(card).items() if key not in ("root", "title", "citation", "licence")}
    return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()


def _grouped(scans: Iterable[PlannedScan]) -> dict[str, list[PlannedScan]]:
    grouped: dict[str, list[PlannedScan]] = defaultdict(list)
    for scan in scans:
        grouped[scan.study_id].append(scan)
    return grouped


def _digest(
    card: Card, settings: Mapping[str, Any], scans: Sequence[PlannedScan], studies: Mapping[str, Sequence[PlannedScan]]
) -> str:
    """Hash of settings, table rows and the size and time of every input file."""
    digest = hashlib.sha256(repr((PLAN_VERSION, rule_digest(card), sorted(settings.items()))).encode())
    for scan in scans:
        digest.update(repr((scan, _stamp(scan.path), scan.organs_path and _stamp(scan.organs_path))).encode())
    own = {scan.scan_id for scan in scans}
    for group in studies.values():
        digest.update(repr([scan for scan in group if scan.scan_id not in own]).encode())
    return digest.hexdigest()


def _stamp(path: Path) -> list[tuple[str, int, int]] | None:
    if not path.exists():
        return None
    entries = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(entry.name, entry.stat()) for entry in entries]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
