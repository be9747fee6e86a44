"""What a report says, as plain values with the characters each was read from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Status = Literal["normal", "abnormal", "uncertain"]
Side = Literal["left", "right", "bilateral"]


class Reference(NamedTuple):
    """An image that the text points to.

    Attributes:
        series: Series number as written, None if the text names none.
        images: Image numbers as written, ranges expanded.
        start: First character, brackets included where they hold nothing else.
        end: One past the last character.
        is_prior: Whether it points into an earlier examination.
        snippet: The clause it belongs to, without any reference; empty from
            :func:`~ctgrounding.reports.find_references`, which does not look at clauses.
        section: Section that the span counts in when the report came in sections, else where it stands.
    """

    series: int | None
    images: tuple[int, ...]
    start: int
    end: int
    is_prior: bool = False
    snippet: str = ""
    section: str = ""


class Snippet(NamedTuple):
    """A clause to be located: what stands at the images, without the reference and without comparisons.

    Attributes:
        text: The clause, cleaned.
        series: Series number of its reference.
        images: Image numbers of its references, without repeats.
        start: First character of the clause it was cleaned from.
        end: One past its last character.
        section: Section that the span counts in.
        organs: Organs it names, as in :class:`OrganStatement`.
        masks: The same as TotalSegmentator v2 classes.
        size_mm: Largest current size that it states.
        is_prior: Whether its reference points into an earlier examination.
    """

    text: str
    series: int | None
    images: tuple[int, ...]
    start: int
    end: int
    section: str
    organs: tuple[str, ...]
    masks: tuple[str, ...]
    size_mm: float | None
    is_prior: bool


class OrganStatement(NamedTuple):
    """A sentence or clause about one or more organs.

    Attributes:
        text: Its characters as written.
        organs: What it speaks of, side resolved where one is told: TotalSegmentator v2 classes, or the
            coarser names of ``vocabulary/organs.yaml`` ("lung", "kidney", "pleura", "lymph_node", ...) where the
            text does not say more.
        masks: The same as TotalSegmentator v2 classes only: "lung" becomes the lobes of the told side,
            "pleura" and other places without a mask become nothing.
        side: ``left``, ``right``, ``bilateral``, or None where the text does not say.
        status: Whether it says normal, abnormal or leaves it open.
        finding: Name of the finding; empty where it is normal or was not recognised.
        start: First character.
        end: One past the last.
        section: Section that the span counts in.
        region: One of RadGenome-Chest CT's ten regions, empty below the chest.
    """

    text: str
    organs: tuple[str, ...]
    masks: tuple[str, ...]
    side: Side | None
    status: Status
    finding: str
    start: int
    end: int
    section: str
    region: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All that :func:`ctgrounding.reports.read` takes from one report.

    Attributes:
        text: The report; sections given as a mapping are joined by blank lines.
        sections: Name of each section found to its characters in ``text``.
        references: Every image reference, those to earlier examinations marked.
        snippets: Clauses with a reference, repeats merged.
        organ_statements: What it says of each organ, in reading order.
        ct_rate_labels: The 18 CT-RATE classes: 1, 0, or None where the report does not say.
    """

    text: str
    sections: Mapping[str, tuple[int, int]]
    references: tuple[Reference, ...]
    snippets: tuple[Snippet, ...]
    organ_statements: tuple[OrganStatement, ...]
    ct_rate_labels: Mapping[str, int | None]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, without the text itself; a normal statement's finding is null."""
        return {
            "sections": {name: list(span) for name, span in self.sections.items()},
            "references": [{**one._asdict(), "images": list(one.images)} for one in self.references],
            "snippets": [one._asdict() for one in self.snippets],
            "organ_statements": [{**one._asdict(), "finding": one.finding or None} for one in self.organ_statements],
            "ct_rate_labels": dict(self.ct_rate_labels),
        }
