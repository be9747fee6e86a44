"""Scans of like size side by side: less padding, the same scans, the same order whoever asks."""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding.data.augment import Crop
from ctgrounding.data.buckets import BucketedSampler, Buckets, alike, padding_share, shown_sizes
from ctgrounding.data.datamodule import ShardDataModule
from ctgrounding.data.sampler import Source, TrainingSampler
from ctgrounding.data.shares import Shares
from ctgrounding.errors import ConfigError
from ctgrounding.testing.shards import write_tiny_shards


def ct_rate_like(count: int, in_plane: bool) -> np.ndarray:
    """Cells of 12 x 24 x 24 mm along D, H, W: chests of about 32 cm, one in seven with abdomen."""
    rng = np.random.default_rng(0)
    length_mm = np.where(rng.random(count) < 1 / 7, rng.normal(480, 90, count), rng.normal(320, 40, count))
    cells = np.ceil(length_mm.clip(180, 750) / 12).astype(int)
    field = np.ceil(rng.normal(360, 35, count).clip(280, 500) / 24).astype(int)
    other = field if in_plane else np.full(count, 14)
    return np.stack([cells, other, other], axis=1)


def training(count: int, batch_size: int) -> TrainingSampler:
    return TrainingSampler([Source("all", [(i,) for i in range(count)])], batch_size, seed=1)


def by_hand(sampler, sizes, micro):
    """Padded cells over all cells, one micro-batch after the other."""
    real = full = 0
    for step in range(len(sampler)):
        positions = [draw.position for draw in sampler.batch(0, step)]
        for start in range(0, len(positions), micro):
            shapes = [tuple(sizes[position]) for position in positions[start : start + micro]]
            box = [max(shape[axis] for shape in shapes) for axis in range(3)]
            full += len(shapes) * box[0] * box[1] * box[2]
            real += sum(d * h * w for d, h, w in shapes)
    return (full - real) / full


@pytest.mark.parametrize(("in_plane", "steps"), [(False, 16), (True, 64)])
@pytest.mark.parametrize("group", ["micro_batch", "step"])
def test_at_most_three_percent_of_the_tokens_are_padding(in_plane, steps, group):
    sizes = ct_rate_like(4096, in_plane)
    plain = training(4096, 64)
    sorted_by_size = BucketedSampler(plain, sizes, Buckets(steps, group), 8, seed=1)
    before, after = by_hand(plain, sizes, 8), by_hand(sorted_by_size, sizes, 8)
    assert before > 0.25
    assert after <= 0.03
    assert padding_share(plain, sizes, 8) == pytest.approx(before)
    assert padding_share(sorted_by_size, sizes, 8) == pytest.approx(after)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(8, 90), steps=st.integers(1, 9), epoch=st.integers(0, 3), group=st.sampled_from([2, 4, 0]))
def test_a_window_of_steps_shows_what_it_did(count, steps, epoch, group):
    plain = training(count, 8)
    buckets = Buckets(steps, "micro_batch" if group else "step")
    sampler = BucketedSampler(plain, ct_rate_like(count, True), buckets, group or None, seed=3)
    assert len(sampler) == len(plain)
    for start in range(0, len(plain), steps):
        window = range(start, min(start + steps, len(plain)))
        shown = [sampler.batch(epoch, step) for step in window]
        assert {len(batch) for batch in shown} == {8}
        wanted = Counter(draw for step in window for draw in plain.batch(epoch, step))
        assert Counter(draw for batch in shown for draw in batch) == wanted


def test_a_batch_depends_on_seed_epoch_and_step_alone():
    sizes = ct_rate_like(80, True)

    def sampler(seed=1):
        return BucketedSampler(training(80, 8), sizes, Buckets(4), 4, seed)

    forward, backward = sampler(), sampler()
    expected = {(epoch, step): forward.batch(epoch, step) for epoch in range(2) for step in range(10)}
    for (epoch, step), batch in sorted(expected.items(), reverse=True):
        assert backward.batch(epoch, step) == batch
    assert any(sampler(2).batch(0, step) != expected[0, step] for step in range(10))
    with pytest.raises(IndexError, match="Step 10"):
        forward.batch(0, 10)


def test_steps_of_micro_batches_mix_sizes_and_steps_of_a_kind_do_not():
    sizes = ct_rate_like(2048, False)
    for group, mixed in (("micro_batch", True), ("step", False)):
        sampler = BucketedSampler(training(2048, 64), sizes, Buckets(16, group), 8, seed=1)
        lengths = [sizes[[draw.position for draw in sampler.batch(0, step)], 0] for step in range(len(sampler))]
        spread = np.mean([step.std() for step in lengths]) / sizes[:, 0].std()
        assert (spread > 0.8) if mixed else (spread < 0.3)


@given(st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=40), st.integers(1, 9))
def test_groups_hold_every_row_once(sizes, group):
    groups = alike(np.array(sizes), group)
    assert sorted(row for rows in groups for row in rows) == list(range(len(sizes)))
    assert all(len(rows) == group for rows in groups[:-1])


def set_up(folder, tokenizer, **changes):
    data = ShardDataModule(str(folder), **{"batch_size": 4, "micro_batch_size": 2, "buckets": Buckets(4), **changes})
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(tokenizer=tokenizer), global_rank=0, world_size=1, current_epoch=0
    )
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    write_tiny_shards(folder, scans=40, splits=("train", "train", "train", "val"))
    return folder


