"""``ctgrounding mine``: read reports again and write what they teach as supervision beside the shards."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ctgrounding import label_sets
from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.data.supervision import SupervisionWriter, supervision_path
from ctgrounding.errors import CardError, ReportError, ShardError
from ctgrounding.geometry import TripleMm
from ctgrounding.ingest.card_files import find_card, load_card
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.catalog import PlannedScan, read_scans
from ctgrounding.ingest.identity import IdRule, load_identity, write_private_map
from ctgrounding.ingest.mined import Mined, MiningRule, Tally, mine_scans
from ctgrounding.ingest.mining_sources import CardStudies, ShardScans, Texts, batches
from ctgrounding.ingest.plan import check_links

TASK = 16
"""Studies, scans or texts of one task."""

Part = CardStudies | ShardScans | Texts


@dataclass(frozen=True)
class MiningSummary:
    """What was mined.

    Attributes:
        path: Supervision file written.
        tally: What was found, resolved and refused.
    """

    path: Path
    tally: Tally


@dataclass(frozen=True)
class _Work:
    """One supervision file to write; ``private`` says which hashes stand for which texts."""

    path: Path
    parts: Sequence[Part]
    rule: MiningRule
    private: Path | None = None


def mine(
    source: str,
    *,
    name: str = "mined",
    output: Path | None = None,
    root: Path | None = None,
    labels: bool = True,
    ids: IdRule | None = None,
    workers: int = 1,
) -> MiningSummary:
    """Read reports again and write what they say of each scan to ``supervision/NAME.parquet``.

    Shards stay as they are; ``data.supervision: NAME`` lays the file over them. Over a dataset card every cited
    slice is found by the headers of the scans; those outside the grid of the shards in ``output`` are refused, as by
    ingest. Shards alone know the places of slices that were cited when they were written. Texts alone have no scans,
    so their snippets get no depth.

    Args:
        source: A dataset card (YAML file or name of a packaged one), a shard or folder of shards, or a folder of
            text files, one report each.
        name: Name of the file.
        output: Folder of the shards that a card was ingested to; for texts where to write, by default their folder.
        root: Folder of the dataset; takes the place of the card's.
        labels: Whether the CT-RATE classes that reports state go in too.
        ids: For texts alone: ``hash``, the default, writes keyed hashes of file names, whose salt and map are kept
            beside the output; ``keep`` writes the names, which may say who a patient is.
        workers: Processes; they change neither order nor content.

    Returns:
        What is printed.

    Raises:
        CardError: If the card does not fit the files, or a card is given without ``output`` or with ``ids``.
        ShardError: If a shard is damaged, or shards are given with ``ids``.
        ReportError: If there is no report, or ``workers`` is none.
    """
    if workers == 0 or workers < -1:
        raise ReportError(f"workers is {workers}. Give one or more, or -1 for every core.")
    work = _work(source, name, output, root, labels, ids)
    tally = Tally()
    with _bar() as bar, SupervisionWriter(work.path) as writer:
        task = bar.add_task("Mining reports", total=sum(map(len, work.parts)))
        for part, mined in zip(work.parts, _mined(work, workers), strict=True):
            writer.write(mined.rows)
            tally.add(mined.tally)
            bar.advance(task, len(part))
    summary = MiningSummary(work.path, tally)
    console = Console()
    console.print(account(summary))
    if work.private:
        console.print(f"ids are hashed; {work.private} says whose they are", soft_wrap=True, markup=False)
    return summary


def account(summary: MiningSummary) -> Table:
    """The summary as a table for the terminal."""
    tally = summary.tally
    table = Table("", "count", "share", title=f"Mined into {summary.path}", title_justify="left")
    current = tally.references - tally.prior
    table.add_row("scans with a row", str(tally.scans), "")
    for reason, count in tally.put_aside.most_common():
        table.add_row(f"put aside: {reason}", str(count), "")
    table.add_row("reports read", str(tally.reports), "")
    table.add_row("  that cite an image", str(tally.citing), _share(tally.citing, tally.reports))
    table.add_row("image references", str(tally.references), "")
    table.add_row("  into an earlier examination", str(tally.prior), _share(tally.prior, tally.references))
    table.add_row("  without a series", str(tally.unnumbered), _share(tally.unnumbered, current))
    table.add_row("snippets of this examination", str(tally.snippets), "")
    table.add_row("  with a depth", str(tally.resolved), _share(tally.resolved, tally.snippets))
    for reason, count in tally.refused.most_common():
        table.add_row(f"  refused: {reason}", str(count), _share(count, tally.snippets))
    statements = tally.statuses.total()
    table.add_row("statements about organs", str(statements), "")
    for status, count in sorted(tally.statuses.items()):
        table.add_row(f"  {status}", str(count), _share(count, statements))
    stated = tally.labels.total()
    table.add_row("CT-RATE labels stated", str(stated), "")
    for value, count in sorted(tally.labels.items()):
        table.add_row(f"  {value}", str(count), _share(count, stated))
    return table


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _bar() -> Progress:
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _mined(work: _Work, workers: int) -> Iterable[Mined]:
    if workers == 1:
        return (_mine(part, work.rule) for part in work.parts)
    parallel = Parallel(n_jobs=workers, return_as="generator", pre_dispatch="4*n_jobs")
    results: Iterator[Mined] = parallel(delayed(_mine)(part, work.rule) for part in work.parts)
    return results


def _mine(part: Part, rule: MiningRule) -> Mined:
    return mine_scans(part.scans(), rule)


def _work(source: str, name: str, output: Path | None, root: Path | None, labels: bool, ids: IdRule | None) -> _Work:
    path = Path(source)
    if path.suffix == ".h5" or (path.is_dir() and any(path.glob("*.h5"))):
        if output is not None:
            raise ShardError("Shards keep their supervision beside them. Leave out --output.")
        if ids is not None:
            raise ShardError("Shards keep the ids that they have. Leave out --ids.")
        return _over_shards(path if path.is_dir() else path.parent, name, labels)
    if path.is_dir():
        return _over_texts(path, name, output or path, labels, ids or "hash")
    find_card(source)
    if ids is not None:
        raise CardError("The card says under ids how ids are written. Leave out --ids.")
    if output is None:
        raise CardError("A card needs --output, the folder of the shards that it was ingested to.")
    return _over_card(source, name, output, root, labels)


def _over_card(source: str, name: str, output: Path, root: Path | None, labels: bool) -> _Work:
    card = load_card(source, root)
    if card.reports is None:
        raise CardError(f"The card {card.name} names no reports. Add 'reports' to it.")
    scans = read_scans(card)
    check_links(Path(card.root), scans)
    studies: dict[str, list[PlannedScan]] = defaultdict(list)
    for scan in scans:
        studies[scan.study_id].append(scan)
    grouped = [tuple(scans) for scans in studies.values()]
    identity, spacing_mm = load_identity(card.ids, output), _spacing_mm(output, card)
    parts = [
        CardStudies(tuple(grouped[start : start + TASK]), spacing_mm, card.hu, card.shared_frame, identity)
        for start in range(0, len(grouped), TASK)
    ]
    rule = MiningRule(card.name, frozenset(label_sets.load(card.organs.classes).values()), labels)
    return _Work(supervision_path(output, name), parts, rule)


def _spacing_mm(output: Path, card: Card) -> TripleMm:
    """The grid of the shards that the card was ingested to, which may not be the card's; it bounds what they hold."""
    shards = sorted(output.glob("*.h5"))
    return Shard(shards[0]).spacing_mm if shards else card.spacing_mm


