"""A step's value and gradients do not depend on ranks, micro-batches or what a rank lacks."""

import copy
import math
from types import SimpleNamespace

import exact_work as work
import pytest
import tiny_run
import torch

from ctgrounding import distributed
from ctgrounding.errors import ConfigError
from ctgrounding.tasks import accumulation, balance, encoding, randomness
from ctgrounding.testing.ranks import simulate_ranks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    tiny_run.write_run(folder, scans=30)
    return folder


@pytest.fixture(scope="module")
def task(folder):
    return work.make_task(folder)


@pytest.fixture(scope="module")
def steps_of(folder, task):
    made = {}

    def of(absent="nothing"):
        if absent not in made:
            made[absent] = work.make_samples(folder, task.tokenizer, absent)
        return made[absent]

    return of


def on_ranks(task, samples, world, micro_batches=1, parts=None):
    """Loss and gradients by the task on simulated ranks, from rank 0."""
    parts = parts or work.PARTS[world]

    def rank_step(rank):
        own = copy.deepcopy(task)
        return work.task_step(own, work.make_batch(samples, own.tokenizer, parts, rank, micro_batches))

    return simulate_ranks(world, rank_step, timeout_s=120.0)[0] if world > 1 else rank_step(0)


def whole(task, samples):
    own = copy.deepcopy(task)
    return work.plain_step(own, work.make_batch(samples, own.tokenizer, (work.SCANS,)))


@pytest.mark.parametrize("absent", list(work.ABSENT))
@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1), (4, 2)])
def test_float64(task, steps_of, absent, world, micro_batches):
    samples = steps_of(absent)[0]
    value, wanted = whole(task, samples)
    found_value, found = on_ranks(task, samples, world, micro_batches)
    assert found_value == pytest.approx(value, rel=1e-10)
    assert set(found) == set(wanted)
    assert work.worst(found, wanted) < 1e-10


def test_every_parameter_has_a_gradient_to_compare(task, steps_of):
    _, wanted = whole(task, steps_of()[0])
    still = {name for name, gradient in wanted.items() if not gradient.any()}
    assert {name.split(".")[1] for name in set(wanted) - still} == {"image", "text", "readouts", "heads"}
    assert all("position" in name or "logits" in name or "copied" in name for name in still), still


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 2), (2, 2)])
def test_logged_gradient_norms(task, steps_of, world, micro_batches):
    samples = steps_of()[0]

    def rank_step(rank):
        own = copy.deepcopy(task)
        own.log_gradient_norms = True
        own.log = lambda *args, **kwargs: None
        work.task_step(own, work.make_batch(samples, own.tokenizer, work.PARTS[world], rank, micro_batches), every=1)
        return work.gradients(own), {name: value for name, value in own.numbers.items() if "gradient_norm" in name}

    found, norms = simulate_ranks(world, rank_step, timeout_s=120.0)[0] if world > 1 else rank_step(0)
    _, wanted = whole(task, samples)
    assert work.worst(found, wanted) < 1e-10
    assert len(norms) == 2 * len(task._roles)
    for role in task._roles:
        alone = copy.deepcopy(task)
        alone.weights = {name: weight if name == role else 0.0 for name, weight in task.weights.items()}
        _, gradients = whole(alone, samples)
        for tower in ("image", "text"):
            parts = [value.flatten() for name, value in gradients.items() if name.startswith(f"encoder.{tower}.")]
            wanted_norm = float(torch.cat(parts).norm())
            assert norms[f"train/{role}/gradient_norm_{tower}"] == pytest.approx(wanted_norm, rel=1e-9, abs=1e-12)
            assert wanted_norm > 0


def test_logged_gradient_norms_where_a_rank_has_no_scan(task, steps_of):
    samples = steps_of()[0]

    def norms(parts, rank):
        own = copy.deepcopy(task)
        own.log_gradient_norms = True
        own.log = lambda *args, **kwargs: None
        work.task_step(own, work.make_batch(samples, own.tokenizer, parts, rank), every=1)
        return {name: value for name, value in own.numbers.items() if "gradient_norm" in name}

    alone = norms((6,), 0)
    for found in simulate_ranks(2, lambda rank: norms((6, 0), rank), timeout_s=60.0):
        assert found == pytest.approx(alone, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("parts", [(6, 0), (0, 6), (1, 5)])
def test_uneven_and_empty_ranks(task, steps_of, parts):
    samples = steps_of()[1]
    _, wanted = whole(task, samples)
    assert work.worst(on_ranks(task, samples, 2, 2, parts)[1], wanted) < 1e-10


def test_scale_100(folder, steps_of):
    sharp = work.make_task(folder, scale=100.0)
    samples = steps_of()[0]
    _, wanted = whole(sharp, samples)
    assert work.worst(on_ranks(sharp, samples, 2, 2)[1], wanted) < 1e-10


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (2, 2), (4, 1)])
def test_float32__as_good_as_plain_float32(folder, task, steps_of, world, micro_batches):
    samples = steps_of()[0]
    _, exact = whole(task, samples)
    single = work.make_task(folder, torch.float32)
    plain = work.total_error(whole(single, samples)[1], exact)
    found = work.total_error(on_ranks(single, samples, world, micro_batches)[1], exact)
    assert found <= max(2 * plain, 1e-6)
    assert found < 1e-5


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 4), (2, 2)])
def test_three_steps_of_adamw_with_clipping(task, steps_of, world, micro_batches):
    steps = steps_of()
    tokenizer = task.tokenizer

    def plain(step):
        return work.make_batch(steps[step % len(steps)], tokenizer, (work.SCANS,))

    wanted = work.three_steps(copy.deepcopy(task), plain, work.plain_step)

    def rank_steps(rank):
        def make(step):
            return work.make_batch(steps[step % len(steps)], tokenizer, work.PARTS[world], rank, micro_batches)

        return work.three_steps(copy.deepcopy(task), make, work.task_step)

    found = simulate_ranks(world, rank_steps, timeout_s=120.0)[0] if world > 1 else rank_steps(0)
    assert work.worst(found, wanted) < 1e-9  # Adam divides by the root of its own rounding
    moved = work.worst({name: value.detach() for name, value in task.named_parameters()}, wanted)
    assert moved > 1e-4


