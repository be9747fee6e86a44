"""Statements about organs: clauses joined where they speak of the same place, cut where they do not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from ctgrounding.reports.clauses import Clause, Finding, clauses
from ctgrounding.reports.lexicon import Lexicon, Mention, Place, Token, lexicon, tokens_of
from ctgrounding.reports.places import Located, finest, liver_segment, locate, nearest_side, numbered_bones, side_of
from ctgrounding.reports.report import OrganStatement, Reference, Side, Status
from ctgrounding.reports.sentences import Sentence, sentences

REMEMBERED_SENTENCES = 16_384
ENLARGED_NODE_MM = 10.0
_NODE_NEIGHBOURS = frozenset(
    "mediastinum aorta iliac_artery iliac_vena elsewhere lung trachea pancreas bone portal_vein_and_splenic_vein esophagus abdominal_wall"
    " stomach inferior_vena_cava kidney superior_vena_cava liver hip pleura bowel small_bowel".split()
)
_WITH = frozenset({"with", "mit", "bei", "due", "because", "and", "und", ",", "no", "ref", "sowie"})
_JOINING = frozenset({",", "and", "und", "or", "oder", "nor", "noch", "sowie", "/", "&", ""})
_ANAPHORA = frozenset(
    {
        "the",
        "this",
        "these",
        "it",
        "its",
        "none",
        "one",
        "der",
        "die",
        "das",
        "dieser",
        "diese",
        "largest",
        "another",
        "keine",
    }
)


class Fact(NamedTuple):
    """A CT-RATE class that a clause settles."""

    label: str
    present: bool


@dataclass
class _Draft:
    """A statement being put together from clauses ``start:end`` (tokens)."""

    start: int
    end: int
    located: list[Located]
    finding: str = ""
    affirmed: bool = False
    vague: bool = True
    denied: bool = False
    is_normal: bool = False
    hedge: str = ""
    measured: bool = False
    inherited: bool = False

    @property
    def says(self) -> bool:
        return self.affirmed or self.denied or self.is_normal

    @property
    def status(self) -> Status:
        if self.affirmed:
            is_open = self.hedge == "hedge" or (self.hedge == "guess" and self.vague)
            return "uncertain" if is_open else "abnormal"
        return "uncertain" if self.hedge == "hedge" and not self.says else "normal"


class Said(NamedTuple):
    """What one sentence says, spans counted in it."""

    drafts: tuple[tuple[int, int, tuple[Located, ...], Status, str], ...]
    facts: tuple[Fact, ...]
    bounds: tuple[tuple[int, int], ...]


@dataclass
class Context:
    """What a sentence takes over from before: its topic's places and the last place spoken of."""

    topic: tuple[Located, ...] = ()
    last: tuple[Located, ...] = ()
    facts: list[Fact] = field(default_factory=list)
    bounds: list[tuple[int, int]] = field(default_factory=list)
    """Clause boundaries in the section's text, for snippets."""


def find_statements(
    text: str, start: int, end: int, section: str, references: Sequence[Reference] = (), context: Context | None = None
) -> list[OrganStatement]:
    """Statements about organs in ``text[start:end]``, in reading order.

    Args:
        text: A report or a section of it.
        start: First character to read.
        end: One past the last.
        section: Name to give the statements.
        references: References in it, spans in ``text``; a clause ends with its reference.
        context: Collects label facts and clause boundaries as it goes; a new one by default.
    """
    context = context or Context()
    found: list[OrganStatement] = []
    at = 0
    for sentence in sentences(text, start, end):
        while at < len(references) and references[at].end <= sentence.start:
            at += 1
        ends = []
        stop = at
        while stop < len(references) and references[stop].start < sentence.end:
            ends.append(references[stop].end - sentence.start)
            stop += 1
        found += _sentence(text, sentence, section, tuple(ends), context)
    return _merge_normal(found, text)


