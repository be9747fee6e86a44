"""Which objective brings what: six sets of objectives, several seeds, the same synthetic patients.

    python benchmarks/ablation.py [--output runs/ablation] [--seeds 0 1 2] [--epochs 7] [--quick] [--fit ...]

Writes the patients, ingests them, fits and tests every set of objectives with every seed by the command line's own
commands, and prints the claims with intervals as Markdown, last one JSON line. A value is the mean over seeds; its
interval resamples patients, the same draws for all runs. What is done already is not done again, so the script may be
stopped at any time. ``--quick`` runs the whole path once on a few patients, whose numbers mean nothing.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from in_child import command

from ctgrounding.evaluation.cases import Cases
from ctgrounding.evaluation.results import RESULTS, RunResults
from ctgrounding.evaluation.thresholds import count_calls
from ctgrounding.functional.bootstrap import Bootstrap, draw_clusters, weighted_means

ROLES = ("global", "organ", "prompts", "snippet")
SETS = {
    "all": ROLES,
    "global": ("global",),
    "snippet": ("snippet",),
    "global+snippet": ("global", "snippet"),
    "global+organ": ("global", "organ"),
    "global+prompts": ("global", "prompts"),
    "global+organ+snippet": ("global", "organ", "snippet"),
    "organ": ("organ",),
    "prompts": ("prompts",),
}
MODEL = [
    *("--model.image.init_args.convolutions", "1", "--model.image.init_args.passes", "1"),
    *("--model.image.init_args.patch_hidden", "64", "--model.untrained_baseline", "false"),
    *("--model.evaluators.findings.init_args.threshold_rule", "f1"),
]
UNUSED = [f"--model.evaluators.{role}=null" for role in ("organs", "abnormality", "pointing", "scans")]
RESAMPLES = 2000

Statistic = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """What is made: patients, millimetres of a phantom's voxel, shares of the splits, epochs."""

    patients: int = 800
    voxel_mm: float = 5.5
    split: str = "[0.5, 0.1, 0.4]"
    epochs: int = 7
    batches: float = 1.0


def prepare(output: Path, sizes: Sizes) -> None:
    patients, shards = output / "patients", output / "shards"
    if shards.is_dir():
        return
    alone = ("--workers", "1")
    made = (
        *alone,
        "--patients",
        str(sizes.patients),
        "--voxel_mm",
        str(sizes.voxel_mm),
        "--format",
        "nifti",
        "--seed",
        "3",
    )
    command("phantom", *made, "--split", sizes.split, "--output", str(patients))
    card = (*alone, "--card", "data_manifests/phantom.yaml", "--root", str(patients), "--spacing_mm", "[8, 8, 8]")
    command("ingest", *card, "--output", str(shards))


def fit_and_test(output: Path, name: str, seed: int, sizes: Sizes, added: Sequence[str] = ()) -> None:
    run = output / f"{name}-{seed}"
    if (run / RESULTS).exists():
        return
    off = [f"--model.objectives.{role}=null" for role in ROLES if role not in SETS[name]]
    asked = "disease" if "prompts" in SETS[name] else "main"
    shared = [
        *("--config", "configs/pretrain/phantom.yaml", "--trainer.default_root_dir", str(run)),
        *("--data.shards", str(output / "shards"), "--seed_everything", str(seed)),
        *("--trainer.max_epochs", str(sizes.epochs), "--trainer.limit_val_batches", "0"),
        *("--data.num_workers", "0", *MODEL, *UNUSED, *off),
        *("--model.evaluators.findings.init_args.image_head", asked),
        *("--model.evaluators.findings.init_args.text_head", asked),
        *added,
    ]
    command("fit", *shared, "--trainer.limit_train_batches", str(sizes.batches))
    command("test", *shared)


class Run:
    """Statistics of a tested run as functions of the weights of its cases."""

    def __init__(self, folder: Path) -> None:
        results = RunResults.read(folder)
        found = [Cases.from_json(one) for section in results.sections.values() for one in section.get("cases", ())]
        self.cases = {one.name: one for one in found}
        self.findings = {row["name"]: row for row in results.sections["findings"]["classes"]}
        self.errors_mm = results.sections["snippets"]["errors_mm"]

    def patients(self, name: str) -> np.ndarray:
        return self.cases[name].patients

    def recall(self, weights: np.ndarray) -> np.ndarray:
        cases = self.cases["report_to_scan/recall"]
        return weighted_means(cases.values[:, [cases.columns.index("r_at_10")]])(weights)

    def area(self, weights: np.ndarray) -> np.ndarray:
        return self.cases["findings/global_auroc"].statistic()(weights).mean(1, keepdims=True)

    def organ_area(self, weights: np.ndarray) -> np.ndarray:
        return self.cases["findings/auroc"].statistic()(weights).mean(1, keepdims=True)

    def error(self, answer: str) -> Statistic:
        return weighted_means(np.array(self.errors_mm[answer])[:, None])

    @staticmethod
    def _is_judged(row: dict[str, Any]) -> bool:
        return bool(row["organs"]) and row["threshold"] is not None and row["global_threshold"] is not None

    def f1(self, key: str, cut: str) -> Statistic:
        """Macro F1 over the findings that lie in an organ, on the scans that show it, thresholds from validation."""
        main, scored = self.cases["findings/auroc"], self.cases[f"findings/{key}"]
        names = [name for name in main.columns if self._is_judged(self.findings[name])]
        assert main.labels is not None
        assert scored.identities() == main.identities()
        labels = main.labels[:, [main.columns.index(name) for name in names]]
        scores = scored.values[:, [scored.columns.index(name) for name in names]]
        thresholds = np.array([self.findings[name][cut] for name in names])
        return lambda weights: count_calls(scores, labels, thresholds, weights).f1.mean(1, keepdims=True)


