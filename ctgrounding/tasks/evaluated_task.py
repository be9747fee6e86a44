"""The half of a task that evaluates: validation, test, prediction, and what of a run goes into its files."""

from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn

from ctgrounding.encoders.text.base import Tokenizer
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.evaluation.base import Evaluator
from ctgrounding.evaluation.depth import depth_prior
from ctgrounding.evaluation.embeddings import EmbeddingWriter
from ctgrounding.evaluation.leaks import Leaks
from ctgrounding.evaluation.results import evaluated
from ctgrounding.tasks.checks import check_fits
from ctgrounding.tasks.evaluating import Evaluation
from ctgrounding.tasks.held_out import HeldOut, leak_numbers
from ctgrounding.tasks.stored import use_stored
from ctgrounding.types import Batch


class EvaluatedTask(LightningModule):
    """A model that evaluators look at; a subclass makes ``encoder`` and trains it.

    Args:
        evaluators: Role to evaluator; null switches one off.

    Attributes:
        encoder: The model.
        evaluation: What evaluators are fed by.
        run_config: The whole run's configuration as plain values, set by the command line; it goes into
            checkpoints, and :func:`ctgrounding.load` rebuilds the model from it.
    """

    encoder: VisionLanguageEncoder

    def __init__(self, evaluators: dict[str, Evaluator | None] | None) -> None:
        super().__init__()
        self._evaluators = {role: item for role, item in (evaluators or {}).items() if item is not None}
        self.evaluation = Evaluation(self._evaluators)
        self.run_config: dict[str, Any] | None = None
        self._writer: EmbeddingWriter | None = None
        self._held_out = HeldOut()
        self._leaks: Leaks | None = None
        self._has_learned = False

    def use_protocol(self, name: str, scan_list: Path | None = None) -> None:
        """Have ``test`` reproduce a published evaluation with the heads of the configured evaluators.

        Args:
            name: Of :mod:`ctgrounding.evaluation.protocols`.
            scan_list: File of scan ids, where the protocol needs one.
        """
        self._held_out = HeldOut(name, scan_list)

    @property
    def tokenizer(self) -> Tokenizer:
        """What turns a text into tokens; data workers use it too."""
        return self.encoder.text.tokenizer

    def on_validation_start(self) -> None:
        """See that stored features are this model's, where they stand in the place of volumes; a fit has seen it."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            use_stored(self.encoder, getattr(self.trainer, "datamodule", None))

    def on_validation_epoch_start(self) -> None:
        """Start a pass of the evaluators."""
        prior = getattr(getattr(self.trainer, "datamodule", None), "organ_depths", None)
        if prior is not None:
            self.evaluation.use_depth_prior(depth_prior(prior()))
        self.evaluation.begin(self.tokenizer)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Give the batch to every evaluator."""
        self.evaluation.update(self.encoder, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the evaluators' numbers, the same on every rank."""
        numbers = {f"val/{name}": value for name, value in self.evaluation.compute().items()}
        self.log_dict(numbers, sync_dist=False, rank_zero_only=False)

    def on_test_epoch_start(self) -> None:
        """Start a pass; evaluators that choose thresholds see the validation patients first."""
        self.on_validation_epoch_start()
        data: Any = getattr(self.trainer, "datamodule", None)
        if not self.evaluation.wants_validation or not self._held_out.can_choose_on_validation(data):
            return
        with self.trainer.precision_plugin.test_step_context():
            for batch in data.val_dataloader():
                moved = self.transfer_batch_to_device(batch, self.device, 0)
                self.evaluation.update_validation(self.encoder, moved)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Give the batch to every evaluator, with what the untrained model makes of it beside it."""
        self.evaluation.update(self.encoder, batch)

    def on_test_epoch_end(self) -> None:
        """Log the numbers and leave numbers and results where a page or a comparison finds them."""
        about = self._held_out.about(self._about(self._split("test")), self._leaks)
        results = evaluated(self.evaluation.evaluators, about)
        results.metrics.update(leak_numbers(self._leaks))
        self.log_dict(results.metrics, sync_dist=False)
        if self.trainer.is_global_zero:
            self._held_out.write(results, Path(self.trainer.default_root_dir))

    def on_predict_start(self) -> None:
        """Open the folder of embeddings."""
        self.evaluation.begin(self.tokenizer)
        split = self._split("predict")
        folder = Path(self.trainer.default_root_dir) / ("embeddings" if split == "test" else f"embeddings_{split}")
        data = getattr(self.trainer, "datamodule", None)
        leaks = self._held_out.leaks(data, "val" if split == "val" else "predict", is_loud=False)
        about = {
            **self._held_out.about(self._about(split), leaks),
            "label_names": list(getattr(data, "label_names", ())),
        }
        self._writer = EmbeddingWriter(folder, self.evaluation.evaluators, about=about)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Save what the evaluators read of a batch, and say which scans it held."""
        if self._writer is not None:
            self._writer.add(self.evaluation.encode(self.encoder, batch), batch)
        return list(batch["scan_id"])

    def on_predict_end(self) -> None:
        """Write the index, which makes the folder complete."""
        if self._writer is not None:
            self._writer.close()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Move everything but volumes and label maps, which go one micro-batch at a time."""
        heavy = {key: value for key, value in batch.items() if key in ("volume", "organs")}
        light = {key: value for key, value in batch.items() if key not in heavy}
        return {**super().transfer_batch_to_device(light, device, dataloader_idx), **heavy}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the configuration that made the model, so that the checkpoint alone can be used."""
        checkpoint["run_config"] = self.run_config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another configuration in one sentence.

        Raises:
            CheckpointError: If its weights do not fit this model.
        """
        check_fits(self.state_dict(), checkpoint["state_dict"])
        self._has_learned = True

    def _split(self, stage: str) -> str:
        data: dict[str, Any] = (self.run_config or {}).get("data", {})
        return str(data.get(f"{stage}_split", "test"))

    def _about(self, split: str) -> dict[str, Any]:
        return {
            "title": Path(self.trainer.default_root_dir).name,
            "split": split,
            "checkpoint": str(self.trainer.ckpt_path),
            "config": yaml.safe_dump(self.run_config, sort_keys=False),
        }
