"""Sentences that differ in sizes and image numbers alone, brought to one wording, so that they are read once.

"A 7 mm cyst (series 4, image 88)" and "A 5 mm cyst (2:61)" say the same of an organ. The wording that stands for both
keeps on which side of 10 mm a size lies, since a lymph node of 10 mm stands out; places in it lead back to the
characters of each.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ctgrounding.reports.report import Reference
from ctgrounding.reports.sentences import Sentence

LARGE_MM = 10.0
_SIZE = re.compile(
    r"(\d+(?:[.,]\d+)?)(?:\s?[x×]\s?(\d+(?:[.,]\d+)?))?(?:\s?[x×]\s?(\d+(?:[.,]\d+)?))?\s?(mm|cm)\b", re.IGNORECASE
)
_SMALL, _LARGE = "5 mm", "15 mm"
_IN_BRACKETS, _BARE = "(9:99)", "image 99"


class StandIn(NamedTuple):
    """Characters ``first:last`` of a text and what stands for them."""

    first: int
    last: int
    placeholder: str
    is_reference: bool


class _Swap(NamedTuple):
    """Characters ``start:end`` of a wording that stand for ``first:last`` of the text."""

    start: int
    end: int
    first: int
    last: int


class Wording(NamedTuple):
    """A sentence with sizes and references by rough value.

    Attributes:
        text: The wording.
        ends: Ends of its references.
        swaps: What was replaced, in order.
        offset: First character of the sentence in its text.
    """

    text: str
    ends: tuple[int, ...]
    swaps: Sequence[_Swap]
    offset: int

    def start_of(self, place: int) -> int:
        """Character of the report where something begins that begins at ``place`` of the wording."""
        shift = self.offset
        for swap in self.swaps:
            if place < swap.end:
                return swap.first if place >= swap.start else place + shift
            shift = swap.last - swap.end
        return place + shift

    def end_of(self, place: int) -> int:
        """Character of the report where something ends that ends at ``place`` of the wording."""
        shift = self.offset
        for swap in self.swaps:
            if place <= swap.end:
                return swap.last if place > swap.start else place + shift
            shift = swap.last - swap.end
        return place + shift


def stand_ins(text: str, start: int, end: int, references: Sequence[Reference]) -> list[StandIn]:
    """What is replaced in ``text[start:end]``, in order, none overlapping.

    Args:
        text: A report or a section of it.
        start: First character to look at.
        end: One past the last.
        references: References in it, in order.
    """
    found = [
        StandIn(one.start, one.end, _IN_BRACKETS if text[one.start] in "([" else _BARE, True) for one in references
    ]
    sizes = [StandIn(*match.span(), _rough(match), False) for match in _SIZE.finditer(text, start, end)]
    if not found or not sizes:
        return found or sizes
    kept: list[StandIn] = []
    for one in sorted(found + sizes):
        if not kept or one.first >= kept[-1].last:
            kept.append(one)
    return kept


def wording(text: str, sentence: Sentence, inside: Sequence[StandIn]) -> Wording:
    """The wording that stands for a sentence.

    Args:
        text: The text that the sentence counts in.
        sentence: The sentence.
        inside: What is replaced in it.
    """
    first, last = sentence.start, sentence.end
    if not inside:
        return Wording(text[first:last], (), (), first)
    pieces: list[str] = []
    swaps: list[_Swap] = []
    ends: list[int] = []
    at, length = first, 0
    for one in inside:
        start, stop = max(one.first, first), min(one.last, last)
        pieces += text[at:start], one.placeholder
        begin = length + start - at
        length = begin + len(one.placeholder)
        swaps.append(_Swap(begin, length, start, stop))
        if one.is_reference:
            ends.append(length)
        at = stop
    pieces.append(text[at:last])
    return Wording("".join(pieces), tuple(ends), swaps, first)


def _rough(match: re.Match[str]) -> str:
    width, height, depth, unit = match.groups()
    factor = 10.0 if unit[0] in "cC" else 1.0
    largest = max(float(number.replace(",", ".")) for number in (width, height, depth) if number)
    return _LARGE if largest * factor >= LARGE_MM else _SMALL
