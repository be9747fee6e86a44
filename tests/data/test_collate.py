import dataclasses
import subprocess
import sys

import pytest
import torch

from ctgrounding.data.augment import Crop
from ctgrounding.data.collate import EMPTY_SHAPE, Collate
from ctgrounding.data.dataset import ScanDataset
from ctgrounding.data.keys import stable_hash
from ctgrounding.data.recipe import Recipe

NAMES = ("ball", "unsure")


@pytest.fixture(scope="module")
def samples(index, tokenizer):
    dataset = ScanDataset(index, Recipe(crop=Crop(), label_names=NAMES), tokenizer)
    return [dataset.sample(position) for position in range(6)]


def collate(micro_batches, minimum=(1, 1, 1), with_organs=True):
    return Collate(pad_id=0, minimum_shape=minimum, with_organs=with_organs, questions=2)(micro_batches)


def test_volumes_are_padded_at_the_far_end_to_the_largest_of_their_micro_batch(samples):
    batch = collate([samples[:2], samples[2:5]], minimum=(18, 1, 1))
    for micro, volume, organs in zip([samples[:2], samples[2:5]], batch["volume"], batch["organs"], strict=True):
        sides = zip(*(sample["volume"].shape for sample in micro), strict=True)
        assert volume.shape[1:] == tuple(max(lowest, *side) for lowest, side in zip((18, 1, 1), sides, strict=True))
        assert organs.shape == volume.shape
        for row, sample in enumerate(micro):
            d, h, w = sample["volume"].shape
            assert torch.equal(volume[row, :d, :h, :w], sample["volume"])
            assert (volume[row] == -1024).sum() >= volume[row].numel() - d * h * w
            if "organs" in sample:
                assert torch.equal(organs[row, :d, :h, :w], sample["organs"])
                assert organs[row].count_nonzero() == sample["organs"].count_nonzero()
            else:
                assert not organs[row].any()


def test_every_text_is_there_once_and_every_index_finds_its_own(samples):
    batch = collate([samples[:3], samples[3:]])
    assert len(set(batch["texts"])) == len(batch["texts"]) == len(batch["tokens"])
    text = batch["texts"]
    assert [text[row] for row in batch["report_text"]] == [sample["report"] for sample in samples]
    assert [(int(scan), text[row]) for scan, row in zip(batch["snippet_scan"], batch["snippet_text"], strict=True)] == [
        (i, item["text"]) for i, sample in enumerate(samples) for item in sample["snippets"]
    ]
    sentences = zip(batch["organ_text_scan"], batch["organ_text"], batch["organ_text_class"], strict=True)
    assert [(int(scan), text[row], int(organ)) for scan, row, organ in sentences] == [
        (i, item["text"], item["organ"]) for i, sample in enumerate(samples) for item in sample["organ_sentences"]
    ]


def test_tokens_are_padded_on_the_right(samples, tokenizer):
    batch = collate([samples])
    for text, row, mask in zip(batch["texts"], batch["tokens"], batch["token_mask"], strict=True):
        assert torch.equal(row[mask], tokenizer(text))
        assert torch.equal(mask.long(), mask.long().sort(descending=True).values)
        assert not row[~mask].any()


def test_a_batch_does_not_depend_on_the_cut_but_for_its_volumes(samples):
    one, other = collate([samples]), collate([samples[:1], [], samples[1:5], samples[5:]])
    for key in one.keys() - {"volume", "organs"}:
        equal = torch.equal(one[key], other[key]) if isinstance(one[key], torch.Tensor) else one[key] == other[key]
        assert equal or key == "snippet_size_mm", key
    assert [len(volume) for volume in other["volume"]] == [1, 0, 4, 1]


def test_a_batch_without_scans_has_every_key_and_shape(samples):
    full, empty = collate([samples]), collate([[], []])
    assert full.keys() == empty.keys()
    for key in full:
        if isinstance(full[key], torch.Tensor):
            assert empty[key].dtype == full[key].dtype, key
            assert len(empty[key]) == 0, key
            assert key in ("tokens", "token_mask") or empty[key].shape[1:] == full[key].shape[1:], key
    assert [tuple(volume.shape) for volume in empty["volume"]] == [(0, *EMPTY_SHAPE)] * 2


def test_without_organs_there_are_none(samples):
    bare = [{key: value for key, value in sample.items() if not key.startswith("organs")} for sample in samples]
    batch = collate([bare], with_organs=False)
    assert "organs" not in batch
    assert not batch["has_organs"].any()


def test_groups_follow_studies_and_words(samples):
    batch = collate([samples])
    assert batch["study"][0] == batch["study"][1] != batch["study"][2]
    assert batch["report_group"][0] == batch["report_group"][1] != batch["report_group"][2]
    loud = {**samples[2], "report": samples[2]["report"].upper().replace(".", " ;")}
    loud["token_rows"] = {**loud["token_rows"], loud["report"]: torch.ones(1, dtype=torch.int64)}
    assert collate([[loud]])["report_group"][0] == batch["report_group"][2]


def test_scans_without_report_are_no_group(samples):
    mute = [{**sample, "report": ""} for sample in samples[:2]]
    batch = collate([mute])
    assert batch["report_text"].tolist() == [-1, -1]
    assert batch["report_group"][0] != batch["report_group"][1]


def test_hashes_are_equal_in_every_process():
    code = "from ctgrounding.data.keys import stable_hash as f; raise SystemExit(str(f('study', 'a', 'b')))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert int(other.stderr) == stable_hash("study", "a", "b")


def test_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().seed = 1
