"""Statements about organs: each sentence read in the light of its line's heading and of the sentence before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ctgrounding.reports.alike import StandIn, Wording, stand_ins, wording
from ctgrounding.reports.clauses import read_clauses
from ctgrounding.reports.cuts import cut
from ctgrounding.reports.draft import Draft, Fact
from ctgrounding.reports.drafts import Drafts
from ctgrounding.reports.lexicon import Lexicon, Mention, Token, lexicon, tokens_of
from ctgrounding.reports.places import Located, finest, locate, numbered_bones, side_of
from ctgrounding.reports.report import OrganStatement, Reference, Side, Status
from ctgrounding.reports.scene import Scene
from ctgrounding.reports.sentences import Sentence, sentences

REMEMBERED_SENTENCES = 16_384
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
        heading: Heading of the line.
        last: Places of the last statement.
        facts: CT-RATE classes settled so far.
    """

    heading: str = ""
    last: tuple[Located, ...] = ()
    facts: list[Fact] = field(default_factory=list)


class _Spoken(NamedTuple):
    """A statement of a sentence, characters counted in it."""

    start: int
    end: int
    located: tuple[Located, ...]
    status: Status
    finding: str
    organs: tuple[str, ...]
    masks: tuple[str, ...]
    side: Side | None
    region: str


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
    inside = stand_ins(text, start, end, references)
    at = 0
    for sentence in sentences(text, start, end) if parts is None else parts:
        while at < len(inside) and inside[at].last <= sentence.start:
            at += 1
        stop = at
        while stop < len(inside) and inside[stop].first < sentence.end:
            stop += 1
        found += _sentence(text, sentence, section, inside[at:stop], context)
    return _joined_normal(found, text)


def _sentence(
    text: str, sentence: Sentence, section: str, inside: Sequence[StandIn], context: Context
) -> list[OrganStatement]:
    if sentence.opens_topic:
        context.heading, context.last = sentence.topic, ()
        if not _topic(sentence.topic) and _names_finding(sentence.topic):
            sentence = sentence._replace(start=text.rindex(sentence.topic, 0, sentence.start))
    elif not sentence.topic:
        context.heading = ""
    worded = wording(text, sentence, inside)
    spoken, facts = _said(worded, context)
    context.facts += facts
    if spoken:
        context.last = spoken[-1].located
    return [_statement(text, worded, one, section) for one in spoken]


def _said(worded: Wording, context: Context) -> tuple[tuple[_Spoken, ...], tuple[Fact, ...]]:
    """What a sentence says; the one before it matters only to a sentence that leans on it."""
    spoken, facts, leans = _spoken(worded.text, context.heading, (), worded.ends)
    if leans and context.last:
        spoken, facts, _ = _spoken(worded.text, context.heading, context.last, worded.ends)
    return spoken, facts


@lru_cache(maxsize=2048)
def _topic(heading: str) -> tuple[Located, ...]:
    mentions = lexicon().mentions(tokens_of(heading))
    places = [mention.entry for mention in mentions if mention.kind == "place"]
    named = [place for place in places if place.called] or places
    return tuple(locate(place, side_of(mentions), True, False) for place in named)


@lru_cache(maxsize=2048)
def _names_finding(heading: str) -> bool:
    """Whether a heading is what its line answers, as in "Effusion: none"."""
    return any(mention.kind == "finding" for mention in lexicon().mentions(tokens_of(heading)))


@lru_cache(maxsize=REMEMBERED_SENTENCES)
def _spoken(
    text: str, heading: str, last: tuple[Located, ...], ends: tuple[int, ...]
) -> tuple[tuple[_Spoken, ...], tuple[Fact, ...], bool]:
    table = lexicon()
    tokens = tokens_of(text)
    mentions = _with_shared_lobes(table.mentions(tokens), tokens, table)
    if not mentions:
        return (), (), False
    bones = numbered_bones(text)
    pieces = cut(tokens, mentions, ends, [(bone.start, bone.end) for bone in bones])
    clauses = read_clauses(tokens, [mention for mention in mentions if mention.kind != "comparing"], pieces)
    scene = Scene(text, tokens, table, _topic(heading) if heading else (), last, bones)
    drafts = Drafts(scene)
    drafts.read(clauses)
    kept = [draft for draft in drafts.done if draft.speaks and any(one.names for one in draft.located)]
    return tuple(_finished(draft, tokens) for draft in kept), tuple(drafts.facts), scene.leaned


def _finished(draft: Draft, tokens: Sequence[Token]) -> _Spoken:
    end = draft.end
    while end < len(tokens) and tokens[end].word in (",", ";", ".", ")", "]"):
        end += 1
    located = tuple(finest([one for one in draft.located if one.names]))
    finding = draft.finding if draft.affirmed else ""
    return _Spoken(
        tokens[draft.start].start,
        tokens[end - 1].end,
        located,
        draft.status,
        finding,
        tuple(dict.fromkeys(name for place in located for name in place.names)),
        tuple(dict.fromkeys(mask for place in located for mask in place.masks)),
        _side(located),
        next((place.place.region for place in located if place.place.region), ""),
    )


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


def _statement(text: str, worded: Wording, one: _Spoken, section: str) -> OrganStatement:
    start, end = worded.start_of(one.start), worded.end_of(one.end)
    return OrganStatement(
        text[start:end], one.organs, one.masks, one.side, one.status, one.finding, start, end, section, one.region
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
