"""``last.ckpt``: after every epoch, and when a signal ends a fit, in a validation too."""

import contextlib

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ctgrounding.tasks.callbacks import SaveOnSignal
from ctgrounding.tasks.checkpoints import LAST, LastCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
STEPS = 2


class StoppedError(Exception):
    """A crash."""


class Stopping(BoringModel):
    """Is stopped at its ``stop_at``-th training or validation step."""

    def __init__(self, *, training: int = -1, validation: int = -1, by: type[BaseException] = StoppedError):
        super().__init__()
        self.stop_at, self.by = {"training": training, "validation": validation}, by
        self.count = {"training": 0, "validation": 0}

    def tick(self, kind: str) -> None:
        if self.count[kind] == self.stop_at[kind]:
            raise self.by
        self.count[kind] += 1

    def training_step(self, batch, batch_idx):
        self.tick("training")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.tick("validation")
        return super().validation_step(batch, batch_idx)


def fit(folder, task, **limits) -> dict | None:
    """Fit until it ends or stops; what the last checkpoint holds."""
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, num_sanity_val_steps=0, limit_train_batches=STEPS, limit_val_batches=2, max_epochs=3,
        callbacks=[LastCheckpoint(folder), SaveOnSignal(folder / LAST)], **limits,
    )  # fmt: skip
    with contextlib.suppress(task.by):
        trainer.fit(task)
    file = folder / LAST
    return torch.load(file, weights_only=False) if file.is_file() else None


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_a_fit_that_crashes_leaves_its_last_epoch(tmp_path, caplog, epochs):
    found = fit(tmp_path, Stopping(training=STEPS * epochs + 1))
    assert (found or {}).get("global_step", 0) == STEPS * epochs
    assert "weights_only" not in caplog.text  # said in every epoch where it is left to a default


@pytest.mark.parametrize("stopped", [{}, {"training": 1, "by": SIGTERMException}])
def test_a_trial_run_leaves_nothing(tmp_path, stopped):
    assert fit(tmp_path, Stopping(**stopped), fast_dev_run=2) is None


def test_the_end_of_a_fit_in_the_middle_of_an_epoch_is_saved(tmp_path):
    assert fit(tmp_path, Stopping(), max_steps=STEPS + 1)["global_step"] == STEPS + 1


def test_a_signal_in_a_validation_saves_the_steps_before_it(tmp_path):
    stopped = Stopping(validation=1, by=SIGTERMException)
    assert fit(tmp_path, stopped)["global_step"] == STEPS


def test_a_signal_before_the_first_step_saves_nothing(tmp_path):
    assert fit(tmp_path, Stopping(training=0, by=SIGTERMException)) is None