def _sentence(
    text: str, sentence: Sentence, section: str, ends: tuple[int, ...], context: Context
) -> list[OrganStatement]:
    if sentence.opens_topic:
        context.topic, context.last = _topic(sentence.topic), ()
        head = sentence.topic
    else:
        head = ""
        if not sentence.topic:
            context.topic = ()
    written = text[sentence.start : sentence.end]
    said = _said(written, context.topic, context.last, ends, _headed(head))
    context.facts += said.facts
    context.bounds += [(sentence.start + first, sentence.start + last) for first, last in said.bounds]
    found = []
    for first, last, located, status, finding in said.drafts:
        span = sentence.start + first, sentence.start + last
        found.append(_statement(text, span, section, located, status, finding))
    if said.drafts:
        context.last = said.drafts[-1][2]
    return found


@lru_cache(maxsize=2048)
def _topic(heading: str) -> tuple[Located, ...]:
    table = lexicon()
    tokens = tokens_of(heading)
    mentions = table.mentions(tokens)
    side = side_of(mentions)
    places = [mention.entry for mention in mentions if mention.kind == "place" and mention.entry.name != "elsewhere"]
    if (
        "iver" not in heading
        and any(m.kind == "place" and m.entry.name == "elsewhere" for m in mentions)
        and not places
    ):
        return (Located(table.places["elsewhere"], None, (), ()),)
    return tuple(locate(place, side, True, False) for place in places)


@lru_cache(maxsize=2048)
def _headed(heading: str) -> Side | None:
    return side_of(lexicon().mentions(tokens_of(heading))) if heading else None


@lru_cache(maxsize=REMEMBERED_SENTENCES)
def _said(
    text: str, topic: tuple[Located, ...], last: tuple[Located, ...], ends: tuple[int, ...], side: Side | None
) -> Said:
    table = lexicon()
    tokens = tokens_of(text)
    mentions = table.mentions(tokens)
    if not mentions and "egment" not in text:
        bones = numbered_bones(text) if any(char.isdigit() for char in text) else []
        if not bones:
            return Said((), (), ((0, len(text)),))
    return _Builder(text, tokens, mentions, topic, last, ends, table, side).build()


