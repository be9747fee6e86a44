import dataclasses
import math
from collections import Counter
from types import SimpleNamespace

import pytest

from ctgrounding.data.augment import Crop
from ctgrounding.data.buckets import Buckets
from ctgrounding.data.datamodule import ShardDataModule, ShardSource
from ctgrounding.data.index import load_index
from ctgrounding.data.report_text import ReportText
from ctgrounding.data.shards import Shard, ShardWriter
from ctgrounding.data.shares import Shares
from ctgrounding.errors import CheckpointError, ConfigError, ShardError
from ctgrounding.testing.shards import CLASSES, write_tiny_shards


def set_up(shards, tokenizer, **changes) -> ShardDataModule:
    data = ShardDataModule(shards, **{"batch_size": 4, "crop": Crop((8, 16, 16)), **changes})
    data.trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(tokenizer=tokenizer), global_rank=0, world_size=1, current_epoch=0
    )
    data.setup("fit")
    return data


def test_each_stage_shows_its_split(shard_folder, tokenizer):
    data = set_up([str(shard_folder)], tokenizer)
    split_of = dict(zip(data.index.columns["scan_id"], data.index.columns["split"], strict=True))
    loaders = {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}
    for split, loader in loaders.items():
        assert {split_of[scan] for batch in loader for scan in batch["scan_id"]} == {split}
    shown = Counter(scan for batch in data.predict_dataloader() for scan in batch["scan_id"])
    assert shown == Counter(scan for scan, split in split_of.items() if split == "test")


def test_training_is_cropped_and_evaluation_whole(shard_folder, tokenizer):
    data = set_up(str(shard_folder), tokenizer)
    assert {volume.shape[1:] for batch in data.train_dataloader() for volume in batch["volume"]} == {(8, 16, 16)}
    for batch in data.val_dataloader():
        assert min(batch["volume"][0].shape[1:]) >= 16
        assert not batch["snippets_dropped"].any()


def test_overfitting_shows_the_same_scans_in_every_epoch(shard_folder, tokenizer):
    def first_batches(overfit):
        data = set_up(str(shard_folder), tokenizer)
        data.trainer.overfit_batches = overfit
        loader, shown = data.train_dataloader(), []
        for data.trainer.current_epoch in range(3):
            shown.append(frozenset(next(iter(loader))["scan_id"]))
        return len(set(shown))

    assert (first_batches(1), first_batches(0.0)) == (1, 3)


def test_one_reconstruction_a_study_unless_all_are_asked_for(shard_folder, tokenizer):
    def studies(**changes):
        loader = set_up(str(shard_folder), tokenizer, batch_size=1, **changes).train_dataloader()
        return Counter(batch["study_id"][0] for batch in loader)

    assert set(studies().values()) == {1}
    assert set(studies(one_scan_per_study=False).values()) == {2}


def test_named_sources_are_mixed_by_weight(tmp_path, tokenizer):
    write_tiny_shards(tmp_path / "large", scans=20, splits=("train",), dataset="large")
    write_tiny_shards(tmp_path / "small", scans=4, splits=("train",), dataset="small")
    shards = {
        "large": ShardSource([str(tmp_path / "large")], 1.0),
        "small": ShardSource([str(tmp_path / "small")], 1.0),
    }
    for batch in set_up(shards, tokenizer).train_dataloader():
        assert Counter(batch["dataset"]) == {"large": 2, "small": 2}
    shards = {name: dataclasses.replace(source, weight=None) for name, source in shards.items()}
    shown = Counter(name for batch in set_up(shards, tokenizer).train_dataloader() for name in batch["dataset"])
    assert shown == {"large": 20, "small": 4}


def test_shares_hold_in_every_step(tmp_path, tokenizer):
    write_tiny_shards(tmp_path, scans=40, splits=("train",))
    data = set_up(str(tmp_path), tokenizer, shares=Shares(masks_and_snippets=1, snippets=3))
    masked = {data.index.record(i).scan_id: bool(data.index.record(i).organ_voxels) for i in range(len(data.index))}
    assert Counter(masked.values()) == {True: 20, False: 20}
    batches = [batch["scan_id"] for batch in data.train_dataloader()]
    assert len(batches) == 10
    assert {sum(masked[scan] for scan in batch) for batch in batches} == {1}


