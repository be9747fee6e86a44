"""Places of a clause with their side: which organs, by which names, under which masks."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ctgrounding.reports.entries import Place
from ctgrounding.reports.lexicon import Lexicon, Mention, Token
from ctgrounding.reports.report import Side

MANY_LEVELS = 4
_SIDES = ("left", "right", "bilateral")
_ADVERBS = frozenset({"rechts", "links", "bds", "beidseits", "re", "li", "bilaterally", "beidseitig"})
_VERTEBRA = re.compile(
    r"(?<![\w/])(?:(?P<letter>[CTLS]|Th|TH|D)\s?|(?P<german>(?i:[hbl]wk|swk))[\s-]?)(?P<first>\d{1,2})"
    r"(?:(?P<range>\s?(?:/|-|–|to|bis|und|and|,|&)\s?)(?:(?P<letter2>[CTLS]|Th"
    r"|(?i:[hbl]wk))\s?)?(?P<last>\d{1,2}))?(?![\w:]|\.\d|/\d)"
)
_NTH_VERTEBRA = re.compile(
    r"\b(?P<first>\d{1,2})\.(?:\s?(?:und|u\.|-|–|bis|,)\s?(?P<last>\d{1,2})\.)?\s(?P<letter>hals|brust|lenden)wirbel",
    re.IGNORECASE,
)
_LEVELS = {"C": 7, "T": 12, "L": 5, "S": 1}
_ORDINALS = {
    "first": 1,
    "second": 2,
    "third": 3,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "eleventh": 11,
    "twelfth": 12,
}
_NTH = rf"(?:\d{{1,2}}(?:st|nd|rd|th|\.)?|{'|'.join(_ORDINALS)})"
_JOIN = r"\s*(?:to|through|-|–|bis|and|und|,|&|sowie)\s*"
_RIBS = re.compile(
    rf"\b(?P<nth>{_NTH}(?:{_JOIN}{_NTH})*)\s*(?:[^\W\d]+\s+){{0,2}}(?:ribs?|rippen?)\b"
    r"|\b(?:ribs?|rippen?(?:serien?)?(?:fraktur(?:en)?)?)\s+(?:(?:re|li|rechts|links)\b\.?\s+)?(?:fractures?\s+|nr\.?\s*)?"
    rf"(?P<after>\d{{1,2}}(?:{_JOIN}\d{{1,2}})*)(?!\s?(?:mm|cm))\b",
    re.IGNORECASE,
)
_LEVEL_BEFORE = re.compile(
    r"(?:level of|at the level|in h(?:ö|oe)he(?: von)?|auf h(?:ö|oe)he|station|drain at|tube at|tip at)\s*$",
    re.IGNORECASE,
)
_LUNG_SEGMENT = re.compile(r"\b(?:[Ss]egment(?:s|es)?\s|SEGMENT\s|S\s?)(\d{1,2})\b")
_SEGMENT = re.compile(r"\b[Ss]egments?\s+(?:[1-8][ab]?|[IV]{1,4}[ab]?)\b")


class Located(NamedTuple):
    """A place with its side: names as the report would call it, masks, region."""

    place: Place
    side: Side | None
    names: tuple[str, ...]
    masks: tuple[str, ...]


class Numbered(NamedTuple):
    """Vertebrae or ribs by number, at characters of the sentence."""

    names: tuple[str, ...]
    side: Side | None
    start: int
    end: int


def numbered_bones(text: str) -> list[Numbered]:
    """Vertebrae and ribs that a sentence names by number; levels told only to say where are left out."""
    found = []
    for match in _VERTEBRA.finditer(text):
        names = () if _LEVEL_BEFORE.search(text, max(0, match.start() - 20), match.start()) else _vertebrae(match, text)
        if names:
            found.append(Numbered(names, None, match.start(), match.end()))
    low = text.lower()
    if "wirbel" in low:
        for match in _NTH_VERTEBRA.finditer(text):
            letter = {"h": "C", "b": "T", "l": "L"}[match["letter"][0].lower()]
            levels = (int(match["first"]), int(match["last"] or match["first"]))
            names = tuple(f"vertebrae_{letter}{n}" for n in dict.fromkeys(levels) if 1 <= n <= _LEVELS[letter])
            if names:
                found.append(Numbered(names, None, match.start(), match.end()))
    if "rib" in low or "ripp" in low:
        for match in _RIBS.finditer(text):
            side = _rib_side(low[max(0, match.start() - 24) : match.end() + 12])
            numbers = _rib_numbers(match["nth"] or match["after"])
            sides = ("left", "right") if side in (None, "bilateral") else (side,)
            names = tuple(f"rib_{one}_{number}" for one in sides for number in numbers)
            if names:
                found.append(Numbered(names, side, match.start(), match.end()))
    return found


def _vertebrae(match: re.Match[str], text: str) -> tuple[str, ...]:
    letter = (match["letter"] or match["german"])[0].upper()
    letter = {"H": "C", "B": "T", "D": "T"}.get(letter, letter)
    if letter == "S" and match["german"] is None and match["first"] != "1":
        return ()
    if letter == "T" and re.match(r"\s?[a-d]?\s?N\d", text[match.end() : match.end() + 6]):
        return ()
    first, last = int(match["first"]), int(match["last"] or match["first"])
    other_letter = (match["letter2"] or letter)[0].upper()
    other = {"H": "C", "B": "T"}.get(other_letter, other_letter)
    sign = (match["range"] or "").strip()
    if not 1 <= first <= _LEVELS[letter]:
        return ()
    if other == letter and 1 <= last <= _LEVELS[letter]:
        is_range = sign in ("-", "–", "to", "bis") and last > first
        levels = range(first, last + 1) if is_range else (first, last)
        if len(levels) >= MANY_LEVELS:
            return ("bone",)
        return tuple(dict.fromkeys(f"vertebrae_{letter}{level}" for level in levels))
    names = [f"vertebrae_{letter}{first}"]
    if 1 <= last <= _LEVELS.get(other, 0) and other != letter:
        names.append(f"vertebrae_{other}{last}")
    return tuple(names)


def _rib_side(around: str) -> Side | None:
    left = re.search(r"\b(?:left|links|linke[nrs]?|li)\b", around)
    right = re.search(r"\b(?:right|rechts|rechte[nrs]?|re)\b", around)
    if (left and right) or re.search(r"\b(?:bilateral\w*|both|bds|beid\w+)\b", around):
        return "bilateral"
    return "left" if left else "right" if right else None


def _rib_numbers(written: str) -> list[int]:
    found: list[int] = []
    for match in re.finditer(
        rf"(?P<link>[^\d\w]*(?:to|through|bis|and|und)?[^\d\w]*)(?P<nth>\d{{1,2}}|{'|'.join(_ORDINALS)})",
        written.lower(),
    ):
        number = _ORDINALS.get(match["nth"]) or int(match["nth"])
        if found and re.search(r"to|through|bis|-|–", match["link"]) and number > found[-1]:
            found += range(found[-1] + 1, number + 1)
        else:
            found.append(number)
    return [number for number in dict.fromkeys(found) if 1 <= number <= 12]


def liver_segment(text: str) -> bool:
    """Whether the text names a segment by liver numbering."""
    return "egment" in text and _SEGMENT.search(text) is not None


def lobe_of_segment(text: str, side: Side) -> str:
    """Place of a lung segment that the text names by number; empty if it names none.

    Examples:
        >>> lobe_of_segment("Rundherd im Segment 6 links", "left"), lobe_of_segment("S5 rechts", "right")
        ('lung_lower_lobe', 'lung_middle_lobe_right')
    """
    match = _LUNG_SEGMENT.search(text)
    number = int(match[1]) if match else 0
    if 1 <= number <= 3:
        return "lung_upper_lobe"
    if number in (4, 5):
        return "lung_middle_lobe_right" if side == "right" else "lung_upper_lobe_left"
    return "lung_lower_lobe" if 6 <= number <= 10 else ""


def side_of(mentions: Sequence[Mention]) -> Side | None:
    """Side that a clause speaks of: both words of it make it bilateral."""
    sides = {mention.kind for mention in mentions if mention.kind in _SIDES}
    if not sides:
        return None
    if "bilateral" in sides or len(sides) == 2:
        return "bilateral"
    return "left" if "left" in sides else "right"


def nearest_side(mention: Mention, mentions: Sequence[Mention], tokens: Sequence[Token]) -> Side | None:
    """Side of one place: the nearest side word before it, or a German adverb right after it."""
    before = [m for m in mentions if m.kind in _SIDES and m.end <= mention.start and mention.start - m.end <= 3]
    after = [m for m in mentions if m.kind in _SIDES and m.start >= mention.end and m.start - mention.end <= 1]
    adverbs = [m for m in after if tokens[m.start].word in _ADVERBS]
    for words in (adverbs, before[::-1], after):
        if words:
            return words[0].kind  # type: ignore[return-value]  # one of _SIDES
    return None


def locate(place: Place, side: Side | None, is_normal: bool, is_plural: bool) -> Located:
    """A place under the names and masks of its side."""
    side = place.side or side if place.sided else None  # type: ignore[assignment]  # read from the vocabulary
    if side is None and place.plural_bilateral and is_plural:
        side = "bilateral"
    names = _names(place, side, is_normal)
    return Located(place, side, names, place.masks[side or ""])


def _names(place: Place, side: Side | None, is_normal: bool) -> tuple[str, ...]:
    if place.grouped or place.side:
        return place.called
    both = (f"{place.name}_left", f"{place.name}_right")
    if side in ("left", "right"):
        return (f"{place.name}_{side}",)
    if side == "bilateral":
        return place.called if place.alone == "group" and is_normal else both
    if place.alone == "parent":
        return (place.parent,)
    return place.called if place.alone == "group" else both


def finest(places: Iterable[Located]) -> list[Located]:
    """Places without those that a part of them names more closely."""
    every = list(dict.fromkeys(places))
    parents = {one.place.parent for one in every if one.place.parent}
    return [one for one in every if one.place.name not in parents]


def masks_of(names: Iterable[str], table: Lexicon) -> tuple[str, ...]:
    """TotalSegmentator v2 classes of names made here."""
    found: dict[str, None] = {}
    for name in names:
        place = table.places.get(name)
        found.update(dict.fromkeys(place.masks[""] if place else (name,)))
    return tuple(found)
