"""Text towers of open_clip models give the vectors of the library, whatever their tokenizer, mask and pooling."""

import json
import pickle
import shutil
import subprocess
import sys

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from token_rows import rows_of

from ctgrounding.encoders.image.slices import SlicesEncoder
from ctgrounding.encoders.lora import Lora
from ctgrounding.encoders.text.open_clip_models import OpenClipModelText, OpenClipModelTokenizer
from ctgrounding.encoders.text.sentences import SentenceText
from ctgrounding.errors import ConfigError
from ctgrounding.testing.elsewhere import elsewhere

TEXTS = ["no effusion", "a cyst in the left kidney , and another one behind it", "normal liver", "kidney " * 40]
CLIP = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TOWERS = {
    "clip": CLIP,
    "clip_wide": {**CLIP, "proj_type": "none"},
    "clip_biased": {**CLIP, "proj_bias": True},
    "coca": {**CLIP, "embed_cls": True, "output_tokens": True},
    "siglip": {**CLIP, "no_causal_mask": True, "pool_type": "last", "proj_bias": True, "hf_tokenizer_name": "words"},
    "clipa": {**CLIP, "no_causal_mask": True, "pool_type": "eos", "eos_id": 3} | {"hf_tokenizer_name": "words"},
    "bert": {
        "hf_model_name": "BERT",
        "hf_tokenizer_name": "words",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    | {"context_length": 24},
}


def words(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    marks = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=marks)
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder a kind of model, as open_clip's own are published."""
    from transformers import BertConfig

    top = tmp_path_factory.mktemp("open_clip")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertConfig(vocab_size=200, max_position_embeddings=64, pad_token_id=0, **sizes).save_pretrained(top / "BERT")
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    for name, text in TOWERS.items():
        folder = top / name
        folder.mkdir()
        if "hf_tokenizer_name" in text:
            words(folder)
        if "hf_model_name" in text:
            text = text | {"hf_model_name": str(top / "BERT")}
        about = {"model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, "custom_text": True}}
        if name == "clip_wide":
            about["model_cfg"]["embed_dim"] = 16
        (folder / "open_clip_config.json").write_text(json.dumps(about))
        torch.manual_seed(len(name))
        model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    return top


def encoded(encoder, texts):
    return encoder(*rows_of(encoder, texts))


@pytest.mark.parametrize("name", TOWERS)
def test_vectors_are_those_of_open_clip(name, models):
    model = f"local-dir:{models / name}"
    whole = open_clip.create_model(model).eval()
    encoder = OpenClipModelText(model, pretrained=True).eval()
    with torch.no_grad():
        found = whole.encode_text(open_clip.get_tokenizer(model)(TEXTS))
        expected = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(encoded(encoder, TEXTS), expected)
        for text, vector in zip(TEXTS, expected, strict=True):
            torch.testing.assert_close(encoded(encoder, [text])[0], vector)
    assert encoder.width == expected.shape[1]
    assert expected.std(0).mean() > 1e-3


@pytest.mark.parametrize("name", ["clip", "siglip", "bert"])
def test_no_tensor_stays_behind(name, models):
    encoder = OpenClipModelText(f"local-dir:{models / name}", pretrained=True).eval()
    tokens = encoder.tokenizer(TEXTS[0])[None].repeat(2, 1)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    expected = encoder(tokens, mask)
    with elsewhere() as device:
        found = encoder.to(device)(tokens.to(device), mask.to(device))
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_its_tokenizer_counts_what_it_cuts_and_goes_to_workers(name, models):
    tokenizer = OpenClipModelTokenizer(f"local-dir:{models / name}")
    assert tokenizer.context_length == 24
    assert tokenizer.count("kidney " * 40) == 42
    assert len(tokenizer("kidney " * 40)) == 24
    assert tokenizer.count("normal liver") == len(tokenizer("normal liver")) == 4
    assert pickle.loads(pickle.dumps(tokenizer))("normal liver").equal(tokenizer("normal liver"))


def test_tuning_says_what_is_trained(models, tmp_path):
    model = f"local-dir:{models / 'clip'}"
    frozen = OpenClipModelText(model, True, "frozen", cache=str(tmp_path))
    frozen.train()
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.tower.training
    first = encoded(frozen, TEXTS)
    assert list(tmp_path.rglob("*"))
    assert encoded(frozen, TEXTS).equal(first)
    adapted = OpenClipModelText(model, True, "lora", Lora(rank=2, targets=["c_fc", "c_proj"]))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 8
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(encoded(adapted.eval(), TEXTS), first)
    whole = OpenClipModelText(model, True)
    encoded(whole, TEXTS).square().sum().backward()
    assert all(parameter.grad is not None for parameter in whole.parameters())


def test_kept_vectors_are_those_of_a_models_own_activation(models, tmp_path):
    """``quick_gelu`` stands beside the text tower's settings, and weights are the same with and without it."""
    quick = shutil.copytree(models / "clip", tmp_path / "quick")
    about = json.loads((quick / "open_clip_config.json").read_text())
    about["model_cfg"]["quick_gelu"] = True
    (quick / "open_clip_config.json").write_text(json.dumps(about))
    kept = str(tmp_path / "kept")
    first = encoded(OpenClipModelText(f"local-dir:{models / 'clip'}", True, "frozen", cache=kept), TEXTS)
    expected = encoded(OpenClipModelText(f"local-dir:{quick}", True, "frozen"), TEXTS)
    torch.testing.assert_close(
        encoded(OpenClipModelText(f"local-dir:{quick}", True, "frozen", cache=kept), TEXTS), expected
    )
    assert not expected.allclose(first)


def test_weights_of_a_file_and_of_none(models, tmp_path):
    model = f"local-dir:{models / 'clip'}"
    torch.manual_seed(1)
    random = OpenClipModelText(model)
    torch.manual_seed(2)
    assert not encoded(random, TEXTS).allclose(encoded(OpenClipModelText(model), TEXTS))
    with pytest.raises(
        ConfigError, match=r"weights of open_clip's 'ViT-B-32' cannot be had \(AssertionError: text pos"
    ):
        OpenClipModelText("ViT-B-32", str(models / "clip" / "model.safetensors"))
    torch.save({"weights": test_weights_of_a_file_and_of_none}, tmp_path / "foreign.pt")
    with pytest.raises(ConfigError, match=r"cannot be had \(UnpicklingError: Weights only load failed"):
        OpenClipModelText("ViT-B-32", str(tmp_path / "foreign.pt"))


def test_reports_go_through_it_sentence_by_sentence(models):
    inner = OpenClipModelText(f"local-dir:{models / 'clip'}", True).eval()
    encoder = SentenceText(inner, context_length=128, parts=["mean"]).eval()
    report = "No effusion. " + "There is a cyst in the left kidney. " * 8
    with torch.no_grad():
        vector = encoded(encoder, [report])[0]
        sentences = encoded(inner, ["No effusion.", *["There is a cyst in the left kidney."] * 8])
    assert encoder.tokenizer.count(report) > 24
    torch.testing.assert_close(vector, sentences.mean(0))


def test_its_image_tower_is_there_too(models):
    model = f"local-dir:{models / 'clip'}"
    encoder = SlicesEncoder(model, "open_clip", pretrained=True, slices=1).eval()
    visual = open_clip.create_model(model).visual
    assert encoder.tower.visual.conv1.weight.equal(visual.conv1.weight)
    assert encoder(torch.zeros(1, 1, 32, 48), torch.tensor([[[0, 1], [0, 32], [0, 48]]])).map.shape == (1, 16, 1, 2, 3)


def test_it_leaves_logging_as_it_is(models):
    """open_clip logs by the root logger, to which Python then gives a handler that doubles every line of a fit."""
    code = (
        "import ctgrounding, logging\n"
        "from ctgrounding.encoders.text.open_clip_models import OpenClipModelText\n"
        f"OpenClipModelText('local-dir:{models / 'clip'}', True)\n"
        "assert logging.getLogger().handlers == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refusals(models, tmp_path):
    model = f"local-dir:{models / 'clip'}"
    with pytest.raises(ConfigError, match=r"open_clip has no model 'ViT-B-33', but has such as"):
        OpenClipModelText("ViT-B-33")
    with pytest.raises(ConfigError, match="named by a tag: set pretrained to one of openai"):
        OpenClipModelText("ViT-B-32", True)
    with pytest.raises(ConfigError, match=r"brings its weights, but pretrained is 'openai'\. Set pretrained to true"):
        OpenClipModelText(model, "openai")
    with pytest.raises(ConfigError, match=r"cannot be had \(FileNotFoundError"):
        OpenClipModelText(f"local-dir:{tmp_path / 'none'}", True)
    with pytest.raises(ConfigError, match=r"tokenizer of open_clip's 'ViT-B-16-SigLIP' cannot be had"):
        OpenClipModelText("ViT-B-16-SigLIP")
    with pytest.raises(ConfigError, match="lora has no effect where tuning is full"):
        OpenClipModelText(model, lora=Lora())
    with pytest.raises(ConfigError, match=r"tuning is lora\. Freeze the tower, or remove cache"):
        OpenClipModelText(model, tuning="lora", cache="x")
    with pytest.raises(ConfigError, match=r"LoRA finds no trainable .* are named \['c_fc', 'c_proj'\]\. Set targets"):
        OpenClipModelText(model, tuning="lora")
