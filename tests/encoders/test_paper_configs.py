"""The run configs of the papers fit two steps at reduced width, with every setting that has no width as it is."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from ctgrounding.testing.shards import LABELS, write_tiny_shards
from ctgrounding.trainer_cli import run

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
TEXTS = ["Bright ball in the left kidney.", "The right kidney is normal.", "no evident abnormality of the spleen"]
QUESTION = "{name}: {{positive: [there is a {name}], negative: [there is no {name}]}}\n"


def text_folder(folder, config):
    """A tiny tower of the architecture that a config makes, with a tokenizer of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[PAD]", "[UNK]"]))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def fit(name, folder, model, data=()):
    write_tiny_shards(folder / "shards", scans=10, shape=(16, 32, 32))
    reduced = {
        **{f"model.{key}": value for key, value in model.items()},
        **dict(data),
        "data.batch_size": 4,
        "data.micro_batch_size": 2,
        "data.num_workers": 0,
        "trainer.default_root_dir": str(folder),
        "trainer.accelerator": "cpu",
        "trainer.max_steps": 2,
        "trainer.limit_val_batches": 1,
        "trainer.enable_progress_bar": False,
    }
    words = ["fit", "--config", str(CONFIGS / f"{name}.yaml")]
    for key, value in reduced.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return run(words)


def losses(folder):
    (log,) = (folder / "logs").rglob("metrics.csv")
    header, *rows = log.read_text(encoding="utf-8").splitlines()
    place = header.split(",").index("train/loss")
    return [float(row.split(",")[place]) for row in rows if row.split(",")[place]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_radfinder_fits_two_steps(tmp_path):
    from transformers import Qwen3Config

    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    text = text_folder(tmp_path / "text", Qwen3Config(vocab_size=100, intermediate_size=24, **sizes))
    questions = tmp_path / "questions.yaml"
    questions.write_text("".join(QUESTION.format(name=name) for name in LABELS), encoding="utf-8")
    image = {
        "spacing_mm": [3.0, 1.5, 1.5],
        "window": [8, 16, 16],
        "patch": [4, 8, 8],
        "width": 24,
        "depth": 1,
        "heads": 2,
    }
    cli = fit(
        "radfinder",
        tmp_path,
        {f"image.init_args.{key}": value for key, value in image.items()}
        | {
            "text.init_args.model": str(text),
            "heads.image.main.hidden": 16,
            "heads.text.main.hidden": 16,
            "objectives.prompts.init_args.questions": str(questions),
        },
        {"data.label_names": list(LABELS), "data.report_text.init_args.minimum_words": 1},
    )
    assert len(losses(tmp_path)) == 2
    encoder = cli.model.encoder
    trained = {name for name, item in encoder.named_parameters() if item.requires_grad}
    assert {name.split(".")[1] for name in trained if name.startswith("image.")} == {
        "window_in",
        "combiner",
        "depth_in",
    }
    assert all("lora_" in name for name in trained if name.startswith("text."))
    assert all(bool(head.copied) for head in (encoder.heads.image_heads["local"], encoder.heads.text_heads["local"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", ["dynunet", "mit"])
def test_ct_glip_fits_two_steps(tmp_path, encoder):
    from transformers import BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = text_folder(tmp_path / "bert", BertConfig(vocab_size=100, **sizes))
    image = {"image.init_args.filters": [8, 8, 8], "image.init_args.strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    if encoder == "mit":
        init_args = {
            "widths": [8, 8],
            "depths": [1, 1],
            "heads": [1, 1],
            "reductions": [2, 1],
            "width": 8,
            "axial_mm": 3.0,
        }
        image = {"image": {"class_path": "ctgrounding.encoders.image.mit.MiTEncoder", "init_args": init_args}}
    cli = fit(
        "ct_glip",
        tmp_path,
        image | {"text.init_args.model": str(text)},
        {"data.crop.shape": [16, 32, 32], "data.evaluation_crop.shape": [16, 32, 32]},
    )
    assert len(losses(tmp_path)) == 2
    assert list((tmp_path / "text").glob("*.sqlite"))
    assert not any(item.requires_grad for item in cli.model.encoder.text.parameters())


def test_radfinder__sizes_are_the_published_ones():
    from ctgrounding.encoders.image.windowed import WindowedViT

    config = yaml.safe_load((CONFIGS / "radfinder.yaml").read_text(encoding="utf-8"))
    with torch.device("meta"):
        encoder = WindowedViT(**config["model"]["image"]["init_args"])
    assert sum(item.numel() for item in encoder.parameters()) == 337_422_255 + 59_556_615 - 30
    assert encoder.axial_mm == 12.0