def _over_shards(folder: Path, name: str, labels: bool) -> _Work:
    """All shards of a folder, since one file serves them all."""
    shards = [Shard(path) for path in find_shards([folder])]
    datasets = {str(shard.attributes["dataset"]) for shard in shards}
    if len(datasets) > 1:
        raise ShardError(f"{folder} holds shards of several datasets ({', '.join(sorted(datasets))}). Part them.")
    rule = MiningRule(datasets.pop(), frozenset(shards[0].classes.values()), labels)
    parts = [part for shard in shards for part in batches(shard.records, TASK)]
    return _Work(supervision_path(folder, name), parts, rule)


def _over_texts(folder: Path, name: str, output: Path, labels: bool, ids: IdRule) -> _Work:
    paths = sorted(folder.rglob("*.txt"))
    if not paths:
        raise ReportError(f"{folder} holds neither shards (*.h5) nor texts (*.txt). Name a folder that has some.")
    path, identity = supervision_path(output, name), load_identity(ids, output)
    parts = [Texts(folder, tuple(paths[start : start + TASK]), identity) for start in range(0, len(paths), TASK)]
    rule = MiningRule("texts", frozenset(label_sets.load("total_v2").values()), labels)
    beside = output.resolve().parent / f"{output.resolve().name}-{path.stem}"  # ingest has a map of the folder's name
    private = write_private_map(beside, identity, [("scan", text) for part in parts for text in part.names])
    return _Work(path, parts, rule, private)
