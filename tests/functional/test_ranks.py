"""Ranks by counting against explicit score matrices."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.errors import BatchError
from ctgrounding.functional import ranks as module
from ctgrounding.functional.ranks import Ranks, retrieval_ranks, top_candidates


def integers(rows: int, width: int, seed: int) -> torch.Tensor:
    """Small integers, so that products are exact and ties are many."""
    return torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, size=(rows, width)).astype(np.float32))


def by_loop(queries, candidates, query_group, candidate_group):
    scores = queries.double().numpy() @ candidates.double().numpy().T
    above, tied = [], []
    for row, group in zip(scores, query_group.tolist(), strict=True):
        own = candidate_group.numpy() == group
        best = row[own].max()
        above.append(int((row[~own] > best).sum()))
        tied.append(int((row[~own] == best).sum()))
    return above, tied


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 8), st.integers(0, 10_000), st.booleans())
def test_counts_equal_a_loop_over_the_score_matrix(queries, candidates, groups, seed, small_tiles):
    rng = np.random.default_rng(seed)
    groups = min(groups, candidates)
    candidate_group = torch.from_numpy(rng.permutation(np.arange(candidates) % groups) * 7 - 3)
    query_group = candidate_group[torch.from_numpy(rng.integers(0, candidates, queries))]
    q, c = integers(queries, 5, seed), integers(candidates, 5, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        if small_tiles:
            patch.setattr(module, "QUERY_TILE", 16)
            patch.setattr(module, "CANDIDATE_TILE", 16)
        found = retrieval_ranks(q, c, query_group, candidate_group)
    above, tied = by_loop(q, c, query_group, candidate_group)
    assert found.above.tolist() == above
    assert found.tied.tolist() == tied


def test_a_duplicated_candidate_ties_wherever_it_stands(monkeypatch):
    monkeypatch.setattr(module, "CANDIDATE_TILE", 48)
    torch.manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(37, 96), dim=1)
    c = torch.nn.functional.normalize(torch.randn(37, 96), dim=1)
    copies = torch.cat([c, c, c])
    found = retrieval_ranks(q, copies, torch.arange(37), torch.arange(111))
    assert found.tied.tolist() == [2] * 37
    alone = retrieval_ranks(q, c, torch.arange(37), torch.arange(37))
    assert (found.above == 3 * alone.above).all()


def test_order_of_the_candidates_does_not_matter():
    torch.manual_seed(0)
    q, c = torch.randn(50, 32), torch.randn(80, 32)
    group = torch.arange(80)
    shuffled = torch.randperm(80)
    straight = retrieval_ranks(q, c, group[:50], group)
    permuted = retrieval_ranks(q, c[shuffled], group[:50], group[shuffled])
    assert torch.equal(straight.above, permuted.above)


def test_hits_are_the_share_of_orders_in_which_the_own_candidate_is_early():
    # One rival above, own candidate level with two others: own place is 2, 3 or 4 with equal chance.
    found = Ranks(torch.tensor([1]), torch.tensor([2]))
    assert [found.hits(k).item() for k in (1, 2, 3, 4, 5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert found.by("expected").item() == 3.0


def test_constant_embeddings_give_chance_and_not_rank_one():
    found = retrieval_ranks(torch.ones(20, 4), torch.ones(20, 4), torch.arange(20), torch.arange(20))
    assert found.by("min").tolist() == [1.0] * 20
    assert found.by("expected").tolist() == [10.5] * 20
    assert found.hits(1).tolist() == pytest.approx([0.05] * 20)


def test_no_queries():
    found = retrieval_ranks(torch.ones(0, 4), torch.ones(3, 4), torch.zeros(0, dtype=torch.int64), torch.arange(3))
    assert found.above.shape == (0,)


def test_own_candidate_missing():
    with pytest.raises(BatchError, match="group 9"):
        retrieval_ranks(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([9]), torch.arange(2))


def test_a_nan_embedding_is_refused_as_it_would_pass_for_rank_one():
    broken = torch.ones(3, 2)
    broken[1, 0] = float("nan")
    with pytest.raises(BatchError, match="candidate 1 is not finite"):
        retrieval_ranks(torch.ones(3, 2), broken, torch.arange(3), torch.arange(3))


def test_unknown_tie_rule():
    with pytest.raises(BatchError, match="'best'"):
        Ranks(torch.zeros(1), torch.zeros(1)).by("best")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 60), st.integers(1, 12), st.integers(0, 10_000))
def test_top_candidates_equal_a_full_stable_sort(queries, candidates, k, seed):
    q, c = integers(queries, 4, seed), integers(candidates, 4, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATE_TILE", 16)
        patch.setattr(module, "QUERY_TILE", 16)
        values, indices = top_candidates(q, c, k)
    expected_values, expected = (q @ c.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, expected_values[:, :k])
    assert torch.equal(indices, expected[:, :k])


def test_top_of_no_candidates():
    values, indices = top_candidates(torch.ones(2, 3), torch.ones(0, 3), 5)
    assert values.shape == indices.shape == (2, 0)
