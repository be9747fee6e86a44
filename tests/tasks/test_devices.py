"""Nothing is left on the CPU: fits and evaluations on a stand-in for a GPU give the CPU's numbers."""

import json

import elsewhere_run
import pytest
import tiny_run
import torch
import yaml

from ctgrounding.commands.embed import embed
from ctgrounding.data.shards import Shard
from ctgrounding.errors import ConfigError
from ctgrounding.geometry import Grid
from ctgrounding.ingest import Scan
from ctgrounding.model import load
from ctgrounding.testing.elsewhere import elsewhere
from ctgrounding.trainer_cli import run

EVALUATORS = """
retrieval: {class_path: ctgrounding.evaluation.ReportRetrieval}
findings:
  class_path: ctgrounding.evaluation.ZeroShotFindings
  init_args: {questions: QUESTIONS, image_head: disease, text_head: disease}
snippets: {class_path: ctgrounding.evaluation.SnippetDepth, init_args: {image_head: snippet, text_head: snippet}}
organs: {class_path: ctgrounding.evaluation.OrganRecognition, init_args: {image_head: organ, text_head: organ}}
pointing: {class_path: ctgrounding.evaluation.OrganPointing, init_args: {image_head: organ, text_head: organ}}
scans: {class_path: ctgrounding.evaluation.ScanRetrieval}
patients: {class_path: ctgrounding.evaluation.Cohort}
"""
THERE = ["--trainer.accelerator", elsewhere_run.NAME, "--trainer.strategy", elsewhere_run.NAME]
RECOLOUR = {
    "class_path": "ctgrounding.tasks.recolour.Recolour",
    "init_args": {"contrast": 0.1, "shift_hu": 5.0, "noise_hu": 3.0},
}
LORA = {"class_path": "ctgrounding.encoders.lora.Lora", "init_args": {"rank": 2}}
FITS = {
    "whole": {},
    "split": {"data": {"micro_batch_size": 2}, "model": {"recolour": RECOLOUR, "log_gradient_norms": True}},
    "adapted": {"model": {"image_lora": LORA, "freeze": ["encoder.text"]}},
}


@pytest.fixture(autouse=True, scope="module")
def registered():
    elsewhere_run.register()


def write(folder, **sections):
    folder.mkdir()
    evaluators = yaml.safe_load(EVALUATORS.replace("QUESTIONS", str(folder / "questions.yaml")))
    model = {"evaluators": evaluators, "optimizer": "elsewhere_run.Descent", **sections.get("model", {})}
    trainer = {"max_epochs": 1, "inference_mode": False, "limit_val_batches": 1}
    return tiny_run.write_run(folder, model=model, data=sections.get("data", {}), trainer=trainer)


@pytest.mark.parametrize("settings", FITS.values(), ids=FITS)
def test_a_fit_on_another_device_has_the_losses_of_the_cpu(settings, tmp_path):
    run(["fit", "--config", str(write(tmp_path / "here", **settings))])
    with elsewhere():
        run(["fit", "--config", str(write(tmp_path / "there", **settings)), *THERE])
    for name in tiny_run.LOG_NAMES:
        there, here = (tiny_run.logged(tmp_path / place, name) for place in ("there", "here"))
        assert len(here) == 2
        assert there == pytest.approx(here, rel=1e-4, nan_ok=name != "train/loss")  # nan where nothing is asked


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "run"
    run(["fit", "--config", str(write(folder))])
    return folder


def test_evaluations_on_another_device_have_the_numbers_of_the_cpu(fitted):
    words = ["--config", str(fitted / "run.yaml")]
    found = []
    for place, commands in (([], ["test"]), (THERE, ["validate", "test", "predict"])):
        with elsewhere():
            for command in commands:
                run([command, *words, *place])
        found.append(json.loads((fitted / "metrics.json").read_text()))
    assert found[0].keys() == found[1].keys()
    assert list(found[1].values()) == pytest.approx(list(found[0].values()), rel=1e-3, abs=1e-3, nan_ok=True)


def test_features_made_and_used_on_another_device_are_those_of_the_cpu(fitted, tmp_path):
    embed(model=fitted, output=tmp_path / "here", keep="map", device="cpu")
    with elsewhere() as device:
        embed(model=fitted, output=tmp_path / "there", keep="map", device=device.type)
    losses = []
    for place, words in (("here", []), ("there", THERE)):
        overlay, root = tmp_path / place / "features.yaml", tmp_path / f"{place}-run"
        more = ["--config", str(overlay), "--trainer.default_root_dir", str(root)]
        with elsewhere():
            run(["fit", "--config", str(fitted / "run.yaml"), *more, "--data.shards", str(fitted / "shards"), *words])
        losses.append(tiny_run.logged(root))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_model_on_another_device_gives_what_it_gives_on_the_cpu(fitted):
    model, shard = load(fitted), Shard(fitted / "shards" / "shard-00000.h5")
    record, image = shard.records[0], shard.read_image(0)
    grid = Grid(record.shape, record.spacing_mm, record.origin_mm)
    scan = Scan(image, grid, record.valid_box, verdict=None, source=None)  # no file: nothing reads these

    def asked():
        where = model.locate_in(image, grid, record.valid_box, "a ball")
        return model.encode_scan(scan), model.encode_text(["a ball", "a cyst"]), where

    vector, words, where = asked()
    with elsewhere() as device:
        assert model.to(device).device == device
        there_vector, there_words, there = asked()
        assert {there_vector.device, there_words.device} == {torch.device("cpu")}
        assert model.search({"one": vector}, "a ball")[0][0] == "one"
    torch.testing.assert_close((there_vector, there_words), (vector, words))
    assert there.probability == pytest.approx(where.probability, rel=1e-4)
    assert there.depths_mm.tolist() == where.depths_mm.tolist()


def test_a_device_that_is_not_there_is_named(fitted):
    with pytest.raises(ConfigError, match=r"Device 'cuda:99' cannot be used here \(.*\). Leave it out, or give cpu"):
        load(fitted).to("cuda:99")


def test_what_the_stand_in_refuses():
    with elsewhere() as device:
        there, here = torch.ones(3, 2, device=device), torch.ones(3, 2)
        refused = [
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[torch.tensor([0], device=device)],
            lambda: there.index_put_((torch.tensor([0]),), here[:1]),
            lambda: torch.nn.functional.linear(there, here),
            lambda: torch.randn(2, device=device, generator=torch.Generator()),
            lambda: there.normal_(generator=torch.Generator()),
            lambda: there.numpy(),
        ]
        for operation in refused:
            with pytest.raises((RuntimeError, TypeError), match="CPU"):
                operation()


def test_what_the_stand_in_allows():
    with elsewhere() as device:
        there = torch.arange(6, dtype=torch.float64, device=device).view(3, 2)
        assert there[torch.tensor([1])].tolist() == [[2.0, 3.0]]
        assert there[[0, 2], 1].tolist() == [1.0, 5.0]
        there[there > 3] = 0
        there[:, 0] += torch.tensor(1.0)
        assert there.cpu().tolist() == [[1.0, 1.0], [3.0, 3.0], [1.0, 0.0]]
        there.copy_(torch.ones(3, 2))
        assert float(there.sum()) == 6
        assert (there.new_zeros(2).device, torch.zeros_like(there).device) == (device, device)
        draws = [torch.rand(2, device=device, generator=torch.Generator(device).manual_seed(1)) for _ in range(2)]
        assert draws[0].tolist() == draws[1].tolist()
    assert torch.Generator().device.type == torch.rand(1).device.type == "cpu"