def test_ranks_and_workers_do_not_matter(folder, tokenizer):
    whole = [batch["scan_id"] for batch in set_up(folder, tokenizer).train_dataloader()]
    parts = []
    for rank in range(2):
        data = set_up(folder, tokenizer, num_workers=1 if rank else 0)
        data.trainer.global_rank, data.trainer.world_size = rank, 2
        parts.append([batch["scan_id"] for batch in data.train_dataloader()])
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    data = set_up(folder, tokenizer)
    data.load_state_dict({"epoch": 0, "steps": 3})
    assert [batch["scan_id"] for batch in data.train_dataloader()] == whole[3:]


def test_less_padding_in_the_batches_themselves(folder, tokenizer, caplog):
    def padding(**changes):
        batches = list(set_up(folder, tokenizer, **changes).train_dataloader())
        full = sum(volume.numel() for batch in batches for volume in batch["volume"])
        real = sum((box[:, 1] - box[:, 0]).prod().item() for batch in batches for box in batch["valid_box"])
        return 1 - real / full

    with caplog.at_level("INFO", logger="ctgrounding"):
        after, before = padding(buckets=Buckets(8)), padding(buckets=None)
    assert after < before / 1.5
    assert f"Padding is {100 * after:.1f} %" in caplog.text
    assert f"without data.buckets {100 * before:.1f} %" in caplog.text


def test_sizes_are_those_of_the_crop(folder, tokenizer):
    data = set_up(folder, tokenizer)
    shown = shown_sizes(data.index, Crop((None, 30.0, None), unit="mm"))
    shapes = np.array([data.index.record(position).shape for position in range(len(data.index))])
    assert (shown[:, [0, 2]] == shapes[:, [0, 2]]).all()
    assert set(shown[:, 1]) == {20}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop": Crop((8, 16, 16))}, "crop shows boxes of one size"),
        ({"shares": Shares(masks=1, snippets=1)}, "data.shares gives every step its share.*over 4 steps"),
        ({"micro_batch_size": None}, "data.micro_batch_size is None"),
        ({"micro_batch_size": 3}, "data.micro_batch_size is 3 and data.batch_size 4"),
    ],
)
def test_refusals(folder, tokenizer, changes, said):
    with pytest.raises(ConfigError, match=said):
        set_up(folder, tokenizer, **changes)


def test_ranks_with_parts_of_micro_batches_are_refused(folder, tokenizer):
    data = set_up(folder, tokenizer, batch_size=6)
    data.trainer.world_size = 2
    with pytest.raises(ConfigError, match="6 scans on 2 ranks are no whole number of micro-batches of 2"):
        data.train_dataloader()
    data = set_up(folder, tokenizer, batch_size=6, buckets=Buckets(4, "step"))
    data.trainer.world_size = 2
    assert len(data.train_dataloader()) == 5
    with pytest.raises(ConfigError, match="steps is 0"):
        Buckets(0)


def test_shares_hold_with_buckets_of_one_step(folder, tokenizer):
    shares = Shares(masks_and_snippets=1, snippets=1)
    data = set_up(folder, tokenizer, shares=shares, buckets=Buckets(1), dev_fraction=0.2)
    masked = {data.index.record(i).scan_id: bool(data.index.record(i).organ_voxels) for i in range(len(data.index))}
    assert {sum(masked[scan] for scan in batch["scan_id"]) for batch in data.train_dataloader()} == {2}


def patients(folder, tokenizer, split="train", **changes):
    index = set_up(folder, tokenizer, buckets=None, batch_size=1, micro_batch_size=1, **changes).index
    return set(index.of_split(split).columns["patient_id"])


def test_fractions_of_the_training_patients_are_nested(folder, tokenizer):
    shown = [patients(folder, tokenizer, train_fraction=fraction) for fraction in (0.01, 0.1, 0.2, 0.5, 1.0)]
    assert [len(each) for each in shown] == [1, 3, 6, 15, 30]
    assert all(small < large for small, large in pairwise(shown))
    other = patients(folder, tokenizer, train_fraction=0.5, train_fraction_seed=1)
    assert len(other) == 15
    assert other != shown[3]


def test_fractions_leave_other_splits_alone(folder, tokenizer):
    for split in ("val", "dev", "all"):
        few = patients(folder, tokenizer, split, train_fraction=0.2, dev_fraction=0.3)
        assert few == patients(folder, tokenizer, split, dev_fraction=0.3)
    trained = patients(folder, tokenizer, train_fraction=0.5, dev_fraction=0.3)
    whole = patients(folder, tokenizer, dev_fraction=0.3)
    assert trained < whole
    assert len(trained) == round(len(whole) / 2)
    data = set_up(folder, tokenizer, buckets=None, train_fraction=0.5)
    assert {batch["patient_id"][0] for batch in data.train_dataloader()} <= patients(
        folder, tokenizer, train_fraction=0.5
    )


def test_a_seed_that_chooses_nothing_is_said(folder, tokenizer, caplog):
    """No refusal: a curve over shares ends at 1 with the seed of the others."""
    whole = patients(folder, tokenizer, train_fraction_seed=3)
    assert whole == patients(folder, tokenizer)
    assert [item.getMessage() for item in caplog.records if item.levelname == "WARNING"] == [
        "data.train_fraction_seed chooses nothing: data.train_fraction is 1, so all are trained on."
    ]
    caplog.clear()
    patients(folder, tokenizer, train_fraction=0.5, train_fraction_seed=3)
    assert not [item for item in caplog.records if item.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_fraction": 0.0}, "train_fraction is 0.0"),
        ({"train_fraction": 0.5, "train_split": "all"}, "data.train_split is all"),
    ],
)
def test_wrong_fractions(folder, tokenizer, changes, said):
    with pytest.raises(ConfigError, match=said):
        set_up(folder, tokenizer, **changes)
