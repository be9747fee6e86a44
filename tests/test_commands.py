"""``locate``, ``search`` and ``compare`` print what they were given as it was written, and say what they looked for."""

import pytest
import tiny_run
import torch
import yaml

from ctgrounding import cli
from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.evaluation.compare import Comparison, Difference
from ctgrounding.model import Model, Use, build
from ctgrounding.testing.shards import write_tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_tiny_shards(folder, scans=1)
    return folder


@pytest.fixture
def model(shards, monkeypatch):
    torch.manual_seed(0)
    sections = yaml.safe_load(tiny_run.MODEL)
    made = Model(build(sections), Use("snippet", "snippet"), {"model": sections, "data": {"shards": str(shards)}})
    for command in ("locate", "search"):
        monkeypatch.setattr(f"ctgrounding.commands.{command}.load", lambda path: made)
    return made


@pytest.fixture
def scan_id(shards):
    return Shard(find_shards([shards])[0]).records[0].scan_id


@pytest.mark.parametrize("text", ["a cyst [left]", "a cyst [/] there", "[red]a cyst[/red]", "a cyst " * 20])
def test_locate_repeats_text_and_picture_as_they_were_written(model, scan_id, tmp_path, capsys, text):
    picture = tmp_path / "a [bold] folder" / ("long" * 20 + ".png")
    cli.main(["locate", text, "--model", "run", "--scan", scan_id, "--output", str(picture)])
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f'"{text}" lies at depth ')
    assert last == f"picture: {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_locate_says_that_there_is_no_such_file_before_it_speaks_of_shards(model, tmp_path, capsys):
    model.config["data"]["shards"] = str(tmp_path / "gone")
    with pytest.raises(SystemExit):
        cli.main(["locate", "a cyst", "--model", "run", "--scan", "misspelt.nii.gz"])
    assert "error: 'misspelt.nii.gz' is no file or folder here" in (said := capsys.readouterr().err)
    assert "--shards" in said


def test_locate_draws_dollars_as_they_are(model, scan_id, tmp_path):
    cli.main(["locate", "of $\\frac and $", "--model", "run", "--scan", scan_id, "--output", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file()


def test_compare_in_a_pipe_cuts_no_name_off(monkeypatch, capsys):
    name, column = "a_number_with_a_long_name/at_12_mm", "[mass] of the left adrenal gland"
    found = Difference(name, column, 0.5, 0.6, 0.1, -0.1, 0.3, 0.2, 0.4, False, 8, 0)
    both = Comparison((found,), ("[note]",), "protocol")
    monkeypatch.setattr("ctgrounding.evaluation.compare.compare", lambda first, second: both)
    cli.main(["compare", "a", "b"])
    printed = capsys.readouterr().out
    assert f"{name} {column}" in printed
    assert "note: [note]" in printed


@pytest.fixture
def opened(monkeypatch):
    """Folders that embeddings of two scans were read from; one id looks like markup and is longer than a line."""
    folders = []

    class Saved:
        scans = ("[bold]" + "1.2.840." * 12, "plain")

        def __init__(self, folder):
            folders.append(folder)

        def vector(self, scan, readout, head):
            return torch.eye(8)[self.scans.index(scan)]

        def check_made_by(self, encode):
            pass

    monkeypatch.setattr("ctgrounding.commands.search.SavedEmbeddings", Saved)
    return folders


def test_search_prints_whole_ids_and_finds_the_run_of_a_checkpoint(model, opened, tmp_path, capsys):
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    cli.main(["search", "a cyst", "--model", str(checkpoint)])
    assert opened == [tmp_path / "run" / "embeddings"]
    assert "[bold]" + "1.2.840." * 12 in capsys.readouterr().out.split()
