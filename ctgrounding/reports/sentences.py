"""Sentences of a section, and the heading that a line begins with."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ctgrounding.reports.wordlists import words

_ABBREVIATIONS = words("abbreviations")
_CLOSING = ("o.b", "n.b", "bds")
_END = re.compile(r"[.!?]++(?=\s|$)|\n(?:[ \t]*+\n)*+")
_WORD_BEFORE = re.compile(r"([^\W\d_]+|\d+)\W?$")
_ORDINAL_NOUN = re.compile(
    r"\s+(?:rippe|segment|icr|bwk|lwk|hwk|tag|monat|brustwirbel|lendenwirbel|und|bis)", re.IGNORECASE
)
_BULLET = re.compile(r"\s*(?:[-*•·–]|\(?\d{1,2}[.)](?=\s)|\|)\s*")
_TOPIC = re.compile(r"([^\W\d_][^\n:.;()]{1,48}):(?=\s|$)")
_PARTICULAR = re.compile(r"\d|\b(?:left|right|links|rechts|li|re|linke[nrs]?|rechte[nrs]?)\b", re.IGNORECASE)
WRAPPED_LINE = 60
LONGEST = 1500
LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))


class Sentence(NamedTuple):
    """Characters ``start:end`` of a text.

    Attributes:
        start: First character, after a bullet and, where it is the line's topic, after the heading.
        end: One past its full stop.
        topic: Heading of the line it stands in, "Liver" of "LIVER: Simple cyst. No dilatation.", else empty.
        opens_topic: Whether the heading stands right before it.
    """

    start: int
    end: int
    topic: str
    opens_topic: bool


def sentences(text: str, start: int, end: int) -> Iterator[Sentence]:
    """Sentences of ``text[start:end]``; bullets, table rows and lines that end a thought count as such.

    What has no end for ``LONGEST`` characters is cut between words, so that time stays linear in any text.
    """
    for sentence in _sentences(text, start, end):
        begin = sentence.start
        while sentence.end - begin > LONGEST:
            stop = text.rfind(" ", begin + LONGEST // 2, begin + LONGEST) + 1 or begin + LONGEST
            yield Sentence(begin, stop, sentence.topic, sentence.opens_topic and begin == sentence.start)
            begin = stop
        yield sentence if begin == sentence.start else Sentence(begin, sentence.end, sentence.topic, False)


def _sentences(text: str, start: int, end: int) -> Iterator[Sentence]:
    topic = ""
    place = start
    at_line, is_listed = True, False
    for match in _END.finditer(text, start, end):
        if match.start() < place or not _ends(text, place, match, end):
            continue
        stop = match.end() if match[0][0] in ".!?" else match.start()
        is_bullet = at_line and _BULLET.match(text, place, stop) is not None
        for sentence in _one(text, place, stop, "" if is_bullet and is_listed else topic, at_line):
            topic = sentence.topic
            if sentence.opens_topic:
                is_listed = is_bullet and sentence.end > sentence.start
            yield sentence
        line_end = text.find("\n", stop, min(end, match.end() + 2)) >= 0 or "\n" in match[0]
        at_line, place = line_end, match.end()
        if line_end and _blank_follows(text, match.start(), end):
            topic = ""
    is_bullet = at_line and _BULLET.match(text, place, end) is not None
    yield from _one(text, place, end, "" if is_bullet and is_listed else topic, at_line)


def _blank_follows(text: str, place: int, end: int) -> bool:
    gap = text[place : min(end, place + 40)]
    stripped = gap.lstrip(".!?; \t")
    return stripped.startswith("\n") and stripped[1:].lstrip(" \t").startswith("\n")


def _ends(text: str, place: int, match: re.Match[str], end: int) -> bool:
    if match[0][0] in "!?":
        return True
    if match[0][0] != ".":
        return _line_ends(text, place, match.end(), end)
    at = match.start()
    if not text[at - 1 : at].isalnum() or text[max(place, at - LONGEST_ABBREVIATION - 1) : at].isalpha():
        return True
    following = text[match.end() : match.end() + 24].lstrip()
    if not following:
        return True
    word = _WORD_BEFORE.search(text, max(place, match.start() - 16), match.start())
    before = word[1].lower() if word else ""
    if before.isdigit() and word is not None and word.end(1) == match.start():
        is_bullet = not text[place : word.start()].strip()
        return not is_bullet and not _ORDINAL_NOUN.match(text, match.end()) and not following[0].islower()
    if before in _ABBREVIATIONS and word is not None and word.end(1) == match.start():
        closes = text[max(place, match.start() - 3) : match.start()].lower().endswith(_CLOSING)
        return closes and following[0].isupper()
    return True


def _line_ends(text: str, place: int, after: int, end: int) -> bool:
    """Whether a line break ends the thought, or only the line was full."""
    following = text[after : after + 60].lstrip(" \t")
    line_start = text.rfind("\n", 0, after - 1) + 1
    line = text[max(line_start, place) : after].strip()
    if not following or following[0] == "\n" or _BULLET.match(following) or not line or line[-1] in ".:;!?":
        return True
    if line.count("(") > line.count(")") or line.count("[") > line.count("]") or line[-1] in ",-–":
        return False
    return len(line) < WRAPPED_LINE and (not following[0].islower() or after - line_start < WRAPPED_LINE // 2)


def _one(text: str, start: int, end: int, topic: str, at_line: bool) -> Iterator[Sentence]:
    part = text[start:end]
    begin = start + len(part) - len(part.lstrip())
    finish = start + len(part.rstrip())
    if at_line and begin < finish:
        bullet = _BULLET.match(text, begin, finish)
        begin = bullet.end() if bullet else begin
        heading = _TOPIC.match(text, begin, finish)
        if heading is not None and not _PARTICULAR.search(heading[1]):
            rest = text[heading.end() : finish]
            begin = heading.end() + len(rest) - len(rest.lstrip())
            if begin >= finish:
                yield Sentence(finish, finish, heading[1], True)
            else:
                yield Sentence(begin, finish, heading[1], True)
            return
    if begin < finish:
        yield Sentence(begin, finish, topic, False)
