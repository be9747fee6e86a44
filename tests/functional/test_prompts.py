"""Draws and answers of sentence pairs."""

import numpy as np
import torch
from sklearn.metrics import log_loss

from ctgrounding.functional.prompts import answer_loss, draw_variants, positive_weights, text_keys


def test_keys_ignore_case_and_spaces_only():
    keys = text_keys(["A cyst.", " a  CYST. ", "a cyst", "größe"])
    assert keys[0] == keys[1]
    assert keys.unique().numel() == 3
    assert (keys >= 0).all()
    assert text_keys([]).shape == (0,)
    assert text_keys(["liver"]).tolist() == text_keys(["liver"]).tolist()


def test_draws_are_uniform_and_belong_to_scan_and_step():
    scans = text_keys(f"scan {number}" for number in range(3000))
    draws = draw_variants(5, scans, 7, 3)
    shares = torch.stack([(draws == variant).float().mean(0) for variant in range(3)])
    assert ((shares - 1 / 3).abs() < 0.04).all()
    assert torch.equal(draw_variants(5, scans.flip(0), 7, 3).flip(0), draws)
    other = draw_variants(6, scans, 7, 3)
    assert abs((draws == other).float().mean() - 1 / 3) < 0.02
    assert abs((draws[:, 0] == draws[:, 1]).float().mean() - 1 / 3) < 0.05


def test_splitmix_reference_values():
    """First outputs of SplitMix64 seeded with 0 are its finaliser at multiples of the golden gamma."""
    from ctgrounding.functional.prompts import _mix

    gamma = 0x9E3779B97F4A7C15
    states = [(gamma * step) % 2**64 for step in (1, 2, 3)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in _mix(signed).tolist()] == expected


def test_loss_is_sklearns_with_unknown_left_out():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, 3))
    labels = generator.integers(-1, 2, size=(40, 3))
    weight = np.array([1.0, 4.0, 0.5])
    loss = answer_loss(torch.tensor(logits), torch.tensor(labels), torch.tensor(weight)).numpy()
    assert not loss[labels == -1].any()
    for question in range(3):
        known = labels[:, question] >= 0
        truth = labels[known, question]
        probability = 1 / (1 + np.exp(-logits[known, question]))
        expected = log_loss(
            truth, probability, sample_weight=np.where(truth == 1, weight[question], 1.0), normalize=False
        )
        np.testing.assert_allclose(loss[known, question].sum(), expected, rtol=1e-12)


def test_loss_is_finite_at_the_ends():
    logits = torch.tensor([[1e4, -1e4, 1e4]], requires_grad=True)
    loss = answer_loss(logits, torch.tensor([[0, 1, -1]]), torch.ones(3))
    loss.sum().backward()
    assert loss.tolist() == [[1e4, 1e4, 0.0]]
    assert logits.grad.tolist() == [[1.0, -1.0, 0.0]]


def test_positive_weights():
    counts = torch.tensor([[90, 10], [1000, 1], [10, 40], [5, 0], [0, 5], [0, 0]])
    assert positive_weights(counts).tolist() == [9.0, 20.0, 0.25, 1.0, 1.0, 1.0]
