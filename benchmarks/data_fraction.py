"""How a model improves with the number of training patients: fractions times seeds, a table and a picture.

    python benchmarks/data_fraction.py --output runs/data_fraction [--fractions 0.1 0.3 1.0] [--seeds 0 1] [--quick]

Writes synthetic patients, ingests them, and fits and tests ``configs/pretrain/smoke.yaml`` on a share of the training
patients by the command line's own commands. Every fit takes as many steps, so that a curve shows what patients bring
and not what steps bring; the seed chooses the patients and the start, and the patients of a smaller share are among
those of a larger one with the same seed. Test patients are the same throughout. What is done already is not done
again. Prints Markdown, writes ``data_fraction.png``, last a JSON line. ``--quick`` runs the path once; its numbers
mean nothing.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from in_child import command
from matplotlib.figure import Figure

from ctgrounding.evaluation.results import METRICS

NUMBERS = {
    "report_to_scan/r_at_5": "reports that find their scan among the first five",
    "findings/auroc_macro": "AUROC of findings by organ, mean",
    "snippet_localization/median_mm": "median error of a snippet's depth in mm",
}
LOWER_IS_BETTER = frozenset({"snippet_localization/median_mm"})


@dataclass(frozen=True)
class Sizes:
    """Patients, and steps of each fit."""

    patients: int
    steps: int
    batch_size: int = 8
    split: str = "[0.6, 0.05, 0.35]"


def prepare(output: Path, sizes: Sizes) -> None:
    """Patients and shards, once."""
    patients, shards = output / "patients", output / "shards"
    if shards.is_dir():
        return
    alone = ("--workers", "1")
    made = (*alone, "--patients", str(sizes.patients), "--voxel_mm", "12", "--format", "nifti", "--split", sizes.split)
    command("phantom", *made, "--output", str(patients))
    card = (*alone, "--card", "data_manifests/phantom.yaml", "--root", str(patients), "--spacing_mm", "[12, 16, 16]")
    command("ingest", *card, "--output", str(shards))


def fit_and_test(output: Path, fraction: float, seed: int, sizes: Sizes) -> dict[str, float]:
    """The numbers of one run."""
    run = output / f"fraction-{fraction:g}-seed-{seed}"
    if not (run / METRICS).exists():
        shared = [
            *("--config", "configs/pretrain/smoke.yaml", "--trainer.default_root_dir", str(run)),
            *("--data.shards", str(output / "shards"), "--data.batch_size", str(sizes.batch_size)),
            *("--data.last_batch", "wrap", "--seed_everything", str(seed), "--model.untrained_baseline", "false"),
            *("--data.train_fraction", str(fraction), "--data.train_fraction_seed", str(seed)),
            *("--data.seed", str(seed), "--trainer.enable_progress_bar", "false"),
        ]
        steps = ("--trainer.max_steps", str(sizes.steps), "--trainer.max_epochs", "-1")
        command("fit", *shared, *steps, "--trainer.log_every_n_steps", "50")
        command("test", *shared)
    found = json.loads((run / METRICS).read_text(encoding="utf-8"))
    return {name: found[name] for name in NUMBERS if found.get(name) is not None}


def markdown(results: dict[float, list[dict[str, float]]]) -> str:
    """Mean and range over seeds of every number."""
    lines = ["| share of patients | " + " | ".join(NUMBERS.values()) + " |", "|---" * (len(NUMBERS) + 1) + "|"]
    for fraction, runs in results.items():
        cells = [f"{100 * fraction:g} %"]
        for name in NUMBERS:
            values = [run[name] for run in runs if name in run]
            cells.append(
                f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "none"
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: dict[float, list[dict[str, float]]], path: Path) -> None:
    """A curve for each number, every seed a point."""
    figure = Figure(figsize=(4 * len(NUMBERS), 3.2), layout="constrained")
    for place, (name, meaning) in enumerate(NUMBERS.items(), start=1):
        axes = figure.add_subplot(1, len(NUMBERS), place)
        known = {fraction: [run[name] for run in runs if name in run] for fraction, runs in results.items()}
        known = {fraction: values for fraction, values in known.items() if values}
        axes.plot([100 * share for share in known], [statistics.mean(values) for values in known.values()], "-", lw=1.5)
        for fraction, values in known.items():
            axes.plot([100 * fraction] * len(values), values, "o", color="0.4", ms=4)
        axes.set(xscale="log", xlabel="training patients (%)", title=meaning)
        axes.title.set_fontsize(9)
        ticks = [100 * fraction for fraction in known]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if name in LOWER_IS_BETTER:
            axes.invert_yaxis()  # up is better in every panel
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/data_fraction"))
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of every fit")
    parser.add_argument("--quick", action="store_true", help="two tiny fits on a dozen patients")
    asked = parser.parse_args()
    sizes = Sizes(20, 3, batch_size=4) if asked.quick else Sizes(120, asked.steps)
    fractions = [0.5, 1.0] if asked.quick else sorted(asked.fractions)
    seeds = asked.seeds[:1] if asked.quick else asked.seeds
    output = asked.output.resolve()
    prepare(output, sizes)
    results = {fraction: [fit_and_test(output, fraction, seed, sizes) for seed in seeds] for fraction in fractions}
    print(markdown(results))
    draw(results, output / "data_fraction.png")
    means = {
        f"{fraction:g}": {
            name: statistics.mean(run[name] for run in runs) for name in runs[0] if all(name in run for run in runs)
        }
        for fraction, runs in results.items()
    }
    print(json.dumps(means))


if __name__ == "__main__":
    main()
