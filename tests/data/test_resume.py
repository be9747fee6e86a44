"""KilledError at any step, resumed from the last checkpoint: the very batches that were still to come."""

import contextlib
from itertools import product
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from ctgrounding.data.augment import Crop
from ctgrounding.data.datamodule import ShardDataModule

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:The number of training batches")


class KilledError(Exception):
    pass


class Recorder(LightningModule):
    """Trains one weight on the voxels it sees and writes down which ones it saw."""

    def __init__(self, tokenizer, kill_at: int | None = None):
        super().__init__()
        self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.kill_at = kill_at
        self.seen: list[tuple] = []
        self.validated: list[str] = []

    def training_step(self, batch, batch_idx):
        if len(self.seen) == self.kill_at:
            raise KilledError
        mean = torch.stack([volume.float().mean() for volume in batch["volume"]]).mean()
        self.seen.append((self.trainer.current_epoch, batch_idx, tuple(batch["scan_id"]), mean.item()))
        return (self.weight * mean / 1000).sum()

    def validation_step(self, batch, batch_idx):
        self.validated += batch["scan_id"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def fit(folder, tokenizer, root: Path, *, kill_at=None, ckpt=None, callbacks=(), workers=0, **limits):
    task = Recorder(tokenizer, kill_at)
    data = ShardDataModule(
        str(folder), batch_size=2, crop=Crop((8, 16, 16)), num_workers=workers, mirror_probability=0.5, seed=5
    )
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=root, callbacks=list(callbacks), num_sanity_val_steps=0, **limits,
    )  # fmt: skip
    with contextlib.suppress(KilledError):
        trainer.fit(task, data, ckpt_path=ckpt)
    return task


SAVERS = {
    "every_step": {"every_n_train_steps": 1, "save_last": True, "filename": "{step}"},
    "every_second_step": {"every_n_train_steps": 2, "save_last": True, "filename": "{step}"},
    "validation_end": {"save_last": True, "filename": "{step}"},
    "train_epoch_end": {"save_last": True, "save_on_train_epoch_end": True, "filename": "{step}"},
}
LIMITS = {
    "epochs": {"max_epochs": 3, "limit_val_batches": 0},
    "steps": {"max_steps": 9, "limit_val_batches": 0},
    "epochs_validated": {"max_epochs": 3},
    "validated_within": {"max_epochs": 3, "val_check_interval": 2},
    "steps_validated": {"max_steps": 9, "val_check_interval": 2},
    "short_epochs": {"max_epochs": 4, "limit_train_batches": 2, "limit_val_batches": 0},
}


@pytest.fixture(scope="module")
def unbroken(shard_folder, tokenizer, tmp_path_factory):
    runs = {}

    def run(limit: str) -> Recorder:
        if limit not in runs:
            saver = ModelCheckpoint(tmp_path_factory.mktemp(limit), **SAVERS["every_step"])
            runs[limit] = fit(
                shard_folder, tokenizer, tmp_path_factory.mktemp(limit), callbacks=[saver], **LIMITS[limit]
            )
        return runs[limit]

    return run


FAST = [
    ("epochs", "every_step", 3),
    ("steps", "every_second_step", 5),
    ("steps", "train_epoch_end", 4),
    ("validated_within", "validation_end", 3),
    ("short_epochs", "every_step", 3),
]
SLOW = [
    case
    for case in product(LIMITS, SAVERS, (1, 3, 4, 5, 7))
    if case not in FAST and not (case[1] != "every_step" and case[2] == 1)
]


def kill_and_resume(folder, tokenizer, tmp_path, limit, saver, kill_at, workers=(0, 0)):
    def save():
        return ModelCheckpoint(tmp_path / "kept", **SAVERS[saver])

    fit(folder, tokenizer, tmp_path, kill_at=kill_at, callbacks=[save()], workers=workers[0], **LIMITS[limit])
    last = tmp_path / "kept" / "last.ckpt"
    done = torch.load(last, weights_only=False)["global_step"] if last.exists() else 0
    again = fit(
        folder,
        tokenizer,
        tmp_path,
        ckpt=last if done else None,
        callbacks=[save()],
        workers=workers[1],
        **LIMITS[limit],
    )
    return done, again


@pytest.mark.parametrize(
    ("limit", "saver", "kill_at"), [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_resumed_run_sees_exactly_what_was_left(shard_folder, tokenizer, tmp_path, unbroken, limit, saver, kill_at):
    done, again = kill_and_resume(shard_folder, tokenizer, tmp_path, limit, saver, kill_at)
    assert again.seen == unbroken(limit).seen[done:]
    assert torch.equal(again.weight, unbroken(limit).weight)


def test_the_number_of_workers_may_change_on_resume(shard_folder, tokenizer, tmp_path, unbroken):
    done, again = kill_and_resume(shard_folder, tokenizer, tmp_path, "epochs", "every_step", 6, workers=(2, 1))
    assert done == 6
    assert again.seen == unbroken("epochs").seen[6:]


def test_position_in_the_checkpoint_is_two_integers_of_completed_steps(shard_folder, tokenizer, tmp_path):
    fit(
        shard_folder, tokenizer, tmp_path, kill_at=3, max_epochs=1, limit_val_batches=0, workers=2,
        callbacks=[ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_last=True)],
    )  # fmt: skip
    state = torch.load(tmp_path / "kept" / "last.ckpt", weights_only=False)["ShardDataModule"]
    assert state == {"epoch": 0, "steps": 3}
