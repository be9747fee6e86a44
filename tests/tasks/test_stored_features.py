"""Training on stored features is training with the frozen encoder in place; features of anything else are refused."""

import csv
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny_run
import torch
import yaml
from safetensors.torch import load_file, save_file

from ctgrounding import cli, load
from ctgrounding.commands.embed import embed
from ctgrounding.data.feature_reading import FeatureShard, StoredFeatures
from ctgrounding.errors import ConfigError, ShardError
from ctgrounding.model import build
from ctgrounding.tasks import stored as stored_task
from ctgrounding.trainer_cli import run

WINDOWS = {
    "class_path": "ctgrounding.encoders.image.windowed.WindowedViT",
    "init_args": {
        "spacing_mm": [3.0, 1.5, 1.5], "window": [8, 16, 16], "patch": [4, 8, 8], "width": 24, "depth": 1, "heads": 2,
        "combiner_depth": 1,
    },
}  # fmt: skip
EVALUATORS = {
    "organs": {
        "class_path": "ctgrounding.evaluation.OrganRecognition",
        "init_args": {"image_head": "organ", "text_head": "organ"},
    },
    "retrieval": {"class_path": "ctgrounding.evaluation.ReportRetrieval"},
    "snippets": {
        "class_path": "ctgrounding.evaluation.SnippetDepth",
        "init_args": {"image_head": "snippet", "text_head": "snippet"},
    },
}
CASES = {"conv map": "map", "conv readouts": "readouts", "windows windows": "windows"}
"""Name of a run, and what is kept of its encoder."""


def write_run(folder: Path, image: dict | None = None) -> Path:
    """A run config with initial weights, and its shards."""
    path = tiny_run.write_run(
        folder, model={"evaluators": EVALUATORS}, data={"mirror_probability": 0.0, "micro_batch_size": 3}
    )
    content = yaml.safe_load(path.read_text())
    if image is not None:
        content["model"]["image"] = image
    torch.manual_seed(1)
    encoder = build(content["model"])
    save_file({f"encoder.{name}": value for name, value in encoder.state_dict().items()}, folder / "start.safetensors")
    content["model"]["initial_weights"] = str(folder / "start.safetensors")
    content["data"]["shards"] = str(folder / "shards")
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return {"conv": write_run(folder / "conv"), "windows": write_run(folder / "windows", WINDOWS)}


@pytest.fixture(scope="module")
def stored(runs, tmp_path_factory):
    """Folders of features by name of the case, made when asked for."""
    made: dict[str, Path] = {}

    def of(case: str) -> Path:
        if case not in made:
            made[case] = tmp_path_factory.mktemp("stored")
            embed(model=runs[case.split()[0]], output=made[case], keep=CASES[case])
        return made[case]

    return of


def fit(config: Path, overlay: Path, folder: Path, *words: str) -> dict[str, list[float]]:
    """Every number that a fit logged, by name."""
    run(["fit", "--config", str(config), "--config", str(overlay), "--trainer.default_root_dir", str(folder), *words])
    with (folder / "logs" / "version_0" / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0] if name not in ("epoch", "step")}


def in_place(features: Path, folder: Path) -> Path:
    """The overlay of a folder of features without the features: the same encoder is frozen and runs."""
    content = yaml.safe_load((features / "features.yaml").read_text())
    del content["data"]["features"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "frozen.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in ("conv map", "windows windows") else pytest.mark.slow) for case in CASES],
)
def test_losses_and_validation_are_those_of_the_frozen_encoder(case, runs, stored, tmp_path):
    config, features = runs[case.split()[0]], stored(case)
    frozen = fit(config, in_place(features, tmp_path), tmp_path / "frozen")
    found = fit(config, features / "features.yaml", tmp_path / "stored")
    assert len(frozen["train/loss"]) == 4
    assert frozen["train/loss"][0] != frozen["train/loss"][-1]
    assert {name for name in frozen if name.startswith("val/")}
    assert set(found) == set(frozen)
    for name, values in frozen.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def test_scans_smaller_than_the_crop_train_as_with_the_frozen_encoder(runs, tmp_path):
    content = yaml.safe_load(runs["conv"].read_text())
    wide = {"shape": [None, 80, 80], "place": "centre"}
    content["data"] |= {"crop": wide, "evaluation_crop": wide}
    config = tmp_path / "wide.yaml"
    config.write_text(yaml.safe_dump(content))
    features = tmp_path / "features"
    embed(model=config, output=features)
    frozen = fit(config, in_place(features, tmp_path), tmp_path / "frozen", "--trainer.max_epochs", "1")
    found = fit(config, features / "features.yaml", tmp_path / "stored", "--trainer.max_epochs", "1")
    np.testing.assert_allclose(found["train/loss"], frozen["train/loss"], rtol=1e-6)