def test_shares_of_two_data_sets_keep_their_weights(tmp_path, tokenizer):
    shards = {}
    for name, weight in (("one", 1.0), ("two", 3.0)):
        write_tiny_shards(tmp_path / name, scans=16, splits=("train",), dataset=name)
        shards[name] = ShardSource([str(tmp_path / name)], weight)
    shares = Shares(masks_and_snippets=1, snippets=1)
    data = set_up(shards, tokenizer, batch_size=8, shares=shares)
    for batch in data.train_dataloader():
        assert Counter(batch["dataset"]) == {"one": 2, "two": 6}


def test_a_share_of_nothing_is_refused_and_a_share_of_zero_said(shard_folder, tokenizer, caplog):
    data = set_up(str(shard_folder), tokenizer, shares=Shares(neither=1))
    with pytest.raises(ConfigError, match=r"data.shares.neither is 1, but no training scan .* neither 0"):
        data.train_dataloader()
    with caplog.at_level("WARNING"):
        loader = set_up(str(shard_folder), tokenizer, shares=Shares(snippets=1)).train_dataloader()
    assert "of masks_and_snippets are left out" in caplog.text
    assert all("organs" not in batch or not batch["organ_voxels"].any() for batch in loader)
    with pytest.raises(ConfigError, match="all 0"):
        Shares()
    with pytest.raises(ConfigError, match="masks is -1"):
        Shares(masks=-1)
    with pytest.raises(ConfigError, match="masks is inf; a share is a finite number"):
        Shares(masks=math.inf)


@pytest.mark.parametrize(("has_masks", "has_snippets", "kind"), [
    (True, True, "masks_and_snippets"), (True, False, "masks"), (False, True, "snippets"), (False, False, "neither"),
])  # fmt: skip
def test_kinds_of_scans(has_masks, has_snippets, kind):
    assert Shares.kind(has_masks=has_masks, has_snippets=has_snippets) == kind


def test_label_columns_are_those_asked_for(shard_folder, tokenizer):
    data = set_up(str(shard_folder), tokenizer)
    assert data.label_names == ("ball", "ball_left", "ball_right", "unsure")
    batch = next(iter(set_up(str(shard_folder), tokenizer, label_names=["unsure", "ball"]).val_dataloader()))
    assert {tuple(row) for row in batch["labels"].tolist()} == {(-1, 1)}
    with pytest.raises(ConfigError, match=r"'bal', which no scan.*ball_left"):
        set_up(str(shard_folder), tokenizer, label_names=["bal"])


def test_short_reports_give_no_text_but_keep_their_scan(shard_folder, tokenizer):
    data = set_up(str(shard_folder), tokenizer, report_text=ReportText(["impression"], minimum_words=5))
    batch = next(iter(data.val_dataloader()))
    assert batch["report_text"].tolist() == [-1] * len(batch["scan_id"])
    assert len(batch["snippet_text"]) == len(batch["scan_id"])


def test_a_patient_in_two_splits_is_refused(tmp_path, tokenizer):
    source = Shard(write_tiny_shards(tmp_path / "source", scans=2, shards=1)[0])
    with ShardWriter(tmp_path / "a.h5", spacing_mm=source.spacing_mm, classes=CLASSES, dataset="tiny") as writer:
        for row, split in enumerate(("train", "val")):
            record = dataclasses.replace(source.records[row], split=split, patient_id="same")
            writer.write(record, source.read_image(row))
    with pytest.raises(ConfigError, match="Patient same of dataset tiny is in splits train and val"):
        set_up(str(tmp_path / "a.h5"), tokenizer)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mirror_probability": 2.0}, "mirror_probability is 2.0"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
        ({"micro_batch_size": -1}, r"data\.micro_batch_size is -1"),
        ({"micro_batch_size": 0, "crop": Crop(), "buckets": Buckets()}, r"data\.micro_batch_size is 0"),
        ({"evaluation_batch_size": 0}, r"data\.evaluation_batch_size is 0"),
        ({"num_workers": -1}, r"data\.num_workers is -1"),
        ({"prefetch": 0}, r"data\.prefetch is 0; it must be at least 1"),
        ({"shards": []}, "names no shard"),
    ],
)
def test_impossible_arguments_are_refused(changes, match):
    with pytest.raises(ConfigError, match=match):
        ShardDataModule(**{"shards": "x", **changes})


