"""Words of a text to what they mean: the vocabulary files, compiled once, with a memory of words seen.

A word is looked up as it stands (lower case, umlauts spelt out), then without an inflection, then as a German
compound of a known place and a known finding, then with one slip of the keyboard put right. Phrases are tried
longest first over the words so found.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from ctgrounding.reports.entries import Finding, Place, finding_of, load_table, place_of
from ctgrounding.reports.slips import SHORTEST_TYPO, deletions, is_slip

REMEMBERED_WORDS = 200_000
_TOKEN = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*|[^\w\s-]|_+")
_FOLD = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "é": "e"})
_INFLECTIONS = ("s", "es", "n", "en", "e", "er", "em", "ern")


class Concept(NamedTuple):
    """What a word or phrase means: its kind and, for places and findings, the entry and the words matched."""

    kind: str
    entry: Any
    phrase: str


class Mention(NamedTuple):
    """A concept at tokens ``start:end`` of a sentence."""

    kind: str
    entry: Any
    phrase: str
    start: int
    end: int


class Token(NamedTuple):
    """A word, number or sign: folded text and characters."""

    word: str
    start: int
    end: int


def fold(word: str) -> str:
    """Lower case with umlauts spelt out."""
    return word.lower().translate(_FOLD)


def tokens_of(text: str) -> list[Token]:
    """Words, numbers and signs of a text; hyphens part words and are dropped."""
    low = text.lower()
    if len(low) != len(text):
        low = "".join(char if len(char.lower()) > 1 else char.lower() for char in text)
    if low.isascii():
        return [Token(match[0], *match.span()) for match in _TOKEN.finditer(low)]
    return [Token(match[0].translate(_FOLD), *match.span()) for match in _TOKEN.finditer(low)]


class Lexicon:
    """The compiled vocabulary.

    Examples:
        >>> [mention.phrase for mention in lexicon().mentions(tokens_of("No plerual effusion, Leberzysten"))]
        ['no', 'pleural effusion', 'leber', 'zysten']
    """

    def __init__(self, places: Iterable[Place], findings: Iterable[Finding]) -> None:
        self.places = {place.name: place for place in places}
        self.findings = {finding.name: finding for finding in findings}
        self._phrases: dict[str, list[tuple[tuple[str, ...], Concept]]] = {}
        self._words: set[str] = set()
        self._spelt: set[str] = set()
        self._heads: dict[str, Concept] = {}
        self._tails: dict[str, Concept] = {}
        self._slips: dict[str, set[str]] = {}
        self._seen: dict[str, tuple[str, ...]] = {}
        self._compounds: dict[str, tuple[Concept, ...]] = {}
        self._openings: dict[str, _Opening] = {}

    def add(self, kind: str, entry: object, phrases: Iterable[str], tails: Iterable[str] = ()) -> None:
        """Enter phrases that mean one thing; the first to claim a phrase keeps it."""
        for phrase in phrases:
            words = tuple(token.word for token in tokens_of(phrase.replace("*", "")))
            if not words:
                continue
            concept = Concept(kind, entry, " ".join(words))
            options = self._phrases.setdefault(words[0], [])
            if all(words != known for known, _ in options):
                options.append((words, concept))
            self._words.update(words)
            if kind in ("place", "finding", "device"):
                self._spelt.update(words)
            if phrase.endswith("*"):
                self._heads.setdefault(words[0], concept)
        for tail in tails:
            self._tails.setdefault(fold(tail), Concept(kind, entry, fold(tail)))

    def close(self) -> None:
        """Order phrases longest first and index the words that a slip may turn into."""
        for options in self._phrases.values():
            options.sort(key=lambda option: -len(option[0]))
        for word in self._spelt:
            if len(word) >= SHORTEST_TYPO - 1 and word.isalpha():
                for shorter in deletions(word):
                    self._slips.setdefault(shorter, set()).add(word)

    def base(self, word: str) -> tuple[str, ...]:
        """Known words that a word may stand for, the likeliest first; itself if it is none."""
        known = self._seen.get(word)
        if known is None:
            if len(self._seen) >= REMEMBERED_WORDS:
                self._seen.clear()
            known = self._seen[word] = self._base(word)
        return known

    def _base(self, word: str) -> tuple[str, ...]:
        forms = [word] if word in self._words else []
        forms += [
            word[: -len(ending)]
            for ending in _INFLECTIONS
            if word.endswith(ending) and len(word) - len(ending) >= 3 and word[: -len(ending)] in self._words
        ]
        if word.endswith("ies") and word[:-3] + "y" in self._words:
            forms.append(word[:-3] + "y")
        if not forms and word.isalpha() and not self._compound(word):
            forms = self._corrected(word)
        return tuple(forms) or (word,)

    def _corrected(self, word: str) -> list[str]:
        if not SHORTEST_TYPO - 1 <= len(word) <= 24:
            return []
        near = set(self._slips.get(word, ()))
        for shorter in deletions(word):
            near |= self._slips.get(shorter, set())
            if shorter in self._spelt and len(shorter) >= SHORTEST_TYPO:
                near.add(shorter)
        return sorted(known for known in near if known[0] == word[0] and is_slip(word, known))[:1]

    def _compound(self, word: str) -> tuple[Concept, ...]:
        """Place and finding of a German compound; empty if it is none."""
        known = self._compounds.get(word)
        if known is None:
            if len(self._compounds) >= REMEMBERED_WORDS:
                self._compounds.clear()
            known = self._compounds[word] = self._split(word) if 6 < len(word) <= 40 else ()
        return known

    def _split(self, word: str) -> tuple[Concept, ...]:
        stems = [word, *(word[: -len(ending)] for ending in _INFLECTIONS if word.endswith(ending))]
        for cut in range(len(word) - 3, 2, -1):
            head = self._heads.get(word[:cut])
            if head is None:
                continue
            for stem in stems:
                tail = self._single(stem[cut:]) or self._single(stem[cut + 1 :] if stem[cut : cut + 1] in "sn" else "")
                if tail is not None:
                    return head, tail
            ending = self._ending(stems, cut)
            return (head, ending) if ending else (head,)
        ending = self._ending(stems, 0)
        return (ending,) if ending else ()

    def _ending(self, stems: list[str], floor: int) -> Concept | None:
        for stem in stems:
            for cut in range(floor + 1, len(stem) - 3):
                if stem[cut:] in self._tails:
                    return self._tails[stem[cut:]]
        return None

    def _single(self, word: str) -> Concept | None:
        for words, concept in self._phrases.get(word, ()):
            if len(words) == 1 and len(word) > 3 and concept.kind in ("place", "finding"):
                return concept
        return None

    def mentions(self, tokens: Sequence[Token]) -> list[Mention]:
        """Concepts of a sentence in order, none overlapping but the two of a compound."""
        found: list[Mention] = []
        words = [token.word for token in tokens]
        openings = self._openings
        end = 0
        for at, word in enumerate(words):
            opening = openings.get(word)
            if opening is None:
                opening = self._open(word)
            if at < end or opening is _NOTHING:
                continue
            concept, end = self._longest(opening, words, at)
            if concept is not None:
                found.append(Mention(concept.kind, concept.entry, concept.phrase, at, end))
            else:
                end = at + 1
                found += [Mention(part.kind, part.entry, part.phrase, at, end) for part in opening.parts]
        return found

    def _longest(self, opening: "_Opening", words: Sequence[str], at: int) -> tuple[Concept | None, int]:
        if opening.longer and at + 1 < len(words):
            best: tuple[Concept | None, int] = (None, 0)
            for second in self.base(words[at + 1]):
                for phrase, concept in opening.longer.get(second, ()):
                    if len(phrase) > best[1] and self._goes_on(phrase, words, at):
                        best = concept, len(phrase)
                        break
            if best[0] is not None:
                return best[0], at + best[1]
        return opening.single, at + 1

    def _open(self, word: str) -> "_Opening":
        """What may begin with a word, remembered."""
        if len(self._openings) >= REMEMBERED_WORDS:
            self._openings.clear()
        options = [option for base in self.base(word) for option in self._phrases.get(base, ())]
        single = next((concept for phrase, concept in options if len(phrase) == 1), None)
        longer: dict[str, list[tuple[tuple[str, ...], Concept]]] = {}
        for option in sorted(options, key=lambda option: -len(option[0])):
            if len(option[0]) > 1:
                longer.setdefault(option[0][1], []).append(option)
        parts = self._compound(word) if single is None and len(word) > SHORTEST_TYPO else ()
        opening = _Opening(single, longer, parts) if options or parts else _NOTHING
        self._openings[word] = opening
        return opening

    def _goes_on(self, phrase: tuple[str, ...], words: Sequence[str], at: int) -> bool:
        if at + len(phrase) > len(words):
            return False
        for place in range(2, len(phrase)):
            word = words[at + place]
            if word != phrase[place] and phrase[place] not in self.base(word):
                return False
        return True


class _Opening(NamedTuple):
    """What begins with a word: a concept of one word, phrases by their second word, the parts of a compound."""

    single: Concept | None
    longer: Mapping[str, Sequence[tuple[tuple[str, ...], Concept]]]
    parts: tuple[Concept, ...]


_NOTHING = _Opening(None, {}, ())


@cache
def lexicon() -> Lexicon:
    """The packaged vocabulary, compiled at first use."""
    organs, findings, phrases = (load_table(f"{name}.yaml") for name in ("organs", "findings", "phrases"))
    places = {name: place_of(name, entry) for name, entry in organs.items()}
    said = {key: finding_of(key, entry) for key, entry in findings.items()}
    table = Lexicon(places.values(), said.values())
    for kind, words in phrases.items():
        table.add(kind, None, words)
    for key, finding in said.items():
        kind = "device" if finding.device else "finding"
        table.add(kind, finding, findings[key]["words"], findings[key].get("ends", ()))
    for name, place in places.items():
        table.add("place", place, organs[name]["words"])
    table.close()
    return table
