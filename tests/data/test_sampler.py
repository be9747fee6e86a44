import math
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.data.sampler import Draw, EvaluationSampler, Source, TrainingSampler, share
from ctgrounding.errors import ConfigError


def single(count: int, **changes) -> TrainingSampler:
    return TrainingSampler([Source("all", [(i,) for i in range(count)])], **{"batch_size": 4, "seed": 1, **changes})


def epoch_of(sampler, epoch):
    return [sampler.batch(epoch, step) for step in range(len(sampler))]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(4, 60), batch_size=st.integers(1, 4), epoch=st.integers(0, 5))
def test_an_epoch_shows_each_scan_at_most_once_in_full_batches(count, batch_size, epoch):
    sampler = single(count, batch_size=batch_size)
    batches = epoch_of(sampler, epoch)
    assert all(len(batch) == batch_size for batch in batches)
    shown = [draw.position for batch in batches for draw in batch]
    assert len(set(shown)) == len(shown) == count - count % batch_size


def test_wrapping_fills_the_last_batch_and_shows_all():
    batches = epoch_of(single(10, last_batch="wrap"), 0)
    counts = Counter(draw.position for batch in batches for draw in batch)
    assert [len(batch) for batch in batches] == [4, 4, 4]
    assert set(counts) == set(range(10))
    assert max(counts.values()) <= 2


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    forward, backward = single(20), single(20)
    expected = {(e, i): forward.batch(e, i) for e in range(3) for i in range(5)}
    for (epoch, step), batch in sorted(expected.items(), reverse=True):
        assert backward.batch(epoch, step) == batch
    assert epoch_of(forward, 0) != epoch_of(forward, 1)
    assert epoch_of(single(20, seed=2), 0) != epoch_of(forward, 0)


def test_over_epochs_each_place_is_as_likely_for_each_scan():
    sampler = single(5, batch_size=1)
    firsts = Counter(sampler.batch(epoch, 0)[0].position for epoch in range(2000))
    assert all(abs(firsts[scan] - 400) < 5 * (400 * 0.8) ** 0.5 for scan in range(5))


def test_one_reconstruction_of_each_study():
    studies = [(0, 1, 2), (3,), (4, 5)]
    sampler = TrainingSampler([Source("all", studies)], batch_size=3, seed=0)
    picks = Counter()
    for epoch in range(600):
        shown = sorted(draw.position for draw in sampler.batch(epoch, 0))
        assert [sum(scan in study for scan in shown) for study in studies] == [1, 1, 1]
        picks.update(shown)
    assert all(abs(picks[scan] - 200) < 60 for scan in (0, 1, 2))
    assert picks[3] == 600


def test_weights_set_the_shares_of_every_stretch_of_an_epoch():
    sources = [Source("a", [(i,) for i in range(30)], 3.0), Source("b", [(100 + i,) for i in range(10)], 1.0)]
    batches = epoch_of(TrainingSampler(sources, batch_size=8, seed=0), 4)
    assert len(batches) == 5
    for batch in batches:
        assert abs(sum(draw.position < 100 for draw in batch) - 6) <= 1


def test_a_source_that_is_shown_again_says_so():
    sources = [Source("a", [(i,) for i in range(18)], 1.0), Source("b", [(100,), (101,)], 1.0)]
    draws = list(chain(*epoch_of(TrainingSampler(sources, batch_size=4, seed=0), 0)))
    repeats = Counter((draw.position, draw.repeat) for draw in draws if draw.position >= 100)
    assert repeats == {(scan, repeat): 1 for scan in (100, 101) for repeat in range(5)}


@pytest.mark.parametrize(
    ("sources", "match"),
    [
        ([], "No training scans"),
        ([Source("a", [])], "No training scans in a"),
        ([Source("a", [(0,)] * 9, 0.0)], "weight of a"),
        ([Source("a", [(0,)] * 9, math.inf)], "weight of a"),
        ([Source("a", [(0,)])], "data.batch_size is 4, but there are 1"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(sources, match):
    with pytest.raises(ConfigError, match=match):
        TrainingSampler(sources, batch_size=4, seed=0)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 40), batch_size=st.integers(1, 9), world=st.integers(1, 4), micro=st.integers(1, 5))
def test_evaluation_shows_every_scan_exactly_once_over_all_ranks(count, batch_size, world, micro):
    sampler = EvaluationSampler(range(count), batch_size)
    shown = []
    for step in range(len(sampler)):
        batch = sampler.batch(0, step)
        parts = [share(batch, batch_size, rank, world, micro) for rank in range(world)]
        assert len({len(part) for part in parts}) == 1
        assert all(len(draws) <= micro for part in parts for draws in part)
        shown += [draw for part in parts for draws in part for draw in draws]
    assert shown == [Draw(i, 0) for i in range(count)]


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), world=st.integers(1, 6))
def test_ranks_share_a_batch_evenly(size, world):
    batch = [Draw(i, 0) for i in range(size)]
    parts = [share(batch, size, rank, world, None)[0] for rank in range(world)]
    assert list(chain(*parts)) == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
