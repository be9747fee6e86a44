"""What a fit leaves as it is, at which rate each layer learns, and adapters of the image tower."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_run
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from torch import nn

from ctgrounding import trainer_cli
from ctgrounding.cli import main
from ctgrounding.encoders.image.slices import SlicesEncoder
from ctgrounding.encoders.image.swin import SwinEncoder
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.image.windowed import WindowedViT
from ctgrounding.encoders.layers import layers_above
from ctgrounding.encoders.lora import Lora, adapt, fold_adapters, named_as_adapted
from ctgrounding.encoders.text.open_clip import OpenClipText
from ctgrounding.errors import ConfigError
from ctgrounding.model import build, load
from ctgrounding.tasks import pretrain
from ctgrounding.tasks.callbacks import CutTexts
from ctgrounding.tasks.freezing import freeze, parameter_table
from ctgrounding.tasks.optimizers import AdamWCosine
from ctgrounding.tasks.pretrain import Pretrain

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

VIT = {
    "class_path": "ctgrounding.encoders.image.vit.ViT",
    "init_args": {"spacing_mm": [3.0, 1.5, 1.5], "patch": [4, 8, 8], "width": 16, "depth": 4, "heads": 2},
}


def run_file(folder: Path, **model) -> Path:
    """The tiny run with a four-block ViT and other keys of ``model``."""
    return tiny_run.write_run(folder, model={"image": VIT, **model})


def make_task(folder: Path, **model) -> Pretrain:
    """The task of that run, without shards."""
    content = {**tiny_run.config(folder)["model"], "image": VIT, **model}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Pretrain, "model")
    torch.manual_seed(0)
    return parser.instantiate(parser.parse_object({"model": content})).model


def fit(file: Path, *words: str) -> dict:
    """Fit by the command and give its last checkpoint."""
    main(["fit", "--config", str(file), *words])
    return torch.load(file.parent / "checkpoints" / "last.ckpt", weights_only=True)


def volumes(*sides: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    volume = torch.randint(-1000, 1000, (2, *sides), generator=generator, dtype=torch.int16)
    return volume, torch.tensor([[[0, side] for side in sides]] * 2)


# Freezing


def test_frozen_parts_do_not_change_by_a_bit(tmp_path):
    patterns = [r"encoder\.image\.(embed|blocks\.[01])", "encoder.text.*", "encoder.heads.image_heads.main.norm"]
    frozen = ("encoder.image.embed.", "encoder.image.blocks.0.", "encoder.image.blocks.1.", "encoder.text.")
    file = run_file(tmp_path, freeze=patterns)
    started = make_task(tmp_path)
    weights = {name: tensor.clone() for name, tensor in started.state_dict().items() if "copied" not in name}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "start.safetensors")
    found = fit(file, "--model.initial_weights", str(tmp_path / "start.safetensors"), "--trainer.max_epochs", "1")
    for name, tensor in weights.items():
        if name.startswith(frozen):
            assert torch.equal(found["state_dict"][name], tensor), name
    for name in ("encoder.image.blocks.2.mlp.0.weight", "encoder.image.blocks.3.attention.qkv.weight"):
        assert not torch.equal(found["state_dict"][name], weights[name])
    held = sum(len(group["params"]) for group in found["optimizer_states"][0]["param_groups"])
    trainable = [name for name, _ in started.named_parameters() if not name.startswith(frozen)]
    assert held == len(trainable)


def test_the_untrained_baseline_is_the_model_that_the_fit_began_with(tmp_path):
    heads = {"image_head": "snippet", "text_head": "snippet"}
    depth = {"class_path": "ctgrounding.evaluation.SnippetDepth", "init_args": heads}
    file = run_file(tmp_path, evaluators={"depth": depth})
    torch.manual_seed(5)
    begun = {name: torch.randn_like(tensor) for name, tensor in make_task(tmp_path).named_parameters()}
    save_file(begun, tmp_path / "start.safetensors")
    still = ["--model.optimizer.init_args.lr", "1e-12", "--trainer.max_steps", "1"]
    words = ["--config", str(file), "--model.initial_weights", str(tmp_path / "start.safetensors"), *still]
    tool = trainer_cli.run(["fit", *words])
    main(["test", *words])
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["snippet_localization/untrained_mae_mm"] == numbers["snippet_localization/mae_mm"]
    with pytest.warns(UserWarning, match="no baseline of the untrained model: it was trained or loaded before"):
        (found,) = tool.trainer.test(tool.model, datamodule=tool.datamodule)
    assert found["snippet_localization/mae_mm"] == numbers["snippet_localization/mae_mm"]
    assert "snippet_localization/untrained_mae_mm" not in found


def test_frozen_modules_keep_evaluation_mode():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
            self.head = nn.Dropout(0.5)

    model = Dropping()
    (body, *inner) = freeze(model, ["body"])
    assert body is model.body
    assert not inner
    assert (model.body[1].training, model.head.training) == (False, True)


def test_task_in_training_mode_keeps_frozen_parts_in_evaluation_mode(tmp_path):
    task = make_task(tmp_path, freeze=["encoder.image"])
    copied = copy.deepcopy(task).train()
    for each in (task, copied, task.train()):
        assert not any(module.training for module in each.encoder.image.modules())
        assert each.encoder.text.training
        assert each.encoder.heads.training
    assert not any(parameter.requires_grad for parameter in copied.encoder.image.parameters())


def test_a_single_parameter_is_frozen_without_its_module(tmp_path):
    task = make_task(tmp_path, freeze=[r".*\.log_scale"])
    still = {name for name, parameter in task.named_parameters() if not parameter.requires_grad}
    assert {"encoder.heads.logits.main.log_scale", "encoder.heads.logits.disease.log_scale"} <= still
    assert all(name.endswith("log_scale") for name in still - set(_untrained(make_task(tmp_path))))
    assert task.encoder.heads.logits.training


def _untrained(task: Pretrain) -> list[str]:
    return [name for name, parameter in task.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("encoder.image.block.0", r"names no whole module.*Near names are encoder\.image\.blocks\.0"),
        ("image", r"Near names are encoder\.image\."),
        ("xyz", r"Names begin with encoder\.image"),
        ("encoder.(image", "no regular expression"),
    ],
)
def test_a_pattern_that_names_nothing(tmp_path, pattern, said):
    with pytest.raises(ConfigError, match=said):
        make_task(tmp_path, freeze=[pattern])


def test_a_wrong_pattern_ends_the_command_in_one_sentence(tmp_path, capsys):
    file = run_file(tmp_path, freeze=["encoder.imgae.*"])
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(file)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "model.freeze has 'encoder.imgae.*'" in said
    assert "Traceback" not in said


def test_all_frozen_is_refused(tmp_path):
    task = make_task(tmp_path, freeze=["encoder", "objectives"])
    with pytest.raises(ConfigError, match="Every parameter is frozen"):
        AdamWCosine().build(task.named_parameters(), 1)


# Precision


def test_gradients_are_clipped_in_mixed_precision(tmp_path):
    precision = ["--trainer.precision", "bf16-mixed", "--trainer.max_steps", "1"]
    still = ["--model.optimizer.init_args.weight_decay", "0"]
    started = make_task(tmp_path).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in started.items()}, tmp_path / "start.safetensors")
    words = [*precision, *still, "--model.initial_weights", str(tmp_path / "start.safetensors")]
    file = run_file(tmp_path / "clipped")
    found = {clip: fit(file, *words, "--trainer.gradient_clip_val", clip)["state_dict"] for clip in ("1.0", "1e-30")}
    name = "encoder.image.embed.weight"
    assert not torch.equal(found["1.0"][name], started[name])
    torch.testing.assert_close(found["1e-30"][name], started[name], rtol=0, atol=1e-12)


# Counts


def test_parameter_table():
    first, second = nn.Linear(10, 100, bias=False), nn.Linear(3, 4)
    second.weight.requires_grad_(False)
    lines = parameter_table({"image": first, "text": second, "tied": first}).splitlines()
    assert [line.split() for line in lines] == [
        ["part", "trainable", "total", "share"],
        ["image", "1,000", "1,000", "100", "%"],
        ["text", "4", "16", "25", "%"],
        ["all", "1,004", "1,016", "98.8", "%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_texts_that_are_cut_are_counted_and_reported(tmp_path, caplog):
    context = 8
    file = run_file(tmp_path, image_lora={"rank": 1, "alpha": 1.0})
    with caplog.at_level("WARNING"):
        fit(file, "--trainer.max_epochs", "1", "--model.text.init_args.context_length", str(context))
    prompts, texts = [record.getMessage() for record in caplog.records if "were cut to" in record.getMessage()]
    tokenizer, task = OpenClipText(context_length=context, layers=1).tokenizer, make_task(tmp_path)
    fixed = {text for objective in task.objectives.values() for text in objective.fixed_texts()}
    counts = [tokenizer.count(text) for text in fixed]
    long = sum(count > context for count in counts)
    assert prompts.startswith(f"{long} of {len(fixed)} prompts and other fixed texts")
    assert prompts.endswith(f"context_length of 8 tokens; the longest has {max(counts)}.")
    assert 0 < int(texts.split()[0]) < int(texts.split()[2])
    caplog.clear()
    with caplog.at_level("WARNING"):
        fit(file, "--trainer.max_epochs", "1", "--model.text.init_args.context_length", "512")
    assert not [record for record in caplog.records if "were cut to" in record.getMessage()]


@pytest.mark.parametrize(("length", "cut"), [(5, 0), (6, 0), (7, 1), (20, 1)])
def test_a_text_that_just_fits_is_not_cut(tmp_path, length, cut):
    class Letters:
        context_length = 6

        def count(self, text):
            return len(text)

    task, counted = make_task(tmp_path), CutTexts()
    task.encoder.text._tokenizer = Letters()
    kept = torch.arange(6)[None] < min(length, 6)
    batch = {"texts": ["a" * length], "token_mask": kept}
    counted.on_train_batch_start(SimpleNamespace(is_global_zero=True), task, batch, 0)
    assert (counted.seen, counted.cut, counted.longest) == (1, cut, length if cut else 0)


def test_counts_and_rates_of_a_fit_with_adapters(tmp_path, caplog, monkeypatch):
    compiled = []
    monkeypatch.setattr(pretrain, "compile_tower", lambda *asked: compiled.append(asked) or ["blocks.0"])
    file = run_file(tmp_path, image_lora={"rank": 2, "alpha": 4.0}, optimizer={
        "class_path": "ctgrounding.tasks.optimizers.AdamWCosine",
        "init_args": {"lr": 1e-3, "layer_decay": {"image": 0.5, "text": 0.9}, "warmup_fraction": 0.0},
    })  # fmt: skip
    with caplog.at_level("INFO"):
        found = fit(file, "--trainer.max_steps", "1", "--model.compile_blocks", "[image]")
    ((tower, device),) = compiled
    assert (type(tower), device) == (ViT, torch.device("cpu"))
    said = next(record.getMessage() for record in caplog.records if "trainable" in record.getMessage())
    task = make_task(tmp_path)
    total = sum(parameter.numel() for parameter in task.encoder.image.parameters())
    adapters = 4 * (2 * (16 + 48) + 2 * (16 + 16))  # of four blocks: qkv and out, each A and B of rank 2
    row = next(line.split() for line in said.splitlines() if line.startswith("image"))
    assert row[:3] == ["image", f"{adapters:,}", f"{total + adapters:,}"]
    rates = {round(group["initial_lr"] / 1e-3, 6) for group in found["optimizer_states"][0]["param_groups"]}
    assert rates == {1.0, 0.5, 0.25, 0.125, 0.0625, 0.9, 0.81}


# Rates that fall by layer


def test_rates_of_a_vit_of_four_blocks(tmp_path):
    task = make_task(tmp_path)
    recipe = AdamWCosine(lr=1.0, layer_decay={"image": 0.5}, lr_scale={"image.blocks.3": 10.0}, warmup_fraction=0.0)
    above = task.encoder.layers_above()
    recipe.use_layers({name: {f"encoder.{key}": n for key, n in counts.items()} for name, counts in above.items()})
    optimizer, _ = recipe.build(task.named_parameters(), 10)
    rate_of = {id(item): group["lr"] for group in optimizer.param_groups for item in group["params"]}
    by_hand = {
        "image.summary": 0.03125, "image.embed": 0.03125, "image.blocks.0": 0.0625, "image.blocks.1": 0.125,
        "image.blocks.2": 0.25, "image.blocks.3": 5.0, "image.norm": 1.0, "text": 1.0, "readouts": 1.0, "heads": 1.0,
    }  # fmt: skip
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            wanted = next(rate for part, rate in by_hand.items() if name.startswith(f"encoder.{part}"))
            assert rate_of[id(parameter)] == pytest.approx(wanted), name


def test_decay_of_weights_is_kept_beside_rates_by_layer(tmp_path):
    task = make_task(tmp_path)
    groups = {}
    for decay in (1.0, 0.5):
        recipe = AdamWCosine(layer_decay=decay)
        recipe.use_layers({"image": {f"encoder.{k}": n for k, n in task.encoder.layers_above()["image"].items()}})
        optimizer, _ = recipe.build(task.named_parameters(), 10)
        groups[decay] = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert groups[1.0] == groups[0.5]


def test_layers_of_the_windowed_vit():
    tower = WindowedViT(window=(8, 32, 32), width=24, depth=2, heads=2, combiner_depth=2)
    above = layers_above(tower, tower.ordered_layers())
    by_hand = {
        "embed": 6, "local.summary": 6, "local.blocks.0": 5, "local.blocks.1": 4, "local.norm": 3, "window_in": 3,
        "depth_in": 3, "combiner.summary": 3, "combiner.blocks.0": 2, "combiner.blocks.1": 1, "combiner.norm": 0,
    }  # fmt: skip
    assert set(above) == set(dict(tower.named_parameters()))
    for name, count in above.items():
        assert count == next(n for part, n in by_hand.items() if name.startswith(part)), name


def test_layers_of_text_towers_with_and_without_adapters(tmp_path):
    from transformers import BertConfig, BertModel

    from ctgrounding.encoders.text.transformers import _with_adapters

    plain = OpenClipText(width=16, layers=3, heads=2, context_length=8)
    above = layers_above(plain, plain.ordered_layers())
    assert above["tower.token_embedding.weight"] == above["tower.positional_embedding"] == 4
    assert above["tower.transformer.resblocks.0.attn.in_proj_weight"] == 3
    assert above["tower.ln_final.weight"] == 0
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
    bert = BertModel(BertConfig(num_hidden_layers=2, **sizes), add_pooling_layer=False)
    lora = _with_adapters("bert", bert, Lora(rank=2))
    depth = layers_above(lora, numbered(lora))
    layer = "base_model.model.encoder.layer"
    assert depth[f"{layer}.1.attention.self.query.lora_A.default.weight"] == 0
    assert depth[f"{layer}.0.output.dense.weight"] == 1
    assert depth["base_model.model.embeddings.word_embeddings.weight"] == 2


def numbered(tower):
    from ctgrounding.encoders.layers import numbered_layers

    return numbered_layers(tower)


@pytest.mark.parametrize(
    ("decay", "said"),
    [({"vision": 0.5}, "layer_decay names"), (0.0, "factor in"), ({"image": 1.5}, "factor in"), (0.5, "no two layers")],
)
def test_a_wrong_decay(decay, said):
    with pytest.raises(ConfigError, match=said):
        AdamWCosine(layer_decay=decay).use_layers({"image": {"a": 0, "b": 0}, "text": {"c": 0}})


def test_an_encoder_that_leaves_a_parameter_out():
    class Forgetful(OpenClipText):
        def ordered_layers(self):
            return [("tower.transformer",)]

    tower = Forgetful(width=16, layers=1, heads=2, context_length=8)
    with pytest.raises(ConfigError, match=r"Forgetful.ordered_layers\(\) leaves out 'tower.positional_embedding'"):
        layers_above(tower, tower.ordered_layers())


# Adapters


TOWERS = {
    "ViT": (lambda: ViT(patch=(4, 8, 8), width=24, depth=2, heads=2, attention="slice_scan"), (8, 16, 24), None, 4),
    "WindowedViT": (
        lambda: WindowedViT(window=(8, 16, 16), patch=(4, 8, 8), width=24, depth=1, heads=2, combiner_depth=1),
        (8, 16, 32), None, 4,
    ),
    "timm": (lambda: SlicesEncoder("vit_tiny_patch16_224", slices=4), (4, 32, 32), None, 24),
    "Swin": (lambda: SwinEncoder(width=12, stage=1, window=2), (8, 16, 16), None, 4),
    "by target": (lambda: ViT(patch=(4, 8, 8), width=24, depth=2, heads=2), (8, 16, 24), ["mlp.0"], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", list(TOWERS))
def test_adapters_of_image_towers(name):
    """They start as nothing, they alone are trained, and folded into the weights they stay what they have become."""
    make, sides, targets, count = TOWERS[name]
    torch.manual_seed(0)
    plain = make().eval()
    tower = copy.deepcopy(plain)
    assert len(adapt(tower, Lora(rank=2, alpha=8.0, dropout=0.0, targets=targets))) == count
    volume, box = volumes(*sides)
    with torch.no_grad():
        torch.testing.assert_close(tower(volume, box).map, plain(volume, box).map, rtol=0, atol=0)
    dense = tower(volume, box)
    views = [dense.map, *(dense.view(view).map for view in ("global", "depth") if name == "WindowedViT")]
    sum(view.square().mean() for view in views).backward()
    for key, parameter in tower.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in key), key
        if "lora_B" in key:  # A has none as long as B is zero
            assert parameter.grad.any(), key
    with torch.no_grad():
        for key, parameter in tower.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.1)
        learned = tower(volume, box).map
        assert (learned - plain(volume, box).map).abs().max() > 1e-3
        folded = fold_adapters(tower)
        assert set(folded.state_dict()) == set(plain.state_dict())
        plain.load_state_dict(folded.state_dict())
        torch.testing.assert_close(plain(volume, box).map, learned, rtol=1e-4, atol=1e-5)


def test_an_adapter_is_the_product_of_its_two_maps():
    torch.manual_seed(0)
    tower = nn.ModuleDict({"attention": nn.Linear(6, 4)})
    weight, bias = (item.detach().clone() for item in tower["attention"].parameters())
    adapt(tower, Lora(rank=3, alpha=12.0, dropout=0.0))
    parts = dict(tower.named_parameters())
    down, up = parts["attention.lora_A.default.weight"], parts["attention.lora_B.default.weight"]
    nn.init.normal_(up)
    rows = torch.randn(5, 6)
    wanted = rows @ (weight + 12.0 / 3 * up @ down).T + bias
    torch.testing.assert_close(tower["attention"](rows), wanted)


def test_what_an_encoder_froze_itself_gets_no_adapter():
    sizes = {"window": (8, 16, 16), "patch": (4, 8, 8), "width": 24, "depth": 1, "heads": 2, "combiner_depth": 1}
    tower = WindowedViT(**sizes, freeze_local=True)
    assert adapt(tower, Lora(rank=2)) == ["combiner.blocks.0.attention.qkv", "combiner.blocks.0.attention.out"]


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"targets": ["query"]}, r"no trainable linear map \['query'\] in ViT.*'embed', 'out', 'qkv'"),
        ({"rank": 0}, "rank of at least 1"),
        ({"dropout": 1.0}, "dropout in"),
        ({"alpha": 0.0}, "alpha above 0"),
        ({"targets": ["qkv", "query"]}, r"finds no module \['query'\] in ViT"),
    ],
)
def test_wrong_adapters(tmp_path, lora, said):
    with pytest.raises(ConfigError, match=said):
        make_task(tmp_path, image_lora=lora)


def test_frozen_adapters_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model.freeze names all adapters of model.image_lora"):
        make_task(tmp_path, image_lora={"rank": 2}, freeze=[r"encoder\.image"])


def test_a_tower_without_attention_layers():
    with pytest.raises(ConfigError, match="no trainable linear map of an attention layer in Linear"):
        adapt(nn.Linear(2, 2), Lora())


def test_published_weights_go_below_adapters(tmp_path):
    """Weights of a plain model start an adapted one, which then gives the same vectors."""
    plain = make_task(tmp_path)
    file = run_file(tmp_path, image_lora={"rank": 2, "alpha": 4.0, "dropout": 0.0})
    weights = {name: tensor.contiguous() for name, tensor in plain.state_dict().items() if "image" in name}
    save_file(weights, tmp_path / "plain.safetensors")
    words = ["--model.initial_weights", str(tmp_path / "plain.safetensors"), "--trainer.max_epochs", "1"]
    found = fit(file, *words)["state_dict"]
    base = {name: value for name, value in named_as_adapted(weights, found).items() if ".image." in name}
    assert all(torch.equal(found[name], value) for name, value in base.items())
    learned = [name for name in found if "lora_B" in name and found[name].any()]
    assert len(learned) == 8
    model = load(tmp_path)
    assert type(model.encoder.image) is ViT
    volume, box = volumes(8, 16, 24)
    with torch.no_grad():
        adapted = model.encoder.image(volume, box).map
        plainly = fold_adapters(model.encoder.image)(volume, box).map
    torch.testing.assert_close(plainly, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.encoder.image.eval()(volume, box).map, adapted, atol=1e-6)


def test_a_model_of_before_there_were_adapters_is_built(tmp_path):
    content = make_config(tmp_path)
    assert "image_lora" not in content
    assert isinstance(build(content).image, ViT)


def make_config(folder: Path) -> dict:
    return yaml.safe_load(run_file(folder).read_text())["model"]


@pytest.mark.slow
def test_resumes_with_frozen_parts_and_adapters(tmp_path):
    file = run_file(tmp_path, image_lora={"rank": 2}, freeze=["encoder.text"])
    content = yaml.safe_load(file.read_text())
    content["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {
            "dirpath": str(tmp_path / "checkpoints"), "filename": "{step}", "every_n_train_steps": 2, "save_top_k": -1,
            "save_last": True, "enable_version_counter": False}}
    ]  # fmt: skip
    file.write_text(yaml.safe_dump(content))
    whole = fit(file)
    first = tmp_path / "first.ckpt"
    (tmp_path / "checkpoints" / "step=2.ckpt").rename(first)
    resumed = fit(file, "--ckpt_path", str(first))
    assert resumed["global_step"] == whole["global_step"] > 2
    assert resumed["state_dict"].keys() == whole["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