class TestWhatWouldBreakIt:
    """Each of the comparisons above fails when the thing it guards is taken away."""

    @pytest.fixture
    def error(self, task, steps_of):
        """How far ranks are from one process, whose part is done before anything is taken away."""
        samples = steps_of()[0]
        _, wanted = whole(task, samples)
        return lambda: work.worst(on_ranks(task, samples, 2, 2)[1], wanted)

    def test_gather_without_gradient(self, error, monkeypatch):
        monkeypatch.setattr(distributed, "reduce_blocks", lambda blocks, rows: torch.zeros_like(blocks[0, :rows]))
        assert error() > 1e-3

    def test_gather_with_its_own_ranks_gradient_only(self, error, monkeypatch):
        monkeypatch.setattr(distributed, "reduce_blocks", lambda blocks, rows: blocks[distributed.rank(), :rows])
        assert error() > 1e-3

    def test_weights_of_this_rank_only(self, error, monkeypatch):
        local = SimpleNamespace(world_size=lambda: 1, sum_over_ranks=lambda tensor: tensor)
        monkeypatch.setattr(balance, "distributed", local)
        assert error() > 1e-3

    def test_mean_over_micro_batches(self, task, steps_of):
        """What accumulation of micro-batch losses would give."""
        samples = steps_of()[0]
        halves = [whole(task, samples[:3])[1], whole(task, samples[3:])[1]]
        mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
        assert work.worst(mean, whole(task, samples)[1]) > 1e-3

    def test_replay_with_other_dropout(self, task, steps_of, monkeypatch):
        own = work.with_dropout(copy.deepcopy(task))
        batch = work.make_batch(steps_of()[0], own.tokenizer, (work.SCANS,), micro_batches=3)
        _, replayed = work.task_step(own, batch)
        with monkeypatch.context() as patch:
            patch.setattr(encoding.StepWork, "is_split", False)
            _, kept = work.task_step(own, batch)
        assert work.worst(replayed, kept) < 1e-10
        draws = iter(range(10**6))
        set_seed = randomness.set_seed
        monkeypatch.setattr(randomness, "set_seed", lambda *key: set_seed(*key, next(draws)))
        assert work.worst(work.task_step(own, batch)[1], kept) > 1e-3

    @pytest.mark.parametrize("left_out", [None, "heads"])
    def test_parameters_that_the_last_backward_reaches(self, task, steps_of, monkeypatch, left_out):
        """DDP waits for each parameter in the one backward that it sees."""
        own = copy.deepcopy(task)
        if left_out is not None:
            zero_of = accumulation.zero_of
            kept = [parameter for name, parameter in own.named_parameters() if left_out not in name]
            monkeypatch.setattr(accumulation, "zero_of", lambda parameters: zero_of(kept))
        batch = work.make_batch(steps_of()[0], own.tokenizer, (work.SCANS,), micro_batches=2)
        own.trainer = SimpleNamespace(
            optimizers=[], loggers=[], current_epoch=0, global_step=0, log_every_n_steps=10**9
        )
        loss = own.training_step(batch, 0)
        own.zero_grad(set_to_none=True)
        loss.backward()
        missed = [name for name, parameter in own.named_parameters() if parameter.grad is None]
        assert bool(missed) == (left_out is not None)

    @pytest.mark.parametrize(
        ("trainer", "says"),
        [
            (SimpleNamespace(strategy=SimpleNamespace(_ddp_kwargs={"static_graph": True})), "static_graph"),
            (SimpleNamespace(precision_plugin=SimpleNamespace(scaler=object())), "16-mixed"),
            (SimpleNamespace(precision="bf16-true"), "bf16-true keeps weights and HU in few bits"),
            (SimpleNamespace(accumulate_grad_batches=2), "micro_batch_size"),
        ],
    )
    def test_refused_trainers(self, task, trainer, says):
        harmless = {"precision": "32-true", "precision_plugin": None, "accumulate_grad_batches": 1}
        own = copy.deepcopy(task)
        own.trainer = SimpleNamespace(**{"strategy": None, "is_global_zero": True, **harmless, **vars(trainer)})
        with pytest.raises(ConfigError, match=says):
            own.on_fit_start()


def test_terms_are_finite_on_a_batch_without_anything(task, steps_of):
    """No scan anywhere: every loss is zero, and still attached to every parameter."""
    own = copy.deepcopy(task)
    value, found = work.task_step(own, work.make_batch([], own.tokenizer, (0,)))
    assert value == 0.0
    assert all(math.isfinite(float(gradient.sum())) and not gradient.any() for gradient in found.values())
    assert steps_of()
