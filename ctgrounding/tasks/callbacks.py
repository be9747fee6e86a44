"""Trainer callbacks that every run has."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ctgrounding.encoders.text.base import Tokenizer
from ctgrounding.objectives.base import Objective
from ctgrounding.tasks.evaluated_task import EvaluatedTask
from ctgrounding.types import Batch

log = logging.getLogger(__name__)


class SaveOnSignal(Callback):
    """Saves a checkpoint when a scheduler's SIGTERM or Ctrl-C ends a fit.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, if training had begun; the next ``fit --ckpt_path last`` continues from it."""
        is_fit = trainer.state.fn == TrainerFn.FITTING and not getattr(trainer, "fast_dev_run", False)
        if isinstance(exception, SIGTERMException | KeyboardInterrupt) and is_fit and trainer.global_step:
            trainer.save_checkpoint(self.file, weights_only=False)


class CutTexts(Callback):
    """Counts the texts that are longer than the text encoder reads, and says how many were cut.

    Texts that never change (prompts, names of organs) are counted when a fit starts, those of the scans over its first
    epoch: each step's once, as they are encoded, on the first rank.

    Attributes:
        seen: Texts of the first epoch.
        cut: Those of them that lost tokens.
        longest: Most tokens that one of them had.
    """

    def __init__(self) -> None:
        self.seen = self.cut = self.longest = 0
        self._is_over = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the texts of the objectives."""
        if not isinstance(pl_module, EvaluatedTask) or not trainer.is_global_zero:
            return
        tokenizer = pl_module.tokenizer
        roles = (item for item in pl_module.modules() if isinstance(item, Objective))
        fixed = dict.fromkeys(text for role in roles for text in role.fixed_texts())
        lengths = _longer(tokenizer, fixed)
        if lengths:
            log.warning(_said(len(lengths), len(fixed), "prompts and other fixed texts", max(lengths), tokenizer))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Count a step's own texts."""
        if self._is_over or not isinstance(pl_module, EvaluatedTask) or not trainer.is_global_zero:
            return
        tokenizer = pl_module.tokenizer
        kept = batch["token_mask"].sum(1).tolist()
        full = tokenizer.context_length - 1  # a text of sentences loses the mark between two when it is cut there
        lengths = _longer(tokenizer, (text for text, count in zip(batch["texts"], kept, strict=True) if count >= full))
        self.seen += len(kept)
        self.cut += len(lengths)
        self.longest = max([self.longest, *lengths])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say it once."""
        if self.cut and not self._is_over and isinstance(pl_module, EvaluatedTask):
            log.warning(_said(self.cut, self.seen, "texts", self.longest, pl_module.tokenizer))
        self._is_over = True


def _longer(tokenizer: Tokenizer, texts: Iterable[str]) -> Sequence[int]:
    """Tokens of those texts that are longer than the context."""
    counts = (tokenizer.count(text) for text in texts)
    return [count for count in counts if count > tokenizer.context_length]


def _said(cut: int, seen: int, what: str, longest: int, tokenizer: Tokenizer) -> str:
    return (
        f"{cut:,} of {seen:,} {what} ({100 * cut / seen:.2g} %) were cut to the text encoder's context_length of "
        f"{tokenizer.context_length:,} tokens; the longest has {longest:,}."
    )