class _Builder:
    """Puts the statements of one sentence together, clause by clause."""

    def __init__(
        self,
        text: str,
        tokens: list[Token],
        mentions: list[Mention],
        topic: tuple[Located, ...],
        last: tuple[Located, ...],
        ends: tuple[int, ...],
        table: Lexicon,
        side: Side | None,
    ) -> None:
        self.text, self.tokens, self.table = text, tokens, table
        self.mentions = _with_shared_lobes([m for m in mentions if m.kind != "comparing"], tokens, table)
        self.topic, self.last, self.side = topic, last, side
        self.clauses = clauses(text, tokens, self.mentions, ends, table)
        self.bones = numbered_bones(text) if any(token.word[0].isdigit() for token in tokens) or "rib" in text else []
        self.drafts: list[_Draft] = []
        self.facts: list[Fact] = []
        self.waiting: list[Located] = []
        self.waiting_start = 0

    def build(self) -> Said:
        for clause in self.clauses:
            self._clause(clause)
        self._flush()
        drafts = tuple(
            (
                self._first(draft),
                self._last(draft),
                tuple(finest(draft.located)),
                draft.status,
                draft.finding if draft.affirmed else "",
            )
            for draft in self.drafts
            if (draft.says or draft.measured) and any(one.names for one in draft.located)
        )
        bounds = tuple((self.tokens[c.start].start, self.tokens[c.end - 1].end) for c in self.clauses)
        return Said(drafts, tuple(self.facts), bounds)

    def _first(self, draft: _Draft) -> int:
        return self.tokens[draft.start].start

    def _last(self, draft: _Draft) -> int:
        end = draft.end
        while end < len(self.tokens) and self.tokens[end].word in (",", ";", ".", ")", "]"):
            end += 1
        return self.tokens[end - 1].end

    def _clause(self, clause: Clause) -> None:
        located = self._places(clause)
        resolved, explicit = self._resolve(clause, located)
        self._settle(clause, resolved, located)
        if not clause.says:
            self._silent(clause, located)
            return
        if not explicit and self.waiting:
            resolved, explicit = (
                [*self.waiting, *(one for one in resolved if not self._is_default(clause, one))] or resolved,
                True,
            )
        elif explicit and self.waiting and clause.link in _JOINING:
            resolved = self._coordinated(clause, resolved)
        self._speak(clause, resolved, explicit)

    def _is_default(self, clause: Clause, one: Located) -> bool:
        return not any(finding.mention.entry.fixed for finding in clause.findings)

    def _coordinated(self, clause: Clause, resolved: list[Located]) -> list[Located]:
        fixed = any(finding.mention.entry.fixed for finding in clause.findings)
        families = {one.place.name for one in resolved} | {one.place.parent for one in resolved}
        joined = [
            one
            for one in self.waiting
            if not fixed or one.place.parent in families or one.place.name in families or one.place.region == "heart"
        ]
        return [*joined, *resolved]

    def _silent(self, clause: Clause, located: list[Located]) -> None:
        """A clause that names at most places: they wait for what is said of them, or narrow what was said."""
        draft = self.drafts[-1] if self.drafts else None
        if located and (
            draft is None
            or clause.link in ("", ";", "but", "ref")
            or (clause.hedge == "" and not self._narrows(draft, located))
        ):
            if not self.waiting:
                self.waiting_start = clause.start
            elif clause.link == ";":
                self._flush()
                self.waiting_start = clause.start
            self.waiting += located
            if clause.size_mm is not None or clause.hedge:
                self._measured(clause)
            return
        if draft is not None:
            draft.end = clause.end
            draft.hedge = draft.hedge or clause.hedge
            if located and draft.affirmed:
                draft.located = _narrowed(draft.located, located)
        elif self.waiting and clause.hedge:
            self._measured(clause)

    def _measured(self, clause: Clause) -> None:
        node = any(one.place.name == "lymph_node" for one in self.waiting)
        large = node and clause.size_mm is not None
        if large and (clause.size_mm or 0) >= ENLARGED_NODE_MM and not clause.denies:
            self.facts.append(Fact("Lymphadenopathy", True))
        draft = _Draft(self.waiting_start, clause.end, list(self.waiting), hedge=clause.hedge, measured=True)
        draft.affirmed, draft.vague = large, False
        draft.finding = "lymph node" if large else ""
        self.drafts.append(draft)
        self.waiting = []

    def _narrows(self, draft: _Draft, located: list[Located]) -> bool:
        if not draft.says:
            return False
        families = {one.place.name for one in draft.located} | {one.place.parent for one in draft.located}
        return all(one.place.parent in families or one.place.name in families or not one.names for one in located)

    def _speak(self, clause: Clause, resolved: list[Located], explicit: bool) -> None:
        draft = self.drafts[-1] if self.drafts else None
        start = self.waiting_start if self.waiting else clause.start
        self.waiting = []
        if draft is not None and self._continues(draft, clause, resolved, explicit):
            if (
                clause.link in ("or", "oder", "nor", "and", "und", ",", "noch", "/")
                and not clause.has_negation
                and not draft.affirmed
            ):
                draft.located = [*draft.located, *(one for one in resolved if explicit or not draft.located)]
            _add(draft, clause)
            return
        draft = _Draft(start, clause.end, resolved)
        _add(draft, clause)
        self.drafts.append(draft)

    def _continues(self, draft: _Draft, clause: Clause, resolved: list[Located], explicit: bool) -> bool:
        """Whether the clause goes on about the statement before."""
        affirms = bool(clause.affirmed)
        if not explicit and not (
            resolved and affirms and draft.affirmed and resolved[0].place.name != draft.located[0].place.name
            if draft.located
            else False
        ):
            if not resolved or affirms == draft.affirmed or not affirms:
                return not (
                    affirms
                    and any(f.mention.entry.fixed for f in clause.findings)
                    and not _same(draft.located, resolved)
                )
        if _same(draft.located, resolved):
            return (
                affirms == draft.affirmed
                and not (affirms and clause.places and clause.link in _WITH)
                or (draft.affirmed and not clause.places)
            )
        if draft.affirmed or affirms:
            return False
        return clause.link in ("or", "oder", "nor", "noch", "/") or (
            clause.link in (",", "and", "und") and not clause.has_negation
        )

    def _places(self, clause: Clause) -> list[Located]:
        mentions = [m for m in self.mentions if clause.start <= m.start < clause.end]
        is_normal = not clause.affirmed
        shared = side_of(mentions)
        located = []
        for mention in clause.places:
            place: Place = mention.entry
            side = nearest_side(mention, mentions, self.tokens) or shared or (self.side if not clause.start else None)
            if side is None and place.sided and not place.side:
                side = self._inherited(place, clause, mentions)
            plural = self.tokens[mention.end - 1].word != mention.phrase.split()[-1] or mention.phrase.endswith(
                ("ien", "en", "ies")
            )
            located.append(locate(place, side, is_normal, plural))
        if any(one.place.name == "lymph_node" for one in located):
            located = [one for one in located if one.place.name not in _NODE_NEIGHBOURS]
        located += self._numbered(clause)
        return finest(located)

    def _inherited(self, place: Place, clause: Clause, mentions: Sequence[Mention]) -> Side | None:
        """Side told just before, for a lobe without one or what lies "on this side"."""
        before = next((one.side for draft in self.drafts[-1:] for one in draft.located if one.side), None)
        if any(mention.kind == "same_side" for mention in mentions) or place.alone == "parent":
            return before or next((one.side for one in self.waiting if one.side), None) or self._early_side(clause)
        return None

    def _early_side(self, clause: Clause) -> Side | None:
        return side_of([mention for mention in self.mentions if mention.start < clause.start])

    def _numbered(self, clause: Clause) -> list[Located]:
        first, last = self.tokens[clause.start].start, self.tokens[clause.end - 1].end
        bone = self.table.places["numbered bone"]
        found = []
        for numbered in self.bones:
            if first <= numbered.start < last:
                masks = () if numbered.names == ("bone",) else numbered.names
                found.append(Located(bone, numbered.side, numbered.names, masks))
        return found

    def _resolve(self, clause: Clause, located: list[Located]) -> tuple[list[Located], bool]:
        """Places that the clause speaks of, and whether it names them or their kind itself."""
        fixed = [finding.mention.entry for finding in clause.findings if finding.mention.entry.fixed]
        if fixed:
            return self._at_home(clause, fixed, located), True
        if located:
            homes = (
                {name for f in clause.findings for name in (*f.mention.entry.homes, *f.mention.entry.also)}
                if any(f.mention.entry.also for f in clause.findings)
                else set()
            )
            at_home = [one for one in located if one.place.name in homes]
            if homes and not at_home and all(one.place.name not in ("kidney", "liver") for one in located):
                return self._homes(
                    clause, next(f.mention.entry.homes for f in clause.findings if f.mention.entry.homes)
                ), True
            return at_home or located, True
        return self._unnamed(clause), False

    def _unnamed(self, clause: Clause) -> list[Located]:
        if (
            liver_segment(self.text[self.tokens[clause.start].start : self.tokens[clause.end - 1].end])
            and clause.affirmed
        ):
            return [locate(self.table.places["liver"], None, False, False)]
        shared = self._shared_side(clause)
        topic = [
            locate(one.place, shared or one.side, not clause.affirmed, False)
            for one in self.topic
            if one.place.name != "numbered bone"
        ]
        homes = next((f.mention.entry.homes for f in clause.findings if f.mention.entry.homes), ())
        if self.drafts and clause.link:
            return [self._resided(one, shared) for one in self.drafts[-1].located]
        if topic and not (homes and all(one.place.region == "abdomen" for one in topic) and homes[0] in ("pleura",)):
            named = [one for one in topic if one.place.name in homes]
            return named or topic
        if homes:
            return self._homes(clause, homes)
        if self.last and (
            shared or self.tokens[clause.start].word in _ANAPHORA or any(f.mention.entry.cyst for f in clause.findings)
        ):
            return [self._resided(one, shared) for one in self.last]
        return []

    def _resided(self, one: Located, side: Side | None) -> Located:
        return (
            locate(one.place, side, False, False)
            if side and one.place.sided and one.place.name != "numbered bone" and not one.place.side
            else one
        )

    def _homes(self, clause: Clause, names: Iterable[str]) -> list[Located]:
        shared = self._shared_side(clause)
        return [locate(self.table.places[name], shared, not clause.affirmed, False) for name in names]

    def _shared_side(self, clause: Clause) -> Side | None:
        mentions = [m for m in self.mentions if clause.start <= m.start < clause.end]
        side = side_of(mentions)
        if side is None and clause.affirmed and self.drafts and clause.link in ("with", "mit", "and", "und"):
            side = next((one.side for one in self.drafts[-1].located if one.side), None)
            only_near = any(mention.kind == "same_side" for mention in mentions) or clause.link in ("with", "mit")
            return side if only_near else None
        return side

    def _at_home(self, clause: Clause, fixed: Sequence[object], located: list[Located]) -> list[Located]:
        found: list[Located] = []
        for entry in fixed:
            homes = entry.homes  # type: ignore[attr-defined]  # Finding of the lexicon
            kept = [one for one in located if self._belongs(one, homes, entry.also)]  # type: ignore[attr-defined]
            found += kept or self._topical(homes) or self._homes(clause, homes)
        cyst = any(getattr(entry, "cyst", False) for entry in fixed)
        return [_as_cyst(one) if cyst else one for one in dict.fromkeys(found)]

    def _topical(self, homes: Sequence[str]) -> list[Located]:
        return [one for one in self.waiting if one.place.name in homes or one.place.parent in homes]

    def _belongs(self, one: Located, homes: Sequence[str], also: frozenset[str]) -> bool:
        is_bone = "bone" in homes and one.place.region == "bone"
        return one.place.name in homes or one.place.parent in homes or one.place.name in also or is_bone

    def _settle(self, clause: Clause, resolved: list[Located], located: list[Located]) -> None:
        names = (
            {one.place.name for one in resolved or self.waiting}
            | {one.place.parent for one in resolved}
            | {one.place.name for one in located}
        )
        for finding in clause.findings:
            label = _label(finding, names)
            if label and (finding.denied or clause.hedge != "hedge"):
                self.facts.append(Fact(label, not finding.denied))
        heart = "heart" in names or any(one.place.name == "heart" for one in (*self.waiting, *self.topic))
        if heart and clause.is_normal and not clause.findings and _tells_size(clause, self.tokens):
            self.facts.append(Fact("Cardiomegaly", False))
        if (
            any(m.entry.name == "lymph_node" for m in clause.places)
            and not clause.findings
            and not clause.denies
            and (clause.size_mm or 0) >= ENLARGED_NODE_MM
        ):
            self.facts.append(Fact("Lymphadenopathy", True))

    def _flush(self) -> None:
        self.waiting = []


