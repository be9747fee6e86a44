"""The plan: which scan goes to which shard and row, from the card's tables alone, before any voxel is read."""

import csv
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ctgrounding.data.shards import Codec
from ctgrounding.errors import CardError
from ctgrounding.geometry import Grid, TripleMm
from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.catalog import PlannedScan, read_scans
from ctgrounding.ingest.identity import Identity
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.whole_files import whole_file

UNRULY = ("root", "title", "citation", "licence", "sources", "known_bad", "known_bad_lists")
"""Keys of a card that do not decide how scans are read; who is left out stands with the scans themselves."""
HEADERS_READ = 16
BYTES_A_VOXEL: dict[Codec, float] = {"zstd": 1.1, "lz4": 1.4, "none": 3.0}
"""Of image and organ map; noise of real scans decides, so it is an estimate."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write.

    Attributes:
        name: File name.
        scans: Its scans, by row.
        studies: All scans of every study in it, those of other shards included.
        causes: Everything that decides its content, by name: ``card`` and ``inputs`` as hashes, settings and
            version as written.
        copies: Scans that repeat another one, as only a first pass over all can tell, and what was found.
    """

    name: str
    scans: tuple[PlannedScan, ...]
    studies: dict[str, tuple[PlannedScan, ...]] = field(repr=False)
    causes: dict[str, str]
    copies: dict[str, Remark] = field(default_factory=dict)


def plan_shards(card: Card, settings: Mapping[str, str], scans_per_shard: int, limit: int | None) -> list[ShardPlan]:
    """Read the card's tables and assign every scan a shard and a row, in the order of the table.

    Args:
        card: The card.
        settings: What else decides the shards' content: spacing, codec, version, salt.
        scans_per_shard: Places of a shard.
        limit: Take only so many scans.

    Raises:
        CardError: See :func:`ctgrounding.ingest.catalog.read_scans`; also if a folder of the card holds a link
            that leads out of its root.
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
        causes = {"card": rule_digest(card), **settings, "inputs": _inputs(Path(card.root), part, concerned)}
        shards.append(ShardPlan(name, part, concerned, causes))
    return shards


def write_plan(plans: Sequence[ShardPlan], path: Path, identity: Identity) -> None:
    """Write which scan goes to which shard and place, ids as they are written everywhere.

    Args:
        plans: The plan.
        path: CSV file.
        identity: How ids are written.
    """
    with whole_file(path) as stream:
        writer = csv.writer(stream)
        writer.writerow(["shard", "place", "scan_id", "study_id", "patient_id", "split"])
        for plan in plans:
            for place, scan in enumerate(plan.scans):
                ids = [identity.write(kind, getattr(scan, f"{kind}_id")) for kind in ("scan", "study", "patient")]
                writer.writerow([plan.name, place, *ids, scan.split])


def expected_bytes(plans: Sequence[ShardPlan], spacing_mm: TripleMm, codec: Codec) -> int:
    """About how much room shards will take, by the headers of up to sixteen scans spread over the plan.

    Args:
        plans: Shards to write.
        spacing_mm: Their grid along ``D H W``.
        codec: How their voxels are compressed.
    """
    scans = [scan for plan in plans for scan in plan.scans]
    voxels = []
    for scan in scans[:: max(1, len(scans) // HEADERS_READ)][:HEADERS_READ]:
        with suppress(Exception):  # whatever is wrong with a scan is said when its turn comes
            source = open_source(scan.path, scan.series)
            voxels.append(math.prod(Grid.covering(source.affine, source.shape_ijk, spacing_mm).shape))
    mean = sum(voxels) / len(voxels) if voxels else 0.0
    return int(len(scans) * mean * BYTES_A_VOXEL[codec])


def check_links(root: Path, scans: Iterable[PlannedScan]) -> None:
    """Look through the folders of scans and masks before anything in them is read.

    Raises:
        CardError: If one holds a link that leads out of the card's root.
    """
    for scan in scans:
        for path in (scan.path, scan.organs_path):
            if path is not None and path.is_dir():
                _stamp(path, root)


def rule_digest(card: Card) -> str:
    """Hash of what a card decides; where its files lie and how it is cited do not matter."""
    rule = {key: value for key, value in asdict(card).items() if key not in UNRULY}
    return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()


def _grouped(scans: Iterable[PlannedScan]) -> dict[str, list[PlannedScan]]:
    grouped: dict[str, list[PlannedScan]] = defaultdict(list)
    for scan in scans:
        grouped[scan.study_id].append(scan)
    return grouped


def _inputs(root: Path, scans: Sequence[PlannedScan], studies: Mapping[str, Sequence[PlannedScan]]) -> str:
    """Hash of table rows and the size and time of every input file."""
    digest, base = hashlib.sha256(), root.resolve()
    for scan in scans:
        stamps = _stamp(scan.path, root), scan.organs_path and _stamp(scan.organs_path, root)
        digest.update(repr((_below(base, scan), *stamps)).encode())
    own = {scan.scan_id for scan in scans}
    for group in studies.values():
        digest.update(repr([_below(base, scan) for scan in group if scan.scan_id not in own]).encode())
    return digest.hexdigest()


def _below(base: Path, scan: PlannedScan) -> PlannedScan:
    """With paths from the root on, so that a dataset may move."""
    organs = scan.organs_path and scan.organs_path.relative_to(base)
    return replace(scan, path=scan.path.relative_to(base), organs_path=organs)


def _stamp(path: Path, root: Path) -> list[tuple[str, int, int]] | None:
    """Names, sizes and times of a file or of all files in a folder; None where there is nothing to read."""
    try:
        entries = sorted(path.rglob("*")) if path.is_dir() else [path]
        for entry in entries:
            _check_link(entry, root)
        stats = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return None
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _check_link(entry: Path, root: Path) -> None:
    try:
        leaves = entry.is_symlink() and not entry.resolve().is_relative_to(root.resolve())
    except RuntimeError as error:
        raise CardError(f"{entry} is a link that leads to itself. Remove it.") from error
    if leaves:
        raise CardError(f"{entry} is a link that leads out of the card's root {root}. Keep all files under it.")
