"""One report, read."""

from collections.abc import Mapping

from ctgrounding.errors import ReportError
from ctgrounding.reports.labels import ct_rate_labels
from ctgrounding.reports.references import find_references
from ctgrounding.reports.report import OrganStatement, Reference, Report, Snippet
from ctgrounding.reports.sections import column_section, find_sections
from ctgrounding.reports.sentences import sentences
from ctgrounding.reports.snippets import with_clauses
from ctgrounding.reports.statements import Context, find_statements

READ_SECTIONS = ("findings", "impression")


def read(text: str | Mapping[str, str]) -> Report:
    """Take from a report what it says.

    Statements, references and snippets come from findings and impression only: what history, technique or
    comparison name was not seen in this scan.

    Args:
        text: A whole report, or its sections by name; names of columns of CT-RATE, Merlin and INSPECT do too.
            With sections, every span but those of ``sections`` counts in the section's own text.

    Raises:
        ReportError: If it is neither, or a section is no text.

    Examples:
        >>> report = read("FINDINGS: 4 mm nodule in the lingula (series 4, image 80). No pleural effusion.")
        >>> report.snippets[0].text, report.snippets[0].masks
        ('4 mm nodule in the lingula', ('lung_upper_lobe_left',))
        >>> [(s.organs, s.status) for s in report.organ_statements]
        [(('lung_upper_lobe_left',), 'abnormal'), (('pleura',), 'normal')]
    """
    if isinstance(text, str):
        sections = find_sections(text)
        parts = [(name, text, sections[name]) for name in READ_SECTIONS if name in sections]
        return _assemble(text, sections, parts)
    if not isinstance(text, Mapping) or not all(isinstance(part, str) for part in text.values()):
        raise ReportError(f"A report is a text or a mapping of section to text, not {type(text).__name__}.")
    named = {column_section(name): part for name, part in text.items() if part.strip()}
    joined, sections = _join(named)
    parts = [(name, named[name], (0, len(named[name]))) for name in READ_SECTIONS if name in named]
    return _assemble(joined, sections, parts)


def _join(named: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    sections: dict[str, tuple[int, int]] = {}
    joined = ""
    for name, part in named.items():
        joined += "\n\n" if joined else ""
        sections[name] = len(joined), len(joined) + len(part)
        joined += part
    return joined, sections


def _assemble(
    text: str, sections: Mapping[str, tuple[int, int]], parts: list[tuple[str, str, tuple[int, int]]]
) -> Report:
    references: list[Reference] = []
    statements: list[OrganStatement] = []
    snippets: list[Snippet] = []
    context = Context()
    for name, part, (start, end) in parts:
        found = find_references(part[start:end])
        if start:
            found = [one._replace(start=one.start + start, end=one.end + start) for one in found]
        parted = list(sentences(part, start, end))
        said = find_statements(part, start, end, name, found, context, parted)
        pointed, clauses = with_clauses(part, parted, name, found, said)
        references += pointed
        statements += said
        snippets += clauses
    labels = ct_rate_labels(context.facts)
    return Report(text, sections, tuple(references), tuple(snippets), tuple(statements), labels)
