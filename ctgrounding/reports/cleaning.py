"""A clause without comparisons, sizes or loose ends."""

import re

_LEADING = re.compile(r"^[\s,;:.)\]|·*-]*(?:(?:and|und|with|mit|sowie)\s+)?[\s,]*", re.IGNORECASE)
_LAST_WORD = re.compile(r"(?<!\w)(?:and|und|with|mit|sowie|but|aber)$", re.IGNORECASE)
_STOPS = " ,;:.([|"
_EMPTY = re.compile(r"\(\s*\)|\[\s*\]")
_COMMAS = re.compile(r"(?:,\s*)+,")
_SPACED = re.compile(r"\s+([,;.:)])")
_LOOSE = re.compile(r"[ ,][,;.:)]")
_SIZE = r"\d+(?:[.,]\d+)?(?:\s?[x×]\s?\d+(?:[.,]\d+)?){0,2}\s?(?:mm|cm)\b"
_COMPARISON = re.compile(
    r"[,;]?\s*\(?\b(?:"
    rf"(?:previously|formerly|prior|before|was|zuvor|vormals|vorher|ehemals|voruntersuchung|voraufnahme"
    rf"|vs\.?)\b[^,;.()]{{0,40}}?{_SIZE}(?:\s+(?:on|am|vom|in)\s+(?:the\s+)?[^,;()]{{0,24}})?"
    rf"|(?:down|up|increased|decreased|grown) from\s+{_SIZE}"
    r"|(?:unchanged|stable|new|larger|smaller|increased|decreased|progressi\w+|unverändert|neu|größenkonstant"
    r"|progredient|regredient|konstant|vorbekannt)"
    r"(?:\s+(?:in size|since|from|compared (?:with|to)|gegenüber|seit|im vergleich(?: zur?| mit)?)(?:\s+(?:the"
    r"|der|dem|einer))?[^,;.]{0,40})?"
    r"|so unchanged|(?:since|compared (?:with|to)|gegenüber|im vergleich(?: zur?)?)\b[^,;.]{0,48}|as before"
    r"|wie zuvor|im vergleich \w+"
    r")\)?(?=\s*(?:[,;.)]|$))",
    re.IGNORECASE,
)
_CUES = (
    "previous",
    "former",
    "prior",
    "before",
    "was",
    "zuvor",
    "vorm",
    "vorher",
    "ehemals",
    "vorunter",
    "voraufn",
    "vs",
    "from",
    "unchanged",
    "stable",
    "new",
    "larger",
    "smaller",
    "increased",
    "decreased",
    "progress",
    "unveränd",
    "neu",
    "konstant",
    "progred",
    "regred",
    "vorbekannt",
    "since",
    "compared",
    "gegenüber",
    "vergleich",
    "wie",
    "(on ",
    "(vom ",
    "(am ",
)
_REMNANT = re.compile(
    r"[\s,;]*[(\[]?[\s,;.:]*(?:\b(?:previous(?:ly)?|prior|was|vs|versus|zuvor|vormals|war|voruntersuchung|voraufnahme"
    r"|and|und)\b[\s,;.:]*)*[)\]]",
    re.IGNORECASE,
)
_ON_DATE = re.compile(r"\s*\((?:on|vom|am)\s[\d./-]+\)")
_ANY_SIZE = re.compile(
    rf"[,;]?\s*(?:\b(?:measuring|measures|of|von|bis|to|up to|bis zu|ca\.)\s+)*{_SIZE}(?:\s+(?:in (?:diameter"
    rf"|size)|kurzachse|short axis|messend\w*|großer?n?))?",
    re.IGNORECASE,
)
_SIZES = re.compile(
    r"(\d+(?:[.,]\d+)?)(?:\s?[x×]\s?(\d+(?:[.,]\d+)?))?(?:\s?[x×]\s?(\d+(?:[.,]\d+)?))?\s?(mm|cm)\b", re.IGNORECASE
)


def without_comparison(text: str) -> str:
    """A clause without what it says of earlier examinations.

    Examples:
        >>> without_comparison("6 mm nodule in the lingula, previously 4 mm")
        '6 mm nodule in the lingula'
        >>> without_comparison("Rundherd rechts, unverändert gegenüber der Voraufnahme")
        'Rundherd rechts'
    """
    low = text.lower()
    for cue in _CUES:
        if cue in low:
            break
    else:
        return text
    cleaned = _COMPARISON.sub("", _ON_DATE.sub("", text))
    return tidy(cleaned) or text


def without_sizes(text: str) -> str:
    """A clause without sizes in mm or cm.

    Examples:
        >>> without_sizes("Cyst of 14 mm in the left kidney")
        'Cyst in the left kidney'
    """
    return tidy(_ANY_SIZE.sub("", text)) or text


def largest_size_mm(text: str) -> float | None:
    """Largest size that a clause states, in mm."""
    sizes = [
        float(number.replace(",", ".")) * (10.0 if match[4].lower() == "cm" else 1.0)
        for match in _SIZES.finditer(text)
        for number in match.groups()[:3]
        if number
    ]
    return max(sizes, default=None)


def without_remnants(text: str) -> str:
    """A clause without what cut references leave behind: brackets that nothing opens or that hold a link alone.

    Examples:
        >>> without_remnants("Nodule; prior) in the lingula (was)")
        'Nodule in the lingula'
    """
    return _REMNANT.sub(_kept_end, text) if ")" in text or "]" in text else text


def _kept_end(match: re.Match[str]) -> str:
    before = match.string[: match.start()]
    is_open = before.count("(") + before.count("[") > before.count(")") + before.count("]")
    is_count = len(before.strip()) < 3 or before[-1:].isdigit()  # "a) Cyst 2) stone"
    return match[0] if is_open or is_count else ""


def tidy(text: str) -> str:
    """A clause without doubled spaces, empty brackets, stray signs and connectives at its ends."""
    text = " ".join(text.split())
    if "(" in text or "[" in text:
        text = _EMPTY.sub("", text)
    if _LOOSE.search(text):
        text = _SPACED.sub(r"\1", _COMMAS.sub(",", text))
    text = _without_end(text[_LEADING.match(text).end() :])  # type: ignore[union-attr]  # it matches nothing too
    return text + ")" * min(1, max(0, text.count("(") - text.count(")")))


def _without_end(text: str) -> str:
    """A clause without signs and one connective at its end."""
    text = text.rstrip(_STOPS)
    last = _LAST_WORD.search(text, max(0, len(text) - 6))
    return text[: last.start()].rstrip(_STOPS) if last else text
