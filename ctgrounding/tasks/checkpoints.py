"""Checkpoints that a kill cannot cut in half."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ctgrounding.encoders.checkpoint_files import UNREADABLE, unreadable
from ctgrounding.errors import CheckpointError

LAST = "last.ckpt"
_HANDED_BACK = ".temp.ckpt"
"""What Lightning calls the weights that ranks started by fork or spawn hand to the process that started them."""

_EVERY = timedelta(minutes=15)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the checkpoint's name and renames, so that the name always holds a whole one.

    Lightning's own moves a file from the system's temporary folder, which across file systems is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401 (Lightning's signature)
        """Save under another name, then rename."""
        partial = Path(f"{path}.part")
        super().save_checkpoint(checkpoint, partial, storage_options)
        partial.replace(path)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401 (Lightning's signature)
        """Load what was saved.

        Raises:
            CheckpointError: If the file is missing, cut off or no checkpoint.
        """
        try:
            checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        except UNREADABLE as error:
            raise unreadable(path, error, "Use another one, or fit again.") from error
        is_whole = isinstance(checkpoint, dict) and "pytorch-lightning_version" in checkpoint
        if not is_whole and Path(path).name != _HANDED_BACK:
            raise CheckpointError(
                f"{path} is no checkpoint of a fit, which holds the optimizer too. Weights alone are for "
                "model.initial_weights, as .safetensors."
            )
        return checkpoint


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt`` after every epoch, and every 15 minutes of a long one.

    Lightning's own, told to keep the last one alone, writes none after an epoch, and one at the end of a
    ``fast_dev_run`` too, over that of the run that it tries out.

    Args:
        folder: Where it goes. A second fit into the same folder writes over it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            dirpath=folder, save_last=True, save_top_k=0, enable_version_counter=False, train_time_interval=_EVERY
        )
        self._file = folder / LAST

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, validation included, unless the fit only tries whether it runs."""
        if not getattr(trainer, "fast_dev_run", False):
            trainer.save_checkpoint(self._file, weights_only=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: the end of the last epoch has saved."""