def _with_shared_lobes(mentions: list[Mention], tokens: Sequence[Token], table: Lexicon) -> list[Mention]:
    """ "Upper and middle lobe", "ober- und Unterlappen": the first word is a lobe too."""
    lobes = {
        "upper": "lung_upper_lobe",
        "lower": "lung_lower_lobe",
        "middle": "lung_middle_lobe_right",
        "ober": "lung_upper_lobe",
        "unter": "lung_lower_lobe",
        "mittel": "lung_middle_lobe_right",
    }
    starts = {mention.start: mention for mention in mentions}
    added = []
    for at, token in enumerate(tokens):
        if (
            token.word in lobes
            and at not in starts
            and at + 1 < len(tokens)
            and tokens[at + 1].word in ("and", "or", "und", "oder", ",", "&", "/")
        ):
            near = [starts[place] for place in range(at + 2, min(at + 6, len(tokens))) if place in starts]
            if any(m.kind == "place" and m.entry.name.startswith("lung_") for m in near):
                added.append(Mention("place", table.places[lobes[token.word]], token.word, at, at + 1))
    return sorted([*mentions, *added], key=lambda mention: mention.start) if added else mentions


def _label(finding: Finding, names: set[str]) -> str:
    entry = finding.mention.entry
    if entry.labels_at:
        for name, label in entry.labels_at.items():
            if name in names or (name == "none" and not names - {""}):
                return str(label)
        return ""
    return str(entry.label)


