"""Every pretrain config fits, and its first twenty losses are those of the last time anyone explained a change.

The configs run in float64 at a coarse grid on a few synthetic patients. ``make golden`` writes the files anew.
"""

import csv
from pathlib import Path

import pytest

from ctgrounding.ingest import ingest
from ctgrounding.phantom import write_patients
from ctgrounding.trainer_cli import run

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
ELSEWHERE = {"radfinder", "ct_glip"}
"""Configs of networks too large for this; tests of the encoders fit them at reduced width."""

CONFIGS = [path for path in sorted((REPOSITORY / "configs" / "pretrain").glob("*.yaml")) if path.stem not in ELSEWHERE]
STEPS = 20
COARSE = [
    "--model.image.init_args.spacing_mm", "[12, 16, 16]", "--model.image.init_args.patch", "[2, 3, 3]",
    "--data.crop.shape", "[null, 20, 28]", "--data.evaluation_crop.shape", "[null, 20, 28]",
    "--data.batch_size", "4", "--data.num_workers", "0", "--trainer.max_epochs", "10",
    "--trainer.limit_val_batches", "0",
    "--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "1", "--trainer.precision", "64-true",
    "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_patients(output=folder / "patients", patients=14, format="nifti", voxel_mm=12.0, workers=1)
    card = REPOSITORY / "data_manifests" / "phantom.yaml"
    ingest(card=str(card), root=folder / "patients", output=folder / "shards", spacing_mm=(12.0, 16.0, 16.0), workers=1)
    return folder / "shards"


def losses(config: Path, shards: Path, folder: Path) -> list[float]:
    words = ["fit", "--config", str(config), "--trainer.default_root_dir", str(folder), "--data.shards", str(shards)]
    run([*words, *COARSE])
    (log,) = (folder / "logs").rglob("metrics.csv")
    with log.open(newline="", encoding="utf-8") as stream:
        return [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_first_losses(config: Path, shards: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    found = losses(config, shards, tmp_path)
    assert len(found) == STEPS
    golden = HERE / f"{config.stem}.txt"
    if request.config.getoption("--refresh-golden"):
        golden.write_text("".join(f"{step} {loss!r}\n" for step, loss in enumerate(found)), encoding="utf-8")
    expected = [float(line.split()[1]) for line in golden.read_text(encoding="utf-8").splitlines()]
    assert found == pytest.approx(expected, rel=1e-6)
