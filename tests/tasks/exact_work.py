"""One training step by the task, and by plain autograd on the whole batch; importable by other processes."""

import math
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import tiny_run
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from ctgrounding import distributed
from ctgrounding.data.collate import Collate
from ctgrounding.data.datamodule import ShardDataModule
from ctgrounding.errors import ConfigError
from ctgrounding.tasks import randomness
from ctgrounding.tasks.encoding import StepWork
from ctgrounding.tasks.pretrain import Pretrain
from ctgrounding.tasks.texts import FixedTexts

SCANS = 6
"""Scans of a global batch."""

PARTS = {1: (6,), 2: (4, 2), 4: (3, 0, 2, 1)}
"""How many of them each rank has, by number of ranks."""

ABSENT = {
    "nothing": frozenset(),
    "organ maps of the first rank": frozenset({"organs", "organ_voxels"}),
    "snippets of the first rank": frozenset({"snippets"}),
    "sentences of the first rank": frozenset({"organ_sentences"}),
}


def make_task(folder, dtype=torch.float64, scale=10.0):
    """The tiny run's task, the same weights every time."""
    content = tiny_run.config(Path(folder))["model"]
    content["heads"]["logit"]["main"]["scale"] = scale
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Pretrain, "model")
    parsed = parser.parse_object({"model": content})
    torch.manual_seed(0)
    task = parser.instantiate(parsed).model
    task._fixed = FixedTexts({role: item.fixed_texts() for role, item in task._roles.items()}, task.tokenizer)
    return task.to(dtype).train()


def make_samples(folder, tokenizer, absent="nothing"):
    """Global batches of samples; the first four scans of each lack what ``absent`` names."""
    data = ShardDataModule(str(Path(folder) / "shards"), batch_size=SCANS, label_names=list(tiny_run.LABELS))
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(tokenizer=tokenizer), current_epoch=0, global_rank=0, world_size=1
    )
    data.setup("fit")
    loader = data.train_dataloader()
    loader._collate = lambda micro_batches: micro_batches[0]
    steps = [list(samples) for samples in loader]
    for samples in steps:
        for number in range(PARTS[2][0]):
            kept = {key: value for key, value in samples[number].items() if key not in ABSENT[absent]}
            empty = {key: [] for key in ABSENT[absent] & {"snippets", "organ_sentences"}}
            samples[number] = {**kept, **empty}
    return steps


def make_batch(samples, tokenizer, parts, rank=0, micro_batches=1):
    """One rank's part of a global batch, in so many micro-batches; some may be empty."""
    first = sum(parts[:rank])
    mine = samples[first : first + parts[rank]]
    size = -(-max(parts) // micro_batches)
    collate = Collate(tokenizer.pad_id, (8, 16, 16), True, len(tiny_run.LABELS))
    return collate([mine[k * size : (k + 1) * size] for k in range(micro_batches)])


def plain_step(task, batch, step=0):
    """Loss and gradients by one graph over everything, without the task's own division, replay or collectives."""
    task.zero_grad(set_to_none=True)
    draw = randomness.generator(task.seed, step)
    plans = {role: item.plan(batch, draw) for role, item in task._roles.items()}
    work = StepWork(task.encoder, batch, task._fixed.step(batch, plans, task.tokenizer.pad_id))
    encoded = work.encoded([segment() for segment in work.segments])
    loss = 0.0
    for role, objective in task._roles.items():
        for term in objective(work.for_role(encoded, role), batch).values():
            if term.weight > 0:
                loss = loss + task.weights[role] * term.total / term.weight
    loss.backward()
    return loss.item(), gradients(task)


def stub_trainer(step, every=10**9):
    """As much of a trainer as a step asks for."""
    return SimpleNamespace(optimizers=[], loggers=[], current_epoch=0, global_step=step, log_every_n_steps=every)


def task_step(task, batch, step=0, every=10**9):
    """What the task gives on this rank, averaged over ranks as DDP does."""
    task.zero_grad(set_to_none=True)
    task.trainer = SimpleNamespace(
        optimizers=[], loggers=[], current_epoch=0, global_step=step, log_every_n_steps=every
    )
    loss = task.training_step(batch, 0)
    loss.backward()
    world = distributed.world_size()
    for parameter in filter(lambda item: item.requires_grad, task.parameters()):
        parameter.grad = distributed.sum_over_ranks(parameter.grad) / world
    return distributed.sum_over_ranks(loss.detach()).item() / world, gradients(task)


def gradients(task):
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in task.named_parameters()
    }


