"""Results of a made-up run that look like a real one: for tests of the page and for looking at it."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from evaluated_world import AXIAL_MM, Scan, Snippet, Statement, batch_of, noisy, vector

from ctgrounding import label_sets
from ctgrounding.evaluation import (
    Cohort,
    OrganAbnormality,
    OrganPointing,
    OrganRecognition,
    PooledRetrieval,
    ReportRetrieval,
    ScanRetrieval,
    SnippetDepth,
    ZeroShotFindings,
    depth_prior,
)
from ctgrounding.evaluation.results import RunResults, evaluated, library_versions
from ctgrounding.types import Batch, Encoded

FINDINGS = {
    "lung_nodule": ("lung_upper_lobe_right", 0.82, 1.3),
    "emphysema": ("lung_upper_lobe_left", 0.85, 1.0),
    "consolidation": ("lung_lower_lobe_right", 0.68, 0.8),
    "pleural_effusion": ("lung_lower_lobe_left", 0.6, 0.3),
    "cardiomegaly": ("heart", 0.65, 0.25),
    "liver_cyst": ("liver", 0.5, 1.0),
    "steatosis": ("liver", 0.48, 0.3),
    "splenomegaly": ("spleen", 0.5, 0.3),
    "kidney_stone": ("kidney_left", 0.35, 1.2),
    "renal_cyst": ("kidney_right", 0.34, 0.7),
    "gallstone": ("gallbladder", 0.42, 0.4),
    "pancreatic_mass": ("pancreas", 0.43, 0.6),
    "aortic_aneurysm": ("aorta", 0.4, 0.3),
    "adrenal_nodule": ("adrenal_gland_left", 0.46, 0.5),
    "ascites": (None, 0.2, 0.8),
}
OTHER_ORGANS = ("stomach", "urinary_bladder", "trachea", "esophagus", "lung_middle_lobe_right", "vertebrae_L1", "colon")


def question_file(folder: Path) -> str:
    table = {}
    for name, (organ, *_) in FINDINGS.items():
        spoken = name.replace("_", " ")
        table[name] = {
            "positive": [f"There is {spoken}.", f"{spoken.capitalize()} is present."],
            "negative": [f"There is no {spoken}.", f"No {spoken} is seen."],
            "organs": [organ] if organ else [],
        }
    path = folder / "made_up.yaml"
    path.write_text(yaml.safe_dump(table, sort_keys=False))
    return str(path)


def made_up_scans(count: int, seed: int) -> list[Scan]:
    rng = np.random.default_rng(seed)
    return [_scan(place, rng) for place in range(count)]


def _scan(place: int, rng: np.random.Generator) -> Scan:
    name, bins = f"patient{place:04d}_1", int(rng.choice([24, 30, 46]))
    low, top = float(rng.integers(-350, -150)), bins * AXIAL_MM
    present = [finding for finding in FINDINGS if rng.random() < 0.2]
    labels = tuple(int(finding in present) if rng.random() > 0.04 else -1 for finding in FINDINGS)
    organs = {
        label_sets.label_of(organ): noisy(
            vector(label_sets.spoken(organ)), 1.7 if "lobe" in organ or "adrenal" in organ else 0.9, name + organ
        )
        for organ in dict.fromkeys([organ for organ, *_ in FINDINGS.values() if organ] + list(OTHER_ORGANS))
        if rng.random() > 0.15
    }
    statements: list[Statement] = []
    snippets, depth = [], torch.stack([vector(f"{name}/{b}") for b in range(bins)])
    for finding, (organ, fraction, noise) in FINDINGS.items():
        spoken, label = finding.replace("_", " "), label_sets.label_of(organ) if organ else 0
        affirmed = finding in present
        claim = vector(f"There is {spoken}.") - vector(f"There is no {spoken}.")
        if label:
            spoken_organ = label_sets.spoken(organ)
            word = f"{spoken.capitalize()} in the {spoken_organ}" if affirmed else f"The {spoken_organ} is normal"
            statements.append(Statement(word, label, affirmed))
        if label in organs:
            organs[label] = organs[label] + (0.25 if affirmed else -0.25) * claim / (0.4 + 2 * noise)
        if affirmed:
            size = float(rng.choice([np.nan, rng.uniform(6, 45)]))
            where = low + top * float(np.clip(rng.normal(fraction, 0.07), 0.02, 0.98))
            where = low + AXIAL_MM * round((where - low) / AXIAL_MM)
            side = label_sets.spoken(organ) if organ else "abdomen"
            stated = "" if np.isnan(size) else f", {size:.0f} mm"
            text = f"{spoken.capitalize()} in the {side}{stated}"
            snippets.append(Snippet(text, (where - 1.5, where + 1.5), label, size))
            peak = min(bins - 1, max(0, round((where - low) / AXIAL_MM + rng.normal(0, 1.1 * noise))))
            depth[peak] = depth[peak] + 0.9 * vector(text)
            for other in (peak - 1, peak + 1):
                if 0 <= other < bins:
                    depth[other] = depth[other] + 0.55 * vector(text)
    sentences = [f"{item.text}." for item in snippets] or ["No abnormality of the chest or abdomen."]
    report = " ".join(["Findings:", *sentences, "Impression: as above." if present else "Impression: normal study."])
    whole = noisy(vector(report) + 0.12 * sum(vector(f"There is {f.replace('_', ' ')}.") for f in present), 3.5, name)
    return Scan(
        name,
        f"patient{place // 2 if place < 8 else place:04d}",
        report,
        whole,
        depth,
        bins,
        organs,
        labels,
        tuple(snippets),
        low,
        tuple(statements),
    )


@cache
def body(bins: int) -> torch.Tensor:
    """A trunk with lungs, spine and liver, coarse."""
    z, y, x = np.meshgrid(np.linspace(0, 1, 4 * bins), np.linspace(-1, 1, 48), np.linspace(-1, 1, 64), indexing="ij")
    wide = 0.86 + 0.05 * np.sin(6 * z)
    hu = np.where((x / wide) ** 2 + (y / 0.8) ** 2 < 1, 20.0, -1000.0)
    hu[(((abs(x) - 0.42) / 0.3) ** 2 + (y / 0.55) ** 2 + ((z - 0.78) / 0.2) ** 2) < 1] = -820.0
    hu[((x - 0.38) / 0.42) ** 2 + (y / 0.55) ** 2 + ((z - 0.5) / 0.13) ** 2 < 1] = 95.0
    hu[((x + 0.55) / 0.16) ** 2 + ((y + 0.2) / 0.4) ** 2 + ((z - 0.5) / 0.1) ** 2 < 1] = 120.0
    hu[(x / 0.11) ** 2 + ((y + 0.1) / 0.3) ** 2 < 1] = 260.0
    return torch.from_numpy((hu + np.random.default_rng(0).normal(0, 30, hu.shape)).astype(np.int16))


def batches(
    scans: list[Scan], fixed_texts: tuple[str, ...], spacing_mm: tuple[float, float]
) -> Iterator[tuple[Encoded, Batch]]:
    for start in range(0, len(scans), 8):
        encoded, batch = batch_of(scans[start : start + 8], fixed_texts)
        batch["volume"] = [body(scan.bins)[None] for scan in scans[start : start + 8]]
        batch["valid_box"][:, 1:] = torch.tensor([[0, 48], [0, 64]])
        batch["spacing_mm"][:, 1:] = torch.tensor(spacing_mm, dtype=torch.float64)
        yield encoded, batch


def made_up_run(folder: Path, scans: int = 120, seed: int = 0) -> RunResults:
    evaluators = {
        "cohort": Cohort(),
        "retrieval": ReportRetrieval(),
        "findings": ZeroShotFindings(question_file(folder)),
        "snippets": SnippetDepth(),
        "organs": OrganRecognition(),
        "scans": ScanRetrieval(),
        "pools": PooledRetrieval(pools=(16, 32), repeats=20),
        "abnormal": OrganAbnormality(question_file(folder)),
        "pointing": OrganPointing(),
    }
    prior = {label_sets.label_of(organ) if organ else 0: fraction for organ, fraction, _ in FINDINGS.values()}
    evaluators["snippets"].use_prior({**depth_prior([(0, 0.5)]), **prior})
    people = made_up_scans(scans, seed)
    others = made_up_scans(scans // 2, seed + 1)
    for number, person in enumerate(others):
        person.name, person.patient = f"validation{number}", f"validation{number}"
    for evaluator in evaluators.values():
        texts = tuple(evaluator.fixed_texts())
        for encoded, batch in batches(people, texts, (6.0, 6.0)):
            evaluator.update(encoded, batch)
        for encoded, batch in batches(others if evaluator.wants_validation else [], texts, (6.0, 6.0)):
            evaluator.update_validation(encoded, batch)
    blind = [
        Scan(
            s.name, s.patient, s.report, s.whole, torch.ones_like(s.depth), s.bins, low_mm=s.low_mm, snippets=s.snippets
        )
        for s in people
    ]
    for encoded, batch in batches(blind, (), (6.0, 6.0)):
        evaluators["snippets"].update_untrained(encoded, batch)
    about = {
        "title": "ctgrounding demo",
        "split": "test",
        "run": "runs/demo",
        "checkpoint": "runs/demo/checkpoints/last.ckpt",
        "command": "ctgrounding test --config configs/pretrain/demo.yaml --ckpt_path runs/demo/checkpoints/last.ckpt",
        "versions": library_versions(),
        "config": "model:\n  objectives:\n    global: GlobalContrastive\ndata:\n  batch_size: 20\n",
    }
    return evaluated(evaluators, about)
