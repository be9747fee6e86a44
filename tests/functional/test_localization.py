"""Depth targets and soft cross-entropy against NumPy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ctgrounding.errors import ConfigError
from ctgrounding.functional.localization import (
    depth_logits,
    depth_probability,
    depth_targets,
    reachable,
    soft_cross_entropy,
)

AXIAL_MM = 12.0


def bins(count, rows=1, start_mm=-100.0):
    return (start_mm + AXIAL_MM * torch.arange(count, dtype=torch.float64)).expand(rows, count)


def interval(*pairs):
    return torch.tensor(pairs, dtype=torch.float64)


def test_gaussian_in_mm_renormalised_over_real_bins():
    depth = bins(10)
    valid = torch.tensor([[False] * 2 + [True] * 6 + [False] * 2])
    target = depth_targets(depth, valid, interval((-70.5, -70.5)), sigma_mm=24.0, axial_mm=AXIAL_MM)
    expected = np.exp(-0.5 * ((depth.numpy() + 70.5) / 24) ** 2) * valid.numpy()
    np.testing.assert_allclose(target, expected / expected.sum(), rtol=1e-12, atol=0)


def test_an_interval_is_flat_inside_and_falls_outside():
    depth = bins(12)
    target = depth_targets(depth, torch.ones(1, 12, dtype=torch.bool), interval((-64.0, -28.0)), axial_mm=AXIAL_MM)[0]
    inside = target[3:7]
    assert torch.equal(inside, inside[:1].expand(4))
    distance = np.maximum(np.maximum(-64 - depth[0].numpy(), depth[0].numpy() + 28), 0)
    expected = np.exp(-0.5 * (distance / 24) ** 2)
    np.testing.assert_allclose(target, expected / expected.sum(), rtol=1e-12)


def test_a_point_shifted_by_a_bin_shifts_the_target():
    valid = torch.ones(1, 40, dtype=torch.bool)
    one = depth_targets(bins(40), valid, interval((100.0, 100.0)), axial_mm=AXIAL_MM)
    other = depth_targets(bins(40), valid, interval((112.0, 112.0)), axial_mm=AXIAL_MM)
    torch.testing.assert_close(one[0, 10:-10], other[0, 11:-9], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("at", [0, 2, 7, 14])
def test_the_released_form_is_scipys_filter_cut_at_the_ends(at):
    count = 15
    one_hot = np.zeros(count + 40)
    one_hot[20 + at] = 1
    expected = ndimage.gaussian_filter1d(one_hot, sigma=2.0, truncate=3.0, mode="constant")[20:-20]
    valid = torch.ones(1, count, dtype=torch.bool)
    valid[0, 13:] = at >= 13
    z_mm = -100.0 + AXIAL_MM * at + 3.0  # off the centre: the release only knows bins
    target = depth_targets(bins(count), valid, interval((z_mm, z_mm)), axial_mm=AXIAL_MM, form="release")
    np.testing.assert_allclose(target[0], expected * valid[0].numpy(), rtol=1e-9, atol=1e-15)
    assert target.sum() < 1 if at in (0, 14) else target.sum() > 0.8


def test_snippets_outside_the_crop_have_no_target():
    depth, valid = bins(10, rows=5), torch.ones(5, 10, dtype=torch.bool)
    valid[4] = False
    places = interval((-300.0, -250.0), (-100.0 + 6, -100.0 + 6), (9.0, 30.0), (float("nan"), 0.0), (-50.0, -50.0))
    assert reachable(depth, valid, places, AXIAL_MM).tolist() == [False, True, True, False, False]
    for form in ("renormalized", "release"):
        target = depth_targets(depth, valid, places, axial_mm=AXIAL_MM, form=form)
        assert target.isfinite().all()
        assert (target.sum(1) > 0).tolist() == [False, True, True, False, False]


def test_cross_entropy_against_numpy():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    valid = torch.rand(6, 9, generator=generator) > 0.3
    targets = torch.rand(6, 9, generator=generator, dtype=torch.float64) * valid
    loss = soft_cross_entropy(logits, targets, valid).numpy()
    for row in range(6):
        kept = valid[row].numpy()
        z = logits[row].numpy()[kept]
        expected = -(targets[row].numpy()[kept] * (z - np.log(np.exp(z).sum()))).sum()
        np.testing.assert_allclose(loss[row], expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_and_empty_rows_stay_finite(dtype, size):
    logits = torch.zeros(3, 5, dtype=dtype)
    logits[:, 1] = size
    logits.requires_grad_()
    valid = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    targets = valid / valid.sum(1, keepdim=True).clamp(min=1)
    loss = soft_cross_entropy(logits, targets, valid)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert loss[2] == 0
    assert not logits.grad[~valid].any()
    assert not depth_probability(logits.detach(), valid)[2].any()


def test_no_snippets_and_no_bins_are_legal():
    for rows, count in ((0, 7), (0, 0), (2, 0)):
        depth, valid = torch.zeros(rows, count, dtype=torch.float64), torch.ones(rows, count, dtype=torch.bool)
        places = torch.zeros(rows, 2, dtype=torch.float64)
        for form in ("renormalized", "release"):
            targets = depth_targets(depth, valid, places, axial_mm=AXIAL_MM, form=form)
            assert soft_cross_entropy(torch.zeros(rows, count), targets, valid).shape == (rows,)


def test_logits_are_cosines_over_tau():
    slices, snippets = torch.randn(3, 4, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    expected = np.einsum("szm,sm->sz", slices.numpy(), snippets.numpy()) / 0.1
    np.testing.assert_allclose(depth_logits(slices, snippets, 0.1), expected, rtol=1e-12)
    assert depth_logits(slices.bfloat16(), snippets.bfloat16(), 0.1).dtype == torch.float32


def test_bad_settings_are_named():
    one = bins(3), torch.ones(1, 3, dtype=torch.bool), interval((0.0, 0.0))
    with pytest.raises(ConfigError, match=r"sigma_mm is 0"):
        depth_targets(*one, sigma_mm=0.0, axial_mm=AXIAL_MM)
    with pytest.raises(ConfigError, match="'paper' is not known"):
        depth_targets(*one, axial_mm=AXIAL_MM, form="paper")
