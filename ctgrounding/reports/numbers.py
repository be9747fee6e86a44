"""Numbers of a text with what stands before each: the tokens that the reference grammar is written over."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

Tag = Literal["", "series", "image", "pair", "letter_series", "letter_image", "im", "same"]

_SERIES = r"ser(?:ies|ie|ien|ial)?|seires|sereis|seris|se|sequen(?:ce|z)|acquisition|acq"
_IMAGE = (
    r"images?|imges?|iamges?|imgs?|ima|ims|axial\s+slices?|slices?|sections?|frames?|cuts?|scheiben?"
    r"|bild(?:er|ern|es)?(?:\W?nummern?)?|schicht(?:en)?|schnitt(?:e|en)?"
)
_PAIR = (
    rf"(?:(?:series|serie|ser|se|s)\s?\.?\s?[/:]\s?(?:images?|imgs?|ima|im|i|bild(?:er)?|b)"
    rf"|(?:{_IMAGE})\s?[/]\s?(?:{_SERIES}))"
)
_FILL = r"(?:\s|[:#=.,]|\bno\b|\bnr\b|\bnumbers?\b|\bnummern?\b|\bnos\b|-(?=\s*(?:nr|no)\b)|(?<=[a-z])-)"
_TAIL = re.compile(
    rf"(?:^|(?<![^\W\d_]))(?:(?P<pair>{_PAIR})|(?P<series>{_SERIES})|(?P<image>{_IMAGE})|(?P<im>im)"
    rf"|(?P<letter_series>s)|(?P<letter_image>[ib]))(?P<fill>{_FILL}{{0,6}})$"
)
_SAME = re.compile(r"(?:same|gleichen?|selben?|derselben?)\s+(?:series|serie|ser\.?)\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_WORD_NUMBER = re.compile(
    r"(?:series|serie|images?|bild)\s+(one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|eins|zwei|drei|vier|fuenf|fünf|sechs|sieben|acht|neun|zehn)\b"
)
_WORD_VALUES = {
    word: value
    for words in (
        "one two three four five six seven eight nine ten eleven twelve",
        "eins zwei drei vier fünf sechs sieben acht neun zehn",
    )
    for value, word in enumerate(words.split(), 1)
} | {"fuenf": 5}
_UNIT = re.compile(
    r"[.,]\d|\s?(?:mm|cm|ccm|ml|cc|mg|kv|hu|he|%|°|g|kg|mgy|m²|cm²)\b|\s?%|\s?°|\s?[x×]\s?\d|\s?-?(?:mm|cm)\b"
    r"|\s?(?:to|bis|-|–)\s?\d+(?:[.,]\d+)?\s?(?:mm|cm)\b"
    r"|\s(?:days?|weeks?|months?|years?|minutes?|hours?|uhr|tage?n?|wochen?|monate?n?|jahre?n?|minuten?|phasen?|mal|times)\b|\s?[234]?d\b"
)
_GLUED_LIST = re.compile(r"(?:,\d{1,4})+(?!\d|\.\d|\s?(?:mm|cm|ml|[x×]))")
_GLUED_IMAGE = re.compile(r"(?:im|img|ima|i|b)\d")
LOOK_BACK = 64
LOOK_AHEAD = 24


class Number(NamedTuple):
    """A number of the text.

    Attributes:
        value: Its value; -1 for one that cannot be an index (a decimal, a date, a size, too many digits).
        start: First character.
        end: One past its last digit or series suffix letter.
        tag: What the word before it makes of it.
        tag_start: First character of that word, or of the number itself.
        link: What stands between the number before and the tag, lower case, at most ``LOOK_BACK`` characters.
        has_comma: Whether a comma separates tag and number ("images, 2 lesions").
    """

    value: int
    start: int
    end: int
    tag: Tag
    tag_start: int
    link: str
    has_comma: bool


_TAG_ENDS = frozenset().union(
    ("series", "serie", "serien", "serial", "ser", "se", "seires", "sereis", "seris", "sequence", "sequenz"),
    ("acquisition", "acq", "s", "i", "b", "im", "ima", "ims", "image", "images", "imge", "imges", "iamge", "iamges"),
    ("img", "imgs", "slice", "slices", "section", "sections", "frame", "frames", "cut", "cuts", "scheibe", "scheiben"),
    ("bild", "bilder", "bildern", "bildes", "nummer", "nummern", "schicht", "schichten", "schnitt", "schnitte"),
    ("schnitten", "bildnummer", "bildnummern", "bildernummern", "no", "nr", "nos", "number", "numbers"),
)


def _tagged(gap: str) -> tuple[Tag, int, bool]:
    """As :func:`_tag`, quickly where the last word is none that tags."""
    word = gap.rstrip(" ").rpartition(" ")[2]
    if word.isalpha() and word not in _TAG_ENDS:
        return "", len(gap), False
    return _tag(gap)


@lru_cache(maxsize=16384)
def _tag(gap: str) -> tuple[Tag, int, bool]:
    """Tag at the end of a gap, where it begins in the gap, and whether a comma follows it."""
    match = _TAIL.search(gap[-40:])
    if match is None:
        return "", len(gap), False
    start = match.start() + max(0, len(gap) - 40)
    kind = match.lastgroup if match.lastgroup != "fill" else None
    tag: Tag = kind or next(  # type: ignore[assignment]  # group names are the tags
        name for name in ("pair", "series", "image", "im", "letter_series", "letter_image") if match[name]
    )
    if tag == "image" and _SAME.search(gap[:start]):
        tag = "same"
    return tag, start, "," in match["fill"]


def lowered(text: str) -> str:
    """The text in lower case, character by character, so that positions keep."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(char.lower() if len(char.lower()) == 1 else char for char in text)


def _spans(low: str) -> Iterator[tuple[int, int, int]]:
    digits = ((m.start(), m.end(), _value(m[0])) for m in _NUMBER.finditer(low))
    words = [(m.start(1), m.end(1), _WORD_VALUES[m[1]]) for m in _WORD_NUMBER.finditer(low)]
    return iter(sorted([*digits, *words])) if words else digits


def _value(digits: str) -> int:
    return -1 if "." in digits or len(digits) > 6 else int(digits)


def _lists(value: int, tag: Tag) -> bool:
    """Whether a comma and digits behind a number go on a list, as in "images 38,40", and are not its decimals."""
    return tag == "image" and value >= 10


def numbers(low: str) -> list[Number]:
    """Numbers of a text in order.

    Args:
        low: The text as :func:`lowered` gives it.
    """
    found: list[Number] = []
    before = 0
    is_listed = False
    for start, end, value in _spans(low):
        gap_start = max(before, start - LOOK_BACK)
        gap = low[gap_start:start]
        tag, offset, has_comma = _tagged(gap)
        after = low[end : end + LOOK_AHEAD]
        if after[:1].isalpha() and after[1:2] in (":", "/", ";", ",", " ", ")", "") and not _UNIT.match(after):
            end += 1  # series suffix as in 602B
            after = after[1:]
        glued = tag in ("letter_series", "series") and _GLUED_IMAGE.match(after)
        is_listed = _lists(value, tag) or (is_listed and gap == ",")
        is_listed = is_listed and _GLUED_LIST.match(after) is not None
        has_unit = not is_listed and _UNIT.match(after) is not None
        if (value >= 0 and not glued and (after[:1].isalnum() or has_unit)) or (gap and gap[-1].isalpha() and not tag):
            value = -1
        found.append(Number(value, start, end, tag, gap_start + offset, gap[:offset], has_comma))
        before = end
    return found
