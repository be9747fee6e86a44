"""A small world of scans with known embeddings, cut into batches at will."""

import hashlib
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch.nn import functional

from ctgrounding.errors import ConfigError
from ctgrounding.types import Batch, Encoded

WIDTH = 24
BINS = 6
AXIAL_MM = 12.0


@cache
def vector(name: str) -> torch.Tensor:
    """A unit vector that belongs to a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)


def number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


class UnitHeads:
    """Heads that only normalise."""

    names = ("main", "organ", "local")

    def image(self, name, rows):
        if name not in self.names:
            raise ConfigError(f"Image head '{name}' does not exist; there are {list(self.names)}.")
        return functional.normalize(rows, dim=-1)

    def text(self, name, rows, which=None):
        return self.image(name, rows if which is None else rows[which])

    def logit(self, name):
        return torch.tensor(10.0), torch.tensor(-10.0)


@dataclass
class Snippet:
    text: str
    depth_mm: tuple[float, float]
    organ: int = 0
    size_mm: float = float("nan")


@dataclass
class Statement:
    text: str
    organ: int
    is_abnormal: bool = True


@dataclass
class Scan:
    name: str
    patient: str
    report: str = ""
    whole: torch.Tensor = field(default_factory=lambda: vector("whole"))
    depth: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS, WIDTH))
    bins: int = BINS
    organs: dict[int, torch.Tensor] = field(default_factory=dict)
    labels: tuple[int, ...] = ()
    snippets: tuple[Snippet, ...] = ()
    low_mm: float = 100.0
    statements: tuple[Statement, ...] = ()
    study: str = ""


def batch_of(scans: list[Scan], fixed_texts=(), text_vectors=vector) -> tuple[Encoded, Batch]:
    """One batch; depth bins have 4 voxels of 3 mm, padded to the longest scan and one more."""
    texts = list(
        dict.fromkeys(
            [s.report for s in scans if s.report] + [item.text for s in scans for item in (*s.snippets, *s.statements)]
        )
    )
    every = list(dict.fromkeys([*texts, *fixed_texts]))
    row = {text: place for place, text in enumerate(every)}
    flat = [(place, item) for place, s in enumerate(scans) for item in s.snippets]
    said = [(place, item) for place, s in enumerate(scans) for item in s.statements]
    organs = [(place, label, v) for place, s in enumerate(scans) for label, v in s.organs.items()]
    longest = max((s.bins for s in scans), default=0) + 1
    depth = torch.zeros(len(scans), longest, WIDTH)
    valid = torch.zeros(len(scans), longest, dtype=torch.bool)
    depth_mm = torch.zeros(len(scans), longest, dtype=torch.float64)
    for place, s in enumerate(scans):
        depth[place, : s.bins], valid[place, : s.bins] = s.depth[: s.bins], True
        depth_mm[place] = s.low_mm + AXIAL_MM * torch.arange(longest)
    questions = len(scans[0].labels) if scans else 0
    encoded = Encoded(
        heads=UnitHeads(),
        readouts={
            "global": torch.stack([s.whole for s in scans]) if scans else torch.zeros(0, WIDTH),
            "depth": depth,
            "organ": torch.stack([v for *_, v in organs]) if organs else torch.zeros(0, WIDTH),
        },
        text=torch.stack([text_vectors(text) for text in every]) if every else torch.zeros(0, WIDTH),
        depth_valid=valid,
        depth_mm=depth_mm,
        organ_scan=torch.tensor([place for place, *_ in organs], dtype=torch.int64),
        organ_class=torch.tensor([label for _, label, _ in organs], dtype=torch.int64),
        organ_visible=torch.ones(len(organs)),
        planned=torch.arange(len(fixed_texts)),
        planned_text=torch.tensor([row[text] for text in fixed_texts], dtype=torch.int64),
    )
    boxes = [[[0, 4 * s.bins], [0, 10], [0, 10]] for s in scans]
    batch: Batch = {
        "scan_id": [s.name for s in scans],
        "study_id": [s.name for s in scans],
        "patient_id": [s.patient for s in scans],
        "dataset": ["toy"] * len(scans),
        "volume": [torch.full((1, 4 * longest, 10, 10), 40, dtype=torch.int16) for _ in scans],
        "has_organs": torch.ones(len(scans), dtype=torch.bool),
        "valid_box": torch.tensor(boxes, dtype=torch.int64).reshape(-1, 3, 2),
        "spacing_mm": torch.tensor([[3.0, 2.0, 2.0]] * len(scans), dtype=torch.float64).reshape(-1, 3),
        # The first voxel's centre lies 1.5 voxels below the centre of its bin of four.
        "origin_mm": torch.tensor([[0.0, 0.0, s.low_mm - 4.5] for s in scans], dtype=torch.float64).reshape(-1, 3),
        "study": torch.tensor([number(s.study or s.name) for s in scans], dtype=torch.int64),
        "patient": torch.tensor([number(s.patient) for s in scans], dtype=torch.int64),
        "report_group": torch.tensor([number(s.report) for s in scans], dtype=torch.int64),
        "texts": texts,
        "tokens": torch.zeros(len(texts), 1, dtype=torch.int64),
        "token_mask": torch.ones(len(texts), 1, dtype=torch.bool),
        "report_text": torch.tensor([row[s.report] if s.report else -1 for s in scans], dtype=torch.int64),
        "snippet_scan": torch.tensor([place for place, _ in flat], dtype=torch.int64),
        "snippet_text": torch.tensor([row[item.text] for _, item in flat], dtype=torch.int64),
        "snippet_depth_mm": torch.tensor([item.depth_mm for _, item in flat], dtype=torch.float64).reshape(-1, 2),
        "snippet_organ": torch.tensor([item.organ for _, item in flat], dtype=torch.int64),
        "snippet_size_mm": torch.tensor([item.size_mm for _, item in flat], dtype=torch.float64),
        "snippets_dropped": torch.zeros(len(scans), dtype=torch.int64),
        "organ_text": torch.tensor([row[item.text] for _, item in said], dtype=torch.int64),
        "organ_text_scan": torch.tensor([place for place, _ in said], dtype=torch.int64),
        "organ_text_class": torch.tensor([item.organ for _, item in said], dtype=torch.int64),
        "organ_text_abnormal": torch.tensor([item.is_abnormal for _, item in said], dtype=torch.bool),
        "labels": torch.tensor([s.labels for s in scans], dtype=torch.int64).reshape(len(scans), questions),
    }
    return encoded, batch


def noisy(base: torch.Tensor, amount: float, seed: str) -> torch.Tensor:
    return functional.normalize(base + amount * vector(seed), dim=0)


def random_scans(count: int, questions: int, seed: int = 0) -> list[Scan]:
    """Scans of about count / 2 patients with everything, some reports shared, some parts missing."""
    rng = np.random.default_rng(seed)
    scans = []
    for place in range(count):
        name, low = f"scan{place:03d}", float(rng.integers(-200, 200))
        bins = int(rng.integers(2, BINS + 1))
        report = "" if place % 11 == 5 else f"report {place % 7 if place % 3 == 0 else place}"
        snippets = tuple(
            Snippet(
                f"finding {rng.integers(5)}",
                (low + 12.0 * b - 2.0, low + 12.0 * b + 2.0),
                int(rng.integers(0, 4)),
                float(rng.choice([np.nan, 8.0, 30.0])),
            )
            for b in rng.integers(0, bins + 1, size=place % 4)
        )
        organs = {int(label): noisy(vector(f"organ {label}"), 0.9, f"{name}{label}") for label in rng.integers(1, 6, 3)}
        statements = tuple(
            Statement(f"statement {label} {place % 2}", int(label), bool((place + label) % 3 == 0))
            for label in (1, 2, 5, 5)[: place % 5]
        )
        scans.append(
            Scan(
                name,
                f"patient{place // 2}",
                report,
                noisy(vector(report), 1.2, name),
                torch.stack([noisy(vector(f"finding {b % 5}"), 1.0, f"{name}/{b}") for b in range(BINS)]),
                bins,
                organs,
                tuple(int(v) for v in rng.integers(-1, 2, questions)),
                snippets,
                low,
                statements,
                f"study{place // 2}",
            )
        )
    return scans
