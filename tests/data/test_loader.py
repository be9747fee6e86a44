from functools import partial

import pytest
import torch

from ctgrounding.data.augment import Crop
from ctgrounding.data.collate import Collate
from ctgrounding.data.dataset import ScanDataset
from ctgrounding.data.index import load_index
from ctgrounding.data.loader import Position, StepLoader, Workers
from ctgrounding.data.recipe import Recipe
from ctgrounding.data.sampler import EvaluationSampler, Source, TrainingSampler
from ctgrounding.errors import ShardError
from ctgrounding.testing.shards import write_tiny_shards

RECIPE = Recipe(crop=Crop((8, 16, 16)), label_names=("ball",), mirror_probability=0.5, is_random=True)


def loader_of(index, tokenizer, *, batch_size=6, recipe=RECIPE, evaluates=False, **changes) -> StepLoader:
    dataset = ScanDataset(index, recipe, tokenizer)
    if evaluates:
        sampler = EvaluationSampler(range(len(index)), batch_size)
    else:
        sampler = TrainingSampler([Source("all", [(i,) for i in range(len(index))])], batch_size, seed=0)
    return StepLoader(dataset, sampler, Collate(0, (8, 16, 16), True, 1), **changes)


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.allclose(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


@pytest.fixture(scope="module")
def reference(index, tokenizer):
    return list(loader_of(index, tokenizer, micro_batch_size=2, begin=lambda: Position(3, 0)))


@pytest.mark.parametrize("workers", [Workers(1), Workers(2), Workers(2, prefetch=5), Workers(1, start="spawn")])
def test_batches_do_not_depend_on_workers(index, tokenizer, reference, workers):
    loader = loader_of(index, tokenizer, micro_batch_size=2, begin=lambda: Position(3, 0), workers=workers)
    assert same(list(loader), reference)


def test_every_epoch_asks_where_to_begin(index, tokenizer, reference):
    asked = iter([Position(0, 0), Position(3, 2), Position(3, 0), Position(3, 4)])
    loader = loader_of(index, tokenizer, micro_batch_size=2, begin=partial(next, asked), workers=Workers(2))
    untouched = iter(loader)
    assert not same(list(loader), reference)
    assert same(list(loader), reference[2:])
    assert len(loader) == 4
    abandoned = iter(loader)
    assert same(next(abandoned), reference[0])
    assert loader.handed_out == Position(3, 1)
    assert list(loader) == []
    del untouched


def test_ranks_share_the_very_batch_of_one_process(index, tokenizer, reference):
    ranks = [
        loader_of(index, tokenizer, micro_batch_size=2, begin=lambda: Position(3, 0), rank=rank, world_size=2)
        for rank in range(2)
    ]
    for whole, *parts in zip(reference, *ranks, strict=True):
        assert [scan for part in parts for scan in part["scan_id"]] == whole["scan_id"]
        assert torch.equal(torch.cat([part["origin_mm"] for part in parts]), whole["origin_mm"])
        assert torch.equal(torch.cat([part["report_group"] for part in parts]), whole["report_group"])
        assert [len(part["volume"]) for part in parts] == [2, 2]


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_an_evaluation_shows_every_scan_once_over_all_ranks(index, tokenizer, world_size):
    loaders = [
        loader_of(index, tokenizer, batch_size=5, evaluates=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shown = [list(loader) for loader in loaders]
    assert {len(batches) for batches in shown} == {5}
    scans = [scan for batches in shown for batch in batches for scan in batch["scan_id"]]
    assert sorted(scans) == sorted(index.columns["scan_id"])


def test_the_global_random_stream_is_left_alone(index, tokenizer):
    before = torch.get_rng_state()
    for workers in (Workers(0), Workers(1)):
        next(iter(loader_of(index, tokenizer, workers=workers)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def damaged(tmp_path):
    """Twelve scans of which the second half is gone."""
    paths = write_tiny_shards(tmp_path, scans=12)
    index = load_index([tmp_path])
    index.shards[1].reopen()
    paths[1].write_bytes(b"gone")
    return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_shard_stops_the_epoch_with_its_own_message(damaged, tokenizer, workers):
    with pytest.raises(ShardError, match=r"shard-00001.h5 .* copy it again"):
        list(loader_of(damaged, tokenizer, evaluates=True, workers=Workers(workers)))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_scans_are_counted_and_no_step_is_lost(damaged, tokenizer, workers, caplog):
    recipe = Recipe(crop=RECIPE.crop, label_names=("ball",), skips_damaged=True)
    loader = loader_of(damaged, tokenizer, batch_size=4, evaluates=True, recipe=recipe, workers=Workers(workers))
    batches = list(loader)
    assert [len(batch["scan_id"]) for batch in batches] == [4, 2, 0]
    assert [len(batch["volume"][0]) for batch in batches] == [4, 2, 0]
    assert set(loader.counts.skipped) == {f"scan{i:04d}" for i in range(6, 12)}
    assert sum("Left out scan" in message for message in caplog.messages) == 6
