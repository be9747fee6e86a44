import dataclasses
import os

import h5py
import numpy as np
import pytest
import torch

from ctgrounding.data.augment import Crop
from ctgrounding.data.dataset import Delivery, Request, ScanDataset
from ctgrounding.data.index import load_index
from ctgrounding.data.recipe import Recipe
from ctgrounding.data.report_text import ReportText
from ctgrounding.data.sampler import Draw
from ctgrounding.data.shards import Shard, ShardWriter
from ctgrounding.errors import ShardError
from ctgrounding.geometry import Grid
from ctgrounding.testing.shards import BALL_HU, CLASSES, write_tiny_shards

LABEL = {name: label for label, name in CLASSES.items()}
RANDOM = Recipe(
    crop=Crop((8, 20, 24)), label_names=("ball_left", "ball_right", "unsure", "ball"), is_random=True, seed=3
)


def make(index, tokenizer, **changes) -> ScanDataset:
    return ScanDataset(index, dataclasses.replace(RANDOM, **changes), tokenizer)


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def find_box(whole: np.ndarray, part: np.ndarray) -> tuple[int, int, int]:
    """Where a part lies in the whole, by brute force."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape[2], axis=2)
    for d in range(whole.shape[0] - part.shape[0] + 1):
        for h in range(whole.shape[1] - part.shape[1] + 1):
            for w in np.flatnonzero((windows[d, h] == part[0, 0]).all(axis=1)):
                if np.array_equal(whole[d : d + part.shape[0], h : h + part.shape[1], w : w + part.shape[2]], part):
                    return d, h, int(w)
    raise AssertionError("the part is not in the whole")


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_a_sample_is_a_box_of_the_scan_and_its_grid_says_where(index, tokenizer, position, mirror):
    dataset = make(index, tokenizer, mirror_probability=mirror)
    record, (shard, row) = index.record(position), index.shard(position)
    whole, organs = shard.read_image(row), shard.read_organs(row)
    if mirror:
        whole = whole[:, :, ::-1].copy()
    for epoch in range(3):
        sample = dataset.sample(position, epoch)
        volume = sample["volume"].numpy()
        start = find_box(whole, volume)
        grid = Grid(record.shape, record.spacing_mm, record.origin_mm)
        np.testing.assert_allclose(sample["origin_mm"], grid.voxel_to_world(start))
        assert sample["valid_box"].tolist() == [[0, side] for side in volume.shape]
        if organs is not None and not mirror:
            box = tuple(slice(s, s + n) for s, n in zip(start, volume.shape, strict=True))
            np.testing.assert_array_equal(sample["organs"], organs[box])


def test_a_sample_depends_on_seed_epoch_and_scan_alone(index, tokenizer):
    wording = ReportText(findings_dropout=0.4, sentence_dropout=0.3, sentence_shuffle=True)
    changes = {"mirror_probability": 0.5, "report_text": wording}
    one, other = make(index, tokenizer, **changes), make(index, tokenizer, **changes)
    keys = [(position, epoch) for position in range(6) for epoch in range(3)]
    samples = {key: one.sample(*key) for key in keys}
    assert all(same(other.sample(*key), samples[key]) for key in reversed(keys))
    assert not same(samples[0, 0], samples[0, 1])
    assert not same(make(index, tokenizer, seed=4).sample(0, 0), one.sample(0, 0))
    assert not same(one.sample(0, 0, repeat=1), one.sample(0, 0))


class OneNumber:
    """Stands for stored features: the first of a scan's hash."""

    def read(self, record, start, shape):
        return {"number": torch.tensor([int(record.sha256[:8], 16), *start, *shape])}


def test_on_stored_features_only_the_report_is_made_anew(index, tokenizer, monkeypatch):
    wording = ReportText(sentence_dropout=0.3, sentence_shuffle=True)
    stored = {"report_text": wording, "crop": Crop((8, 20, 24), place="centre"), "features": OneNumber()}
    kept = make(index, tokenizer, **stored)
    keys = [(position, epoch) for position in range(6) for epoch in range(3)]
    samples = {key: kept.sample(*key) for key in keys}
    assert all(same(make(index, tokenizer, **stored).sample(*key), samples[key]) for key in keys)
    voxels = make(index, tokenizer, **{**stored, "features": None})
    for key, sample in samples.items():
        whole = voxels.sample(*key)
        assert sample["volume"].numel() == 0
        for name in set(whole) - {"volume", "organs"}:
            assert same(sample[name], whole[name]), name
        assert list(sample["token_rows"]) == list(whole["token_rows"])
    with monkeypatch.context() as patch:
        patch.setattr(type(index), "record", None)
        assert same(kept.sample(*keys[-1]), samples[keys[-1]])
    assert samples[0, 0]["report"] != samples[0, 1]["report"]