def test_adapters_are_folded_and_what_was_frozen_stays_frozen(tmp_path):
    config = write_run(tmp_path / "start")
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"image_lora": {"rank": 2}, "freeze": [r"encoder\.heads\.text_heads\.organ"]}
    config.write_text(yaml.safe_dump(content))
    adapted = tmp_path / "adapted"
    run(["fit", "--config", str(config), "--trainer.default_root_dir", str(adapted), "--trainer.max_epochs", "1"])
    features = tmp_path / "features"
    embed(model=adapted, output=features, keep="map")
    folded, whole = (load_file(features / "weights.safetensors"), load(adapted).encoder.image.state_dict())
    assert not [name for name in folded if "lora" in name]
    changed = [name for name in whole if "base_layer" in name and name.endswith("weight")]
    for name in changed:
        assert not torch.equal(whole[name], folded["encoder.image." + name.replace(".base_layer", "")])
    assert changed
    frozen = fit(config, in_place(features, tmp_path), tmp_path / "frozen")
    found = fit(config, features / "features.yaml", tmp_path / "stored")
    np.testing.assert_allclose(found["train/loss"], frozen["train/loss"], rtol=1e-6)
    overlay = yaml.safe_load((features / "features.yaml").read_text())
    assert overlay["model"]["freeze"] == ["encoder.image", "encoder.text", *content["model"]["freeze"]]


@pytest.mark.slow
def test_half_precision_is_close(runs, tmp_path):
    embed(model=runs["conv"], output=tmp_path / "half", precision="float16")
    overlay = tmp_path / "half" / "features.yaml"
    frozen = fit(runs["conv"], in_place(tmp_path / "half", tmp_path), tmp_path / "frozen", "--trainer.max_epochs", "1")
    found = fit(runs["conv"], overlay, tmp_path / "stored", "--trainer.max_epochs", "1")
    np.testing.assert_allclose(found["train/loss"], frozen["train/loss"], rtol=5e-3)
    assert found["train/loss"] != frozen["train/loss"]


