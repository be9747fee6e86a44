"""Lists of image numbers, the brackets around them, and the place among the numbers of a text."""

import re
from collections.abc import Sequence
from functools import lru_cache

from ctgrounding.reports.numbers import Number
from ctgrounding.reports.report import Reference

LONGEST_RANGE = 2000
LARGEST_IMAGE = 9999
_RANGE = re.compile(r"\s*(?:[-–—‐‑−]+|\bto\b|\bthrough\b|\bthru\b|\bbis\b|\buntil\b)\s*")
LIST = re.compile(r"\s*(?:,|;|&|\+|\bu\.|\band\b|\bund\b|\bsowie\b|\bor\b|\boder\b|,\s*and\b|,\s*und\b|,\s*&)\s*")
COMMA_SERIES = re.compile(r"[\s,;/|]*")
_TOTAL = re.compile(r"\s*(?:\(?\s*\bof\b|\(?\s*\bvon\b|/|\bout of\b)\s*")
LIST_END = re.compile(
    r"\s*(?:[,;.:)\]|&+/<–—‐-]|$|\n|and\b|und\b|u\.|sowie\b|to\b|bis\b|through\b|of\b|in\b|on\b|from\b|der\b|von\b|aus\b)"
)
_PLANE = r"(?:axiale?|ax|coronal|koronar|cor|kor|sagittal|sag|tra|lung|(?:key )?image)\.?:?"
_INSIDE = re.compile(
    r"[(\[{<]\s*(?:see|best seen on|in|on|e\.g\.|z\. ?b\.|siehe|s\.|vgl\.?|cf\.?|dort|prior"
    r"|previous(?: study| exam| ct)?"
    rf"|same series,|same series)?\s*(?:{_PLANE}\s*)?\#?\s*$"
)
_DIGIT = re.compile(r"\d")
_AFTER_INSIDE = re.compile(r"[^()\[\]{}<>\n]{0,40}?[)\]}>]")


class ImageLists:
    """Numbers of a text, and what of them lists images.

    Args:
        low: The text in lower case.
        tokens: Its numbers.
    """

    def __init__(self, low: str, tokens: Sequence[Number]) -> None:
        self.low = low
        self.tokens = tokens
        self.found: list[Reference] = []
        self.last_series: int | None = None

    def token(self, at: int) -> Number | None:
        """The number at a place, None past the end."""
        return self.tokens[at] if at < len(self.tokens) else None

    def is_untagged(self, at: int) -> bool:
        """Whether a usable number without a word of its own stands there."""
        token = self.token(at)
        return token is not None and token.tag == "" and token.value >= 0

    def images(self, place: int) -> tuple[tuple[int, ...], int]:
        """Numbers and ranges from ``place`` on, the total of ``n of total`` passed over."""
        first = self.tokens[place]
        if not 0 <= first.value <= LARGEST_IMAGE:
            return (), place
        images = [first.value]
        at = place + 1
        while (token := self.token(at)) is not None and token.value >= 0:
            if token.tag == "" and _RANGE.fullmatch(token.link):
                images += _range(images[-1], token)
            elif (
                token.tag == ""
                and _TOTAL.fullmatch(token.link)
                and (token.link.strip() != "/" or not self.pair_follows(at))
            ):
                pass
            elif self._is_listed(at, token):
                images.append(token.value)
            else:
                break
            at += 1
        return tuple(dict.fromkeys(images)), at

    def _is_listed(self, at: int, token: Number) -> bool:
        if token.value > LARGEST_IMAGE:
            return False
        if token.tag in ("image", "letter_image", "im") and not token.has_comma:
            if not (LIST.fullmatch(token.link) or _RANGE.fullmatch(token.link)):
                return False
            following = self.token(at + 1)
            return (
                following is None
                or following.tag not in ("series", "letter_series")
                or not COMMA_SERIES.fullmatch(following.link)
                or following.link.strip() == ""
            )
        return (
            token.tag == ""
            and bool(LIST.fullmatch(token.link))
            and not self.pair_follows(at)
            and bool(LIST_END.match(self.low, token.end))
        )

    def pair_follows(self, at: int) -> bool:
        """Whether the number and the next are written as a pair."""
        token = self.token(at + 1)
        return token is not None and token.tag == "" and token.value >= 0 and token.link.strip() in (":", "/", ";")

    def opens_bracket(self, start: int) -> bool:
        """Whether a bracket opens before these characters, with at most a word like "see" between."""
        return _opening(self.low[max(0, start - 28) : start]) > 0


def _range(first: int, last: Number) -> Sequence[int]:
    """Images after ``first`` up to ``last``; ``110-6`` is read as 110 to 116."""
    stop = last.value
    if stop < first:
        digits = len(str(last.value))
        completed = first - first % 10**digits + stop
        stop = completed if completed > first and digits < len(str(first)) else stop
    if first < stop <= first + LONGEST_RANGE:
        return range(first + 1, stop + 1)
    if first - LONGEST_RANGE <= stop < first:
        return range(first - 1, stop - 1, -1)
    return (stop,)


@lru_cache(maxsize=4096)
def _opening(before: str) -> int:
    match = _INSIDE.search(before)
    return len(before) - match.start() if match else 0


def with_brackets(low: str, start: int, stop: int) -> tuple[int, int]:
    """The span widened to the brackets that hold it, where they hold little else."""
    opening = _opening(low[max(0, start - 28) : start])
    if not opening:
        return start, stop
    match = _AFTER_INSIDE.match(low, stop)
    if match is None or _DIGIT.search(match[0]):
        return start, stop
    return start - opening, match.end()
