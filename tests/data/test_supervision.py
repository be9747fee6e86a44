"""Supervision laid over shards: whose words a record then has, and what is refused."""

import resource
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from ctgrounding.data.augment import Crop
from ctgrounding.data.datamodule import ShardDataModule
from ctgrounding.data.index import load_index
from ctgrounding.data.overlay import laid, lay_over
from ctgrounding.data.records import OrganSentenceRecord, SnippetRecord
from ctgrounding.data.shards import Shard
from ctgrounding.data.supervision import (
    RefusedSnippet,
    ScanSupervision,
    SupervisionWriter,
    read_supervision,
    report_sha256,
    supervision_path,
)
from ctgrounding.errors import ConfigError
from ctgrounding.testing.shards import write_tiny_shards


def row_of(record) -> ScanSupervision:
    depth_mm = record.snippets[0].depth_mm
    snippet = SnippetRecord(f"Mined of {record.scan_id}", None, (9, 10), "s", depth_mm, 1, 4, "findings", "spleen")
    sentence = OrganSentenceRecord("Spleen is large.", ("spleen",), "abnormal", "splenomegaly", 0, 16, "impression")
    refused = RefusedSnippet("elsewhere", 3, (7,), 0, 9, "findings", "names an image that its series does not have")
    return ScanSupervision(
        record.dataset, record.scan_id, report_sha256(record.report), (snippet,), (sentence,),
        {"ball": 0, "ball_left": None, "mined": 1}, (refused,),
    )  # fmt: skip


def write(folder, rows, name="mined"):
    with SupervisionWriter(supervision_path(folder, name)) as writer:
        writer.write(rows)


@pytest.fixture
def shards(tmp_path):
    return tmp_path, [record for path in write_tiny_shards(tmp_path, scans=10) for record in Shard(path).records]


def test_a_file_gives_back_what_was_written(shards):
    folder, records = shards
    rows = [row_of(record) for record in records]
    write(folder, rows)
    assert list(read_supervision(folder / "supervision" / "mined.parquet")) == rows


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_full_disk_is_said_and_leaves_no_part_of_a_file(tmp_path, limit):
    """A limit on the size of files makes the system refuse to write, as a full disk does."""
    records = [record for path in write_tiny_shards(tmp_path, scans=4) for record in Shard(path).records]
    rows = [replace(row_of(record), scan_id=f"scan {number}") for number in range(200) for record in records]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(ConfigError, match=r"Cannot write .*mined\.parquet.*free space"):
            write(tmp_path, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "supervision").iterdir()) == []


def test_words_come_from_the_file_and_voxels_from_the_shard(shards):
    folder, records = shards
    write(folder, [row_of(record) for record in records])
    index = lay_over(load_index([folder]), "mined")
    assert index.label_names == ("ball", "ball_left", "ball_right", "mined", "unsure")
    for position, own in enumerate(records):
        record = index.record(position)
        assert record == laid(own, row_of(own))
        assert [snippet.text for snippet in record.snippets] == [f"Mined of {own.scan_id}"]
        assert record.labels == {**own.labels, "ball": 0, "mined": 1}
        unspoken = {"snippets": (), "organ_sentences": (), "labels": {}}
        assert replace(record, **unspoken) == replace(own, **unspoken)
    assert [record for path in sorted(folder.glob("*.h5")) for record in Shard(path).records] == records


def test_rows_of_scans_that_are_in_no_shard_are_passed_over(shards):
    folder, records = shards
    write(folder, [*map(row_of, records), replace(row_of(records[0]), scan_id="quarantined")])
    assert len(lay_over(load_index([folder]), "mined")) == len(records)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"report_sha256": report_sha256({"findings": "Another report."})}, "another report of scan scan0003"),
        ({"scan_id": "scan9999"}, "no row for scan scan0003 of dataset tiny"),
        ({"organ_sentences": (OrganSentenceRecord("x", ("heart",), "normal", "", 0, 1, "findings"),)}, "organ 'heart'"),
    ],
)
def test_what_does_not_fit_the_shards_is_an_error(shards, change, match):
    folder, records = shards
    rows = [row_of(record) for record in records]
    write(folder, [*rows[:3], replace(rows[3], **change), *rows[4:]])
    with pytest.raises(ConfigError, match=match):
        lay_over(load_index([folder]), "mined")


def test_a_missing_file_names_those_that_are_there(shards):
    folder, records = shards
    write(folder, map(row_of, records), name="better")
    with pytest.raises(ConfigError, match=r"'mined', but there is no .*mined\.parquet\. Found .*: better\. Write it"):
        lay_over(load_index([folder]), "mined")


@pytest.mark.parametrize("name", ["", "..", "../x", ".hidden", "a/b"])
def test_a_name_stays_in_its_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a supervision file"):
        supervision_path(tmp_path, name)


def test_a_foreign_or_broken_file_is_refused(tmp_path):
    path = tmp_path / "supervision" / "x.parquet"
    path.parent.mkdir()
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ConfigError, match="cannot be read as a supervision file"):
        list(read_supervision(path))


def test_an_interrupted_writer_leaves_the_old_file(shards):
    folder, records = shards
    write(folder, map(row_of, records))
    before = supervision_path(folder, "mined").read_bytes()

    def interrupted():
        yield row_of(records[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, interrupted())
    assert [path.name for path in (folder / "supervision").iterdir()] == ["mined.parquet"]
    assert supervision_path(folder, "mined").read_bytes() == before


def test_batches_speak_the_words_of_the_file(shards, tokenizer):
    folder, records = shards
    write(folder, map(row_of, records))
    data = ShardDataModule(str(folder), batch_size=4, crop=Crop((8, 16, 16)), supervision="mined", val_split="all")
    task = SimpleNamespace(tokenizer=tokenizer)
    data.trainer = SimpleNamespace(lightning_module=task, global_rank=0, world_size=1, current_epoch=0)
    data.setup("fit")
    seen = {}
    for batch in data.val_dataloader():
        for scan, text in zip(batch["snippet_scan"].tolist(), batch["snippet_text"].tolist(), strict=True):
            seen[batch["scan_id"][scan]] = batch["texts"][text]
        assert {batch["texts"][text] for text in batch["organ_text"].tolist()} == {"Spleen is large."}
    assert seen == {record.scan_id: f"Mined of {record.scan_id}" for record in records}
    assert data.label_names == ("ball", "ball_left", "ball_right", "mined", "unsure")


class Listener(LightningModule):
    """Trains nothing that matters and remembers the words of every step."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.snippets, self.findings = set(), set()

    def training_step(self, batch, batch_idx):
        self.snippets |= {batch["texts"][text] for text in batch["snippet_text"].tolist()}
        self.findings |= set(batch["organ_finding"])
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("supervision", [None, "mined"])
def test_fit_trains_on_the_words_of_the_file(shards, tokenizer, tmp_path, supervision):
    folder, records = shards
    write(folder, map(row_of, records))
    data = ShardDataModule(str(folder), batch_size=2, supervision=supervision)
    task = Listener(tokenizer)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_epochs=1, limit_val_batches=0, default_root_dir=tmp_path, **quiet).fit(task, data)
    assert task.snippets
    assert all(text.startswith("Mined of" if supervision else "Bright ball") for text in task.snippets)
    assert task.findings == ({"splenomegaly"} if supervision else {"ball", ""})
