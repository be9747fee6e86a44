import os
import pickle
import shutil

import pytest

from ctgrounding.data import index as index_module
from ctgrounding.data.index import INDEX_NAME, load_index
from ctgrounding.data.shards import Shard, ShardWriter
from ctgrounding.errors import ConfigError, ShardError
from ctgrounding.testing.shards import write_tiny_shards


@pytest.fixture
def opened(monkeypatch):
    """Names of the shards that an index had to open."""
    names = []

    class Watched(Shard):
        def record_texts(self):
            names.append(self.path.name)
            return super().record_texts()

    monkeypatch.setattr(index_module, "Shard", Watched)
    return names


def ids(folder):
    return load_index([folder]).columns["scan_id"]


def test_index_agrees_with_the_shards(tmp_path):
    paths = write_tiny_shards(tmp_path, scans=7, shards=3)
    index = load_index([tmp_path])
    expected = [record for path in paths for record in Shard(path).records]
    for index_now in (index, load_index([tmp_path]), pickle.loads(pickle.dumps(index))):
        assert [index_now.record(i) for i in range(len(index_now))] == expected
        assert [index_now.shard(i)[0].records[index_now.shard(i)[1]] for i in range(7)] == expected
    assert index.label_names == ("ball", "ball_left", "ball_right", "unsure")


def test_second_start_opens_nothing(tmp_path, opened):
    write_tiny_shards(tmp_path, scans=6)
    first = ids(tmp_path)
    assert opened == ["shard-00000.h5", "shard-00001.h5"]
    opened.clear()
    assert ids(tmp_path) == first
    assert opened == []


def test_only_changed_shards_are_read_again(tmp_path, opened):
    write_tiny_shards(tmp_path, scans=6)
    ids(tmp_path)
    opened.clear()
    other = write_tiny_shards(tmp_path / "other", scans=6, seed=1, scans_per_study=2)[1]
    other.replace(tmp_path / "shard-00001.h5")
    index = load_index([tmp_path])
    assert opened == ["shard-00001.h5"]
    assert index.columns["study_id"] == ("study0000", "study0001", "study0002", "study0001", "study0002", "study0002")


def test_a_copied_shard_is_known_by_its_content(tmp_path, opened):
    for path in write_tiny_shards(tmp_path, scans=6):
        ids(tmp_path)
        os.utime(path, ns=(1, 1))
    opened.clear()
    assert len(ids(tmp_path)) == 6
    assert opened == []


def test_a_damaged_or_missing_cache_is_made_again(tmp_path, opened):
    write_tiny_shards(tmp_path, scans=6)
    first = ids(tmp_path)
    (tmp_path / INDEX_NAME).write_bytes(b"PAR1 not really")
    assert ids(tmp_path) == first
    (tmp_path / INDEX_NAME).unlink()
    assert ids(tmp_path) == first
    assert len(opened) == 6


def test_a_folder_that_cannot_be_written_is_read_each_time(tmp_path, opened, monkeypatch):
    write_tiny_shards(tmp_path, scans=6)

    def refuse(*_, **__):
        raise OSError("read-only")

    monkeypatch.setattr(index_module.pq, "write_table", refuse)
    assert ids(tmp_path) == ids(tmp_path)
    assert len(opened) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-00000.h5", "shard-00001.h5"]


def test_one_shard_of_a_folder_keeps_the_others_in_the_cache(tmp_path, opened):
    paths = write_tiny_shards(tmp_path, scans=6)
    ids(tmp_path)
    os.utime(paths[0], ns=(1, 1))
    assert len(load_index([paths[0]])) == 3
    opened.clear()
    assert len(ids(tmp_path)) == 6
    assert opened == []


def test_splits_and_studies(tmp_path):
    write_tiny_shards(tmp_path, scans=10, scans_per_study=2)
    index = load_index([tmp_path])
    train = index.of_split("train")
    assert set(train.columns["split"]) == {"train"}
    assert len(index.of_split("all")) == 10
    assert [[train.columns["study_id"][i] for i in group] for group in train.of_studies()] == [
        ["study0000"] * 2, ["study0001"] * 2, ["study0002"] * 2,
    ]  # fmt: skip


def test_a_scan_that_is_there_twice_is_refused(tmp_path):
    write_tiny_shards(tmp_path / "a", scans=2, shards=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ShardError, match="scan0000 of dataset tiny is in the shards twice"):
        load_index([tmp_path / "a", tmp_path / "b"])


def test_class_tables_must_agree(tmp_path):
    write_tiny_shards(tmp_path, scans=2, shards=1)
    with ShardWriter(tmp_path / "z.h5", spacing_mm=(3, 1.5, 1.5), classes={1: "spleen"}, dataset="other"):
        pass
    with pytest.raises(ConfigError, match="different organ classes"):
        load_index([tmp_path])
