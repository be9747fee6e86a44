"""``ctgrounding dictionary``: what training reports say is wrong with each organ, as a file to read and edit."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ctgrounding.data.index import ScanIndex, load_index
from ctgrounding.data.overlay import lay_over
from ctgrounding.data.records import ScanRecord
from ctgrounding.errors import ReportError
from ctgrounding.reports import OrganStatement, Report
from ctgrounding.reports.commands import read_training_reports
from ctgrounding.reports.dictionary import Dictionary

SHOWN_FINDINGS = 4


def dictionary(source: str, *, output: Path, supervision: str | None = None, least: int = 3) -> Dictionary:
    """Count what training reports say is wrong with each organ, and write it for ``OrganGrounding`` and for people.

    Args:
        source: Folder of shards, of which the training split is read; or a JSON-lines file of reports with ``id``,
            ``text`` and ``split``, which must be ``train`` in every line.
        output: YAML file to write: per organ its findings with wording, count, synonyms and what else they may be.
        supervision: File that ``ctgrounding mine`` wrote beside the shards, as in ``data.supervision``.
        least: Reports that must state a finding of an organ for it to be kept.

    Returns:
        The dictionary.

    Raises:
        ReportError: If a line is of another split, or no training report says anything.
        ShardError: If the shards cannot be read.
    """
    if least < 1:
        raise ReportError(f"least is {least}. Give one or more.")
    if Path(source).suffix in (".jsonl", ".json"):
        reports: Iterator[Report] = read_training_reports(Path(source))
    else:
        index = load_index([source])
        reports = _of_studies((index if supervision is None else lay_over(index, supervision)).of_split("train"))
    built = Dictionary.build(track(reports, "Reading training reports"), least)
    if not built.entries:
        raise ReportError(
            f"No finding of an organ stands in {least} training reports of {source}. Lower --least or add reports."
        )
    built.save(output)
    Console().print(_account(built, output))
    return built


def _of_studies(scans: ScanIndex) -> Iterator[Report]:
    """One report a study, whatever its scans."""
    for positions in scans.of_studies():
        yield _as_report(scans.record(positions[0]))


def _as_report(record: ScanRecord) -> Report:
    statements = tuple(
        OrganStatement(one.text, one.organs, one.organs, None, one.status, one.finding, one.start, one.end, one.section)
        for one in record.organ_sentences
    )
    return Report("", {}, (), (), statements, {})


def _account(built: Dictionary, output: Path) -> Table:
    table = Table("organ", "findings", "most frequent", title=f"Dictionary {output}", title_justify="left")
    for organ, entries in built.entries.items():
        frequent = ", ".join(f"{one.finding} ({one.count})" for one in entries[:SHOWN_FINDINGS])
        table.add_row(organ, str(len(entries)), frequent)
    return table
