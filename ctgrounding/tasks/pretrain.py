"""Pretraining: one image pass, one text pass, any objectives, exact gradients of the whole step's batch."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ctgrounding import distributed
from ctgrounding.encoders.compiling import compile_blocks as compile_tower
from ctgrounding.encoders.heads import HeadsConfig
from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.image.conv_trial import check_convolutions
from ctgrounding.encoders.layers import with_prefix
from ctgrounding.encoders.lora import Lora
from ctgrounding.encoders.text.base import TextEncoder
from ctgrounding.encoders.vision_language import ReadoutFactory, VisionLanguageEncoder
from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Evaluator
from ctgrounding.objectives.base import Objective
from ctgrounding.tasks import randomness
from ctgrounding.tasks.accumulation import Outputs, step_loss
from ctgrounding.tasks.balance import Balanced, WeightSchedule, balance, term_names, weight_at
from ctgrounding.tasks.checks import (
    check_callbacks,
    check_labels,
    check_numbers,
    check_roles,
    check_spacing,
    check_trainer,
    leave_out_objectives,
)
from ctgrounding.tasks.encoding import StepWork
from ctgrounding.tasks.evaluated_task import EvaluatedTask
from ctgrounding.tasks.evaluating import Evaluation
from ctgrounding.tasks.freezing import freeze as frozen_parts
from ctgrounding.tasks.freezing import parameter_table
from ctgrounding.tasks.gradients import GradientProbe
from ctgrounding.tasks.initial_weights import as_begun, load_initial
from ctgrounding.tasks.meters import PackedMeter, send
from ctgrounding.tasks.optimizers import AdamWCosine, OptimizerRecipe
from ctgrounding.tasks.recolour import Recolour
from ctgrounding.tasks.stored import check_frozen, use_stored
from ctgrounding.tasks.texts import FixedTexts
from ctgrounding.types import Batch, EncoderDims, Term

log = logging.getLogger(__name__)

ObjectiveFactory = Callable[[EncoderDims], Objective]


class Pretrain(EvaluatedTask):
    """Trains encoders, readouts and heads by any set of objectives.

    Every objective gets the same :class:`ctgrounding.types.Encoded` of the whole step's batch of a rank,
    whatever the micro-batch size, and returns sums and weights; the task divides by the weights of all ranks.

    Args:
        image: Image encoder.
        text: Text encoder.
        readouts: Name to readout; ``global``, ``depth`` and ``organ`` are what the built-in objectives read.
        heads: Declared heads by name.
        objectives: Role to objective; null switches one off.
        weights: Role to weight, a number or a schedule by step; the same roles as ``objectives``.
        optimizer: How parameters are grouped and stepped.
        evaluators: Role to evaluator, used by ``validate`` and ``test``; null switches one off.
        recolour: Intensity augmentation on the device.
        texts_per_pass: Texts encoded at a time when the step is split into micro-batches; null for all.
        initial_weights: A ``.safetensors`` file with some or all of this model's weights to start from.
        image_lora: Adapters of the image encoder, whose own weights are frozen then; null trains it whole.
        freeze: Regular expressions; what they name as a whole, parameters or modules such as
            ``encoder.image.blocks.[0-5]``, is not trained and has no dropout.
        compile_blocks: Towers, ``image`` and ``text``, whose blocks a fit compiles with ``torch.compile``.
        log_gradient_norms: Whether each logged step also logs each objective's gradient norm at the image and the
            text encoder, as ``train/ROLE/gradient_norm_image``; such a step takes about twice as long.
        untrained_baseline: Whether ``test`` also evaluates the model as it was before training.
        seed: Seed of dropout, recolouring and every draw of a step.

    Attributes:
        numbers: What the last logged step gave to the loggers; callbacks find ``train/loss`` in
            ``trainer.callback_metrics`` too.

    Raises:
        ConfigError: If weights and objectives name different roles, ``freeze`` names nothing, there is nothing to
            adapt, or a number is out of range.
    """

    def __init__(
        self,
        image: ImageEncoder,
        text: TextEncoder,
        readouts: dict[str, ReadoutFactory],
        heads: HeadsConfig,
        objectives: dict[str, ObjectiveFactory | None],
        weights: dict[str, float | WeightSchedule],
        optimizer: OptimizerRecipe | None = None,
        evaluators: dict[str, Evaluator | None] | None = None,
        recolour: Recolour | None = None,
        texts_per_pass: int | None = None,
        initial_weights: str | None = None,
        image_lora: Lora | None = None,
        freeze: Sequence[str] = (),
        compile_blocks: Sequence[Literal["image", "text"]] = (),
        log_gradient_norms: bool = False,
        untrained_baseline: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(evaluators)
        check_roles(objectives, weights)
        check_numbers(texts_per_pass, seed)
        self.encoder = VisionLanguageEncoder(image, text, readouts, heads, image_lora)
        made = {role: make(self.encoder.dims) for role, make in objectives.items() if make is not None}
        self.objectives = nn.ModuleDict(made)
        self._roles: dict[str, Objective] = made
        self._off = sorted(set(objectives) - set(made))
        self._frozen = frozen_parts(self, freeze)
        if image_lora is not None and not any(item.requires_grad for item in image.parameters()):
            raise ConfigError("model.freeze names all adapters of model.image_lora. Remove one of the two.")
        self._compiled = tuple(compile_blocks)
        self.weights = weights
        self.recipe = optimizer or AdamWCosine()
        self.recolour, self.texts_per_pass = recolour, texts_per_pass
        self.initial_weights, self.untrained_baseline, self.seed = initial_weights, untrained_baseline, seed
        self.log_gradient_norms = log_gradient_norms
        self.numbers: dict[str, float] = {}
        self._fixed = FixedTexts({}, self.tokenizer)
        self._meter = PackedMeter()
        self._untrained: tuple[VisionLanguageEncoder, ...] = ()  # no module of its own: it is in no checkpoint

    def train(self, mode: bool = True) -> "Pretrain":
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def setup(self, stage: str) -> None:
        """Load initial weights, make copied heads, tokenise fixed texts.

        Raises:
            ConfigError: If the data have another voxel size than the image encoder is made for.
        """
        data = getattr(self.trainer, "datamodule", None)
        check_spacing(getattr(data, "spacing_mm", None), self.encoder.image)
        if stage == "test":
            self.evaluation = Evaluation(self._held_out.evaluators(self._evaluators, data))
        trained = self._roles if stage == "fit" else {}
        readers: dict[str, object] = {f"model.objectives.{role}": item for role, item in trained.items()}
        readers |= {f"model.evaluators.{role}": item for role, item in self.evaluation.evaluators.items()}
        columns = getattr(data, "label_names", None)
        check_labels(columns, readers)
        self.evaluation.use_label_names(columns or ())
        # Filling every new tensor is a debugging aid that takes a tenth of a deterministic step on a CPU.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if stage == "fit":
            check_callbacks(getattr(self.trainer, "callbacks", ()))
            if self.initial_weights:
                count = load_initial(self, Path(self.initial_weights))
                self._say(f"Started from {count} tensors of {self.initial_weights}.")
            self.encoder.heads.copy_declared()
            self._count_labels()
            self._fixed = FixedTexts({role: item.fixed_texts() for role, item in self._roles.items()}, self.tokenizer)
            for tower in self._compiled:
                names = compile_tower(getattr(self.encoder, tower), self.trainer.strategy.root_device)
                self._say(f"Compiling {len(names)} blocks of the {tower} tower in the first steps.")
        if stage == "test" and self.untrained_baseline:
            self._keep_untrained()
        if stage in ("validate", "test"):
            self._leaks = self._held_out.leaks(data, "val" if stage == "validate" else "test")
            self._held_out.check(data, self._leaks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out, and say so, what a checkpoint holds of objectives that are switched off here.

        Evaluation has no use for it. A fit goes on without; where such an objective has parameters, its optimizer has
        other groups then, and is refused.

        Raises:
            CheckpointError: If the other weights do not fit this model.
        """
        left_out = leave_out_objectives(checkpoint["state_dict"], self._off)
        for role, count in left_out.items():
            self._say(f"model.objectives.{role} is null: {count} tensors of it in the checkpoint are left out.")
        super().on_load_checkpoint(checkpoint)

    def on_fit_start(self) -> None:
        """Refuse what would train silently wrong weights, and say what will be trained."""
        check_trainer(self.trainer)
        device, precision = self.trainer.strategy.root_device, str(self.trainer.precision)
        if (advice := check_convolutions(self.encoder.image, precision, device)) and self.trainer.is_global_zero:
            log.warning(advice)
        data = getattr(self.trainer, "datamodule", None)
        self._has_learned = True
        check_frozen(self.encoder, data, self.recolour)
        use_stored(self.encoder, data)
        active = ", ".join(f"{role} x {self.weights[role]}" for role in self._roles)
        if self.trainer.is_global_zero:
            parts = {**dict(self.encoder.named_children()), "objectives": self.objectives}
            log.info("Objectives: %s.\n%s", active, parameter_table(parts))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One optimizer step's loss; its gradient is that of the whole batch over all ranks."""
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad(set_to_none=True)
        step = self.global_step
        key = (self.seed, step, distributed.rank())
        draw = randomness.generator(self.seed, step)  # every rank plans alike
        plans = {role: item.plan(batch, draw) for role, item in self._roles.items()}
        texts = self._fixed.step(batch, plans, self.tokenizer.pad_id)
        work = StepWork(self.encoder, batch, texts, key, self.recolour, self.texts_per_pass)
        weights = {role: weight_at(self.weights[role], step) for role in self._roles}
        seen: list[tuple[list[str], Balanced]] = []
        probe = self._probe() if self.log_gradient_norms and self._logs_now else None

        def loss_of(outputs: list[Outputs]) -> Tensor:
            encoded = work.encoded(outputs)
            terms: dict[str, dict[str, Term]] = {
                role: item(work.for_role(encoded, role), batch) for role, item in self._roles.items()
            }
            if probe is not None:
                probe.look(terms, weights, outputs)
            balanced = balance(terms, weights)
            seen.append((term_names(terms), balanced))
            return balanced.loss

        loss = step_loss(work.segments, loss_of, self.parameters(), replay=work.is_split, is_frozen=work.is_frozen)
        norms = {} if probe is None else probe.norms(work.segments)
        self._record(*seen[0], weights, batch, len(texts.tokens), norms)
        return loss

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Do nothing: gradients are zeroed at the start of the step, before replays add theirs."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer by its recipe; the schedule advances by step.

        Raises:
            ConfigError: If nothing says how many steps the fit has.
        """
        total = self.trainer.estimated_stepping_batches
        if math.isinf(total):
            raise ConfigError(
                "The learning rate follows the share of steps done, and trainer.max_epochs -1 says no number of them. "
                "Set trainer.max_epochs or max_steps; max_time may still end the fit before."
            )
        trained = {name for name, parameter in self.encoder.named_parameters() if parameter.requires_grad}
        towers = self.encoder.layers_above().items()
        above = {tower: {name: count for name, count in names.items() if name in trained} for tower, names in towers}
        self.recipe.use_layers({tower: with_prefix("encoder", names) for tower, names in above.items()})
        optimizer, scheduler = self.recipe.build(self.named_parameters(), int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _record(
        self,
        names: list[str],
        balanced: Balanced,
        weights: Mapping[str, float],
        batch: Batch,
        texts_encoded: int,
        norms: Mapping[str, float],
    ) -> None:
        """Log means over all ranks and over the steps since the last time; the loss is made of these means."""
        self._meter.add([f"train/{name}" for name in names], balanced.totals, balanced.weights)
        if not self._logs_now:
            return
        values = self._meter.reduce()
        terms = ((weights[name.split("/")[0]], f"train/{name}") for name in names)
        loss = sum(weight * values[key] for weight, key in terms if key not in self._meter.empty)
        counts = {"train/texts_encoded": float(texts_encoded), "train/scans": float(len(batch["scan_id"]))}
        self.numbers = {
            **values,
            **counts,
            **{f"train/{name}": norm for name, norm in norms.items()},
            "train/loss": loss,
        }
        send(self, self.numbers)
        self.log("train/loss", loss, prog_bar=True, logger=False, sync_dist=False, batch_size=1)

    @property
    def _logs_now(self) -> bool:
        every = int(getattr(self.trainer, "log_every_n_steps", 50))  # 0 is never, as Lightning has it
        return every > 0 and (self.trainer.global_step + 1) % every == 0

    def _probe(self) -> GradientProbe:
        towers = {"image": self.encoder.image, "text": self.encoder.text}
        return GradientProbe({name: list(tower.parameters()) for name, tower in towers.items()})

    def _count_labels(self) -> None:
        """Give objectives the label counts of the training data, where the data module knows them."""
        counts = getattr(getattr(self.trainer, "datamodule", None), "label_counts", None)
        asking = [objective for objective in self._roles.values() if "labels" in objective.requires]
        if counts is not None and asking:
            table = counts()
            for objective in asking:
                objective.set_label_counts(table)

    def _keep_untrained(self) -> None:
        """Have the evaluators compare with the model as a fit begins with it, where that can still be made."""
        file = Path(self.initial_weights) if self.initial_weights else None
        if not self._untrained and (self._has_learned or (file is not None and not file.is_file())):
            why = "it was trained or loaded before" if self._has_learned else f"{file} does not exist"
            rank_zero_warn(f"There is no baseline of the untrained model: {why}.")
            return
        if not self._untrained:
            self._untrained = (as_begun(self.encoder, self.objectives, file),)
        self.evaluation.keep_untrained(*self._untrained)

    @rank_zero_only
    def _say(self, message: str) -> None:
        log.info(message)