def three_steps(task, make, step_of):
    """Parameters after three steps of AdamW with clipping."""
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(3):
        step_of(task, make(step), step)
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in task.named_parameters()}


def worst(found, wanted):
    """Largest norm-wise difference of a tensor. One that is zero but for rounding is held against the whole."""
    whole = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in wanted.values()))
    errors = []
    for name, tensor in wanted.items():
        difference, norm = float((found[name].double() - tensor.double()).norm()), float(tensor.double().norm())
        errors.append(difference / (norm if norm > 1e-9 * whole else whole))
    return max(errors)


def total_error(found, wanted):
    """Norm of all differences over the norm of everything."""
    squares = [
        (float((found[name].double() - tensor.double()).square().sum()), float(tensor.double().square().sum()))
        for name, tensor in wanted.items()
    ]
    return math.sqrt(sum(first for first, _ in squares) / sum(second for _, second in squares))


class PoolRanks(ClusterEnvironment):
    """Processes that are ranks already."""

    creates_processes_externally = True
    main_address, main_port = "127.0.0.1", 0

    @staticmethod
    def detect():
        return True

    def world_size(self):
        return distributed.world_size()

    def global_rank(self):
        return distributed.rank()

    def local_rank(self):
        return distributed.rank()

    def node_rank(self):
        return 0

    def set_world_size(self, size):
        pass

    def set_global_rank(self, rank):
        pass


class Losses(Callback):
    """Every step's logged numbers, and the gradient as the optimizer gets it."""

    def __init__(self):
        self.logged, self.gradient = [], {}

    def on_before_optimizer_step(self, trainer, task, optimizer):
        self.gradient = gradients(task)

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        assert trainer.callback_metrics["train/loss"].item() == pytest.approx(task.numbers["train/loss"], rel=1e-6)
        self.logged.append({name: task.numbers[name] for name in tiny_run.LOG_NAMES})


class Batches:
    """A loader of batches at hand; Lightning takes a list for several loaders."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def fit(folder, absent, precision, steps, parts=None, *, bucket_views=True, static_graph=False):
    """A fit by the trainer, on the ranks of a pool or in one process: logged numbers and the last gradient."""
    world = distributed.world_size()
    parts = parts or PARTS[world]
    task = make_task(folder, torch.float32)
    samples = make_samples(folder, task.tokenizer, absent)
    batches = [
        make_batch(samples[step % len(samples)], task.tokenizer, parts, distributed.rank(), micro_batches=2)
        for step in range(steps)
    ]
    ddp = DDPStrategy(
        cluster_environment=PoolRanks(),
        find_unused_parameters=False,
        gradient_as_bucket_view=bucket_views,
        static_graph=static_graph,
    )
    seen = Losses()
    trainer = Trainer(
        accelerator="cpu", devices=world, strategy=ddp if world > 1 else "auto", precision=precision,
        max_steps=steps, max_epochs=1, gradient_clip_val=1.0, log_every_n_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[seen], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(task, train_dataloaders=Batches(batches))
    return seen.logged, seen.gradient


def with_dropout(task, probability=0.3):
    """The same task with dropout behind its patch embedding."""
    task.encoder.image.embed.append(torch.nn.Dropout(probability))
    return task


def fit_with(folder, absent, precision, steps, settings):
    """:func:`fit` with keyword arguments."""
    return fit(folder, absent, precision, steps, **settings)


def unchecked(folder, steps):
    """A fit with static_graph, past the check that refuses it."""
    with patch("ctgrounding.tasks.pretrain.check_trainer"):
        return fit(folder, "nothing", "64-true", steps, static_graph=True)


def refusal(folder):
    """What a fit with static_graph is told."""
    try:
        fit(folder, "nothing", "64-true", 1, static_graph=True)
    except ConfigError as error:
        return str(error)
    return ""
