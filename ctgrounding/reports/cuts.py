"""Where a sentence is cut into clauses: at its connectives, before a "no", after a reference."""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ctgrounding.reports.lexicon import Mention, Token
from ctgrounding.reports.wordlists import words

_CONNECTIVES = words("connectives")
FRESH = words("fresh") | {";", "ref"}
"""Links after which a new thought begins."""

_STOPS = frozenset({",", ";", "|"})
_SIDES = frozenset({"left", "right", "bilateral"})
_UNITS = frozenset({"mm", "cm"})
_NODE_WORDS = words("node_words")
_NODE_ENDINGS = ("al", "ar", "ary", "ic", "able", "ale", "alen", "aere", "aeren", "are", "aren", "ogical", "enlarged")
DICTATED_WORDS = 28
LOBE_GAP = 2


class Cut(NamedTuple):
    """A clause's tokens ``start:end`` and the connective or sign before it."""

    start: int
    end: int
    link: str


class _Mark(NamedTuple):
    stop: int
    resume: int
    link: str


def cut(
    tokens: Sequence[Token], mentions: Sequence[Mention], reference_ends: Sequence[int], kept: Iterable[tuple[int, int]]
) -> list[Cut]:
    """Clauses of a sentence as spans of tokens.

    Args:
        tokens: The sentence.
        mentions: Concepts in it; none is cut.
        reference_ends: Characters at which a reference ends.
        kept: Characters of numbered bones, which are not cut either.
    """
    whole = {at for mention in mentions for at in range(mention.start + 1, mention.end)} | _node_places(
        tokens, mentions
    )
    whole |= _paired_lobes(mentions)
    spans = list(kept)
    if spans:
        whole |= {at for at, token in enumerate(tokens) if any(first < token.start < last for first, last in spans)}
    marks = _marks(tokens, mentions, reference_ends, whole)
    if len(tokens) > DICTATED_WORDS and not any(token.word in ",;." for token in tokens[:-1]):
        marks = _dictated(tokens, mentions, marks)
    return _pieces(marks, len(tokens))


def _marks(
    tokens: Sequence[Token], mentions: Sequence[Mention], reference_ends: Sequence[int], whole: set[int]
) -> list[_Mark]:
    negations = {m.start for m in mentions if m.kind == "negation" and m.phrase not in ("not", "nicht")}
    ends = iter(reference_ends)
    end = next(ends, None)
    marks: list[_Mark] = []
    depth = 0
    for at, token in enumerate(tokens):
        word = token.word
        if end is not None and token.start >= end:
            end = next(ends, None)
            if word not in _STOPS and word not in (".", ")") and word not in _CONNECTIVES:
                marks.append(_Mark(at, at, "ref"))
        depth += (word in "([") - (word in ")]")
        if at in whole or (depth > 0 and word == ","):
            continue
        if word in _STOPS or word in _CONNECTIVES:
            marks.append(_Mark(at, at + 1, word))
        elif at in negations and at > 0 and tokens[at - 1].word != ":":
            if marks and marks[-1] == _Mark(at, at, "ref"):
                marks[-1] = _Mark(at, at, "no")
            elif not marks or marks[-1].resume != at:
                marks.append(_Mark(at, at, "no"))
    return marks


def _pieces(marks: Sequence[_Mark], length: int) -> list[Cut]:
    found: list[Cut] = []
    start, link = 0, ""
    for mark in marks:
        if mark.stop > start:
            found.append(Cut(start, mark.stop, link))
            link = mark.link
        elif link in ("", ",", "ref", "no") or mark.link in FRESH:
            link = mark.link
        start = mark.resume
    if start < length:
        found.append(Cut(start, length, link))
    return found


def _node_places(tokens: Sequence[Token], mentions: Sequence[Mention]) -> set[int]:
    """Connectives within "mediastinal, hilar or axillary lymph nodes"."""
    whole: set[int] = set()
    places = {m.start: m for m in mentions}
    ends = {m.end - 1: m for m in mentions}
    for mention in mentions:
        if mention.kind != "place" or mention.entry.name != "lymph_node":
            continue
        at = mention.start - 1
        while at > 0:
            word = tokens[at].word
            known = ends.get(at) or places.get(at)
            is_site = known is not None and known.kind == "place" and known.entry.name in words("node_sites")
            is_link = word in ("and", "or", "und", "oder", ",", "/")
            if not (is_site or is_link or word in _NODE_WORDS or word.endswith(_NODE_ENDINGS)):
                break
            if is_link:
                whole.add(at)
            at -= 1
    return whole


def _paired_lobes(mentions: Sequence[Mention]) -> set[int]:
    """Connectives within "upper and lower lobe"."""
    lobes = [m for m in mentions if m.kind == "place" and m.entry.parent == "lung"]
    return {
        at
        for one, other in itertools.pairwise(lobes)
        if other.start - one.end <= LOBE_GAP
        for at in range(one.end, other.start)
    }


def _dictated(tokens: Sequence[Token], mentions: Sequence[Mention], marks: Sequence[_Mark]) -> list[_Mark]:
    """Marks of speech without any stops: a "no" parts thoughts, and so does the next finding."""
    marks = [mark._replace(link=";") if mark.link == "no" else mark for mark in marks]
    stops = {mark.stop for mark in marks}
    said = closed = has_place = False
    for place, mention in enumerate(mentions):
        if place and any(mentions[place - 1].start < stop <= mention.start for stop in stops):
            said = closed = has_place = False
        goes_on = mention.kind == "place" and (closed or (said and has_place))
        goes_on |= mention.kind == "finding" and (closed or (said and (has_place or mention.entry.fixed)))
        if goes_on:
            start = _thought_start(mentions, place, tokens)
            marks.append(_Mark(start, start, ";"))
            said = closed = has_place = False
        has_place |= mention.kind == "place"
        said |= mention.kind == "finding"
        closed |= mention.kind in ("normal", "gone")
        said_no = place > 0 and mentions[place - 1].kind == "negation" and mention.kind == "finding"
        closed |= said_no
    return sorted(marks)


def _thought_start(mentions: Sequence[Mention], place: int, tokens: Sequence[Token]) -> int:
    """Where the words that lead up to a mention begin: its side and adjectives, not a size or what was said before."""
    start = mentions[place].start
    floor = 0
    for mention in reversed(mentions[:place]):
        if mention.kind in _SIDES and mention.end == start:
            start = mention.start
            continue
        floor = mention.end
        break
    while start > floor and not tokens[start - 1].word[:1].isdigit() and tokens[start - 1].word not in _UNITS:
        start -= 1
    return start