def test_equal_reports_are_worded_equally(index, tokenizer):
    wording = ReportText(findings_dropout=0.5, sentence_dropout=0.5, sentence_shuffle=True)
    dataset = make(index, tokenizer, report_text=wording)
    for epoch in range(10):
        assert dataset.sample(0, epoch)["report"] == dataset.sample(1, epoch)["report"]


def side_of_ball(sample) -> str:
    bright = (sample["volume"] == BALL_HU).nonzero().double()[:, 2].mean()
    return "right" if bright > sample["volume"].shape[2] / 2 else "left"


@pytest.mark.parametrize("position", [0, 2, 4, 6])
def test_a_mirror_moves_voxels_labels_and_words_together(index, tokenizer, position):
    whole = Crop()
    plain = make(index, tokenizer, crop=whole).sample(position)
    mirrored = make(index, tokenizer, crop=whole, mirror_probability=1.0).sample(position)
    side, other = side_of_ball(plain), side_of_ball(mirrored)
    assert {side, other} == {"left", "right"}
    assert f"Bright ball in the {side} kidney" in plain["report"]
    assert f"Bright ball in the {other} kidney" in mirrored["report"]
    assert "bilateral" in mirrored["report"]
    assert [item["text"] for item in mirrored["snippets"]] == [f"Bright ball in the {other} kidney"]
    assert [item["organ"] for item in mirrored["snippets"]] == [LABEL[f"kidney_{other}"]]
    assert [(item["organ"], item["is_abnormal"]) for item in mirrored["organ_sentences"]] == [
        (LABEL[f"kidney_{other}"], True),
        (LABEL[f"kidney_{side}"], False),
    ]
    assert mirrored["labels"].tolist() == [int(other == "left"), int(other == "right"), -1, 1]
    if "organs" in plain:
        bright = mirrored["volume"] == BALL_HU
        assert (mirrored["organs"][bright] == LABEL[f"kidney_{other}"]).float().mean() > 0.9
        for name in ("left", "right"):
            label = LABEL[f"kidney_{name}"]
            assert mirrored["organ_voxels"][label] == (mirrored["organs"] == label).sum()
        assert (mirrored["organs"] == LABEL["liver"]).sum() == (plain["organs"] == LABEL["liver"]).sum()


def test_a_mirror_keeps_a_scan_in_its_place(index, tokenizer):
    plain = make(index, tokenizer, crop=Crop()).sample(0)
    mirrored = make(index, tokenizer, crop=Crop(), mirror_probability=1.0).sample(0)
    assert torch.equal(mirrored["origin_mm"], plain["origin_mm"])
    assert torch.equal(mirrored["volume"], plain["volume"].flip(2))


def test_a_text_that_cannot_be_mirrored_is_shown_as_it_is_and_counted(tmp_path, tokenizer):
    source = load_index(write_tiny_shards(tmp_path / "source", scans=1, shards=1))
    (shard, row), record = source.shard(0), source.record(0)
    record = dataclasses.replace(record, report={"findings": "Nodule in the middle lobe."})
    with ShardWriter(tmp_path / "a.h5", spacing_mm=record.spacing_mm, classes=CLASSES, dataset="tiny") as writer:
        writer.write(record, shard.read_image(row), shard.read_organs(row))
    dataset = make(load_index([tmp_path / "a.h5"]), tokenizer, crop=Crop(), mirror_probability=1.0)
    delivery = dataset[Request(0, (Draw(0, 0),))]
    assert torch.equal(delivery.samples[0]["volume"], torch.from_numpy(shard.read_image(row)))
    assert "middle lobe" in delivery.unmirrored["scan0000"]


def test_the_crop_keeps_the_snippets_whose_depth_it_shows(index, tokenizer):
    dataset = make(index, tokenizer, crop=Crop((4, None, None)))
    kept = 0
    for epoch in range(30):
        sample = dataset.sample(0, epoch)
        shows_ball = bool((sample["volume"] == BALL_HU).any(dim=(1, 2)).sum() >= 3)
        low_mm = sample["origin_mm"][2].item() - 1.5
        (middle_mm,) = [sum(snippet.depth_mm) / 2 for snippet in index.record(0).snippets]
        is_inside = low_mm <= middle_mm <= low_mm + 4 * 3.0
        assert len(sample["snippets"]) == int(is_inside)
        assert sample["snippets_dropped"] == int(not is_inside)
        assert not shows_ball or is_inside
        kept += is_inside
    assert 0 < kept < 30