def _tells_size(clause: Clause, tokens: Sequence[Token]) -> bool:
    sized = any(word.kind == "size" or "size" in word.phrase or "gross" in word.phrase for word in clause.words)
    return sized


def _add(draft: _Draft, clause: Clause) -> None:
    draft.end = clause.end
    normal_device = clause.is_normal and all(f.mention.entry.device for f in clause.affirmed)
    affirmed = [] if normal_device else clause.affirmed
    for finding in affirmed:
        entry = finding.mention.entry
        draft.vague = draft.vague and entry.vague
        organ = draft.located[0].place.name if draft.located else ""
        draft.finding = (
            draft.finding or entry.by_organ.get(organ) or (entry.name if entry.fixed else finding.mention.phrase)
        )
    draft.affirmed = draft.affirmed or bool(affirmed)
    draft.denied = draft.denied or any(finding.denied for finding in clause.findings)
    draft.is_normal = draft.is_normal or clause.is_normal
    if clause.hedge and draft.hedge not in ("hedge", "sure"):
        draft.hedge = clause.hedge


def _same(first: Sequence[Located], second: Sequence[Located]) -> bool:
    return {(name, one.side) for one in first for name in one.names} == {
        (name, one.side) for one in second for name in one.names
    }


def _narrowed(located: list[Located], finer: list[Located]) -> list[Located]:
    return finest([*located, *(one for one in finer if one.names)])