def test_shards_that_are_not_there_are_named(tmp_path, tokenizer):
    with pytest.raises(ShardError, match=str(tmp_path / "nowhere")):
        set_up(str(tmp_path / "nowhere"), tokenizer)


def test_a_shard_under_two_names_is_refused(shard_folder, tokenizer):
    shards = {name: ShardSource([str(shard_folder)]) for name in ("a", "b")}
    with pytest.raises(ConfigError, match="twice, in a and b"):
        set_up(shards, tokenizer)


def test_a_task_without_tokenizer_is_told_so(shard_folder):
    with pytest.raises(ConfigError, match="no tokenizer"):
        set_up(str(shard_folder), None)


def test_a_foreign_position_is_refused():
    with pytest.raises(CheckpointError, match="data position"):
        ShardDataModule("x").load_state_dict({"batch": 3})


def test_skipped_scans_are_reported(tmp_path, tokenizer):
    paths = write_tiny_shards(tmp_path, scans=10)
    load_index([tmp_path])
    data = set_up(str(tmp_path), tokenizer, on_error="skip", val_split="all")
    data.index.shards[1].reopen()
    paths[1].write_bytes(b"gone")
    shown = [scan for batch in data.val_dataloader() for scan in batch["scan_id"]]
    assert len(shown) == len(data.skipped) == 5
    assert "copy it again" in data.skipped["scan0009"]


def test_arguments_come_from_yaml(shard_folder):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(ShardDataModule, "data")
    parsed = parser.parse_string(f"""
data:
  shards: {{mine: {{paths: [{shard_folder}], weight: 2}}}}
  crop: {{shape: [96, null, 192.5], unit: mm, start_multiple: [32, 16, 16]}}
  report_text: {{findings_dropout: 0.176, sections: [impression]}}
""")
    data = parser.instantiate_classes(parsed).data
    assert isinstance(data, ShardDataModule)
    assert data._training.crop == Crop((96, None, 192.5), "mm", (32, 16, 16))
    assert len(data.index) == 24


def test_sections_that_no_report_has_are_refused(shard_folder, tokenizer):
    with pytest.raises(ConfigError, match=r"sections are \['Findings'\].*They have: \['findings'"):
        set_up(str(shard_folder), tokenizer, report_text=ReportText(sections=["Findings"]))
    set_up(str(shard_folder), tokenizer, report_text=ReportText(sections=["Findings", "findings"]))


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_split_to_evaluate_that_is_empty_is_refused(tmp_path, tokenizer, stage):
    write_tiny_shards(tmp_path, scans=8, splits=("train",))
    data = set_up(str(tmp_path), tokenizer)
    assert len(data.val_dataloader()) == 0
    with pytest.raises(ConfigError, match=f"in split (val|test), which '{stage}' shows"):
        data.setup(stage)


def test_a_source_without_a_weight_may_be_for_tests_alone(tmp_path, tokenizer):
    write_tiny_shards(tmp_path / "mine", scans=8, splits=("train",), dataset="mine")
    write_tiny_shards(tmp_path / "other", scans=4, splits=("test",), dataset="other")
    shards = {"mine": ShardSource([str(tmp_path / "mine")], 1.0), "other": ShardSource([str(tmp_path / "other")])}
    data = set_up(shards, tokenizer)
    assert {name for batch in data.train_dataloader() for name in batch["dataset"]} == {"mine"}
    assert {name for batch in data.test_dataloader() for name in batch["dataset"]} == {"other"}
    shards["other"].weight = 0.5
    with pytest.raises(ConfigError, match="No training scans in other"):
        set_up(shards, tokenizer).train_dataloader()