@dataclass(frozen=True)
class Told:
    """A number with its interval, and its value of every seed."""

    value: float
    low: float
    high: float
    seeds: Sequence[float]

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    return lambda weights: np.mean([one(weights) for one in statistics], axis=0)


def told(patients: np.ndarray, first: Sequence[Statistic], other: Sequence[Statistic], way: str) -> Told:
    """``way`` is "value" of the first, "difference" to the other, or "ratio" to it."""
    join = {"value": lambda a, b: a, "difference": lambda a, b: a - b, "ratio": lambda a, b: a / b}[way]
    both = mean_of(first), mean_of(other)
    bootstrap = Bootstrap(
        lambda weights: join(both[0](weights), both[1](weights)), draw_clusters(patients, RESAMPLES, 0)
    )
    interval = bootstrap.interval()
    ones = np.ones((1, len(patients)))
    seeds = [float(join(a(ones), b(ones))[0, 0]) for a, b in zip(first, other, strict=True)]
    return Told(float(interval.estimate[0]), float(interval.low[0]), float(interval.high[0]), seeds)


class Ablation:
    """The claims, from runs that were fitted and tested."""

    def __init__(self, output: Path, seeds: Sequence[int]) -> None:
        self.output, self.seeds = output, seeds
        self.run = cache(lambda name, seed: Run(output / f"{name}-{seed}"))

    def of(self, name: str, take: Callable[[Run], Statistic]) -> list[Statistic]:
        return [take(self.run(name, seed)) for seed in self.seeds]

    def between(self, first: str, other: str, number: str, way: str = "difference") -> Told:
        cases, take = NUMBERS[number]
        patients = self.run(first, self.seeds[0]).patients(cases)
        return told(patients, self.of(first, take), self.of(other, take), way)

    def lift(self, first: str, other: str) -> Told:
        """F1 of the first's organ score over the other's global score."""
        patients = self.run(first, self.seeds[0]).patients("findings/auroc")
        organ = self.of(first, lambda run: run.f1("auroc", "threshold"))
        whole = self.of(other, lambda run: run.f1("global_auroc", "global_threshold"))
        return told(patients, organ, whole, "difference")

    def over_middle(self, name: str) -> Told:
        patients = self.run(name, self.seeds[0]).patients("snippet_localization/mae_mm")
        own, middle = (self.of(name, lambda run, a=answer: run.error(a)) for answer in ("model", "middle"))
        return told(patients, own, middle, "ratio")

    def claims(self) -> dict[str, Told]:
        """What the documentation claims, by key."""
        return {
            "localization_recall_difference": self.between("global+snippet", "global", "recall_at_10"),
            "localization_auroc_difference": self.between("global+snippet", "global", "global_auroc"),
            "localization_mae_over_middle": self.over_middle("global+snippet"),
            "localization_mae_over_global": self.between("global+snippet", "global", "mae_mm", "ratio"),
            "organ_f1_lift": self.lift("global+organ", "global"),
            "prompts_auroc_difference": self.between("global+prompts", "global", "global_auroc"),
            "prompts_auroc_difference_beside_all": self.between("all", "global+organ+snippet", "global_auroc"),
            "all_mae_over_snippet": self.between("all", "snippet", "mae_mm", "ratio"),
            "all_recall_difference_to_global": self.between("all", "global", "recall_at_10"),
            "all_organ_auroc_difference_to_organ": self.between("all", "organ", "organ_auroc"),
            "all_global_auroc_difference_to_prompts": self.between("all", "prompts", "global_auroc"),
        }

    def tables(self, claims: dict[str, Told]) -> str:
        heads = ["objectives", *NUMBERS]
        lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
        lines += [" | ".join([name, *(str(self.between(name, name, n, "value")) for n in NUMBERS)]) for name in SETS]
        lines += ["", "claim | value (95 % by patient) | seeds", "--- | --- | ---"]
        lines += [f"{key} | {one} | {', '.join(f'{seed:.3g}' for seed in one.seeds)}" for key, one in claims.items()]
        return "\n".join(f"| {line} |" if line else "" for line in lines)


NUMBERS: dict[str, tuple[str, Callable[[Run], Statistic]]] = {
    "recall_at_10": ("report_to_scan/recall", lambda run: run.recall),
    "global_auroc": ("findings/global_auroc", lambda run: run.area),
    "organ_auroc": ("findings/auroc", lambda run: run.organ_area),
    "mae_mm": ("snippet_localization/mae_mm", lambda run: run.error("model")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a few patients, two steps, one seed")
    parser.add_argument("--fit", nargs=argparse.REMAINDER, default=[], help="added to every fit and test; comes last")
    given = parser.parse_args()
    output, seeds, sizes = given.output.resolve(), given.seeds, Sizes(epochs=given.epochs)
    if given.quick:
        output, seeds, sizes = output / "quick", [0], Sizes(60, 10.0, "[0.4, 0.2, 0.4]", 1, 2)
    prepare(output, sizes)
    for seed in seeds:
        for name in SETS:
            fit_and_test(output, name, seed, sizes, given.fit)
    ablation = Ablation(output, seeds)
    claims = ablation.claims()
    print(ablation.tables(claims))
    print(json.dumps({key: round(one.value, 4) for key, one in claims.items()}))


if __name__ == "__main__":
    main()
