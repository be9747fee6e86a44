"""Statements of one sentence put together from its clauses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ctgrounding.reports.clauses import Clause
from ctgrounding.reports.cuts import FRESH
from ctgrounding.reports.draft import Draft, Fact, labels_of
from ctgrounding.reports.places import Located, finest, side_of
from ctgrounding.reports.scene import Scene
from ctgrounding.reports.wordlists import words

ENLARGED_NODE_MM = 10.0
SIDE_ALONE = 2
_FURTHER = frozenset({"and", "und", "or", "oder", "sowie", "&"})
_JOINING = frozenset({",", "and", "und", "or", "oder", "nor", "noch", "sowie", "/", "&", ""})
_LISTING = frozenset({"or", "oder", "nor", "noch", "/"})
_OPENING = words("opening")
_HEART_SIZE = frozenset(
    {"size", "sizes", "sized", "gross", "groesse", "herzgroesse", "normalgross", "cardiothoracic", "cto", "ctr"}
)


@dataclass
class Drafts:
    """Reads the clauses of a sentence one after the other.

    Attributes:
        scene: What is known of places.
        done: Statements so far.
        facts: Label facts so far.
    """

    scene: Scene
    done: list[Draft] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    _waiting: Draft | None = None
    _lead: int | None = None

    def read(self, clauses: Sequence[Clause]) -> None:
        """Take in all clauses of the sentence."""
        for clause in clauses:
            named = self.scene.named(clause)
            if clause.link in (";", "ref") or (clause.link in FRESH and named):
                self._release()
            if clause.speaks:
                self._speak(clause, named)
            else:
                self._listen(clause, named)
            self.scene.before = self.done[-1].located if self.done else []
        self._release()
        for draft in self.done:
            self._settle(draft)

    def _listen(self, clause: Clause, named: list[Located]) -> None:
        """A clause that says nothing: its places wait, or tell more closely where the last statement lies."""
        draft = self.done[-1] if self.done else None
        if not named:
            self._append(clause, draft)
        elif draft is not None and self._waiting is None and clause.link not in FRESH and _refines(draft, named):
            draft.end = clause.end
            draft.located = finest([*draft.located, *named])
        else:
            self._wait(clause, named)

    def _append(self, clause: Clause, draft: Draft | None) -> None:
        target = self._waiting or draft
        side = side_of(clause.mentions)
        if target is None or (side and len(clause.words) <= SIDE_ALONE):
            self.scene.side = side or self.scene.side
            if target is None and self._lead is None:
                self._lead = clause.start
            return
        target.end = clause.end
        target.is_measured = target.is_measured or clause.size_mm is not None
        if clause.hedge and target.hedge not in ("hedge", "sure"):
            target.hedge = clause.hedge
        if target is self._waiting:
            self._note_node(target, clause)

    def _wait(self, clause: Clause, named: list[Located]) -> None:
        if self._waiting is None:
            self._waiting = Draft(self._begin(clause), clause.end, [], is_vague=False, link=clause.link)
        waiting = self._waiting
        waiting.located += named
        waiting.end = clause.end
        waiting.link = clause.link if clause.link in _FURTHER else waiting.link
        waiting.is_measured = waiting.is_measured or clause.size_mm is not None
        waiting.hedge = waiting.hedge or clause.hedge
        self.scene.waiting = waiting.located
        if any(mention.phrase in ("both", "beide") for mention in clause.mentions):
            self.scene.side = "bilateral"
        self._note_node(waiting, clause)

    def _begin(self, clause: Clause) -> int:
        """Where a statement begins: with the adjectives before a comma, as in "a large, lobulated mass"."""
        lead, self._lead = self._lead, None
        goes_on = clause.link == "," and self.scene.tokens[clause.start].word not in _OPENING
        return lead if lead is not None and goes_on else clause.start

    def _note_node(self, draft: Draft, clause: Clause) -> None:
        """A lymph node that is measured is one that stands out."""
        if clause.size_mm is None or not any(one.place.name == "lymph_node" for one in draft.located):
            return
        draft.affirmed, draft.finding = True, "lymph node"
        if clause.size_mm >= ENLARGED_NODE_MM:
            self.facts.append(Fact("Lymphadenopathy", True))

    def _release(self) -> None:
        """What waits is no longer waited for; it counts if something was measured or doubted."""
        waiting, draft = self._waiting, self.done[-1] if self.done else None
        if waiting is not None and (waiting.speaks or waiting.hedge):
            self.done.append(waiting)
        elif waiting is not None and draft is not None and waiting.link in _FURTHER and not draft.is_at_home:
            draft.end = max(draft.end, waiting.end)
            draft.located = finest([*draft.located, *waiting.located])
        self._forget()

    def _forget(self) -> None:
        self._waiting = None
        self.scene.waiting = []
        self.scene.side = None

    def _speak(self, clause: Clause, named: list[Located]) -> None:
        resolved, explicit = self.scene.resolve(clause, named)
        waiting = self._waiting
        if waiting is not None:
            joined = self._joined(clause, resolved, explicit, waiting)
            resolved, explicit = self.scene.with_cysts(clause, joined), True
        draft = self.done[-1] if self.done else None
        if draft is not None and waiting is None and _continues(draft, clause, resolved, explicit):
            if not draft.affirmed and not clause.affirmed and explicit:
                draft.located = finest([*draft.located, *resolved])
            draft.add(clause)
        else:
            draft = Draft(waiting.start if waiting else self._begin(clause), clause.end, resolved)
            draft.add(clause)
            self._take_hedge(draft, waiting)
            self.done.append(draft)
        self._note_size(clause, draft)
        self._forget()

    def _take_hedge(self, draft: Draft, waiting: Draft | None) -> None:
        if waiting is not None and waiting.hedge and not draft.hedge:
            draft.hedge = waiting.hedge

    def _joined(self, clause: Clause, resolved: list[Located], explicit: bool, waiting: Draft) -> list[Located]:
        """Places that waited together with those of the clause that at last says something."""
        homes = {
            name
            for said in clause.findings
            if said.entry.fixed or said.entry.also
            for name in (*said.entry.homes, *said.entry.also)
        }
        if not explicit or (not homes and not clause.places):
            return waiting.located
        if clause.link not in _JOINING:
            return resolved if homes else finest([*waiting.located, *resolved])
        kept = [one for one in waiting.located if not homes or one.place.name in homes or one.place.parent in homes]
        return finest([*kept, *resolved])

    def _settle(self, draft: Draft) -> None:
        """Label facts of a statement whose places are all known."""
        names = {one.place.name for one in draft.located} | {one.place.parent for one in draft.located}
        for said in draft.said:
            if said.denied or draft.hedge != "hedge":
                self.facts += [Fact(label, not said.denied) for label in labels_of(said.entry, names - {""})]
        if "lymph_node" in names and draft.status == "normal":
            self.facts.append(Fact("Lymphadenopathy", False))

    def _note_size(self, clause: Clause, draft: Draft) -> None:
        """What a clause settles without naming a finding: a heart of normal size, clear pleura, a large node."""
        names = {one.place.name for one in draft.located}
        if clause.is_normal and not clause.affirmed:
            if "heart" in names and clause.words & _HEART_SIZE:
                self.facts.append(Fact("Cardiomegaly", False))
            if names == {"pleura"} and not clause.findings:
                self.facts.append(Fact("Pleural effusion", False))
        if "lymph_node" in names and not clause.findings:
            self._note_node(draft, clause)


def _refines(draft: Draft, named: Sequence[Located]) -> bool:
    """Whether places only tell more closely where a statement lies, or give a device the place it lacks."""
    if not any(one.names for one in draft.located):
        return draft.affirmed
    sides = {one.place.name: one.side for one in draft.located}
    if any(one.side and sides.get(one.place.name) not in (None, one.side) for one in named):
        return False
    known = {one.place.name for one in draft.located} | {one.place.parent for one in draft.located} - {""}
    return all(one.place.name in known or one.place.parent in known or not one.names for one in named)


def _continues(draft: Draft, clause: Clause, resolved: Sequence[Located], explicit: bool) -> bool:
    """Whether a clause goes on with the statement before it."""
    affirms = bool(clause.affirmed)
    opens = clause.hedge == "hedge" and affirms and draft.affirmed and not draft.hedge
    if opens or clause.link in FRESH - {"ref"}:
        return False
    if _same(draft.located, resolved) or not explicit:
        if clause.link == "ref" and clause.places and affirms != draft.affirmed:
            return False
        return not (affirms and clause.places and clause.link) and (draft.affirmed or not affirms or not draft.denied)
    if draft.affirmed or affirms:
        return False
    return clause.link in _LISTING or (clause.link in (",", "and", "und", "sowie") and not clause.has_negation)


def _same(first: Sequence[Located], second: Sequence[Located]) -> bool:
    return {(name, one.side) for one in first for name in one.names} == {
        (name, one.side) for one in second for name in one.names
    }
