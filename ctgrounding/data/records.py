"""What a shard knows of each scan besides its voxels."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["normal", "abnormal", "uncertain"]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class SnippetRecord:
    """A piece of report text and the depth interval of the slice that its author named.

    Attributes:
        text: The snippet, cleaned of the reference itself.
        series: Series number as written, None if the text named none.
        images: Image numbers as written, ranges expanded.
        slice_id: Identifier of the resolved slice (SOP instance UID or table key), hashed where ids are.
        depth_mm: Lowest and highest world z of the slice's pixels inside the body; a range of images or
            a tilted slice is an interval.
        start: First character of the snippet in its section.
        end: One past its last character.
        section: Report section the span counts in.
        organ: Organ that the text names, as in the shard's class table; empty if none.
        size_mm: Largest size that the text states, None if it states none.
    """

    text: str
    series: int | None
    images: tuple[int, ...]
    slice_id: str
    depth_mm: tuple[float, float]
    start: int
    end: int
    section: str
    organ: str = ""
    size_mm: float | None = None


@dataclass(frozen=True)
class OrganSentenceRecord:
    """A statement of the report about one or more organs.

    Attributes:
        text: The sentence or clause.
        organs: Organs of the shard's class table that it speaks of, side already resolved.
        status: Whether it says normal, abnormal or leaves it open.
        finding: Name of the finding where one was recognised, else empty.
        start: First character in its section.
        end: One past its last character.
        section: Report section the span counts in; empty, with an empty span, where a dataset gives the sentence
            and the report does not hold it word for word.
    """

    text: str
    organs: tuple[str, ...]
    status: Status
    finding: str
    start: int
    end: int
    section: str


@dataclass(frozen=True)
class ScanRecord:
    """One scan of a shard: identity, grid, report, supervision and audit verdict.

    Attributes:
        scan_id: Unique within the dataset; the reconstruction.
        study_id: One examination with one report; may have several scans.
        patient_id: Splits, bootstraps and overlap checks go by it.
        dataset: Name of the dataset card.
        split: ``train``, ``val`` or ``test``.
        shape: Voxels along ``D H W``.
        spacing_mm: Along ``D H W``.
        origin_mm: World position (RAS) of the centre of voxel ``(0, 0, 0)``.
        valid_box: Half-open box of voxels inside the source scan, ``((d0, d1), (h0, h1), (w0, w1))``.
        report: Section name to text as given: ``findings``, ``impression``, ...
        labels: Question to 1, 0 or None for unknown.
        snippets: Resolved snippets.
        organ_sentences: Statements about organs.
        organ_voxels: Voxels of each organ present, by organ name; None where the scan has no organ map.
        verdict: What the audit found and how HU were decided; JSON-able.
        sha256: Hash of the decoded int16 voxels in C order.
        organs_sha256: Hash of the decoded label map, empty where there is none.
    """

    scan_id: str
    study_id: str
    patient_id: str
    dataset: str
    split: Split
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    valid_box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    report: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int | None] = field(default_factory=dict)
    snippets: tuple[SnippetRecord, ...] = ()
    organ_sentences: tuple[OrganSentenceRecord, ...] = ()
    organ_voxels: dict[str, int] | None = None
    verdict: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    organs_sha256: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ScanRecord":
        """The record that :meth:`to_json` described."""
        snippets = tuple(
            SnippetRecord(**{**item, "images": tuple(item["images"]), "depth_mm": tuple(item["depth_mm"])})
            for item in values["snippets"]
        )
        sentences = tuple(
            OrganSentenceRecord(**{**item, "organs": tuple(item["organs"])}) for item in values["organ_sentences"]
        )
        tuples = {key: tuple(values[key]) for key in ("shape", "spacing_mm", "origin_mm")}
        box = tuple((int(low), int(high)) for low, high in values["valid_box"])
        return cls(**{**values, **tuples, "valid_box": box, "snippets": snippets, "organ_sentences": sentences})
