"""Batch standardisation on several ranks equals one process on all rows."""

import pytest
import torch

from ctgrounding.encoders.heads import HeadConfig, Heads, HeadsConfig, ImageHeadConfig
from ctgrounding.testing.ranks import simulate_ranks


def make_heads(dtype: torch.dtype) -> Heads:
    torch.manual_seed(3)
    head = ImageHeadConfig(kind="mlp", width=6, hidden=10, standardize=True)
    return Heads(HeadsConfig(image={"main": head}, text={"main": HeadConfig(width=6)}), {"global": 5}, text=4).to(dtype)


def gradients_and_state(heads: Heads, rows: torch.Tensor, weights: torch.Tensor, total_rows: int):
    rows = rows.clone().requires_grad_()
    for _ in range(2):  # the second call uses the first one's mean as its shift
        embedded = heads.image("main", rows)
    loss = (embedded * weights).sin().sum() / total_rows
    loss.backward()
    parameters = [parameter.grad for parameter in heads.image_heads.parameters()]
    return rows.grad, parameters, dict(heads.named_buffers())


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))


def on_ranks(rows, weights, counts):
    parts = list(zip(rows.split(counts), weights.split(counts), strict=True))
    heads = [make_heads(rows.dtype) for _ in counts]  # not on the ranks: they are threads with one random generator
    results = simulate_ranks(len(counts), lambda rank: gradients_and_state(heads[rank], *parts[rank], 8))
    parameters = [sum(found) for found in zip(*(result[1] for result in results), strict=True)]
    return torch.cat([result[0] for result in results]), parameters, [result[2] for result in results]


@pytest.mark.parametrize("counts", [(5, 0, 3), (4, 4), (1, 7), (0, 8)])
def test_uneven_ranks_give_one_process_gradient(counts):
    torch.manual_seed(0)
    rows, weights = torch.randn(8, 5, dtype=torch.float64) * 3 + 20, torch.randn(8, 6, dtype=torch.float64)
    exact_rows, exact_parameters, exact_state = gradients_and_state(make_heads(rows.dtype), rows, weights, 8)
    found_rows, found_parameters, states = on_ranks(rows, weights, counts)
    assert error(found_rows, exact_rows) <= 1e-10
    for found, exact in zip(found_parameters, exact_parameters, strict=True):
        assert error(found, exact) <= 1e-10
    for name, exact in exact_state.items():
        for state in states:
            torch.testing.assert_close(state[name], exact, rtol=1e-10, atol=1e-10)
    single_rows, single_parameters, _ = gradients_and_state(make_heads(torch.float32), rows.float(), weights.float(), 8)
    narrow_rows, narrow_parameters, _ = on_ranks(rows.float(), weights.float(), counts)
    assert error(narrow_rows, exact_rows) <= max(2 * error(single_rows, exact_rows), 1e-6)
    for found, single, exact in zip(narrow_parameters, single_parameters, exact_parameters, strict=True):
        assert error(found, exact) <= max(2 * error(single, exact), 1e-6)
