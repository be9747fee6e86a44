"""HLIP (arXiv 2505.21862, ``Zch0414/hlip``): a timm ViT with slice and scan attention and a table of positions.

Its arrays are ``z y x`` as stored in ITK's frame, so rows run to posterior and columns to the left; ours run to
anterior and to the right. The patch kernel and the table are mirrored along both. Its input is a window in
[0, 1], less 0.449, over 0.226; the patch map takes that in.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.published.base import Checkpoint, Imported, TextFolder, check_complete, unit_range
from ctgrounding.errors import CheckpointError

LICENCE = "code MIT; licence of the weights not stated by the authors"
TOKENIZER = "microsoft/BiomedVLP-CXR-BERT-specialized"
MEAN, DEVIATION = 0.449, 0.226
HEAD_WIDTH = 64
TRUNK, OURS, WORDS = "visual.trunk.", "encoder.image.", "text.transformer."


def import_hlip(checkpoint: Checkpoint, *, heads: int | None = None) -> Imported:
    """HLIP's state dict, with or without the prefix ``module.``, which the caller strips.

    The single-scan model (a ``head.proj`` as wide as the trunk and no ``sequential_posemb``) has two slice blocks
    to a scan block. Multi-scan models are used for one scan of a study: their scan and study blocks are then
    both full attention, and the first scan's position joins the table.

    Args:
        checkpoint: Its tensors.
        heads: Attention heads; None for one for 64 channels, as published.

    Raises:
        CheckpointError: If it is no checkpoint of HLIP, or one that pools by attention.
    """
    if TRUNK + "attn_pool.latent" in checkpoint:
        raise CheckpointError(
            "This HLIP checkpoint pools by a latent query (its SigLIP variant), which is not supported. "
            "Use a CLIP variant, which has 'visual.head.proj.weight'."
        )
    width = checkpoint.shape(TRUNK + "cls_token")[-1]
    out, inputs = checkpoint.shape("visual.head.proj.weight")
    single = TRUNK + "sequential_posemb" not in checkpoint and inputs == width
    weights, image = _trunk(checkpoint, width)
    image |= {
        "heads": heads or width // HEAD_WIDTH,
        "attention": "slice_scan" if single else "full",
        "windows": [[-1150.0, 350.0]],
    }
    depth_mm = 3.0
    image["spacing_mm"] = [depth_mm, 1.0, 1.0]
    weights |= _linear_head(checkpoint, "visual.head.proj.weight", "encoder.heads.image_heads.main", (out, inputs))
    text = _text(checkpoint)
    config: dict[str, Any] = {"image": {"main": {"width": out}}}
    if text is not None:
        shape = (out, text.config["hidden_size"])
        weights |= _linear_head(checkpoint, "text.proj.weight", "encoder.heads.text_heads.main", shape)
        config["text"] = {"main": {"width": out}}
    if "logit_scale" in checkpoint:
        weights["encoder.heads.logits.main.log_scale"] = checkpoint.take("logit_scale", ())
        config["logit"] = {"main": {"scale": 10.0, "bias": 0.0}}
    checkpoint.finish()
    check_complete(partial(ViT, **image), weights, OURS)
    parts = ["summary"] if inputs == width else ["summary", "mean"]
    model = {
        "image": {"class_path": "ctgrounding.encoders.image.vit.ViT", "init_args": image},
        "readouts": {
            "global": {"class_path": "ctgrounding.encoders.readouts.GlobalReadout", "init_args": {"parts": parts}}
        },
        "heads": config,
    }
    notes = [
        "HLIP was trained on crops of 112 x 336 x 336 voxels around the middle; use such an evaluation_crop.",
        "Our linear heads have a bias, which is zero here.",
    ]
    return Imported(weights, model, LICENCE, checkpoint.left_out, text, notes)


def _trunk(checkpoint: Checkpoint, width: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    take, depth = checkpoint.take, checkpoint.blocks(TRUNK + "blocks.")
    kernel = take(TRUNK + "patch_embed.proj.weight").flip(3, 4)
    weight, bias = unit_range(kernel / DEVIATION, _bias(checkpoint, kernel, width))
    table = take(TRUNK + "spatial_posemb")[0]
    if TRUNK + "sequential_posemb" in checkpoint:
        table = table + take(TRUNK + "sequential_posemb")[0, 0]
    weights = {
        OURS + "embed.weight": weight.flatten(1),
        OURS + "embed.bias": bias,
        OURS + "table.values": table.flip(1, 2).contiguous(),
        OURS + "summary": take(TRUNK + "cls_token", (1, 1, width)),
    }
    names = {"attention_norm": "norm1", "mlp_norm": "norm2", "attention.qkv": "attn.qkv", "attention.out": "attn.proj",
             "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}  # fmt: skip
    for end in ("weight", "bias"):
        weights[f"{OURS}norm.{end}"] = take(f"{TRUNK}norm.{end}", (width,))
        for place in range(depth):
            for ours, theirs in names.items():
                weights[f"{OURS}blocks.{place}.{ours}.{end}"] = take(f"{TRUNK}blocks.{place}.{theirs}.{end}")
    image = {
        "patch": list(kernel.shape[2:]),
        "width": width,
        "depth": depth,
        "table": list(table.shape[:3]),
        "norm_eps": 1e-6,
    }
    return weights, image


def _bias(checkpoint: Checkpoint, kernel: Tensor, width: int) -> Tensor:
    mean = kernel.flatten(1).double().sum(1).float() * (MEAN / DEVIATION)
    return checkpoint.take(TRUNK + "patch_embed.proj.bias", (width,)) - mean


def _linear_head(checkpoint: Checkpoint, theirs: str, ours: str, shape: tuple[int, int]) -> dict[str, Tensor]:
    return {
        f"{ours}.layers.0.weight": checkpoint.take(theirs, shape),
        f"{ours}.layers.0.bias": torch.zeros(shape[0]),
        f"{ours}.copied": torch.tensor(False),
    }


def _text(checkpoint: Checkpoint) -> TextFolder | None:
    first = WORDS + "embeddings.word_embeddings.weight"
    if first not in checkpoint:
        return None
    checkpoint.leave_out(r".*\.position_ids", "counted anew")
    words, width = checkpoint.shape(first)
    layers = checkpoint.blocks(WORDS + "encoder.layer.")
    parts = ["word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"]
    names = [f"embeddings.{part}" for part in [*parts, "LayerNorm.weight", "LayerNorm.bias"]]
    inner = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"]  # fmt: skip
    for place in range(layers):
        names += [f"encoder.layer.{place}.{part}.{end}" for part in inner for end in ("weight", "bias")]
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "intermediate_size": checkpoint.shape(WORDS + "encoder.layer.0.intermediate.dense.bias")[0],
        "max_position_embeddings": checkpoint.shape(WORDS + "embeddings.position_embeddings.weight")[0],
        "type_vocab_size": checkpoint.shape(WORDS + "embeddings.token_type_embeddings.weight")[0],
    }
    return TextFolder(config, {name: checkpoint.take(WORDS + name) for name in names}, TOKENIZER, "first")
