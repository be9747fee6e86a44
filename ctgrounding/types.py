"""The words and shapes that every room shares.

Axis letters, one meaning each:

========  ==========================================================
``B``     scans on this rank (``G`` on all ranks, ``b`` in one micro-batch)
``C``     channels of a readout
``D H W`` voxels: inferior to superior, posterior to anterior, left to right
``Z``     depth bins (cells of the encoder along ``D``)
``S``     snippets (flat over scans)
``O``     visible organs (flat over scans)
``N``     organ sentences (flat over scans)
``Q``     questions, that is label columns
``T``     unique texts of a step
``L``     tokens of a text
``E``     width of the text encoder
``M``     width of an embedding (after a head, unit length)
========  ==========================================================

World coordinates are RAS in mm, ``(x, y, z)``. ``depth_mm`` is the world z.
Per-voxel triples (``shape``, ``spacing_mm``) are in array order ``D H W``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import torch
from jaxtyping import Bool, Float, Float64, Int16, Int64, Shaped, UInt8
from torch import Tensor

from ctgrounding.errors import ConfigError

ORGAN_IDS = 256
"""Label ids a uint8 organ map can hold; id 0 is background."""

UNKNOWN_LABEL = -1
"""Value of a label that the report does not settle."""


class Term(NamedTuple):
    """One summand of a loss: a sum over this rank's valid elements and the sum of their weights.

    Attributes:
        total: Sum over valid elements, each times its weight; attached to the graph.
        weight: Sum of those weights; zero is legal and means that this rank has no element.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]


class OrganSentenceItem(TypedDict):
    """One sentence about one organ of a scan, as it leaves the data worker."""

    text: str
    organ: int
    is_abnormal: bool


class SnippetItem(TypedDict):
    """One piece of report text and the depth interval of the slice that its author named.

    ``organ`` is the label id of the organ that the text names, or 0; ``size_mm`` the largest
    size that it states, or NaN.
    """

    text: str
    depth_mm: tuple[float, float]
    organ: int
    size_mm: float


class Sample(TypedDict):
    """One scan as it leaves a data worker: cropped, mirrored, rewritten and tokenised, never windowed.

    ``volume`` is HU as stored. ``valid_box`` is the half-open box of real voxels in it, the rest is
    padding at -1024. ``origin_mm`` is the world position of the centre of voxel ``(0, 0, 0)`` of this crop.
    ``organ_voxels`` counts the voxels of every organ in the whole scan, the crop's surroundings included.
    ``organ_findings`` names what the report affirms or leaves open of an organ (label id), "" where it has no name.
    ``token_rows`` holds the tokens of every string named in the sample. Where features are stored in the place of
    voxels, ``features`` holds them, ``volume`` has no voxels and there is no ``organs``.
    """

    scan_id: str
    study_id: str
    patient_id: str
    dataset: str
    volume: Int16[Tensor, "D H W"]
    organs: NotRequired[UInt8[Tensor, "D H W"]]
    organ_voxels: NotRequired[Int64[Tensor, "256"]]
    features: NotRequired[dict[str, Shaped[Tensor, "..."]]]
    valid_box: Int64[Tensor, "3 2"]
    spacing_mm: Float64[Tensor, "3"]
    origin_mm: Float64[Tensor, "3"]
    report: str
    snippets: list[SnippetItem]
    organ_sentences: list[OrganSentenceItem]
    organ_findings: NotRequired[list[tuple[int, str]]]
    labels: Int64[Tensor, "Q"]
    token_rows: dict[str, Int64[Tensor, "L"]]
    snippets_dropped: int


class Batch(TypedDict):
    """All scans of one optimizer step on this rank.

    ``volume`` and ``organs`` are lists with one tensor a micro-batch, padded to its largest scan and
    never concatenated; everything else is flat over the ``B`` scans of the step, so an index means the
    same in every micro-batch. Strings are interned: ``tokens`` holds each text of the step once and the
    ``*_text`` fields index its rows. ``report_text`` is -1 where a scan has no usable report.
    ``study``, ``patient`` and ``report_group`` are hashes: equal on every rank for equal strings.
    Where features are stored in the place of voxels, ``features`` holds those of each micro-batch, ``features_kept``
    says what they are, and ``volume`` has no voxels.
    """

    scan_id: list[str]
    study_id: list[str]
    patient_id: list[str]
    dataset: list[str]
    volume: list[Int16[Tensor, "b D H W"]]
    organs: NotRequired[list[UInt8[Tensor, "b D H W"]]]
    organ_voxels: NotRequired[Int64[Tensor, "B 256"]]
    features: NotRequired[list[dict[str, Shaped[Tensor, "b ..."]]]]
    features_kept: NotRequired[str]
    has_organs: Bool[Tensor, "B"]
    valid_box: Int64[Tensor, "B 3 2"]
    spacing_mm: Float64[Tensor, "B 3"]
    origin_mm: Float64[Tensor, "B 3"]
    study: Int64[Tensor, "B"]
    patient: Int64[Tensor, "B"]
    report_group: Int64[Tensor, "B"]
    texts: list[str]
    tokens: Int64[Tensor, "T L"]
    token_mask: Bool[Tensor, "T L"]
    report_text: Int64[Tensor, "B"]
    snippet_scan: Int64[Tensor, "S"]
    snippet_text: Int64[Tensor, "S"]
    snippet_depth_mm: Float64[Tensor, "S 2"]
    snippet_organ: Int64[Tensor, "S"]
    snippet_size_mm: Float64[Tensor, "S"]
    snippets_dropped: Int64[Tensor, "B"]
    organ_text: Int64[Tensor, "N"]
    organ_text_scan: Int64[Tensor, "N"]
    organ_text_class: Int64[Tensor, "N"]
    organ_text_abnormal: Bool[Tensor, "N"]
    organ_finding: NotRequired[list[str]]
    organ_finding_scan: NotRequired[Int64[Tensor, "M"]]
    organ_finding_class: NotRequired[Int64[Tensor, "M"]]
    labels: Int64[Tensor, "B Q"]


