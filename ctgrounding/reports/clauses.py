"""Clauses of a sentence: where it is cut, and what each piece denies, affirms or leaves open."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctgrounding.reports.lexicon import Lexicon, Mention, Token

_CONNECTORS = frozenset(
    {
        "and",
        "und",
        "with",
        "mit",
        "but",
        "aber",
        "however",
        "jedoch",
        "sowie",
        "while",
        "waehrend",
        "or",
        "oder",
        "nor",
        "noch",
        "due",
        "bei",
        "because",
        "als",
        "although",
        "whereas",
    }
)
_FRESH = frozenset({"but", "aber", "however", "jedoch", "while", "waehrend", ";", "although", "whereas", "ref", "|"})
_ADDING = frozenset({",", "and", "und", "or", "oder", "nor", "noch", "sowie", "/", "&"})
_DEGREES = frozenset(
    "small mild moderate large tiny trace new minimal severe marked slight slightly mildly moderately markedly extensive scattered multiple several few"
    " there is are was were has have shows show seen present measuring measures measure persistent persisting residual again known old"
    " kleine kleiner kleines kleinen gering geringe geringer geringes geringer maessig maessige deutlich deutliche ausgepraegt ausgepraegte neu neue neuer neues schmaler schmale schmales"
    " einzelne mehrere multiple zeigt zeigen ist sind vorbekannt vorbekannte bekannter bekannte unveraendert diskret diskrete vereinzelt leichte leichter grosse grosser large minor subtle faint focal".split()
)
_UNITS = frozenset({"mm", "cm"})
LONGEST_LISTED = 7
DICTATED_WORDS = 28


@dataclass
class Finding:
    """A finding said in a clause, with what the clause makes of it."""

    mention: Mention
    denied: bool


@dataclass
class Clause:
    """A piece of a sentence.

    Attributes:
        start: First token.
        end: One past its last token.
        link: The word or sign that it follows, empty for the first.
        places: Mentions of places.
        findings: Findings and devices, each denied or affirmed.
        words: Other mentions.
        has_negation: Whether it says "no" itself.
        denies: Whether findings said in it are denied at its end.
        is_normal: Whether it says that all is well.
        hedge: ``hedge``, ``guess`` or empty.
        size_mm: Largest size said.
    """

    start: int
    end: int
    link: str
    places: list[Mention] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    words: list[Mention] = field(default_factory=list)
    has_negation: bool = False
    denies: bool = False
    is_normal: bool = False
    hedge: str = ""
    size_mm: float | None = None

    @property
    def affirmed(self) -> list[Finding]:
        """Findings that it says are there."""
        return [finding for finding in self.findings if not finding.denied]

    @property
    def says(self) -> bool:
        """Whether it says anything of a place."""
        return bool(self.findings or self.is_normal)


def clauses(
    text: str, tokens: Sequence[Token], mentions: Sequence[Mention], cuts: Sequence[int], table: Lexicon
) -> list[Clause]:
    """Cut a sentence at its connectives and read each piece.

    Args:
        text: The sentence.
        tokens: Its tokens.
        mentions: Concepts in them.
        cuts: Characters at which a reference ends.
        table: The vocabulary.
    """
    bounds = _bounds(tokens, mentions, cuts)
    found: list[Clause] = []
    place = 0
    for start, end, link in bounds:
        inside = []
        while place < len(mentions) and mentions[place].start < end:
            if mentions[place].start >= start:
                inside.append(mentions[place])
            place += 1
        clause = Clause(start, end, link)
        _read(clause, inside, tokens, found[-1] if found else None, bounds, len(found))
        found.append(clause)
    return found


def _bounds(tokens: Sequence[Token], mentions: Sequence[Mention], cuts: Sequence[int]) -> list[tuple[int, int, str]]:
    covered = {at for mention in mentions for at in range(mention.start + 1, mention.end)}
    marks: list[tuple[int, int, str]] = []
    starts = {
        mention.start: mention
        for mention in mentions
        if mention.kind == "negation" and mention.phrase not in ("not", "nicht")
    }
    remaining = list(cuts)
    depth = 0
    for at, token in enumerate(tokens):
        if remaining and token.start >= remaining[0]:
            del remaining[0]
            if not (token.word in (",", ";", ".", ")") or token.word in _CONNECTORS):
                marks.append((at, at, "ref"))
        depth += (token.word in "([") - (token.word in ")]")
        if at in covered or depth > 0 and token.word == ",":
            continue
        if token.word in (",", ";", "|") or token.word in _CONNECTORS:
            marks.append((at, at + 1, token.word))
        elif at in starts and at > 0 and not (marks and marks[-1][1] == at):
            marks.append((at, at, "no"))
    if len(tokens) > DICTATED_WORDS and not any(token.word in ",;." for token in tokens[:-1]):
        marks = _dictated(tokens, mentions, marks)
    bounds: list[tuple[int, int, str]] = []
    start, link = 0, ""
    for stop, after, word in marks:
        if stop > start:
            bounds.append((start, stop, link))
            link = word
        else:
            link = word if link in ("", ",", "ref", "no") or word in _FRESH else link
        start = after
    if start < len(tokens):
        bounds.append((start, len(tokens), link))
    return bounds


def _dictated(
    tokens: Sequence[Token], mentions: Sequence[Mention], marks: list[tuple[int, int, str]]
) -> list[tuple[int, int, str]]:
    """Further cuts where speech without any stops goes on to the next finding."""
    stops = {stop for stop, _, _ in marks}
    said = closed = False
    has_place = False
    added: list[tuple[int, int, str]] = []
    for place, mention in enumerate(mentions):
        before = mentions[place - 1] if place else None
        if before is not None and any(before.start < stop <= mention.start for stop in stops):
            said = closed = has_place = False
        if (
            mention.kind == "place"
            and (closed or (said and has_place))
            or mention.kind == "finding"
            and said
            and (has_place or closed)
        ):
            start = _thought_start(mentions, place, tokens)
            added.append((start, start, ";"))
            said = closed = has_place = False
        has_place = has_place or mention.kind == "place"
        said = said or mention.kind == "finding"
        closed = closed or mention.kind in ("normal", "gone")
    return sorted([*marks, *added], key=lambda mark: (mark[0], mark[1]))


def _thought_start(mentions: Sequence[Mention], place: int, tokens: Sequence[Token]) -> int:
    start = mentions[place].start
    floor = 0
    for mention in reversed(mentions[:place]):
        if mention.kind in ("left", "right", "bilateral") and mention.end == start:
            start = mention.start
            continue
        floor = mention.end
        break
    while start > floor and not tokens[start - 1].word[:1].isdigit() and tokens[start - 1].word not in _UNITS:
        start -= 1
    return start


def _read(
    clause: Clause,
    inside: Sequence[Mention],
    tokens: Sequence[Token],
    before: Clause | None,
    bounds: Sequence[tuple[int, int, str]],
    number: int,
) -> None:
    clause.size_mm = _largest_size(tokens[clause.start : clause.end])
    clause.denies = _carries(clause, inside, tokens, before, bounds, number)
    for mention in inside:
        _take(clause, mention)
    if clause.findings and clause.is_normal and clause.denies:
        clause.is_normal = True


def _take(clause: Clause, mention: Mention) -> None:
    kind = mention.kind
    if kind == "place":
        clause.places.append(mention)
    elif kind in ("finding", "device"):
        clause.findings.append(Finding(mention, clause.denies))
    elif kind == "negation":
        clause.has_negation = clause.denies = True
    elif kind == "gone":
        for finding in clause.findings:
            finding.denied = True
        clause.has_negation = True
        if not clause.findings:
            clause.denies = clause.is_normal = True
    elif kind == "normal":
        clause.is_normal = not (clause.denies and mention.phrase in ("normal", "patent", "frei", "clear", "symmetric"))
        clause.words.append(mention)
    elif kind in ("hedge", "guess"):
        clause.hedge = clause.hedge if clause.hedge in ("hedge", "sure") else kind
        clause.words.append(mention)
    elif kind == "sure":
        clause.hedge = "sure"
    else:
        clause.words.append(mention)


def _carries(
    clause: Clause,
    inside: Sequence[Mention],
    tokens: Sequence[Token],
    before: Clause | None,
    bounds: Sequence[tuple[int, int, str]],
    number: int,
) -> bool:
    """Whether the "no" of the clause before holds on: "no nodule, cavity or consolidation"."""
    if before is None or not before.denies or clause.link not in _ADDING:
        return False
    words = {token.word for token in tokens[clause.start : clause.end]}
    if clause.size_mm is not None or len(words) > LONGEST_LISTED or words & _DEGREES:
        return False
    if any(mention.kind in ("normal", "change") for mention in inside):
        return False
    if clause.link in ("or", "oder", "nor", "noch", "/"):
        return True
    has_side = any(mention.kind in ("left", "right", "bilateral") for mention in inside)
    more = any(
        link in ("or", "oder", "nor", "noch", "and", "und", "sowie") for _, _, link in bounds[number + 1 : number + 8]
    )
    return (
        not has_side
        if clause.link in ("and", "und", "sowie", "&")
        else more or not (has_side or any(m.kind == "place" for m in inside))
    )


def _largest_size(tokens: Sequence[Token]) -> float | None:
    sizes = []
    for at, token in enumerate(tokens[1:], 1):
        if token.word in _UNITS and tokens[at - 1].word[:1].isdigit():
            factor = 10.0 if token.word == "cm" else 1.0
            back = at - 1
            while back >= 0 and (tokens[back].word[:1].isdigit() or tokens[back].word in ("x", "×", "to", "bis")):
                if tokens[back].word[:1].isdigit():
                    sizes.append(factor * float(_number(tokens[back].word)))
                back -= 1
    return max(sizes, default=None)


def _number(word: str) -> str:
    parts = re.split("[.,]", word)
    return parts[0] if len(parts) == 1 else f"{parts[0]}.{parts[1]}"
