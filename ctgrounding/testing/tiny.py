"""Tiny encoded batches for tests of objectives and evaluators, ours and other people's: scans, heads and texts."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ctgrounding.errors import ConfigError
from ctgrounding.functional.prompts import text_keys
from ctgrounding.functional.standardize import moments, standardize
from ctgrounding.objectives.base import Objective
from ctgrounding.testing.scans import AXIAL_MM, CHANNELS, QUESTIONS, TinyScan, tiny_scans
from ctgrounding.types import ORGAN_IDS, Batch, Encoded, EncoderDims

TEXT_WIDTH, EMBEDDING = 5, 8


class TinyHeads(nn.Module):
    """Linear heads ``main`` and ``other`` for images and texts, two logits, and nothing else.

    Args:
        standardized: Whether texts are standardised over all rows of a call, over all ranks, before they get
            unit length.
    """

    def __init__(self, *, standardized: bool = False) -> None:
        super().__init__()
        self.standardized = standardized
        names = ("main", "other")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.images = nn.ModuleDict({name: nn.Linear(CHANNELS, EMBEDDING, dtype=torch.float64) for name in names})
            self.text_heads = nn.ModuleDict(
                {name: nn.Linear(TEXT_WIDTH, EMBEDDING, dtype=torch.float64) for name in names}
            )
        self.scales = nn.ParameterDict({"main": _number(10.0), "other": _number(4.0)})
        self.biases = nn.ParameterDict({"main": _number(-4.0), "other": _number(-1.0)})

    def image(self, name: str, rows: Float[Tensor, "R C"]) -> Float[Tensor, "R M"]:
        """Unit vectors of readout rows."""
        return nn.functional.normalize(_head(self.images, name)(rows), dim=-1)

    def text(
        self, name: str, rows: Float[Tensor, "U E"], which: Int64[Tensor, "R"] | None = None
    ) -> Float[Tensor, "R M"]:
        """Unit vectors of text rows, those that ``which`` names or all."""
        projected: Tensor = _head(self.text_heads, name)(rows)
        projected = projected if which is None else projected[which]
        if self.standardized:
            over_ranks = moments(projected, projected.new_zeros(EMBEDDING))
            projected = standardize(projected, over_ranks.mean, over_ranks.variance)
        return nn.functional.normalize(projected, dim=-1)

    def logit(self, name: str) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale and bias."""
        return self.scales[name], self.biases[name]


def _head(heads: nn.ModuleDict, name: str) -> nn.Module:
    if name not in heads:
        raise ConfigError(
            f"There is no head '{name}' here, only {sorted(heads)}. Take the names of heads as arguments."
        )
    return heads[name]


