"""Scores of read reports against labelled ones, written without looking into the reader."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of right, invented and missed."""

    right: int = 0
    invented: int = 0
    missed: int = 0

    def add(self, gold: set, found: set) -> None:
        self.right += len(gold & found)
        self.invented += len(found - gold)
        self.missed += len(gold - found)

    @property
    def precision(self) -> float:
        return self.right / max(1, self.right + self.invented)

    @property
    def recall(self) -> float:
        return self.right / max(1, self.right + self.missed)

    @property
    def f1(self) -> float:
        return 2 * self.right / max(1, 2 * self.right + self.invented + self.missed)


@dataclass
class Scores:
    references: Tally = field(default_factory=Tally)
    places: Tally = field(default_factory=Tally)
    snippets: list[float] = field(default_factory=list)
    statuses: list[bool] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)
    sections: list[bool] = field(default_factory=list)

    def add(self, gold: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        self.references.add(cited(gold["references"]), cited(found["references"]))
        self.snippets += [best_overlap(reference, found["references"]) for reference in gold["references"]]
        self.sections += [found["sections"].get(name) == span for name, span in gold["sections"].items()]
        self.labels += [found["ct_rate_labels"][name] == value for name, value in gold["ct_rate_labels"].items()]
        pairs = aligned(gold["organ_statements"], found["organ_statements"])
        for one, other in pairs:
            self.places.add(placed(one), placed(other))
            if one and other:
                self.statuses.append(one["status"] == other["status"])

    def share(self, name: str) -> float:
        values = getattr(self, name)
        return sum(values) / len(values)


def cited(references: Sequence[Mapping[str, Any]]) -> set:
    return {(r["series"], image, r["is_prior"]) for r in references for image in r["images"]}


def placed(statement: Mapping[str, Any] | None) -> set:
    return {(organ, statement["side"]) for organ in statement["organs"]} if statement else set()


def token_f1(first: str, second: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (first, second))
    return 2 * (a & b).total() / max(1, a.total() + b.total())


def best_overlap(reference: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> float:
    near = [r for r in found if r["start"] < reference["end"] and reference["start"] < r["end"]]
    return max((token_f1(r["snippet"], reference["snippet"]) for r in near), default=0.0)


def aligned(gold: Sequence[Mapping], found: Sequence[Mapping]) -> list[tuple[Mapping | None, Mapping | None]]:
    """Statements paired by the share of characters they have in common, the closest pairs first."""
    near = []
    for i, one in enumerate(gold):
        for j, other in enumerate(found):
            common = min(one["end"], other["end"]) - max(one["start"], other["start"])
            if common > 0:
                near.append((common / (max(one["end"], other["end"]) - min(one["start"], other["start"])), i, j))
    pairs: dict[int, int] = {}
    for _, i, j in sorted(near, reverse=True):
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    left = [(None, other) for j, other in enumerate(found) if j not in pairs.values()]
    return [(one, found[pairs[i]] if i in pairs else None) for i, one in enumerate(gold)] + left
