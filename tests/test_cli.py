"""What a user of the command line meets: one sentence for every mistake, overrides, reruns."""

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
import torch
import yaml

from ctgrounding import cli

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def quiet_logging(monkeypatch):
    """Lightning's handlers keep the stream of the test that imported it."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    return tiny_run.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail as promised, and returns its one sentence."""

    def call(*words: str) -> str:
        with pytest.raises(SystemExit) as leaving:
            cli.main([str(word) for word in words])
        assert leaving.value.code == 2
        captured = capsys.readouterr().err
        assert "Traceback" not in captured
        message = captured.splitlines()[-1]
        assert message.startswith("error: ")
        assert message.endswith((".", "?"))
        assert len(message) < 400
        return message

    return call


class TestWithoutARun:
    def test_help__quick_and_without_torch(self):
        code = "import sys, ctgrounding.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
        started = time.process_time(), time.perf_counter()
        done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-500:]
        assert all(command in done.stdout for command in [*cli.TRAINER_COMMANDS, *cli.COMMANDS])
        assert time.perf_counter() - started[1] < 10  # a guard against imports; the promise is one second alone

    def test_version(self, capsys):
        cli.main(["--version"])
        assert capsys.readouterr().out.startswith("ctgrounding ")

    def test_a_reader_that_leaves_early_is_no_fault(self):
        code = "import ctgrounding.cli as c; c.main(['--help'])"
        started = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.stdout.close()
        assert started.wait(timeout=60) == 1
        assert started.stderr.read() == b""
        started.stderr.close()

    def test_ctrl_c_leaves_without_a_traceback(self, monkeypatch, capsys):
        def interrupted(words):
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "_find", lambda name: interrupted)
        with pytest.raises(SystemExit) as leaving:
            cli.main(["search", "a cyst"])
        assert leaving.value.code == 130
        assert capsys.readouterr().err == "Stopped.\n"

    def test_doctor_without_a_word_behind_it(self, monkeypatch, capsys):
        from ctgrounding.commands import doctor

        monkeypatch.setattr(doctor, "_CHECKS", {"python": doctor._CHECKS["python"]})
        cli.main(["doctor"])
        assert "Everything that ctgrounding needs works." in capsys.readouterr().out

    def test_doctor_ends_with_1_where_something_needs_mending(self, monkeypatch, capsys):
        from ctgrounding.commands import doctor

        monkeypatch.setattr(doctor, "_CHECKS", {"codec": lambda: (False, "no Blosc", "Install hdf5plugin.")})
        with pytest.raises(SystemExit, match="1"):
            cli.main(["doctor"])
        assert "Something above needs mending." in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["fitt"], "Did you mean 'fit'"),
            (["phantom", "--patiens", "3"], "There is no option --patiens"),
            (["ingest", "--card", "nope.yaml", "--output", "x"], "There is no card 'nope.yaml'"),
            (
                ["search", "--model", "x", "a", "cyst", "left"],
                "Nothing takes 'cyst left'. Put text of several words in",
            ),
            (["locate", "a cyst", "--model", "none", "--scan", "x"], "There is no checkpoint at none"),
            (["fit", "--config", "nope.yaml"], "There is no config file 'nope.yaml'"),
            (["fit"], "Nothing says what model.image"),
            (["import-weights", "--from", "hlip", "--output", "x"], "what checkpoint should be. Give it; --help says"),
        ],
    )
    def test_mistakes(self, refused, words, says):
        assert says in refused(*words)

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (
                ["export", "--shape", "8"],
                "error: shape: expected values in square brackets, such as [1, 2, 3], got '8'.",
            ),
            (
                ["export", "--shape", "a"],
                "error: shape: expected values in square brackets, such as [1, 2, 3], got 'a'.",
            ),
            (["inspect", "x", "--chunk", "8,8,8"], "square brackets, such as [1, 2, 3], got '8,8,8'."),
            (["ingest", "--spacing_mm", "[1, 2]"], "spacing_mm: expected 3 values in square brackets, "),
            (
                ["phantom", "--split", "1"],
                "error: split: expected values in square brackets, such as [1, 2, 3], got '1'.",
            ),
            (["phantom", "--split", "[1]"], "expected 3 values in square brackets, such as [1, 2, 3], got '[1]'."),
            (["phantom", "--format", "x"], "error: format: expected one of 'nifti', 'dicom', 'mixed', got 'x'."),
            (["inspect", "x", "--codec", "zip"], "error: codec: expected one of 'zstd', 'lz4', 'none', got 'zip'."),
            (
                ["phantom", "--split", "1, " * 30],
                "split: expected values in square brackets, such as [1, 2, 3].",
            ),
        ],
    )
    def test_values_that_are_no_list_or_no_choice_are_told_what_to_be(self, refused, words, says):
        required = {"export": ["--model", "x"], "ingest": ["--card", "phantom"]}.get(words[0], [])
        output = [] if words[0] == "inspect" else ["--output", "y"]
        assert says in refused(*words, *required, *output)

    @pytest.mark.parametrize(
        ("content", "says"),
        [("model: [a\n", "is no YAML at line 2"), ("", "holds no settings"), ("- a\n", "holds no settings")],
    )
    def test_config_files_that_are_none(self, refused, tmp_path, content, says):
        file = tmp_path / "odd.yaml"
        file.write_text(content)
        assert says in refused("fit", "--config", file)

    def test_lightning_alias(self, capsys):
        with pytest.raises(SystemExit):
            cli.lightning_main(["fit", "--config", "nope.yaml"])
        assert "There is no config file" in capsys.readouterr().err

    def test_lightning_alias__other_words_need_the_sdk(self, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "lightning_sdk.cli.entrypoint", None)
        with pytest.raises(SystemExit) as leaving:
            cli.lightning_main(["login"])
        assert leaving.value.code == 2
        assert "lightning-sdk is not installed" in capsys.readouterr().err


