"""Where the sections of a report stand, from their headings or from the columns of a public dataset."""

import re
from collections.abc import Mapping

SECTIONS = ("history", "technique", "comparison", "findings", "impression")

_HEADINGS: Mapping[str, str] = {
    "history": (
        r"(?:relevant |brief )?(?:clinical )?(?:history|hx|indications?|details|information|data|question|context"
        r"|background|notes)"
        r"(?: and indication| and history)?|clinical|reason(?: for (?:exam(?:ination)?|study|scan|request))?|referral"
        r"|clinical history / indication|history/indication|indication/history|request"
        r"|klinische[rn]? (?:angaben?|daten|information(?:en)?|fragestellung)|klin\. ?angaben|klinik|anamnese"
        r"|(?:klinische )?fragestellung|indikation|(?:rechtfertigende )?indikation(?:sstellung)?|vorgeschichte"
        r"|diagnosen?"
        r"|klinik und fragestellung|klinische angaben und fragestellung|angaben"
    ),
    "technique": (
        r"(?:exam(?:ination)? |imaging |scan )?technique|protocol|procedure description|acquisition|technical details"
        r"|contrast|untersuchungstechnik|technik|methode|methodik|untersuchungsprotokoll|durchf(?:ü|ue)hrung"
    ),
    "comparison": (
        r"comparisons?(?: stud(?:y|ies)| exam(?:s|inations?)?)?|priors?|prior (?:imaging|stud(?:y|ies)|exams?)"
        r"|previous(?: imaging| stud(?:y|ies))?"
        r"|vergleich(?:suntersuchung(?:en)?|saufnahmen?)?|vgl\.?|vor(?:aufnahmen?|untersuchung(?:en)?|befunde?"
        r"|bilder)"
    ),
    "findings": (
        r"(?:ct |imaging |radiological |detailed )?findings|report|description|observations?|befund(?:e"
        r"|beschreibung)?|result of examination"
    ),
    "impression": (
        r"impressions?|conclusions?|opinion|summary|result|assessment|interpretation|diagnosis"
        r"|conclusion and recommendation"
        r"|findings and impression|impression/recommendations?|impression and plan"
        r"|beurteilung|zusammenfassung|zusammenfassende beurteilung|ergebnis|fazit|wertung|einsch(?:ä|ae)tzung"
        r"|resümee"
    ),
}
_TITLE = r"exam(?:ination)?|study|procedure|type of exam|scan|untersuchung|ct[^\n:]{0,60}"
_ANY = "|".join(f"(?P<{name}>{words})" for name, words in _HEADINGS.items())
_HEADING = re.compile(
    rf"(?:^|(?<=[.!?;])[ \t])[ \t]*+(?:[-*#•]++[ \t]*+)?(?:{_ANY})[ \t]*+(?:\([^)\n]{{0,30}}\)[ \t]*+)?(?:\*\*)?"
    rf"(?:[:：]|$|\.(?=[ \t]*+$)|(?<=[ \t])[-–][ \t])",
    re.IGNORECASE | re.MULTILINE,
)
_DICTATED = re.compile(rf"^(?:{_ANY})[ \t]+(?=\S)", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*+\n[ \t\n]*+")
_COLUMNS: Mapping[str, str] = {
    "clinicalinformation": "history",
    "clinical": "history",
    "technique": "technique",
    "findings": "findings",
    "findings_en": "findings",
    "impression": "impression",
    "impressions": "impression",
    "report": "findings",
    "reporttext": "findings",
    "befund": "findings",
    "beurteilung": "impression",
    "history": "history",
    "comparison": "comparison",
    "indication": "history",
}
_SHORT = frozenset({"history", "technique", "comparison"})


def column_section(column: str) -> str:
    """Section that a column of a dataset holds; the column's own name where it is none.

    Knows CT-RATE (``Findings_EN``, ``Impressions_EN``, ``ClinicalInformation_EN``, ``Technique_EN``), Merlin
    (``Findings``, ``Impressions``, ``report``), INSPECT (``impressions``) and the section names themselves.

    Examples:
        >>> column_section("ClinicalInformation_EN"), column_section("age")
        ('history', 'age')
    """
    key = re.sub(r"[_ ]?(?:en|de|text)$|[_ ]", "", column.strip().lower())
    return _COLUMNS.get(key, column)


def find_sections(text: str) -> dict[str, tuple[int, int]]:
    r"""Characters of each section, headings left out.

    A paragraph without heading before the findings is history; one after a short section is findings. A text
    without any heading is findings altogether. A section that comes twice keeps its longest part.

    Args:
        text: A whole report, English or German.

    Examples:
        >>> text = "FINDINGS: Liver normal.\nIMPRESSION: Normal."
        >>> {name: text[start:end] for name, (start, end) in find_sections(text).items()}
        {'findings': 'Liver normal.', 'impression': 'Normal.'}
    """
    text = text.rstrip()
    marks = _headings(text)
    parts = [*_lead(text, marks)]
    last_findings = max((place for place, mark in enumerate(marks) if mark[0] == "findings"), default=-1)
    for place, (name, _, start) in enumerate(marks):
        end = marks[place + 1][1] if place + 1 < len(marks) else len(text)
        parts += _body(text, name, start, end, last_findings > place)
    found: dict[str, tuple[int, int]] = {}
    for name, start, end in parts:
        start, end = _strip(text, start, end)
        if end - start > (found[name][1] - found[name][0] if name in found else 0):
            found[name] = start, end
    return found


def _headings(text: str) -> list[tuple[str, int, int]]:
    marks = [(_name(match), match.start(), match.end()) for match in _HEADING.finditer(text)]
    low_lines = _DICTATED.finditer(text) if not marks else ()
    return marks or [(_name(match), match.start(), match.end()) for match in low_lines]


def _name(match: re.Match[str]) -> str:
    return next(name for name in SECTIONS if match[name])


def _lead(text: str, marks: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """What stands before the first heading: a title, then history or, without any heading, findings."""
    end = marks[0][1] if marks else len(text)
    breaks = [match.end() for match in _PARAGRAPH.finditer(text, 0, end)]
    breaks = [place for place in breaks if place < end]
    if not marks:
        return [("findings", 0, end)]
    if not breaks:
        return []
    names = {name for name, _, _ in marks}
    if "findings" in names or len(breaks) == 1:
        return [("history" if "history" not in names else "lead", breaks[0], end)] if "history" not in names else []
    if "comparison" in names:
        return [("history", breaks[0], end)]
    return [("history", breaks[0], breaks[1]), ("findings", breaks[1], end)]


def _body(text: str, name: str, start: int, end: int, findings_follow: bool) -> list[tuple[str, int, int]]:
    if name in _SHORT and not findings_follow:
        match = _PARAGRAPH.search(text, start, end)
        if match is not None and match.end() < end and text[start : match.start()].strip():
            return [(name, start, match.start()), ("findings", match.end(), end)]
    return [(name, start, end)]


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
