"""``ctgrounding audit``: a verdict on every scan of a card, before anything is written for training."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctgrounding.errors import CardError
from ctgrounding.ingest.audit.copies import find_copies, patients_in_two_splits
from ctgrounding.ingest.audit.entries import OUTCOMES, ScanAudit, audit_scan, in_order
from ctgrounding.ingest.audit.kinds import EFFECTS, KINDS, Remark
from ctgrounding.ingest.audit.page import render
from ctgrounding.ingest.card_files import load_card
from ctgrounding.ingest.cards import Card
from ctgrounding.ingest.catalog import PlannedScan, read_scans
from ctgrounding.ingest.examination import Rules
from ctgrounding.ingest.identity import Identity, load_identity, write_private_map
from ctgrounding.ingest.plan import check_links

JSON_NAME, PAGE_NAME = "audit.json", "audit.html"
HU_WORDS = {
    "already_hu": "already HU",
    "slope_and_intercept": "slope and intercept needed",
    "intercept_trap": "intercept trap, corrected",
    "trusted": "taken as the card says",
    "unknown": "not known: quarantined",
}


@dataclass(frozen=True)
class Audit:
    """The verdicts on all scans of a card.

    Attributes:
        dataset: Name of the card.
        scans: One entry a scan, in the order of the card's table.
        page: The page that was written.
    """

    dataset: str
    scans: tuple[ScanAudit, ...]
    page: Path

    @property
    def outcomes(self) -> dict[str, int]:
        """Scans that are ``quarantined``, ``flagged`` and ``usable``."""
        counts = Counter(scan.outcome for scan in self.scans)
        return {outcome: counts[outcome] for outcome in OUTCOMES}


def audit(
    *, card: str, root: Path | None = None, output: Path = Path("audit"), workers: int = -1, limit: int | None = None
) -> Audit:
    """Give a verdict on every scan of a dataset card, with evidence, as ingest would.

    Writes ``audit.json`` and ``audit.html``, a page that needs no network, and prints a summary. No shard is written.

    Args:
        card: YAML file of the dataset, or the name of a packaged card.
        root: Folder of the dataset; takes the place of the card's.
        output: Folder for the two files. Where ids are hashed, their salt is kept beside it, as for ingest.
        workers: Processes; -1 takes every core.
        limit: Take only so many scans.

    Returns:
        The verdicts.

    Raises:
        CardError: If the card does not fit the files.
    """
    loaded = load_card(card, root)
    if output.exists() and not output.is_dir():
        raise CardError(f"The output {output} is a file. Give a folder.")
    if workers == 0 or (limit is not None and limit < 1):
        raise CardError(f"workers is {workers} and limit {limit}. Give at least 1, or -1 workers for every core.")
    planned = read_scans(loaded, apart=False)[:limit]
    check_links(Path(loaded.root), planned)
    output.mkdir(parents=True, exist_ok=True)
    identity = load_identity(loaded.ids, output)
    verdicts = with_copies(list(_examined(planned, loaded, identity, workers)), loaded)
    found = Audit(loaded.name, tuple(verdicts), output / PAGE_NAME)
    (output / JSON_NAME).write_text(json.dumps(_account(found), indent=1, ensure_ascii=False), encoding="utf-8")
    found.page.write_text(render(found.dataset, found.scans, HU_WORDS), encoding="utf-8")
    ids = [(kind, getattr(scan, f"{kind}_id")) for scan in planned for kind in ("patient", "study", "scan")]
    private = write_private_map(output, identity, ids)
    _show(found, private)
    return found


def with_copies(scans: Sequence[ScanAudit], card: Card) -> list[ScanAudit]:
    """The verdicts with what only all scans together show."""
    copies = find_copies(scan.seen for scan in scans if not scan.left_out)
    splits = patients_in_two_splits((scan.patient_id, scan.split) for scan in scans)
    full = []
    for scan in scans:
        remarks = list(scan.remarks)
        if scan.scan_id in copies:
            remarks.append(copies[scan.scan_id])
        if scan.patient_id in splits:
            shown = " and ".join(splits[scan.patient_id])
            remarks.append(Remark("two_splits", f"Its patient {scan.patient_id} has scans in {shown}."))
        firm = scan.patient_id in splits or (scan.scan_id in copies and "duplicate" in card.audit.quarantine)
        full.append(replace(scan, remarks=in_order(remarks), left_out=scan.left_out or firm))
    return full


def _examined(planned: Sequence[PlannedScan], card: Card, identity: Identity, workers: int) -> Iterator[ScanAudit]:
    """Verdicts in the order of the table, with a progress bar; a scan that kills its worker is named."""
    rules = Rules(card.spacing_mm, card.hu, card.organs.classes, card.audit)
    parallel = Parallel(n_jobs=workers, return_as="generator")
    done = 0
    try:
        examined = parallel(delayed(audit_scan)(scan, rules, identity) for scan in planned)
        for entry in track(examined, "Auditing scans", total=len(planned)):
            done += 1
            yield entry
    except TerminatedWorkerError:
        yield from _one_by_one(planned[done:], rules, identity)


def _one_by_one(planned: Sequence[PlannedScan], rules: Rules, identity: Identity) -> Iterator[ScanAudit]:
    """Scans alone in one process, so that the one that kills it shows itself."""
    executor = ProcessPoolExecutor(max_workers=1)
    try:
        for scan in track(planned, "Auditing the rest one by one"):
            try:
                yield executor.submit(audit_scan, scan, rules, identity).result()
            except TerminatedWorkerError:
                yield _killed(scan, identity)
                executor = ProcessPoolExecutor(max_workers=1)
    finally:
        executor.shutdown()


def _killed(planned: PlannedScan, identity: Identity) -> ScanAudit:
    scan, study, patient = (
        identity.write(kind, getattr(planned, f"{kind}_id")) for kind in ("scan", "study", "patient")
    )
    remark = Remark("worker_killed", "Its worker was killed while reading it, most likely for want of memory.")
    return ScanAudit(scan, study, patient, planned.split, left_out=True, remarks=(remark,))


def _account(found: Audit) -> dict[str, object]:
    kinds = Counter(remark.kind for scan in found.scans for remark in scan.remarks)
    return {
        "dataset": found.dataset,
        "ctgrounding": version("ctgrounding"),
        "outcomes": found.outcomes,
        "hu": dict(Counter(scan.hu for scan in found.scans)),
        "findings": {kind: kinds[kind] for kind in KINDS if kinds[kind]},
        "scans": [scan.to_json() for scan in found.scans],
    }


def _show(found: Audit, private: Path | None) -> None:
    console = Console(highlight=False)
    console.print(_summary_table(found))
    kinds = Counter(remark.kind for scan in found.scans for remark in scan.remarks)
    if kinds:
        console.print(_kind_table(kinds))
    console.print(f"wrote {found.page} and {found.page.with_name(JSON_NAME)}", soft_wrap=True)
    if private:
        console.print(f"ids are hashed; {private} says whose they are", soft_wrap=True)


def _summary_table(found: Audit) -> Table:
    table = Table(title=f"Audit of {found.dataset}", show_header=False, title_justify="left")
    table.add_row("scans", str(len(found.scans)))
    for outcome, count in found.outcomes.items():
        table.add_row(outcome, str(count))
    for hu, count in Counter(scan.hu for scan in found.scans).most_common():
        table.add_row(f"values: {HU_WORDS[hu]}", str(count))
    return table


def _kind_table(kinds: Counter[str]) -> Table:
    table = Table("finding", "scans", "effect", "what to do", title="Findings, gravest first", title_justify="left")
    for effect in EFFECTS:
        for kind, entry in KINDS.items():
            if kinds[kind] and entry.effect == effect:
                table.add_row(entry.title, str(kinds[kind]), effect, entry.advice)
    return table