@dataclass(frozen=True)
class EncoderDims:
    """Sizes that an objective may need when it is built.

    Attributes:
        readouts: Width of each readout by name (``global``, ``depth``, ``organ``, ...).
        text: Width of a text vector before any head.
        image_heads: Width of the embeddings of each declared image head.
        text_heads: Width of the embeddings of each declared text head.
        axial_mm: Size of one depth bin.
    """

    readouts: Mapping[str, int]
    text: int
    image_heads: Mapping[str, int]
    text_heads: Mapping[str, int]
    axial_mm: float


@dataclass(frozen=True)
class DenseFeatures:
    """What an image encoder returns: a feature map on a known grid.

    Attributes:
        map: Features of every cell.
        valid: Cells that hold at least one real voxel.
        cell_vox: Voxels of a cell along ``D H W``; may be fractional for strided maps.
        offset_vox: Centre of cell ``(0, 0, 0)`` in voxels of the volume, cell-centre convention:
            ``(cell_vox - 1) / 2`` where the map starts at the volume's first voxel.
        summary: One vector a scan, where the encoder has a summary token.
        views: What the encoder makes for one readout alone, on a grid of its own: ``global``, ``depth`` or
            ``organ`` to the features that this readout sees instead of the map. A view has the map's channels,
            and one named ``depth`` its cells along ``D``.
    """

    map: Float[Tensor, "b C d h w"]
    valid: Bool[Tensor, "b d h w"]
    cell_vox: tuple[float, float, float]
    offset_vox: tuple[float, float, float]
    summary: Float[Tensor, "b C"] | None = None
    views: Mapping[str, "DenseFeatures"] = field(default_factory=dict)

    def view(self, name: str) -> "DenseFeatures":
        """What the readout ``name`` reads: its own view where the encoder has one, else these features."""
        return self.views.get(name, self)


class HeadBank(Protocol):
    """The declared heads of a model, by name. Implemented by :class:`ctgrounding.encoders.heads.Heads`."""

    def image(self, name: str, rows: Float[Tensor, "R C"]) -> Float[Tensor, "R M"]:
        """Project readout rows to unit vectors."""

    def text(
        self, name: str, rows: Float[Tensor, "U E"], which: Int64[Tensor, "R"] | None = None
    ) -> Float[Tensor, "R M"]:
        """Project text rows to unit vectors, those that ``which`` names, repeats included, or all."""

    def logit(self, name: str) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale (already exponentiated) and bias of a logit."""


@dataclass(frozen=True)
class Encoded:
    """Everything the encoders say about a step's batch on this rank; what objectives and evaluators read.

    Attributes:
        heads: The model's declared heads.
        readouts: ``global`` (B, C), ``depth`` (B, Z, C), ``organ`` (O, C) and any plug-in's.
        text: One vector for each unique text of the step, planned fixed texts included.
        depth_valid: Depth bins that hold real voxels; the rest is padding.
        depth_mm: World z of the centre of each depth bin.
        organ_scan: Scan of each visible organ.
        organ_class: Label id of each visible organ.
        organ_visible: Share of the whole organ's voxels that the crop shows, in (0, 1].
        planned: For the objective at hand, which of its fixed texts this step encodes.
        planned_text: Row in ``text`` of each of them.
    """

    heads: HeadBank
    readouts: Mapping[str, Tensor]
    text: Float[Tensor, "T E"]
    depth_valid: Bool[Tensor, "B Z"]
    depth_mm: Float64[Tensor, "B Z"]
    organ_scan: Int64[Tensor, "O"]
    organ_class: Int64[Tensor, "O"]
    organ_visible: Float[Tensor, "O"]
    planned: Int64[Tensor, "P"]
    planned_text: Int64[Tensor, "P"]

    def image(self, readout: str, head: str) -> Float[Tensor, "... M"]:
        """Unit embeddings of a readout: (B, M), (B, Z, M) with zeros at padded bins, or (O, M).

        Raises:
            ConfigError: If the model has no readout of that name.
        """
        rows = self._readout(readout)
        if readout != "depth":
            return self.heads.image(head, rows)
        embedded = self.heads.image(head, rows[self.depth_valid])
        padded = embedded.new_zeros((*self.depth_valid.shape, embedded.shape[-1]))
        return torch.index_put(padded, (self.depth_valid,), embedded)

    def texts(self, rows: Int64[Tensor, "R"], head: str) -> Float[Tensor, "R M"]:
        """Unit embeddings of the texts at ``rows``, repeats included."""
        once, which = torch.unique(rows, return_inverse=True)  # a head's layers need not see a text twice
        return self.heads.text(head, self.text[once], which)

    def logit(self, name: str) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale and bias of the named logit."""
        return self.heads.logit(name)

    def _readout(self, name: str) -> Tensor:
        if name not in self.readouts:
            raise ConfigError(
                f"Readout '{name}' is not made by this model, which has {sorted(self.readouts)}. "
                "Add it under model.readouts or name one of those."
            )
        return self.readouts[name]