@pytest.mark.parametrize("text", ["", " \n"])
def test_snippets_and_sentences_without_a_letter_say_nothing(tmp_path, tokenizer, text):
    source = Shard(write_tiny_shards(tmp_path / "source", scans=4)[0])
    with ShardWriter(tmp_path / "a.h5", spacing_mm=source.spacing_mm, classes=source.classes, dataset="tiny") as writer:
        for row, record in enumerate(source.records):
            blank = {
                name: tuple(dataclasses.replace(item, text=text) for item in getattr(record, name))
                for name in ("snippets", "organ_sentences")
            }
            assert all(blank.values()) or row
            writer.write(dataclasses.replace(record, **blank), source.read_image(row), source.read_organs(row))
    dataset = make(load_index([tmp_path / "a.h5"]), tokenizer)
    batch = dataset.collate()([[dataset.sample(position) for position in range(len(dataset))]])
    assert len(batch["snippet_text"]) == len(batch["organ_text"]) == 0


def test_padding_inside_the_scan_stays_out_of_the_valid_box(tmp_path, tokenizer):
    source = load_index(write_tiny_shards(tmp_path / "source", scans=1, shards=1))
    (shard, row), record = source.shard(0), source.record(0)
    d, h, w = record.shape
    record = dataclasses.replace(record, valid_box=((0, d), (3, h), (5, w - 1)))
    with ShardWriter(tmp_path / "a.h5", spacing_mm=record.spacing_mm, classes=CLASSES, dataset="tiny") as writer:
        writer.write(record, shard.read_image(row))
    index = load_index([tmp_path / "a.h5"])
    plain = make(index, tokenizer, crop=Crop()).sample(0)
    mirrored = make(index, tokenizer, crop=Crop(), mirror_probability=1.0).sample(0)
    assert plain["valid_box"].tolist() == [[0, d], [3, h], [5, w - 1]]
    assert mirrored["valid_box"].tolist() == [[0, d], [3, h], [1, w - 5]]


def test_every_text_of_a_sample_has_its_tokens(index, tokenizer):
    sample = make(index, tokenizer, crop=Crop()).sample(0)
    texts = {
        sample["report"],
        *(s["text"] for s in sample["snippets"]),
        *(s["text"] for s in sample["organ_sentences"]),
    }
    assert set(sample["token_rows"]) == texts
    assert all(torch.equal(tokens, tokenizer(text)) for text, tokens in sample["token_rows"].items())


def damage(path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for offset in range(size // 4, size, 997):
            file.seek(offset)
            file.write(os.urandom(64))


@pytest.fixture
def damaged(tmp_path):
    """An index whose second shard changed on disk after it was read."""
    paths = write_tiny_shards(tmp_path, scans=8)
    index = load_index([tmp_path])
    index.shards[1].reopen()
    damage(paths[1])
    return index


def test_a_damaged_scan_stops_or_is_skipped_and_counted(damaged, tokenizer):
    request = Request(0, tuple(Draw(i, 0) for i in range(8)))
    with pytest.raises(ShardError, match="shard-00001"):
        make(damaged, tokenizer)[request]
    delivery: Delivery = make(damaged, tokenizer, skips_damaged=True)[request]
    shown = [sample["scan_id"] for sample in delivery.samples]
    assert shown[:4] == [f"scan{i:04d}" for i in range(4)]
    assert set(delivery.skipped) == {f"scan{i:04d}" for i in range(8)} - set(shown)
    assert delivery.skipped


@pytest.mark.parametrize("crop", [Crop(), Crop((8, 8, 8))])
def test_voxels_changed_behind_a_hash_are_found_without_checksums(tmp_path, tokenizer, crop):
    path = write_tiny_shards(tmp_path, scans=1, shards=1, codec="none")[0]
    index = load_index([path])
    index.shards[0].reopen()
    with h5py.File(path, "r+") as file:
        file["scans/00000/image"][0, 0, 0] += 1
    with pytest.raises(ShardError, match=r"scan0000 .* differs from its hash"):
        make(index, tokenizer, crop=crop).sample(0)
