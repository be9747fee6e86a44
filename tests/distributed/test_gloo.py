"""The same as on simulated ranks, on real processes: one pool of two and one of four for the module."""

import gloo_work as work
import numpy as np
import pytest
import torch

from ctgrounding.testing.outcome import run_step, same_outcome, sum_ranks
from ctgrounding.testing.ranks import RankPool
from ctgrounding.testing.scans import tiny_scans

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def pool(request):
    with RankPool(request.param) as ranks:
        yield ranks


def counts_for(world):
    return [5, 0] if world == 2 else [3, 0, 1, 4]


def test_gather(pool):
    counts = counts_for(pool.world_size)
    parts = [torch.arange(n * 2, dtype=torch.float64).view(-1, 2) + 100 * rank for rank, n in enumerate(counts)]
    whole = torch.cat(parts)
    factor = sum(range(1, pool.world_size + 1))
    for rank, (rows, gradient, narrow, strings, total, flags) in enumerate(pool.run(work.gathers, counts)):
        assert torch.equal(rows, whole)
        torch.testing.assert_close(gradient, 2 * factor * parts[rank])
        assert torch.equal(narrow, whole.bfloat16())
        assert strings == [f"{other}-ä-{number}" for other, n in enumerate(counts) for number in range(n)]
        assert total == [sum(range(pool.world_size)), pool.world_size]
        assert flags == [True] * sum(counts)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_sigmoid_contrast(pool, dtype, limit, scale):
    counts = [count * 60 for count in counts_for(pool.world_size)]
    image, text = (leaf.requires_grad_() for leaf in work.everyone(sum(counts), torch.float64))
    factors = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (scale, -10.0)]
    logits = factors[0] * image @ text.T + factors[1]
    own = torch.eye(sum(counts), dtype=torch.bool)
    total = torch.nn.functional.softplus(torch.where(own, -logits, logits), threshold=60).sum()
    total.backward()

    answers = pool.run(work.contrast, counts, dtype, scale)
    found = [
        sum(answer for answer, _ in answers),
        torch.cat([gradients[0] for _, gradients in answers]),
        torch.cat([gradients[1] for _, gradients in answers]),
        sum(gradients[2] for _, gradients in answers),
        sum(gradients[3] for _, gradients in answers),
    ]
    for ours, reference in zip(found, [total.detach(), image.grad, text.grad, *(f.grad for f in factors)], strict=True):
        assert float((ours.double() - reference).norm() / reference.norm()) < limit


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "prompts", "depth", "organs"])
def test_objectives_equal_one_process(pool, name):
    questions, scans = work.questions_file(), tiny_scans(7)
    bounds = [5] if pool.world_size == 2 else [3, 3, 4]
    split = [scans[low:high] for low, high in zip([0, *bounds], [*bounds, 7], strict=True)]
    together = sum_ranks(pool.run(work.step, name, questions, split))
    alone = run_step(work.objectives(questions)[name], [scans])
    same_outcome("ranks", together, alone, "Processes must give what one gives")


@pytest.mark.slow
def test_two_hundred_steps_with_parts_absent_at_random(pool):
    """No step hangs (the group's own limit would end it), and every sum and gradient is that of one process."""
    questions, steps = work.questions_file(), 40  # of each of the five objectives
    found = pool.run(work.steps_with_absences, questions, steps, timeout_s=300.0)
    made = work.objectives(questions)
    for number in range(steps):
        scans = [scan for part in work.absences(number, pool.world_size) for scan in part]
        for place, objective in enumerate(made.values()):
            alone = work.summary(run_step(objective, [scans], step=number))
            together = sum(answers[number * len(made) + place] for answers in found)
            assert np.linalg.norm(together - alone) <= 1e-9 * max(np.linalg.norm(alone), 1e-3)
