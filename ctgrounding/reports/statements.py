"""Statements about organs: each sentence read in the light of its line's heading and of the sentence before."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ctgrounding.reports.clauses import read_clauses
from ctgrounding.reports.cuts import cut
from ctgrounding.reports.drafts import Draft, Drafts, Fact
from ctgrounding.reports.lexicon import Lexicon, Mention, Token, lexicon, tokens_of
from ctgrounding.reports.places import Located, finest, locate, numbered_bones, side_of
from ctgrounding.reports.report import OrganStatement, Reference, Side, Status
from ctgrounding.reports.scene import Scene
from ctgrounding.reports.sentences import Sentence, sentences

REMEMBERED_SENTENCES = 16_384
_ROUGH_SIZE = str.maketrans("23456789", "11111111")
_ROUGH_REFERENCE = str.maketrans("12345678", "99999999")
_SIZE = re.compile(r"\d+(?:[.,]\d+)?(?:\s?[x×]\s?\d+(?:[.,]\d+)?){0,2}\s?(?:mm|cm)\b")
_LOBES = {
    "upper": "lung_upper_lobe",
    "lower": "lung_lower_lobe",
    "middle": "lung_middle_lobe_right",
    "ober": "lung_upper_lobe",
    "unter": "lung_lower_lobe",
    "mittel": "lung_middle_lobe_right",
}
_LINKS = frozenset({"and", "or", "und", "oder", ",", "&", "/"})


@dataclass
class Context:
    """What is carried from sentence to sentence of a report.

    Attributes:
        topic: Places of the heading of the line.
        last: Places of the last statement.
        facts: CT-RATE classes settled so far.
    """

    topic: tuple[Located, ...] = ()
    last: tuple[Located, ...] = ()
    facts: list[Fact] = field(default_factory=list)


class _Spoken(NamedTuple):
    """A statement of a sentence, characters counted in it."""

    start: int
    end: int
    located: tuple[Located, ...]
    status: Status
    finding: str


def find_statements(
    text: str,
    start: int,
    end: int,
    section: str,
    references: Sequence[Reference] = (),
    context: Context | None = None,
    parts: Sequence[Sentence] | None = None,
) -> list[OrganStatement]:
    """Statements about organs in ``text[start:end]``, in reading order.

    Args:
        text: A report or a section of it.
        start: First character to read.
        end: One past the last.
        section: Name to give the statements.
        references: References in it in order, spans in ``text``; a clause ends with its reference.
        context: Where label facts are collected; a new one by default.
        parts: Its sentences where they are known already.
    """
    context = context or Context()
    found: list[OrganStatement] = []
    at = 0
    for sentence in sentences(text, start, end) if parts is None else parts:
        while at < len(references) and references[at].end <= sentence.start:
            at += 1
        stop = at
        while stop < len(references) and references[stop].start < sentence.end:
            stop += 1
        found += _sentence(text, sentence, section, references[at:stop], context)
    return _joined_normal(found, text)


def _sentence(
    text: str, sentence: Sentence, section: str, references: Sequence[Reference], context: Context
) -> list[OrganStatement]:
    if sentence.opens_topic:
        context.topic, context.last = _topic(sentence.topic), ()
    elif not sentence.topic:
        context.topic = ()
    written = _alike(text, sentence, references)
    ends = tuple(reference.end - sentence.start for reference in references)
    spoken, facts = _spoken(written, context.topic, context.last, ends)
    context.facts += facts
    if spoken:
        context.last = spoken[-1].located
    return [_statement(text, sentence.start, one, section) for one in spoken]


def _alike(text: str, sentence: Sentence, references: Sequence[Reference]) -> str:
    """The sentence with sizes and references by rough value, so that what differs in them alone is read once.

    Digits of sizes but zero become 1: length, and on which side of 10 mm a size lies, stay as they are. Digits of
    references become 9, which no vertebra has.
    """
    pieces = []
    at = sentence.start
    for reference in references:
        if reference.start >= at:
            pieces += [text[at : reference.start], text[reference.start : reference.end].translate(_ROUGH_REFERENCE)]
            at = reference.end
    pieces.append(text[at : sentence.end])
    return _SIZE.sub(lambda size: size[0].translate(_ROUGH_SIZE), "".join(pieces))[: sentence.end - sentence.start]


@lru_cache(maxsize=2048)
def _topic(heading: str) -> tuple[Located, ...]:
    mentions = lexicon().mentions(tokens_of(heading))
    places = [mention.entry for mention in mentions if mention.kind == "place"]
    named = [place for place in places if place.called] or places
    return tuple(locate(place, side_of(mentions), True, False) for place in named)


@lru_cache(maxsize=REMEMBERED_SENTENCES)
def _spoken(
    text: str, topic: tuple[Located, ...], last: tuple[Located, ...], ends: tuple[int, ...]
) -> tuple[tuple[_Spoken, ...], tuple[Fact, ...]]:
    table = lexicon()
    tokens = tokens_of(text)
    mentions = _with_shared_lobes(table.mentions(tokens), tokens, table)
    if not mentions:
        return (), ()
    bones = numbered_bones(text)
    pieces = cut(tokens, mentions, ends, [(bone.start, bone.end) for bone in bones])
    clauses = read_clauses(tokens, [mention for mention in mentions if mention.kind != "comparing"], pieces)
    drafts = Drafts(Scene(text, tokens, table, topic, last, bones))
    drafts.read(clauses)
    kept = [draft for draft in drafts.done if draft.speaks and any(one.names for one in draft.located)]
    return tuple(_finished(draft, tokens) for draft in kept), tuple(drafts.facts)


def _finished(draft: Draft, tokens: Sequence[Token]) -> _Spoken:
    end = draft.end
    while end < len(tokens) and tokens[end].word in (",", ";", ".", ")", "]"):
        end += 1
    located = tuple(finest([one for one in draft.located if one.names]))
    finding = draft.finding if draft.affirmed else ""
    return _Spoken(tokens[draft.start].start, tokens[end - 1].end, located, draft.status, finding)


def _with_shared_lobes(mentions: list[Mention], tokens: Sequence[Token], table: Lexicon) -> list[Mention]:
    """The first word of "upper and middle lobe" or "Ober- und Unterlappen" made a lobe too."""
    starts = {mention.start: mention for mention in mentions}
    added = []
    for at, token in enumerate(tokens[:-1]):
        if token.word not in _LOBES or at in starts or tokens[at + 1].word not in _LINKS:
            continue
        near = (starts.get(place) for place in range(at + 2, at + 6))
        if any(one is not None and one.kind == "place" and one.entry.name.startswith("lung_") for one in near):
            added.append(Mention("place", table.places[_LOBES[token.word]], token.word, at, at + 1))
    return sorted([*mentions, *added], key=lambda mention: mention.start) if added else mentions


def _statement(text: str, offset: int, one: _Spoken, section: str) -> OrganStatement:
    start, end = offset + one.start, offset + one.end
    organs = tuple(dict.fromkeys(name for place in one.located for name in place.names))
    masks = tuple(dict.fromkeys(mask for place in one.located for mask in place.masks))
    region = next((place.place.region for place in one.located if place.place.region), "")
    return OrganStatement(
        text[start:end], organs, masks, _side(one.located), one.status, one.finding, start, end, section, region
    )


def _side(located: Sequence[Located]) -> Side | None:
    """The side that all places share; both where they lie on either; none where one has no sides."""
    sides = {place.side for place in located}
    if None in sides or not sides:
        return None
    return sides.pop() if len(sides) == 1 else "bilateral"


def _joined_normal(found: Sequence[OrganStatement], text: str) -> list[OrganStatement]:
    """Neighbouring statements of a line that the same organ is well, as one."""
    joined: list[OrganStatement] = []
    for one in found:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.status == one.status == "normal"
            and (last.organs, last.side) == (one.organs, one.side)
        ):
            between = text[last.end : one.start]
            if not between.strip() and "\n" not in between:
                joined[-1] = OrganStatement(
                    text[last.start : one.end],
                    one.organs,
                    one.masks,
                    one.side,
                    "normal",
                    "",
                    last.start,
                    one.end,
                    one.section,
                    one.region,
                )
                continue
        joined.append(one)
    return joined
