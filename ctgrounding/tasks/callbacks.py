"""Trainer callbacks that every run has."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException


class SaveOnSignal(Callback):
    """Saves a checkpoint when a scheduler's SIGTERM or Ctrl-C ends a fit.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if training had begun; the next ``fit --ckpt_path last`` continues from it."""
        if isinstance(exception, SIGTERMException | KeyboardInterrupt) and trainer.training and trainer.global_step:
            trainer.save_checkpoint(self.file)
