"""What a sample says: report, snippets, organ sentences and labels of one scan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int64
from torch import Tensor

from ctgrounding.data.mirror import mirror_text
from ctgrounding.data.records import ScanRecord
from ctgrounding.errors import ReportError, ShardError
from ctgrounding.types import UNKNOWN_LABEL, OrganSentenceItem, SnippetItem


@dataclass(frozen=True)
class Words:
    """Everything in words about a scan, organs still by name.

    Attributes:
        report: The composed report, empty where there is no usable one.
        snippets: Text, depth interval in mm, organ name (or empty) and size in mm (or NaN).
        organ_sentences: Text, organ name and whether it is abnormal; one item an organ. Sentences that leave
            it open are not shown.
        findings: Organ name and finding of each sentence that affirms or leaves open; "" where it has no name.
        labels: Label name to 1, 0 or None.
    """

    report: str
    snippets: tuple[tuple[str, tuple[float, float], str, float], ...]
    organ_sentences: tuple[tuple[str, str, bool], ...]
    findings: tuple[tuple[str, str], ...]
    labels: Mapping[str, int | None]

    @classmethod
    def of(cls, record: ScanRecord, report: str) -> "Words":
        """The words of a record, with its report as composed; snippets and sentences without text are left out."""
        snippets = tuple(
            (s.text, s.depth_mm, s.organ, float("nan") if s.size_mm is None else s.size_mm)
            for s in record.snippets
            if s.text.strip()
        )
        sentences = tuple(
            (sentence.text, organ, sentence.status == "abnormal")
            for sentence in record.organ_sentences
            if sentence.status != "uncertain" and sentence.text.strip()
            for organ in sentence.organs
        )
        findings = tuple(
            (organ, sentence.finding)
            for sentence in record.organ_sentences
            if sentence.status != "normal"
            for organ in sentence.organs
        )
        return cls(report, snippets, sentences, findings, record.labels)

    def mirrored(self, other_side: Mapping[str, str]) -> "Words":
        """The words about the mirrored body.

        Args:
            other_side: Organ name to its counterpart, for the organs that have one.

        Raises:
            ReportError: If a text or a label has a side without counterpart.
        """
        counterpart = {name: mirror_text(name.replace("_", " ")) for name in self.labels}
        by_words = {name.replace("_", " "): name for name in self.labels}
        missing = sorted(name for name, words in counterpart.items() if words not in by_words)
        if missing:
            raise ReportError(f"Label '{missing[0]}' has a side but no counterpart, so its scan is not mirrored.")
        return replace(
            self,
            report=mirror_text(self.report),
            snippets=tuple(
                (mirror_text(text), depth_mm, other_side.get(organ, organ), size_mm)
                for text, depth_mm, organ, size_mm in self.snippets
            ),
            organ_sentences=tuple(
                (mirror_text(text), other_side.get(organ, organ), bad) for text, organ, bad in self.organ_sentences
            ),
            findings=tuple((other_side.get(organ, organ), finding) for organ, finding in self.findings),
            labels={name: self.labels[by_words[words]] for name, words in counterpart.items()},
        )

    def snippets_within(
        self, low_mm: float, high_mm: float, label_of: Mapping[str, int]
    ) -> tuple[list[SnippetItem], int]:
        """Snippets whose interval has its middle in a depth range, and how many have not.

        Args:
            low_mm: Lowest depth that is shown.
            high_mm: Highest.
            label_of: Organ name to label id.
        """
        inside = [item for item in self.snippets if low_mm <= (item[1][0] + item[1][1]) / 2 <= high_mm]
        items = [
            SnippetItem(text=text, depth_mm=depth_mm, organ=_label(organ, label_of) if organ else 0, size_mm=size_mm)
            for text, depth_mm, organ, size_mm in inside
        ]
        return items, len(self.snippets) - len(inside)

    def sentences(self, label_of: Mapping[str, int]) -> list[OrganSentenceItem]:
        """Organ sentences with label ids."""
        return [
            OrganSentenceItem(text=text, organ=_label(organ, label_of), is_abnormal=is_abnormal)
            for text, organ, is_abnormal in self.organ_sentences
        ]

    def findings_of(self, label_of: Mapping[str, int]) -> list[tuple[int, str]]:
        """Findings with label ids, without repeats."""
        return list(dict.fromkeys((_label(organ, label_of), finding) for organ, finding in self.findings))

    def label_row(self, names: Sequence[str]) -> Int64[Tensor, "Q"]:
        """Labels in the order of ``names``, -1 where unknown."""
        values = [self.labels.get(name) for name in names]
        return torch.tensor([UNKNOWN_LABEL if value is None else value for value in values], dtype=torch.int64)


def _label(organ: str, label_of: Mapping[str, int]) -> int:
    if organ not in label_of:
        raise ShardError(f"A text speaks of organ '{organ}', which the shard's class table lacks. Ingest it again.")
    return label_of[organ]
