from pathlib import Path

import pytest
from word_tokenizer import WordTokenizer

from ctgrounding.data.index import ScanIndex, load_index
from ctgrounding.testing.shards import write_tiny_shards


@pytest.fixture(scope="session")
def tokenizer() -> WordTokenizer:
    return WordTokenizer()


@pytest.fixture(scope="session")
def shard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_shards(folder, scans=24, scans_per_study=2)
    return folder


@pytest.fixture(scope="session")
def index(shard_folder: Path) -> ScanIndex:
    return load_index([shard_folder])