def _as_cyst(one: Located) -> Located:
    if one.place.name != "kidney" or one.side not in ("left", "right"):
        return one
    cyst = f"kidney_cyst_{one.side}"
    return one._replace(names=(*one.names, cyst), masks=(*one.masks, cyst))


def _statement(
    text: str, span: tuple[int, int], section: str, located: tuple[Located, ...], status: Status, finding: str
) -> OrganStatement:
    names = tuple(dict.fromkeys(name for one in located for name in one.names))
    masks = tuple(dict.fromkeys(mask for one in located for mask in one.masks))
    sides = {one.side for one in located if one.names and one.place.sided or one.side}
    side: Side | None = None
    told = {one for one in sides if one}
    if told and all(one.side or not one.place.sided for one in located):
        side = told.pop() if len(told) == 1 else "bilateral"
    region = next((one.place.region for one in located if one.place.region), "")
    return OrganStatement(text[span[0] : span[1]], names, masks, side, status, finding, *span, section, region)


def _merge_normal(found: list[OrganStatement], text: str) -> list[OrganStatement]:
    """Neighbouring statements that the same organ is well, as one."""
    merged: list[OrganStatement] = []
    for one in found:
        last = merged[-1] if merged else None
        if (
            last
            and last.status == one.status == "normal"
            and last.organs == one.organs
            and last.side == one.side
            and not text[last.end : one.start].strip()
        ):
            if "\n" not in text[last.end : one.start]:
                merged[-1] = OrganStatement(
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
        merged.append(one)
    return merged
