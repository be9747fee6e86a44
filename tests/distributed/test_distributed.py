"""Gathers and sums: values and gradients on simulated ranks; the same on gloo processes in test_gloo."""

import pytest
import torch

from ctgrounding import distributed
from ctgrounding.errors import CTGroundingError
from ctgrounding.testing.ranks import ScheduleError, simulate_ranks

COUNTS = [(3,), (2, 5), (0, 4), (4, 0, 1, 3), (0, 0)]


def rows_of_ranks(counts, width=3):
    generator = torch.Generator().manual_seed(sum(counts) + len(counts))
    return [torch.randn(count, width, generator=generator, dtype=torch.float64) for count in counts]


@pytest.mark.parametrize("counts", COUNTS)
def test_gather_gives_every_rank_all_rows_and_returns_every_gradient(counts):
    parts = rows_of_ranks(counts)
    weights = torch.randn(len(counts), sum(counts), 3, dtype=torch.float64)

    def work(rank):
        leaf = parts[rank].clone().requires_grad_()
        gathered = distributed.gather(leaf)
        (gathered.square() * weights[rank]).sum().backward()
        return gathered.detach(), leaf.grad

    whole = torch.cat(parts).requires_grad_()
    sum((whole.square() * weight).sum() for weight in weights).backward()
    results = simulate_ranks(len(counts), work)
    for gathered, _ in results:
        assert torch.equal(gathered, whole.detach())
    torch.testing.assert_close(torch.cat([gradient for _, gradient in results]), whole.grad, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("counts", COUNTS)
def test_sum_with_gradient_is_the_gradient_of_all_ranks_losses(counts):
    parts = rows_of_ranks(counts)

    def work(rank):
        leaf = parts[rank].clone().requires_grad_()
        ((rank + 1) * distributed.sum_with_gradient(leaf.sum(0)).square().sum()).backward()
        return leaf.grad

    whole = torch.cat(parts).requires_grad_()
    (sum(range(1, len(counts) + 1)) * whole.sum(0).square().sum()).backward()
    torch.testing.assert_close(torch.cat(simulate_ranks(len(counts), work)), whole.grad)


def test_integers_booleans_and_strings_are_gathered_as_they_are():
    strings = [["Zyste", "größer ≥ 3 mm", ""], [], ["x"]]

    def work(rank):
        flags = torch.arange(rank) % 2 == 0
        return (
            distributed.gather(torch.arange(rank) + 10 * rank).tolist(),
            distributed.gather(flags).tolist(),
            distributed.gather_strings(strings[rank]),
        )

    for integers, flags, words in simulate_ranks(3, work):
        assert integers == [10, 20, 21]
        assert flags == [True, True, False]
        assert words == ["Zyste", "größer ≥ 3 mm", "", "x"]


def test_no_strings_anywhere():
    assert simulate_ranks(2, lambda rank: distributed.gather_strings([])) == [[], []]


def test_one_rank_needs_no_setup():
    rows = torch.ones(2, 3, requires_grad=True)
    assert not distributed.is_initialized()
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.gather(rows) is rows
    assert distributed.sum_with_gradient(rows) is rows
    assert not distributed.sum_over_ranks(rows).requires_grad
    assert distributed.counts(4) == (4,)
    assert distributed.gather_strings(["a"]) == ["a"]
    assert torch.equal(distributed.start_gather(rows).wait(), rows.detach()[None])


def test_second_derivative_is_refused():
    def work(rank):
        leaf = torch.ones(2, 2, requires_grad=True)
        loss = distributed.gather(leaf).sum()  # a plain sum: PyTorch's own check would not notice
        with pytest.raises(CTGroundingError, match="no second derivative"):
            torch.autograd.grad(loss, leaf, create_graph=True)

    simulate_ranks(2, work)


def test_the_sum_over_ranks_leaves_its_argument():
    def work(rank):
        mine = torch.full((2,), float(rank))
        total = distributed.sum_over_ranks(mine)
        return mine.tolist(), total.tolist()

    assert simulate_ranks(2, work) == [([0.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [1.0, 1.0])]


def test_row_ids_differ_between_ranks_and_dealt_rows_return_once():
    def work(rank):
        return distributed.row_ids(3), distributed.gather(distributed.deal(torch.arange(7)))

    results = simulate_ranks(3, work)
    assert torch.cat([ids for ids, _ in results]).unique().numel() == 9
    assert all(sorted(dealt.tolist()) == list(range(7)) for _, dealt in results)


def test_a_missing_or_different_collective_is_named_at_once():
    def missing(rank):
        return distributed.sum_over_ranks(torch.ones(1)) if rank == 0 else None

    def different(rank):
        return distributed.sum_over_ranks(torch.ones(1 + rank))

    for work in (missing, different):
        with pytest.raises(ScheduleError, match="rank 0: all_reduce of float32"):
            simulate_ranks(2, work)


def test_what_a_rank_raises_comes_out():
    def work(rank):
        if rank == 1:
            raise KeyError("text")
        distributed.sum_over_ranks(torch.ones(1))

    with pytest.raises(KeyError, match="text"):
        simulate_ranks(2, work)
