"""What an evaluation of findings asks, of which label columns, and how answers become calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ctgrounding.evaluation.thresholds import Rule


@dataclass(frozen=True)
class Prompts:
    """Sentences around a finding's name; several pairs form an ensemble.

    Attributes:
        positive: Templates that affirm, with ``{finding}`` or ``{lower}`` (the name without capitals).
        negative: Templates that deny.
        words: For some findings the word in affirming and in denying templates, in place of the name.

    Examples:
        >>> Prompts(("{finding}.",), ("No {lower}.",)).of("Lung nodule")
        (('Lung nodule.',), ('No lung nodule.',))
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, finding: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Affirming and denying sentences of a finding."""
        name = finding.replace("_", " ")
        here, not_here = self.words.get(finding, (name, name))
        return _filled(self.positive, here), _filled(self.negative, not_here)


@dataclass(frozen=True)
class FindingSet:
    """Findings that are asked, and the label columns that answer.

    Attributes:
        columns: Finding to label columns; it is present if any is. None takes every column of the data.
        scores: Finding to the findings of which the highest score counts; by default its own.
        organs: Finding to organs; then each is scored on the organ readout, highest over the visible ones.
    """

    columns: Mapping[str, tuple[str, ...]] | None = None
    scores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    organs: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Judging:
    """How calls are made of scores.

    Attributes:
        rule: Of the thresholds.
        chosen_on: ``validation`` patients, or the ``test`` scans themselves as some papers do, which is optimistic.
        numbers: Properties of :class:`ctgrounding.evaluation.thresholds.Calls` to report.
    """

    rule: Rule
    chosen_on: Literal["validation", "test"]
    numbers: tuple[str, ...]

    def described(self) -> str:
        """One line for the protocol of a number."""
        here = "the evaluated scans themselves, which is optimistic"
        return f"{self.rule}, chosen on {'validation patients' if self.chosen_on == 'validation' else here}"


def _filled(templates: Sequence[str], word: str) -> tuple[str, ...]:
    return tuple(template.format(finding=word, lower=word.lower()) for template in templates)
