"""What the trainer's libraries say at every start and no user can act on, left out by its exact words."""

import logging
import sys
import warnings

_LINES = ("GPU available", "TPU available", "HPU available", "💡 Tip", "Loading `train_dataloader` to estimate")
_WARNINGS = (
    r".*LeafSpec.*is deprecated",
    r"You have overridden `transfer_batch_to_device` in `LightningModule`",
    r"LightningCLI's args parameter is intended to run from within Python",
    r"Checkpoint directory .* exists and is not empty",  # a run folder is meant to be resumed
    r"The '\w+_dataloader' does not have many workers",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # parts that model.freeze names
    r"The number of training batches \(\d+\) is smaller than the logging interval",
)


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")  # looked up anew: progress bars and tests replace it


class _WithoutTips(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_LINES)


def silence() -> None:
    """Leave the known lines out and show our own messages, in this process."""
    for pattern in _WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_WithoutTips())
    own = logging.getLogger("ctgrounding")
    if not own.handlers:
        own.addHandler(_Stderr())
        own.setLevel(logging.INFO)