def _number(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def tiny_dims() -> EncoderDims:
    """Sizes of everything here."""
    heads = {"main": EMBEDDING, "other": EMBEDDING}
    return EncoderDims({"global": CHANNELS, "depth": CHANNELS, "organ": CHANNELS}, TEXT_WIDTH, heads, heads, AXIAL_MM)


def text_vectors(texts: Sequence[str]) -> Float[Tensor, "T E"]:
    """A fixed random vector for each text."""
    waves = torch.arange(1, TEXT_WIDTH + 1, dtype=torch.float64) * 0.7
    return torch.sin((text_keys(texts) % 10007).double()[:, None] * waves)


def tiny_batch(scans: Sequence[TinyScan]) -> Batch:
    """The batch that a data module would make of the scans; volumes and tokens hold nothing."""
    texts = sorted({text for scan in scans for text in _texts_of(scan)})
    row = {text: number for number, text in enumerate(texts)}
    snippets = [(number, item) for number, scan in enumerate(scans) for item in scan.snippets]
    statements = [(number, item) for number, scan in enumerate(scans) for item in scan.statements]
    count = len(scans)
    voxels = torch.zeros(count, ORGAN_IDS, dtype=torch.int64)
    for number, scan in enumerate(scans):
        voxels[number, list(scan.organs)] = 100
    return Batch(
        scan_id=[scan.name for scan in scans],
        study_id=[scan.study for scan in scans],
        patient_id=[scan.study for scan in scans],
        dataset=["tiny"] * count,
        volume=[torch.zeros(count, 1, 1, 1, dtype=torch.int16)],
        organ_voxels=voxels,
        has_organs=torch.tensor([bool(scan.organs) for scan in scans], dtype=torch.bool),
        valid_box=torch.tensor([[0, 1]] * 3).expand(count, 3, 2),
        spacing_mm=torch.ones(count, 3, dtype=torch.float64),
        origin_mm=torch.zeros(count, 3, dtype=torch.float64),
        study=text_keys(scan.study for scan in scans),
        patient=text_keys(scan.study for scan in scans),
        report_group=text_keys(scan.report or f"none {scan.name}" for scan in scans),
        texts=texts,
        tokens=torch.zeros(len(texts), 1, dtype=torch.int64),
        token_mask=torch.ones(len(texts), 1, dtype=torch.bool),
        report_text=_integers(-1 if scan.report is None else row[scan.report] for scan in scans),
        snippet_scan=_integers(number for number, _ in snippets),
        snippet_text=_integers(row[item.text] for _, item in snippets),
        snippet_depth_mm=torch.tensor([item.depth_mm for _, item in snippets], dtype=torch.float64).view(-1, 2),
        snippet_organ=_integers(0 for _ in snippets),
        snippet_size_mm=torch.full((len(snippets),), torch.nan, dtype=torch.float64),
        snippets_dropped=_integers(0 for _ in scans),
        organ_text=_integers(row[item.text] for _, item in statements),
        organ_text_scan=_integers(number for number, _ in statements),
        organ_text_class=_integers(item.organ for _, item in statements),
        organ_text_abnormal=torch.tensor([item.is_abnormal for _, item in statements], dtype=torch.bool),
        labels=torch.tensor([scan.labels for scan in scans], dtype=torch.int64).view(count, len(QUESTIONS)),
    )


def tiny_encoded(
    scans: Sequence[TinyScan], batch: Batch, heads: TinyHeads | None = None, *, padded_bins: int = 0
) -> Encoded:
    """What encoders would say of the batch. Bins beyond a scan hold large numbers, not zeros.

    Args:
        scans: The scans of the batch.
        batch: What :func:`tiny_batch` made of them.
        heads: Heads; new ones by default.
        padded_bins: Bins beyond the longest scan.
    """
    bins = max((len(scan.bins) for scan in scans), default=0) + padded_bins
    depth = torch.full((len(scans), bins, CHANNELS), 50.0, dtype=torch.float64)
    valid = torch.zeros(len(scans), bins, dtype=torch.bool)
    depth_mm = torch.zeros(len(scans), bins, dtype=torch.float64)
    for number, scan in enumerate(scans):
        depth[number, : len(scan.bins)] = scan.bins
        valid[number, : len(scan.bins)] = True
        depth_mm[number] = scan.lowest_mm + AXIAL_MM * torch.arange(bins)
    organs = [(number, label, *found) for number, scan in enumerate(scans) for label, found in scan.organs.items()]
    none = torch.zeros(0, dtype=torch.int64)
    return Encoded(
        heads=heads or TinyHeads(),
        readouts={
            "global": _stacked([scan.whole for scan in scans]),
            "depth": depth,
            "organ": _stacked([vector for _, _, vector, _ in organs]),
        },
        text=text_vectors(batch["texts"]),
        depth_valid=valid,
        depth_mm=depth_mm,
        organ_scan=_integers(number for number, *_ in organs),
        organ_class=_integers(label for _, label, *_ in organs),
        organ_visible=torch.tensor([share for *_, share in organs], dtype=torch.float32),
        planned=none,
        planned_text=none,
    )


def tiny_encoded_and_batch(count: int = 6, seed: int = 0) -> tuple[Encoded, Batch, EncoderDims]:
    """A random batch of ``count`` scans, what the encoders say of it, and their sizes."""
    scans = tiny_scans(count, seed)
    batch = tiny_batch(scans)
    return tiny_encoded(scans, batch), batch, tiny_dims()


def with_fixed_texts(encoded: Encoded, objective: Objective, batch: Batch, step: int = 0) -> Encoded:
    """Do the task's part: plan the objective's fixed texts for a step and append their vectors."""
    fixed = objective.fixed_texts()
    planned = objective.plan(batch, torch.Generator().manual_seed(step))
    vectors = text_vectors([fixed[index] for index in planned.tolist()])
    rows = torch.arange(len(planned)) + len(encoded.text)
    text = torch.cat([encoded.text, vectors.to(encoded.text.dtype)])
    return replace(encoded, text=text, planned=planned, planned_text=rows)


@cache
def tiny_questions_file() -> Path:
    """A question list in a file, for the label columns of tiny batches."""
    entry = (
        "{name}:\n  positive: ['{name} is present', 'there is {name}', 'signs of {name}']\n"
        "  negative: ['no {name}', 'there is no {name}', 'no signs of {name}']\n"
    )
    path = Path(_folder().name) / "questions.yaml"
    path.write_text("".join(entry.format(name=name) for name in QUESTIONS), encoding="utf-8")
    return path


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="ctgrounding-")


def _texts_of(scan: TinyScan) -> list[str]:
    own = [] if scan.report is None else [scan.report]
    return own + [item.text for item in scan.snippets] + [item.text for item in scan.statements]


def _integers(values: Iterable[int]) -> Int64[Tensor, "R"]:
    return torch.tensor(list(values), dtype=torch.int64)


def _stacked(vectors: Sequence[Tensor]) -> Tensor:
    return torch.stack([*vectors]) if vectors else torch.zeros(0, CHANNELS, dtype=torch.float64)
