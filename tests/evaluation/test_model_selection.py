"""A training-dev split by patient, and checkpoints chosen by any named number."""

from pathlib import Path

import pytest
import tiny_run
import torch

from ctgrounding.data.datamodule import ShardDataModule
from ctgrounding.data.index import load_index
from ctgrounding.errors import ConfigError
from ctgrounding.testing.shards import write_tiny_shards
from ctgrounding.trainer_cli import run


def patients(index, split):
    return set(index.of_split(split).columns["patient_id"])


def test_dev_patients_are_training_patients_and_leave_training(tmp_path):
    write_tiny_shards(tmp_path, scans=60)
    index = load_index([tmp_path])
    parted = index.with_dev(0.3)
    assert patients(parted, "dev") | patients(parted, "train") == patients(index, "train")
    assert not patients(parted, "dev") & patients(parted, "train")
    assert patients(parted, "dev")
    assert (patients(parted, "test"), patients(parted, "val")) == (patients(index, "test"), patients(index, "val"))
    assert patients(index.with_dev(0.0), "dev") == set()
    assert patients(index.with_dev(0.1), "dev") <= patients(parted, "dev")  # a larger share only adds


def test_a_patient_is_on_the_same_side_in_data_sets_built_on_each_other(tmp_path):
    write_tiny_shards(tmp_path, scans=30)
    index = load_index([tmp_path])
    renamed = {**index.columns, "dataset": ("other",) * len(index)}
    other = type(index)(**{**vars(index), "columns": renamed})
    assert patients(other.with_dev(0.4), "dev") == patients(index.with_dev(0.4), "dev")


def test_bad_fractions_are_named(tmp_path):
    with pytest.raises(ConfigError, match="dev_fraction is 1"):
        ShardDataModule(str(tmp_path), dev_fraction=1.0)
    with pytest.raises(ConfigError, match="dev_fraction is 0"):
        ShardDataModule(str(tmp_path), val_split="dev")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("number", "mode"), [("val/report_to_scan/mean_rank", "min"), ("val/studies", "max")])
def test_a_checkpoint_is_chosen_by_a_named_number(tmp_path, number, mode):
    keeping = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {
            "dirpath": str(tmp_path / "kept"),
            "monitor": number,
            "mode": mode,
            "filename": "best",
            "auto_insert_metric_name": False,
        },
    }
    file = tiny_run.write_run(
        tmp_path,
        scans=24,
        data={"dev_fraction": 0.35, "val_split": "dev"},
        trainer={"max_epochs": 2, "callbacks": [keeping]},
        model={
            "evaluators": {
                "retrieval": {"class_path": "ctgrounding.evaluation.ReportRetrieval"},
                "patients": {"class_path": "ctgrounding.evaluation.Cohort"},
            }
        },
    )
    cli = run(["fit", "--config", str(file)])
    chosen = cli.trainer.checkpoint_callback
    assert Path(chosen.best_model_path).name == "best.ckpt"
    assert chosen.best_model_score == cli.trainer.callback_metrics[number] or mode == "min"
    assert torch.load(chosen.best_model_path, weights_only=True)["run_config"]["data"]["dev_fraction"] == 0.35
