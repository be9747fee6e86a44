"""Which places a clause speaks of: those it names, those its findings live in, those spoken of before."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ctgrounding.reports.clauses import Clause
from ctgrounding.reports.entries import Finding, Place
from ctgrounding.reports.lexicon import Lexicon, Token
from ctgrounding.reports.places import (
    Located,
    Numbered,
    finest,
    liver_segment,
    lobe_of_segment,
    locate,
    nearest_side,
    side_of,
)
from ctgrounding.reports.report import Side
from ctgrounding.reports.wordlists import words

_NODE_SITES = words("node_sites")
_LEANING = words("leaning")
_LISTING = frozenset({"or", "oder", "nor", "noch", "/"})
_PLURALS = ("lobes", "arteries", "vessels", "carotids", "arterien", "iden")


@dataclass
class Scene:
    """What is known of places while a sentence is read.

    Attributes:
        text: The sentence.
        tokens: Its tokens.
        table: The vocabulary.
        topic: Places of the line's heading.
        earlier: Places of the last statement before this sentence.
        bones: Vertebrae and ribs that it names by number.
        before: Places of the last statement within this sentence.
        waiting: Places named of which nothing was said yet.
        side: Side told by a clause that named no place.
        leaned: Whether anything was asked of the sentence before.
    """

    text: str
    tokens: Sequence[Token]
    table: Lexicon
    topic: tuple[Located, ...]
    earlier: tuple[Located, ...]
    bones: Sequence[Numbered]
    before: list[Located] = field(default_factory=list)
    waiting: list[Located] = field(default_factory=list)
    side: Side | None = None
    leaned: bool = False

    @property
    def last(self) -> tuple[Located, ...]:
        """Places of the last statement before this sentence."""
        self.leaned = True
        return self.earlier

    def named(self, clause: Clause) -> list[Located]:
        """Places that a clause names, each with its side."""
        shared = side_of(clause.mentions)
        located = []
        for mention in clause.places:
            side = nearest_side(mention, clause.mentions, self.tokens) or shared or self.side
            if side is None and mention.entry.sided and not mention.entry.side:
                side = self._inherited(mention.entry, clause)
            is_plural = self.tokens[mention.end - 1].word.endswith(_PLURALS)
            located.append(locate(mention.entry, side, not clause.affirmed, is_plural))
        if any(one.place.name == "lymph_node" for one in located):
            located = [one for one in located if one.place.name not in _NODE_SITES]
        return finest([*located, *self._numbered(clause)])

    def resolve(self, clause: Clause, named: list[Located]) -> tuple[list[Located], bool]:
        """Places that a clause speaks of, and whether it says so itself."""
        fixed = [said.entry for said in clause.findings if said.entry.fixed]
        if fixed:
            return self._at_home(clause, fixed, named), True
        bound = next((said.entry for said in clause.findings if said.entry.also), None)
        if bound is not None:
            return self._bound(clause, bound, named)
        if named:
            return self.with_cysts(clause, named), True
        resolved = self._unnamed(clause)
        return self.with_cysts(clause, resolved), side_of(clause.mentions) is not None and bool(resolved)

    def _numbered(self, clause: Clause) -> list[Located]:
        bone = self.table.places["numbered bone"]
        first, last = self.tokens[clause.start].start, self.tokens[clause.end - 1].end
        return [
            Located(bone, one.side, one.names, () if one.names == ("bone",) else one.names)
            for one in self.bones
            if first <= one.start < last
        ]

    def _inherited(self, place: Place, clause: Clause) -> Side | None:
        """Side told before, for the same place, a lobe without one, or what lies "on this side"."""
        told = [one for one in (*self.waiting, *self.before) if one.side]
        same = next((one.side for one in told if one.place is place), None)
        if same or not (clause.has("same_side") or place.alone == "parent"):
            return same
        return next((one.side for one in told), None)

    def _at_home(self, clause: Clause, fixed: Sequence[Finding], named: list[Located]) -> list[Located]:
        """Where findings live that have one place, or the part of it that the clause or the one before names."""
        found: list[Located] = []
        for entry in fixed:
            kept = [one for one in named if _belongs(one, entry)]
            if not kept and side_of(clause.mentions) is None and clause.link != ";":
                kept = [one for one in (*self.waiting, *self.before) if _belongs(one, entry)]
            found += kept or self._in_segment(clause, entry) or self._homes(clause, entry.homes)
        return self.with_cysts(clause, finest(found))

    def _in_segment(self, clause: Clause, entry: Finding) -> list[Located]:
        """The lobe of a lung segment told by number, where the side is told too."""
        side = self._side(clause)
        if entry.homes != ("lung",) or side not in ("left", "right"):
            return []
        lobe = lobe_of_segment(self._written(clause), side)
        return [locate(self.table.places[lobe], side, not clause.affirmed, False)] if lobe else []

    def _bound(self, clause: Clause, entry: Finding, named: list[Located]) -> tuple[list[Located], bool]:
        """An effusion lies in one of few places: one that is named, else the topic, else its first home."""
        near = [*self.waiting, *named]
        if not near and clause.link in _LISTING and side_of(clause.mentions) is None:
            near = self.before
        allowed = [one for one in near if _belongs(one, entry)]
        topical = [one for one in self.topic if _belongs(one, entry)]
        if allowed or not topical:
            return allowed or self._homes(clause, entry.homes), True
        side = side_of(clause.mentions)
        return [_resided(one, side) for one in topical], True

    def _unnamed(self, clause: Clause) -> list[Located]:
        if clause.affirmed and liver_segment(self._written(clause)):
            return [locate(self.table.places["liver"], None, False, False)]
        side = self._side(clause)
        if self.before and clause.link:
            return [_resided(one, side) for one in self.before]
        homes = next((said.entry.homes for said in clause.findings if said.entry.homes), ())
        if self.topic:
            topic = [_resided(one, side) for one in self.topic]
            return [one for one in topic if one.place.name in homes] or topic
        if homes:
            return self._homes(clause, homes)
        return self._recalled(clause, side)

    def _recalled(self, clause: Clause, side: Side | None) -> list[Located]:
        """The place of the sentence before, where this one leans on it: "the left lobe", "none on the right"."""
        if any(said.entry.device for said in clause.findings):
            return []
        leans = self.tokens[clause.start].word in _LEANING or any(said.entry.cyst for said in clause.findings)
        if not leans and not (side and not clause.start):
            return []
        return [_resided(one, side) for one in self.last]

    def _written(self, clause: Clause) -> str:
        return self.text[self.tokens[clause.start].start : self.tokens[clause.end - 1].end]

    def _homes(self, clause: Clause, names: Iterable[str]) -> list[Located]:
        side = self._side(clause)
        return [locate(self.table.places[name], side, not clause.affirmed, False) for name in names]

    def _side(self, clause: Clause) -> Side | None:
        """Side of what a clause says without naming a place."""
        side = side_of(clause.mentions) or self.side
        if side is None and clause.affirmed and (clause.link in ("with", "mit") or clause.has("same_side")):
            side = next((one.side for one in (*self.before, *self.last) if one.side), None)
        return side

    def with_cysts(self, clause: Clause, located: list[Located]) -> list[Located]:
        """Places of a clause; a kidney that it gives a cyst with the class of its cysts."""
        if not any(said.entry.cyst for said in clause.affirmed):
            return located
        return [_as_cyst(one) for one in located]


def _belongs(one: Located, entry: Finding) -> bool:
    place = one.place
    if place.name in entry.homes or place.name in entry.also or (place.parent and place.parent in entry.homes):
        return True
    return "bone" in entry.homes and place.region == "bone"


def _resided(one: Located, side: Side | None) -> Located:
    """A place spoken of before, on the side now told."""
    if side is None or not one.place.sided or one.place.side or side == one.side:
        return one
    return locate(one.place, side, False, False)


def _as_cyst(one: Located) -> Located:
    if one.place.name != "kidney" or one.side is None or any("cyst" in name for name in one.names):
        return one
    cysts = [f"kidney_cyst_{side}" for side in ("left", "right") if one.side in (side, "bilateral")]
    return one._replace(names=(*one.names, *cysts), masks=(*one.masks, *cysts))