MISTAKES = {
    "class": (
        ["--model.objectives.organ.class_path", "ctgrounding.objectives.OrganGroundin"],
        ["model.objectives.organ.class_path", "Did you mean 'OrganGrounding'"],
    ),
    "class_without_path": (
        ["--model.objectives.organ.class_path", "OrganGroundin"],
        ["model.objectives.organ.class_path", "'OrganGroundin'"],
    ),
    "module": (
        ["--model.objectives.organ.class_path", "my_package.MoreOfIt"],
        ["model.objectives: there is no module 'my_package'", "on PYTHONPATH"],
    ),
    "encoder": (["--model.image", "ctgrounding.encoders.image.conv.PatchCon"], ["model.image", "'PatchConv'"]),
    "argument": (
        ["--model.objectives.organ.init_args.image_haed", "organ"],
        ["model.objectives.organ.init_args.image_haed", "Did you mean 'image_head'"],
    ),
    "encoder_argument": (["--model.image.init_args.widht", "3"], ["model.image.init_args.widht", "'width'"]),
    "trainer_argument": (["--trainer.max_epoch", "3"], ["--trainer.max_epoch"]),
    "data_argument": (["--data.batchsize", "3"], ["--data.batchsize"]),
    "value": (["--data.batch_size", "many"], ["data.batch_size", "expected int", "'many'"]),
    "refused_value": (["--model.optimizer.init_args.lr", "-1"], ["Learning rate is -1.0", "model.optimizer"]),
    "betas": (["--model.optimizer.init_args.betas", "[0.9, 1.5]"], ["betas", "[0.9, 1.5]"]),
    "share": (["--model.optimizer.init_args.warmup_fraction", "2"], ["warmup_fraction", "2.0"]),
    "pattern": (["--model.optimizer.init_args.lr_scale", '{"(": 1.0}'], ["lr_scale has '('"]),
    "precision": (["--trainer.precision", "bf16-true"], ["trainer.precision bf16-true", "bf16-mixed"]),
    "strategy": (["--trainer.strategy", "fsdp"], ["The trainer's arguments do not fit", "requires a GPU"]),
    "nodes": (["--trainer.num_nodes", "0"], ["`num_nodes` must be a positive integer"]),
    "objective": (["--model.objectives.orgn", "null"], ["model.objectives.orgn", "'organ'"]),
    "evaluator": (["--model.evaluators.finding", "null"], ["model.evaluators.finding switches off an evaluator"]),
    "head": (["--model.objectives.organ.init_args.image_head", "orga"], ["'orga'", "model.heads.image"]),
    "head_setting": (["--model.heads.image.main.widht", "8"], ["model.heads.image.main.widht"]),
    "readout": (["--model.heads.image.main.readout", "globl"], ["model.heads.image.main", "'globl'"]),
    "weight": (["--model.weights.orgn", "1.0"], ["model.weights", "'orgn'"]),
    "negative_weight": (["--model.weights.organ", "-1.0"], ["model.weights.organ is -1.0"]),
    "no_weight": (["--model.weights.organ", ".nan"], ["model.weights.organ is nan"]),
    "interpolation": (["--data.seed", "${data.nothing}"], ["data.seed", "data.nothing"]),
    "shards": (["--data.shards", "nowhere"], ["no shard or folder at nowhere"]),
    "checkpoint": (["--ckpt_path", "none.ckpt"], ["no checkpoint at none.ckpt"]),
    "label": (["--data.label_names", "[nope]"], ["data.label_names", "'nope'"]),
    "batch_size": (["--data.batch_size", "1000"], ["data.batch_size is 1000"]),
    "accumulation": (["--trainer.accumulate_grad_batches", "2"], ["data.micro_batch_size"]),
    "accumulation_later": (
        ["--trainer.callbacks+=GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 1, 1: 2}"],
        ["trainer.callbacks has GradientAccumulationScheduler", "data.micro_batch_size"],
    ),
    "rate_finder": (["--trainer.callbacks+=LearningRateFinder"], ["trainer.callbacks has LearningRateFinder"]),
    "endless": (
        ["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:10"],
        ["trainer.max_epochs -1 says no number of them", "max_steps"],
    ),
    "validation_after_the_epoch": (
        ["--trainer.val_check_interval", "50"],
        ["`val_check_interval` (50) must be less than or equal"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_run(refused, run_file, mistake):
    words, says = MISTAKES[mistake]
    message = refused("fit", "--config", run_file, *words)
    assert all(part in message for part in says), message


def test_file_with_a_misspelt_argument(refused, run_file, tmp_path):
    content = run_file.read_text().replace("text_head: snippet", "text_haed: snippet")
    (tmp_path / "run.yaml").write_text(content)
    message = refused("fit", "--config", tmp_path / "run.yaml")
    assert "model.objectives.snippet.init_args.text_haed" in message
    assert "Did you mean 'text_head'" in message


def test_second_file_that_would_drop_objectives(refused, run_file, tmp_path):
    second = tmp_path / "second.yaml"
    second.write_text("model: {objectives: {global: {class_path: ctgrounding.objectives.GlobalContrastive}}}")
    message = refused("fit", "--config", run_file, "--config", second)
    assert str(second) in message
    assert "would drop" in message


def test_evaluation_before_training(refused, run_file, tmp_path):
    message = refused("test", "--config", run_file, "--trainer.default_root_dir", tmp_path)
    assert "Fit first" in message


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_no_last_checkpoint_is_no_reason_to_evaluate_an_untrained_model(refused, run_file, tmp_path, command):
    words = ["--trainer.default_root_dir", tmp_path, "--data.shards", run_file.parent / "shards", "--ckpt_path", "last"]
    assert "Fit first" in refused(command, "--config", run_file, *words)


def test_scan_list_without_a_protocol_is_not_passed_over(refused, run_file):
    assert "--scan_list is for a --protocol" in refused("test", "--config", run_file, "--scan_list", "none.txt")


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize(("name", "says"), [("best", "only while a fit runs"), ("hpc", "finds no hpc_ckpt_")])
def test_checkpoints_that_cannot_be_found_by_their_kind(refused, run_file, command, name, says):
    assert says in refused(command, "--config", run_file, "--ckpt_path", name)


def test_a_number_that_an_evaluator_refuses(refused, run_file):
    evaluators = "{found: {class_path: ctgrounding.evaluation.SnippetDepth, init_args: {examples: -1}}}"
    message = refused("fit", "--config", run_file, "--model.evaluators", evaluators)
    assert message.startswith("error: examples is -1, but must be a number from 0 on")


def parsed(*words: object) -> dict:
    from ctgrounding.trainer_cli import run

    tool = run([str(word) for word in words], execute=False)
    return yaml.safe_load(tool.parser.dump(tool.config, skip_none=False))["fit"]


class TestOverrides:
    def test_interpolation_follows(self, run_file):
        config = parsed("fit", "--config", run_file, "--trainer.default_root_dir", "elsewhere")
        assert config["data"]["shards"] == "elsewhere/shards"

    def test_command_line_beats_later_files_beat_earlier_ones(self, run_file, tmp_path):
        overlay = tmp_path / "overlay.yaml"
        overlay.write_text("trainer: {max_epochs: 7}\ndata: {batch_size: 3}")
        config = parsed("fit", "--config", run_file, "--config", overlay, "--data.batch_size", "2")
        assert (config["trainer"]["max_epochs"], config["data"]["batch_size"]) == (7, 2)
        assert sorted(config["model"]["objectives"]) == ["disease", "global", "organ", "snippet"]

    def test_a_callback_whose_default_is_a_device(self, run_file):
        averaging = "--trainer.callbacks+=lightning.pytorch.callbacks.StochasticWeightAveraging"
        config = parsed("fit", "--config", run_file, averaging, "--trainer.callbacks.swa_lrs", "0.01")
        assert config["trainer"]["callbacks"][0]["init_args"]["device"] == "cpu"

    def test_one_nested_value(self, run_file):
        before, after = (
            parsed("fit", "--config", run_file, *words)["model"]["heads"]
            for words in ([], ["--model.heads.text.organ.width", "16"])
        )
        assert after["text"]["organ"]["width"] == 16
        after["text"]["organ"]["width"] = 8
        assert after == before

    def test_null_switches_an_objective_off(self, run_file):
        config = parsed("fit", "--config", run_file, "--model.objectives.snippet", "null")
        assert config["model"]["objectives"]["snippet"] is None
        assert config["model"]["objectives"]["organ"] is not None

    def test_null_may_be_the_value_of_an_objectives_argument(self, run_file):
        config = parsed("fit", "--config", run_file, "--model.objectives.organ.init_args.normal_text", "null")
        assert config["model"]["objectives"]["organ"]["init_args"]["normal_text"] is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    file = tiny_run.write_run(tmp_path_factory.mktemp("finished"))
    cli.main(["fit", "--config", str(file)])
    return file


class TestRuns:
    def test_last_checkpoint_where_a_callback_of_ones_own_puts_it(self, finished, tmp_path, monkeypatch):
        from ctgrounding.trainer_cli import TrainerCLI

        chosen = []
        monkeypatch.setattr(TrainerCLI, "_run_subcommand", lambda cli, _: chosen.append(cli.config["test"].ckpt_path))
        callback = "lightning.pytorch.callbacks.ModelCheckpoint"
        own = ["--trainer.callbacks+", callback, "--trainer.callbacks.dirpath", str(finished.parent / "checkpoints")]
        words = [*own, "--trainer.default_root_dir", str(tmp_path), "--ckpt_path", "last"]
        cli.main(["test", "--config", str(finished), *words])
        assert chosen == [str(finished.parent / "checkpoints" / "last.ckpt")]

    def test_saved_config_reruns(self, finished, tmp_path):
        cli.main(["fit", "--config", str(finished.parent / "config.yaml"), "--trainer.default_root_dir", str(tmp_path)])
        assert tiny_run.logged(tmp_path) == tiny_run.logged(finished.parent)

    def test_results_of_another_split_stand_beside_those_of_the_test_split(self, refused, finished):
        cli.main(["test", "--config", str(finished), "--data.test_split", "val"])
        other = finished.parent / "splits" / "val"
        assert json.loads((other / "results.json").read_text())["about"]["split"] == "val"
        assert not (finished.parent / "metrics.json").exists()
        assert f"Results of other splits lie in {other}." in refused("report", finished.parent)
        (other / "report.html").unlink()
        cli.main(["report", str(other)])
        assert "val split" in (other / "report.html").read_text()

    def test_objective_switched_off_leaves_the_log(self, finished, tmp_path):
        words = ["--model.objectives.snippet", "null", "--trainer.default_root_dir", str(tmp_path)]
        shards = ["--data.shards", str(finished.parent / "shards"), "--trainer.max_steps", "1"]
        cli.main(["fit", "--config", str(finished), *words, *shards])
        assert tiny_run.logged(tmp_path, "train/snippet/depth") == []
        assert len(tiny_run.logged(tmp_path, "train/organ/anatomy")) == 1

    def test_objective_switched_off_leaves_what_the_checkpoint_has_of_it(self, refused, finished, tmp_path, caplog):
        """``disease`` keeps the weights of its labels there; a test needs none of it, and a fit goes on without."""
        last = finished.parent / "checkpoints" / "last.ckpt"
        moved = ["--trainer.default_root_dir", str(tmp_path), "--data.shards", str(finished.parent / "shards")]
        words = [*moved, "--ckpt_path", str(last), "--model.objectives.disease", "null"]
        said = "model.objectives.disease is null: 1 tensors of it in the checkpoint are left out."
        cli.main(["test", "--config", str(finished), *words])
        assert said in caplog.messages
        assert (tmp_path / "metrics.json").is_file()
        caplog.clear()
        cli.main(["fit", "--config", str(finished), *words, "--trainer.max_epochs", "3"])
        assert said in caplog.messages
        new = tmp_path / "checkpoints" / "last.ckpt"
        before, went_on = (torch.load(file, weights_only=True) for file in (last, new))
        assert went_on["global_step"] == before["global_step"] * 3 // 2
        assert not [name for name in went_on["state_dict"] if name.startswith("objectives.disease")]
        message = refused("test", "--config", finished, *moved, "--ckpt_path", new)
        assert "1 missing (objectives.disease.positive_weight)" in message

    def test_checkpoint_of_another_config(self, refused, finished):
        last = finished.parent / "checkpoints" / "last.ckpt"
        words = ["--model.heads.text.organ.hidden", "8", "--model.heads.text.organ.kind", "mlp"]
        message = refused("fit", "--config", finished, "--ckpt_path", last, *words)
        assert "does not fit this configuration" in message
        assert "encoder.heads.text_heads.organ" in message

    def test_stopping_by_a_number_that_there_is_not(self, refused, finished, tmp_path):
        stop = [
            "--trainer.callbacks+",
            "lightning.pytorch.callbacks.EarlyStopping",
            "--trainer.callbacks.monitor",
            "val/x",
        ]
        words = [*stop, "--trainer.default_root_dir", tmp_path, "--data.shards", finished.parent / "shards"]
        assert "metric `val/x` which is not available" in refused("fit", "--config", finished, *words)

    def test_checkpoint_whose_optimizer_has_other_groups(self, refused, finished):
        words = ["--ckpt_path", "last", "--trainer.max_epochs", "9", "--model.optimizer.init_args.layer_decay", "0.5"]
        assert "other groups of parameters" in refused("fit", "--config", finished, *words)

    def test_checkpoint_cut_in_half(self, refused, finished, tmp_path):
        cut = tmp_path / "cut.ckpt"
        whole = (finished.parent / "checkpoints" / "last.ckpt").read_bytes()
        cut.write_bytes(whole[: len(whole) // 2])
        assert "cannot be read as a checkpoint" in refused("fit", "--config", finished, "--ckpt_path", cut)

    def test_files_that_are_no_checkpoints(self, refused, finished, tmp_path):
        page, code, weights = (tmp_path / name for name in ("page.ckpt", "code.ckpt", "weights.ckpt"))
        page.write_text("version https://git-lfs.github.com/spec/v1")
        torch.save({"run_config": Path("an object")}, code)
        torch.save({"encoder.weight": torch.ones(1)}, weights)
        for file, said in ((page, "begins with 'version https://git-lfs"), (code, "objects beside tensors")):
            assert said in refused("fit", "--config", finished, "--ckpt_path", file)
            assert said in refused("export", "--model", file, "--output", tmp_path / "out")
        assert "no checkpoint of a fit" in refused("fit", "--config", finished, "--ckpt_path", weights)

    def test_a_second_fit_writes_over_the_last_checkpoint(self, finished):
        assert [file.name for file in (finished.parent / "checkpoints").iterdir()] == ["last.ckpt"]

    @pytest.mark.parametrize("workers", [0, 1])
    def test_shard_cut_in_half(self, refused, tmp_path, workers):
        file = tiny_run.write_run(tmp_path)
        shard = tmp_path / "shards" / "shard-00001.h5"
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
        message = refused("fit", "--config", file, "--data.num_workers", workers)
        assert "shard-00001.h5" in message

    def test_shard_damaged_in_mid_run(self, refused, tmp_path):
        """The index is whole and the voxels are not: the scan that fails its hash stops the fit."""
        file = tiny_run.write_run(tmp_path, scans=6)
        damage_voxels(tmp_path / "shards" / "shard-00000.h5")
        message = refused("fit", "--config", file, "--data.num_workers", 1, "--data.batch_size", 3)
        assert "shard-00000.h5" in message


def damage_voxels(shard: Path) -> None:
    import h5py

    with h5py.File(shard) as file:
        found: list[tuple[int, int]] = []

        def chunks(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and name.endswith("image") and item.chunks:
                info = item.id.get_chunk_info(0)
                found.append((info.byte_offset, info.size))

        file.visititems(chunks)
    content = bytearray(shard.read_bytes())
    for offset, size in found:
        middle = offset + size // 2
        content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    shard.write_bytes(content)
