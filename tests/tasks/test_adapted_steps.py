"""Steps of a model that is trained in part are as exact as those of one that is trained whole."""

import copy

import adapted_work
import exact_work as work
import pytest
import tiny_run
import torch

from ctgrounding.encoders.compiling import compile_blocks
from ctgrounding.testing.ranks import RankPool, simulate_ranks

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    tiny_run.write_run(folder, scans=30)
    return folder


@pytest.fixture(scope="module")
def task(folder):
    return adapted_work.make_task(folder)


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 1), (1, 2), (2, 2), (4, 1)])
def test_gradients_of_split_steps(folder, task, world, micro_batches):
    samples = work.make_samples(folder, task.tokenizer, "organ maps of the first rank")[0]

    def rank_step(rank):
        own = copy.deepcopy(task)
        return work.task_step(own, work.make_batch(samples, own.tokenizer, work.PARTS[world], rank, micro_batches))

    whole = copy.deepcopy(task)
    value, wanted = work.plain_step(whole, work.make_batch(samples, task.tokenizer, (work.SCANS,)))
    found_value, found = simulate_ranks(world, rank_step, timeout_s=120.0)[0] if world > 1 else rank_step(0)
    assert found_value == pytest.approx(value, rel=1e-10)
    assert work.worst(found, wanted) < 1e-10
    reached = {name for name, gradient in wanted.items() if gradient.any()}
    assert all("lora_B" in name for name in reached if name.startswith("encoder.image"))
    assert any("lora_B" in name for name in reached)
    assert not any("text.tower.transformer" in name or "log_scale" in name for name in reached)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_follow_one(folder):
    """With DDP as it is: no find_unused_parameters, whatever is frozen and where a rank has no scan."""
    wanted, gradient = adapted_work.fit(folder, "nothing", "64-true", 3)
    losses = [step["train/loss"] for step in wanted]
    with RankPool(2) as pool:
        for parts in (None, (6, 0)):
            for logged, found in pool.run(adapted_work.fit, folder, "nothing", "64-true", 3, parts, timeout_s=300.0):
                assert [step["train/loss"] for step in logged] == pytest.approx(losses, rel=1e-10)
                assert work.worst(found, gradient) < 1e-7  # after steps of Adam


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
def test_split_steps_of_compiled_blocks(folder, tower):
    """Traced only: what is compiled here is replayed, with dropout, and gives the gradients of plain blocks."""
    task = work.make_task(folder)
    for block in task.encoder.image.context.blocks:
        block.mlp.append(torch.nn.Dropout(0.3))
    compiled = copy.deepcopy(task)
    compile_blocks(getattr(compiled.encoder, tower), torch.device("cpu"), backend="aot_eager")
    batch = work.make_batch(work.make_samples(folder, task.tokenizer)[0], task.tokenizer, (work.SCANS,), 0, 2)
    value, wanted = work.task_step(task, batch)
    found_value, found = work.task_step(compiled, batch)
    assert found_value == pytest.approx(value, rel=1e-10)
    assert work.worst(found, wanted) < 1e-10
