"""The text of a report as a sample shows it: chosen sections, in training with parts left out."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ctgrounding.errors import ConfigError

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ0-9])|\n+")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class ReportText:
    """How the sections of a report become one text.

    RadFinder's recipe is ``findings_dropout: 0.176``. Random choices are keyed by seed, epoch and report, so
    that two reconstructions of a study, and any two equal reports, keep equal texts.

    Args:
        sections: Sections to show, in this order; absent ones are passed over.
        headings: Whether each section starts with its name, as in "Findings: ...".
        findings_dropout: Probability that the findings are left out where another section stands.
        sentence_dropout: Probability that a sentence is left out; one always stays in each section.
        sentence_shuffle: Whether the sentences of each section change places.
        minimum_words: A report with fewer words, headings not counted, counts as none.

    Raises:
        ConfigError: If a probability lies outside [0, 1] or no section is named.

    Examples:
        >>> report = {"findings": "Cyst in the left kidney.", "impression": "Renal cyst."}
        >>> ReportText(sections=["impression"], minimum_words=2).compose(report)
        'Impression: Renal cyst.'
    """

    sections: tuple[str, ...] | list[str] = ("findings", "impression")
    headings: bool = True
    findings_dropout: float = 0.0
    sentence_dropout: float = 0.0
    sentence_shuffle: bool = False
    minimum_words: int = 3

    def __post_init__(self) -> None:
        if not self.sections:
            raise ConfigError("data.report_text.sections is empty. Name at least one section, for example findings.")
        for name in ("findings_dropout", "sentence_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"data.report_text.{name} is {getattr(self, name)}; a probability lies in [0, 1].")

    def compose(self, report: Mapping[str, str], generator: np.random.Generator | None = None) -> str:
        """One text from a report, empty where the report is too short to be used.

        Args:
            report: Section name to text.
            generator: Source of what is left out; nothing is without one.
        """
        shown = {name: report[name].strip() for name in self.sections if report.get(name, "").strip()}
        if sum(_words(text) for text in shown.values()) < self.minimum_words:
            return ""
        if generator is not None:
            shown = self._thin(shown, generator)
        lines = [f"{name.capitalize()}: {text}" if self.headings else text for name, text in shown.items()]
        return "\n".join(lines)

    def _thin(self, shown: dict[str, str], generator: np.random.Generator) -> dict[str, str]:
        drop = generator.random() < self.findings_dropout
        kept = {name: text for name, text in shown.items() if not (drop and name == "findings")} or shown
        if not self.sentence_dropout and not self.sentence_shuffle:
            return kept
        return {name: " ".join(self._thin_sentences(text, generator)) for name, text in kept.items()}

    def _thin_sentences(self, text: str, generator: np.random.Generator) -> list[str]:
        sentences = _sentences(text)
        draws = generator.random(len(sentences))
        kept = [s for s, draw in zip(sentences, draws, strict=True) if draw >= self.sentence_dropout]
        kept = kept or [sentences[int(np.argmax(draws))]]
        return [kept[i] for i in generator.permutation(len(kept))] if self.sentence_shuffle else kept


@lru_cache(maxsize=2**12)
def _words(text: str) -> int:
    """Number of words; every epoch asks anew."""
    return len(_WORD.findall(text))


@lru_cache(maxsize=2**12)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(stripped for sentence in _SENTENCE_END.split(text) if (stripped := sentence.strip()))
