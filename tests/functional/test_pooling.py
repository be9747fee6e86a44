"""Organ pooling against a voxel-by-voxel NumPy reference."""

import numpy as np
import pytest
import torch

from ctgrounding.errors import ConfigError
from ctgrounding.functional.pooling import organ_weights, pool_organs

CASES = [
    # volume, cell_vox, grid
    ((8, 12, 10), (2, 3, 5), (4, 4, 2)),
    ((7, 9, 11), (2, 4, 4), (4, 3, 3)),  # the last cells are cut
    ((6, 6, 6), (1, 1, 1), (6, 6, 6)),
    ((7, 9, 11), (1.75, 3.0, 2.75), (4, 3, 4)),  # strided maps
    ((9, 9, 9), (2, 2, 2), (3, 4, 4)),  # voxels beyond the grid
]


def random_labels(shape, scans=2, classes=6):
    generator = torch.Generator().manual_seed(7)
    coarse = torch.randint(0, classes, (scans, 1, 3, 3, 3), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, size=shape, mode="nearest")[:, 0].to(torch.uint8)


def counts_by_hand(labels, cell_vox, grid, classes):
    counts = np.zeros((len(labels), classes, *grid))
    for index in np.ndindex(*labels.shape):
        cell = [int((voxel + 0.5) // size) for voxel, size in zip(index[1:], cell_vox, strict=True)]
        if labels[index] and all(number < limit for number, limit in zip(cell, grid, strict=True)):
            counts[(index[0], labels[index], *cell)] += 1
    return counts.reshape(len(labels), classes, -1)


@pytest.mark.parametrize(("shape", "cell_vox", "grid"), CASES)
def test_weights_count_every_voxel_once(shape, cell_vox, grid):
    labels = random_labels(shape)
    expected = counts_by_hand(labels.numpy(), cell_vox, grid, 6)
    np.testing.assert_array_equal(organ_weights(labels, cell_vox, grid, classes=6).numpy(), expected)


@pytest.mark.parametrize(("shape", "cell_vox", "grid"), CASES)
@pytest.mark.parametrize("path", ["dense", "index"])
def test_both_paths_give_the_mean_over_an_organs_voxels(shape, cell_vox, grid, path):
    labels = random_labels(shape)
    features = torch.randn(2, 5, *grid, dtype=torch.float64, requires_grad=True)
    counts = torch.from_numpy(counts_by_hand(labels.numpy(), cell_vox, grid, 6))
    totals = counts.sum(-1)
    expected = torch.einsum("bkn,bcn->bkc", counts / totals.clamp(min=1)[..., None], features.flatten(2))
    upstream = torch.randn_like(expected)
    (expected_gradient,) = torch.autograd.grad((expected * upstream).sum(), features)

    pooled = pool_organs(features, labels, cell_vox, classes=6, path=path)
    (gradient,) = torch.autograd.grad((pooled.features * upstream).sum(), features)
    torch.testing.assert_close(pooled.voxels.double(), totals, rtol=0, atol=0)
    torch.testing.assert_close(pooled.features, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-7)


def test_a_constant_map_gives_that_constant_to_every_organ_however_small():
    labels = torch.zeros(1, 16, 32, 32, dtype=torch.uint8)
    labels[0, 3, 5, 7] = 9
    labels[0, 8:, 8:, 8:] = 4
    pooled = pool_organs(torch.full((1, 3, 4, 2, 2), 2.5), labels, (4, 16, 16))
    assert pooled.voxels[0].nonzero().flatten().tolist() == [4, 9]
    assert torch.equal(pooled.features[0, [4, 9]], torch.full((2, 3), 2.5))
    assert not pooled.features[0, [0, 1, 255]].any()


def test_an_offset_moves_the_grid():
    labels = torch.tensor([1, 1, 1, 1, 2, 2], dtype=torch.uint8).view(1, 1, 1, 6)
    centred = organ_weights(labels, (1, 1, 2), (1, 1, 3), classes=3)
    moved = organ_weights(labels, (1, 1, 2), (1, 1, 3), offset_vox=(0, 0, 1.5), classes=3)
    assert centred[0, 1].tolist() == [2, 2, 0]
    assert moved[0, 1].tolist() == [2, 1, 0]
    assert moved[0, 2].tolist() == [0, 1, 1]


def test_no_scans_and_no_organs_are_legal():
    features = torch.randn(0, 4, 2, 2, 2, requires_grad=True)
    pooled = pool_organs(features, torch.zeros(0, 4, 4, 4, dtype=torch.uint8), (2, 2, 2))
    assert pooled.features.shape == (0, 256, 4)
    empty = pool_organs(torch.randn(1, 4, 2, 2, 2), torch.zeros(1, 4, 4, 4, dtype=torch.uint8), (2, 2, 2), path="index")
    assert not empty.features.any()
    assert not empty.voxels.any()


def test_an_unknown_path_is_named():
    with pytest.raises(ConfigError, match="'fast' is not known"):
        pool_organs(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.uint8), (1, 1, 1), path="fast")