@pytest.mark.slow
def test_what_was_trained_is_a_whole_model(runs, stored, tmp_path):
    features = stored("conv map")
    fit(runs["conv"], features / "features.yaml", tmp_path / "run", "--trainer.max_epochs", "1")
    model = load(tmp_path / "run")
    weights = load_file(features / "weights.safetensors")
    assert torch.equal(model.encoder.image.embed[0].weight, weights["encoder.image.embed.0.weight"])
    run(
        ["test", "--config", str(tmp_path / "run" / "config.yaml"), "--trainer.default_root_dir", str(tmp_path / "run")]
    )
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_second_call_keeps_whole_shards_and_makes_the_rest(runs, stored, tmp_path):
    folder = tmp_path / "features"
    shutil.copytree(stored("conv readouts"), folder)
    kept, cut = sorted(folder.glob("*.h5"))
    before, size = kept.stat().st_mtime_ns, cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[: size // 2])
    embed(model=runs["conv"], output=folder, keep="readouts")
    assert kept.stat().st_mtime_ns == before
    assert cut.stat().st_size == size
    for row in range(len(FeatureShard(cut).entries)):
        FeatureShard(cut).verify(row)


def test_scans_of_other_splits_are_added(runs, tmp_path):
    embed(model=runs["conv"], output=tmp_path, keep="readouts", splits=["val"])
    first = StoredFeatures(tmp_path)
    embed(model=runs["conv"], output=tmp_path, keep="readouts", splits=["val", "train"])
    assert len(first._place) < len(StoredFeatures(tmp_path)._place)


def test_features_that_are_no_numbers_agree_with_nothing():
    made = {"map": torch.ones(3)}
    stored_task._compare(made, {"map": torch.ones(1, 3)}, 1e-4, "folder")
    for values in (torch.full((1, 3), torch.nan), torch.ones(1, 4)):
        with pytest.raises(ConfigError, match="'map' of a scan differs by"):
            stored_task._compare(made, {"map": values}, 1e-4, "folder")


def test_another_model_does_not_write_over_features(stored, tmp_path, runs):
    with pytest.raises(
        ConfigError, match=r"holds features of another model, or kept otherwise \(readouts of PatchConv"
    ):
        embed(model=runs["conv"], output=stored("conv readouts"), keep="map")


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith("error: ")
    return last


REFUSED = {
    "other weights": ({"model": {"initial_weights": "OTHER"}}, "made by other weights than this model has"),
    "trained encoder": ({"model": {"freeze": ["encoder.text"]}}, "but this run trains encoder.image"),
    "other settings": (
        {"model": {"image": {"init_args": {"windows": [[-500, 500], [0, 80], [-160, 240]]}}}},
        "'map' of a scan differs by",
    ),
    "recolour": (
        {"model": {"recolour": {"class_path": "ctgrounding.tasks.recolour.Recolour", "init_args": {}}}},
        "model.recolour changes volumes at random",
    ),
    "mirror": ({"data": {"mirror_probability": 0.5}}, "data.mirror_probability draws another one each time"),
    "crop": ({"data": {"crop": {"shape": [8, 16, 16], "place": "random"}}}, "data.crop draws another one each time"),
    "another crop": (
        {"data": {key: {"shape": [8, 16, 16], "place": "centre"} for key in ("crop", "evaluation_crop")}},
        "show the box",
    ),
    "split without features": ({"data": {"val_split": "test"}}, "scans of split test have no features"),
    "no features": ({"data": {"features": "OTHER"}}, "holds no features"),
    "other readouts": (
        {"model": {"readouts": {
            "global": {"class_path": "ctgrounding.encoders.readouts.GlobalReadout"},
            "depth": {"class_path": "ctgrounding.encoders.readouts.DepthReadout"},
            "organ": {
                "class_path": "ctgrounding.encoders.readouts.OrganReadout", "init_args": {"parts": ["histogram"]}}}}},
        "table histogram",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_features_of_anything_else_are_refused(what, runs, stored, tmp_path, capsys):
    changes, message = REFUSED[what]
    torch.manual_seed(2)
    other = build(yaml.safe_load(runs["conv"].read_text())["model"])
    (tmp_path / "OTHER").mkdir()
    weights = tmp_path / "other.safetensors"
    save_file({f"encoder.{name}": value for name, value in other.state_dict().items()}, weights)
    text = yaml.safe_dump(changes).replace("initial_weights: OTHER", f"initial_weights: {weights}")
    last = tmp_path / "last.yaml"
    last.write_text(text.replace("features: OTHER", f"features: {tmp_path / 'OTHER'}"))
    overlay = stored("conv map") / "features.yaml"
    words = ["fit", "--config", str(runs["conv"]), "--config", str(overlay), "--config", str(last)]
    said = refused([*words, "--trainer.default_root_dir", str(tmp_path / "run")], capsys)
    assert message in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "windows"], "Only WindowedViT has windows to keep, but the image encoder is PatchConv"),
        (["--splits", "[trian]"], "--splits has 'trian'"),
        (["--splits", "[dev]"], "No scan is of split dev"),
        (["--shards", "[nowhere]"], "There is no shard or folder at nowhere"),
        (["--device", "tpu"], "Device 'tpu' cannot be used here"),
    ],
)
def test_wrong_calls_are_refused(words, message, runs, tmp_path, capsys):
    assert message in refused(["embed", "--model", str(runs["conv"]), "--output", str(tmp_path), *words], capsys)
    assert not list(tmp_path.glob("*.h5"))


def test_an_exported_model_needs_shards(runs, tmp_path, capsys):
    trained = tmp_path / "run"
    run(["fit", "--config", str(runs["conv"]), "--trainer.default_root_dir", str(trained), "--trainer.max_steps", "1"])
    cli.main(["export", "--model", str(trained), "--output", str(tmp_path / "exported")])
    words = [
        "embed",
        "--model",
        str(tmp_path / "exported"),
        "--output",
        str(tmp_path / "features"),
        "--keep",
        "readouts",
    ]
    assert "An exported model knows no shards" in refused(words, capsys)
    embed(
        model=tmp_path / "exported",
        output=tmp_path / "features",
        keep="readouts",
        shards=[runs["conv"].parent / "shards"],
    )
    assert len(StoredFeatures(tmp_path / "features")._place) > 1


def test_a_config_without_weights_is_refused(runs, tmp_path, capsys):
    content = yaml.safe_load(runs["conv"].read_text())
    del content["model"]["initial_weights"]
    bare = tmp_path / "bare.yaml"
    bare.write_text(yaml.safe_dump(content))
    assert "its encoder would be random" in refused(["embed", "--model", str(bare), "--output", str(tmp_path)], capsys)


def test_a_damaged_scan_is_found(stored, tmp_path):
    folder = tmp_path / "features"
    shutil.copytree(stored("conv readouts"), folder)
    path = sorted(folder.glob("*.h5"))[0]
    with h5py.File(path) as file:
        offset = file["scans/00000/features"].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 40] ^= 0xFF
    path.write_bytes(bytes(raw))
    with pytest.raises(ShardError, match=r"damaged|differ"):
        FeatureShard(path).verify(0)
