"""What a clause denies, affirms or leaves open."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ctgrounding.reports.cuts import Cut
from ctgrounding.reports.entries import Finding
from ctgrounding.reports.lexicon import Mention, Token
from ctgrounding.reports.wordlists import words

_LISTING = frozenset({"or", "oder", "nor", "noch", "/"})
_ADDING = _LISTING | {",", "and", "und", "sowie", "&"}
_MILD_NORMAL = frozenset({"normal", "patent", "frei", "clear", "symmetric", "offen"})
_NEW_THOUGHT = words("new_thought")
_VERBS = words("verbs")
_SIZE_WORDS = frozenset({"size", "sized", "gross", "groesse", "breit", "weit"})
_BELOW = frozenset({"than", "below", "under", "als", "unter", "<"})
_UNITS = frozenset({"mm", "cm"})
LONGEST_LISTED = 7
LONGEST_ALTERNATIVE = 14
SHORTEST_LIST = 2


@dataclass(slots=True)
class Said:
    """A finding or device and whether its clause denies it."""

    entry: Finding
    phrase: str
    denied: bool


@dataclass(slots=True)
class Clause:
    """A piece of a sentence, tokens ``start:end``.

    Attributes:
        start: First token.
        end: One past its last token.
        link: The word or sign that it follows, empty for the first.
        mentions: All concepts in it.
        places: Those that are places.
        findings: Findings and devices, each denied or affirmed.
        has_negation: Whether it says "no" itself.
        denies: Whether it denies what follows its last word.
        is_normal: Whether it says that all is well.
        hedge: ``hedge`` (possible), ``guess`` (likely), ``sure`` (consistent with) or empty.
        size_mm: Largest size said.
        words: Its words.
    """

    start: int
    end: int
    link: str
    mentions: Sequence[Mention]
    words: frozenset[str]
    size_mm: float | None
    places: list[Mention] = field(default_factory=list)
    findings: list[Said] = field(default_factory=list)
    has_negation: bool = False
    denies: bool = False
    is_normal: bool = False
    hedge: str = ""

    @property
    def affirmed(self) -> list[Said]:
        """Findings that it says are there."""
        return [said for said in self.findings if not said.denied]

    @property
    def speaks(self) -> bool:
        """Whether it says anything of a place."""
        return bool(self.findings or self.is_normal or self.doubts_size)

    @property
    def doubts_size(self) -> bool:
        """Whether it leaves the size of a place open: "heart of borderline size"."""
        return self.hedge == "hedge" and bool(self.places) and not _SIZE_WORDS.isdisjoint(self.words)

    def has(self, kind: str) -> bool:
        """Whether a concept of this kind is in it."""
        return any(mention.kind == kind for mention in self.mentions)


def read_clauses(tokens: Sequence[Token], mentions: Sequence[Mention], cuts: Sequence[Cut]) -> list[Clause]:
    """The clauses of a sentence, each read in the light of the one before.

    Args:
        tokens: The sentence.
        mentions: Concepts in it, in order.
        cuts: Its pieces.
    """
    found: list[Clause] = []
    place = 0
    for number, (start, end, link) in enumerate(cuts):
        first = place
        while place < len(mentions) and mentions[place].start < end:
            place += 1
        told = frozenset(token.word for token in tokens[start:end])
        clause = Clause(start, end, link, mentions[first:place], told, _largest_size(tokens[start:end]))
        clause.denies = bool(found) and _carries(found[-1], clause, cuts[number + 1 : number + 8])
        for mention in clause.mentions:
            _take(clause, mention)
        if (
            clause.mentions
            and clause.mentions[-1].kind == "negation"
            and clause.mentions[-1].end >= _last_word(clause, tokens)
        ):
            _deny(clause)
        found.append(clause)
    return found


def _last_word(clause: Clause, tokens: Sequence[Token]) -> int:
    """One past the last token of a clause that is no stop."""
    end = clause.end
    while end > clause.start and tokens[end - 1].word in ".;,)":
        end -= 1
    return end


def _take(clause: Clause, mention: Mention) -> None:
    kind = mention.kind
    if kind == "place":
        clause.places.append(mention)
    elif kind in ("finding", "device"):
        clause.findings.append(Said(mention.entry, mention.phrase, clause.denies))
    elif kind == "negation":
        clause.has_negation = clause.denies = True
    elif kind == "gone":
        _deny(clause)
    elif kind == "normal":
        clause.is_normal = not (clause.denies and mention.phrase in _MILD_NORMAL)
    elif kind in ("hedge", "guess", "sure"):
        clause.hedge = kind if clause.hedge in ("", "guess") else clause.hedge


def _deny(clause: Clause) -> None:
    """What stood before is denied; where nothing did, all is well."""
    clause.has_negation = True
    for said in clause.findings:
        said.denied = True
    if not clause.findings:
        clause.denies = clause.is_normal = True


def _carries(before: Clause, clause: Clause, later: Sequence[Cut]) -> bool:
    """Whether the "no" of the clause before holds on: "no nodule, cavity or consolidation"."""
    if not before.denies or clause.link not in _ADDING:
        return False
    longest = LONGEST_ALTERNATIVE if clause.link in _LISTING else LONGEST_LISTED
    if clause.size_mm is not None or len(clause.words) > longest or clause.words & _NEW_THOUGHT:
        return False
    if clause.has("normal") or clause.has("change"):
        return False
    if clause.link in _LISTING:
        return True
    if clause.words & _VERBS and clause.link == ",":
        return False
    has_side = clause.has("left") or clause.has("right") or clause.has("bilateral")
    if clause.link != ",":
        return not has_side
    is_list = any(cut.link in _ADDING - {","} for cut in later)
    return not has_side and (is_list or len(clause.words) <= SHORTEST_LIST)


def _largest_size(tokens: Sequence[Token]) -> float | None:
    sizes: list[float] = []
    for at, token in enumerate(tokens):
        if token.word in _UNITS and at and tokens[at - 1].word[0].isdigit() and not _is_bound(tokens, at - 1):
            factor = 10.0 if token.word == "cm" else 1.0
            back = at - 1
            while back >= 0 and (tokens[back].word[0].isdigit() or tokens[back].word in ("x", "×", "to", "bis")):
                if tokens[back].word[0].isdigit():
                    sizes.append(factor * _value(tokens[back].word))
                back -= 1
    return max(sizes, default=None)


def _is_bound(tokens: Sequence[Token], at: int) -> bool:
    """Whether a number is only what something stays below: "nodes smaller than 1 cm"."""
    return at > 0 and tokens[at - 1].word in _BELOW


def _value(word: str) -> float:
    whole, *rest = re.split("[.,]", word)
    return float(f"{whole}.{rest[0]}" if rest else whole)
