"""Tiny scans with random content: what encoders would read out of each, and what its report says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

CHANNELS = 6
AXIAL_MM = 12.0
QUESTIONS = ("effusion", "emphysema", "cyst")

_REPORTS = ("Normal chest.", "A small effusion.", "A cyst of the liver.", "Severe emphysema.", "An old fracture.")
_SNIPPETS = ("a cyst", "a nodule of 8 mm", "thickened wall", "a small stone")
_NORMAL = ("{} is unremarkable.", "No change of the {}.")
_ABNORMAL = ("There is a cyst in the {}.", "The {} is enlarged.", "A lesion of the {}.")
_ORGANS = {1: "spleen", 5: "liver", 2: "right kidney"}


class TinySnippet(NamedTuple):
    """A snippet and its depth interval."""

    text: str
    depth_mm: tuple[float, float]


class TinyStatement(NamedTuple):
    """A statement about an organ."""

    text: str
    organ: int
    is_abnormal: bool


@dataclass(frozen=True)
class TinyScan:
    """What the encoders and the report say about one scan.

    Attributes:
        name: Scan id.
        study: Study id.
        whole: Readout ``global``.
        bins: Readout ``depth``, real bins only.
        lowest_mm: World z of the first bin's centre.
        organs: Label id of each visible organ to its readout and the share of it that is visible.
        report: Report, None where there is none.
        snippets: Snippets.
        statements: Statements about organs, visible or not.
        labels: Answer to each question.
    """

    name: str
    study: str
    whole: Float[Tensor, "C"]
    bins: Float[Tensor, "z C"]
    lowest_mm: float
    organs: Mapping[int, tuple[Float[Tensor, "C"], float]] = field(default_factory=dict)
    report: str | None = None
    snippets: Sequence[TinySnippet] = ()
    statements: Sequence[TinyStatement] = ()
    labels: tuple[int, ...] = (-1,) * len(QUESTIONS)

    def bare(self) -> "TinyScan":
        """The same scan without organs, report, snippets, statements and labels."""
        return TinyScan(self.name, self.study, self.whole, self.bins, self.lowest_mm)


def tiny_scans(count: int = 6, seed: int = 0) -> list[TinyScan]:
    """Scans of differing length with reports, some identical, and snippets, organs and labels, some missing."""
    draws = _Draws(torch.Generator().manual_seed(seed))
    return [_scan(number, seed, draws) for number in range(count)]


@dataclass(frozen=True)
class _Draws:
    """What is drawn at random, from one stream."""

    generator: torch.Generator

    def vectors(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def share(self) -> float:
        return float(torch.rand((), generator=self.generator))

    def one_of(self, options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=self.generator))]


def _scan(number: int, seed: int, draws: _Draws) -> TinyScan:
    length, lowest_mm = 4 + number % 3, -40.0 + 5.0 * number
    snippets = _snippets(number, lowest_mm, AXIAL_MM * (length - 1), draws)
    organs, statements = _organs(number, draws)
    return TinyScan(
        name=f"scan-{seed}-{number}",
        study=f"study-{seed}-{number - (number == 3)}",  # 2 and 3 are reconstructions of one study
        whole=draws.vectors(CHANNELS),
        bins=draws.vectors(length, CHANNELS),
        lowest_mm=lowest_mm,
        organs=organs,
        report=None if number == 4 else _REPORTS[number % len(_REPORTS)],
        snippets=snippets,
        statements=statements,
        labels=tuple((number + question) % 3 - 1 for question in range(len(QUESTIONS))),
    )


def _snippets(number: int, lowest_mm: float, extent_mm: float, draws: _Draws) -> list[TinySnippet]:
    snippets = []
    for _ in range(number % 3):
        low = lowest_mm + extent_mm * draws.share()
        snippets.append(TinySnippet(draws.one_of(_SNIPPETS), (low, low + 9.0 * (number % 2))))
    if number == 1:
        snippets.append(TinySnippet("cropped away", (900.0, 900.0)))
    return snippets


def _organs(number: int, draws: _Draws) -> tuple[dict[int, tuple[Tensor, float]], list[TinyStatement]]:
    """Visible organs, and what is said of them."""
    organs, statements = {}, []
    for label, organ in list(_ORGANS.items())[: 1 + (number + 2) % 3]:
        organs[label] = (draws.vectors(CHANNELS), 0.3 if (number + label) % 5 == 0 else 0.9)
        if (number + label) % 4 != 3:
            is_abnormal = (number + label) % 2 == 0
            text = draws.one_of(_ABNORMAL if is_abnormal else _NORMAL).format(organ)
            statements.append(TinyStatement(text, label, is_abnormal))
        if number % 4 == 0:
            statements.append(TinyStatement(draws.one_of(_NORMAL).format(organ), label, False))
    return organs, statements
