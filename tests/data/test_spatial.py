"""A torchio transform moves image, label map and snippets as one."""

import dataclasses

import numpy as np
import pytest
import torch
import torchio

from ctgrounding.data.augment import Crop
from ctgrounding.data.dataset import ScanDataset
from ctgrounding.data.index import load_index
from ctgrounding.data.recipe import Recipe
from ctgrounding.data.spatial import SpatialTransform
from ctgrounding.errors import ConfigError
from ctgrounding.geometry import Grid

SHAPE, SPACING_MM = (20, 16, 18), (3.0, 2.0, 2.0)
GRID = Grid(SHAPE, SPACING_MM, (-17.0, -15.0, 100.0))


def ball(centre):
    distance = np.linalg.norm((np.argwhere(np.ones(SHAPE)) - centre) * SPACING_MM, axis=1).reshape(SHAPE)
    return np.where(distance < 7, 300, 0).astype(np.int16), (distance < 7).astype(np.uint8)


def centre_mm(weights):
    voxels = np.argwhere(weights > 0)
    return GRID.voxel_to_world(voxels).mean(0)


def exactly(**options):
    return SpatialTransform(torchio.RandomAffine(**{"scales": 0, "degrees": 0, **options}))


@pytest.mark.parametrize("shift", [(0, 0, 9), (0, 0, -12), (4, -6, 6)])
def test_translation__image_label_map_and_depth_agree(shift):
    image_hu, organs = ball((10, 8, 9))
    (x, y, z), before = shift, centre_mm(organs)
    moved = exactly(translation=(x, x, y, y, z, z))(image_hu, organs, GRID, seed=0)
    np.testing.assert_allclose(centre_mm(moved.organs) - before, shift, atol=1e-6)
    np.testing.assert_allclose(centre_mm(moved.image_hu > 150) - before, shift, atol=0.2)
    low, high = moved.depth_mm((before[2] - 1.5, before[2] + 1.5))
    assert (low + high) / 2 == pytest.approx(before[2] + z, abs=1.5)
    assert high - low == pytest.approx(3.0)
    assert (moved.image_hu[moved.source_plane == 0] == -1024).all()


def test_scaling_and_tilt__the_interval_holds_what_it_held():
    for seed in range(5):
        image_hu, organs = ball((10, 8, 9))
        transform = SpatialTransform(torchio.RandomAffine(scales=0.2, degrees=15, translation=6))
        moved = transform(image_hu, organs, GRID, seed=seed)
        interval = GRID.depth_mm[[8, 12]]
        low, high = moved.depth_mm((float(interval[0]), float(interval[1])))
        shown = GRID.depth_mm[moved.organs.any((1, 2))]
        assert low - 3 <= shown.min()
        assert shown.max() <= high + 3
        assert not np.array_equal(moved.organs, organs)


def test_a_snippet_that_left_the_crop_is_none():
    image_hu, organs = ball((3, 8, 9))
    moved = exactly(translation=(0, 0, 0, 0, -30, -30))(image_hu, organs, GRID, seed=0)
    assert moved.depth_mm((103.0, 106.0)) is None
    assert not moved.organs.any()


def test_generators_of_devices_are_not_seeded(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    exactly(translation=6)(*ball((10, 8, 9)), GRID, seed=3)
    assert seeded == []


def test_seeds_decide_and_nothing_outside_is_touched():
    image_hu, organs = ball((10, 8, 9))
    transform = SpatialTransform(torchio.RandomAffine(scales=0.2, degrees=20))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (transform(image_hu, organs, GRID, seed=seed).image_hu for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_refusals():
    nested = torchio.Compose([torchio.OneOf({torchio.RandomFlip(): 0.5, torchio.RandomAffine(): 0.5})])
    with pytest.raises(ConfigError, match="RandomFlip, which would exchange sides"):
        SpatialTransform(nested)
    with pytest.raises(ConfigError, match=r"changed a crop from \(20, 16, 18\) to \(40, 16, 18\)"):
        SpatialTransform(torchio.Pad((0, 0, 0, 0, 10, 10)))(*ball((3, 3, 3)), GRID, seed=0)


def test_training_samples_move_and_evaluation_does_not(shard_folder):
    index = load_index([shard_folder])
    recipe = Recipe(crop=Crop(), is_random=True, spatial=exactly(translation=(0, 0, 0, 0, 6, 6)))
    plain = dataclasses.replace(recipe, spatial=None)
    shown, unmoved, still = (
        ScanDataset(index, made, lambda text: torch.zeros(3, dtype=torch.int64)).sample(0)
        for made in (recipe, plain, dataclasses.replace(recipe, is_random=False))
    )
    assert torch.equal(unmoved["volume"], still["volume"])
    assert torch.equal(shown["volume"][2:], unmoved["volume"][:-2])
    assert torch.equal(shown["organs"][2:], unmoved["organs"][:-2])
    if shown["snippets"]:
        before, after = (sum(item["snippets"][0]["depth_mm"]) / 2 for item in (unmoved, shown))
        assert after == pytest.approx(before + 6, abs=1.5)
    else:
        assert shown["snippets_dropped"] == unmoved["snippets_dropped"] + 1
