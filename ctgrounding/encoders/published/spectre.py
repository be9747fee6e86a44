"""SPECTRE and RadFinder, which share their modules and key names.

Sources: ``cclaess/SPECTRE`` (arXiv 2511.17209) and ``lmb-freiburg/radfinder`` (arXiv 2603.02026). Their arrays
are ``x y z``, ours ``D H W``, so the patch kernel's axes are reversed; their input is in [0, 1], ours in [-1, 1],
which the patch map takes in.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ctgrounding.encoders.image.windowed import COMBINER_BASE, LOCAL_BASE, WindowedViT
from ctgrounding.encoders.published.base import Checkpoint, Imported, TextFolder, check_complete, unit_range
from ctgrounding.errors import CheckpointError

LICENCE = "code MIT; weights CC BY-NC-SA 4.0 (not for commercial use)"
TOKENIZER = "Qwen/Qwen3-Embedding-0.6B"
LORA_FACTOR = 4.0
"""Alpha over rank of both models' adapters."""

IMAGE, COMBINER, TEXT = "backbone_image.", "feature_comb_image.", "backbone_text."
OURS = "encoder.image."
WINDOW_PATCHES = 8
HEADS = {
    "projection_image": "image_heads.main",
    "projection_image_copy": "image_heads.local",
    "projection_text": "text_heads.main",
    "projection_text_copy": "text_heads.local",
}
"""Published heads and ours; ``local`` is a copy of ``main`` that disease prompts and snippets trained."""

DepthBranch = Literal["trained", "zero_shot"]


def import_radfinder(
    checkpoint: Checkpoint, *, depth_branch: DepthBranch = "trained", lora_folded: bool = True
) -> Imported:
    """RadFinder's ``model.safetensors``, or the part ``model`` of its training checkpoints.

    Args:
        checkpoint: Its tensors, with or without the prefix ``model.``, which the caller strips.
        depth_branch: Which depth branch the model is to have.
        lora_folded: Whether the text weights already contain their adapters, as published.

    Raises:
        CheckpointError: If it is no checkpoint of RadFinder.
    """
    found = _import(checkpoint, depth_branch, lora_folded, halve_depth=False, eps=1e-6)
    _check(found)
    return found


def import_spectre(
    checkpoint: Checkpoint,
    *,
    depth_branch: DepthBranch = "trained",
    lora_folded: bool = False,
    halve_depth: bool = False,
) -> Imported:
    """SPECTRE's five files, brought under RadFinder's prefixes by the caller; all but the backbone may be missing.

    Args:
        checkpoint: Their tensors.
        depth_branch: ``trained`` starts RadFinder's depth branch from the half of the combiner's input map that
            reads the mean patch, as RadFinder does.
        lora_folded: Whether the text weights already contain their adapters.
        halve_depth: Sum neighbouring slices of the patch kernel, for voxels twice as long, as RadFinder does.

    Raises:
        CheckpointError: If it is no checkpoint of SPECTRE.
    """
    found = _import(checkpoint, depth_branch, lora_folded, halve_depth, eps=1e-5)
    if COMBINER + "cls_token" in checkpoint:
        _check(found)
    return found


def _import(
    checkpoint: Checkpoint, depth_branch: DepthBranch, lora_folded: bool, halve_depth: bool, eps: float
) -> Imported:
    weights, patch = _patch(checkpoint, halve_depth)
    width, heads = weights[OURS + "embed.weight"].shape[0], _heads(checkpoint, IMAGE, LOCAL_BASE)
    depth, combiner_depth = checkpoint.blocks(IMAGE + "blocks."), 4
    weights |= tower(checkpoint, IMAGE, OURS + "local.", width)
    if COMBINER + "cls_token" in checkpoint:
        _heads(checkpoint, COMBINER, COMBINER_BASE)
        combiner_depth = checkpoint.blocks(COMBINER + "blocks.")
        weights |= tower(checkpoint, COMBINER, OURS + "combiner.", width) | _inputs(checkpoint, depth_branch, width)
    heads_config: dict[str, Any] = {"image": {}, "text": {}}
    for theirs, ours in HEADS.items():
        if f"{theirs}.layers.0.weight" in checkpoint:
            weights |= _head(checkpoint, theirs, f"encoder.heads.{ours}", heads_config)
    if "criterion.t" in checkpoint:
        weights["encoder.heads.logits.main.log_scale"] = checkpoint.take("criterion.t", ())
        weights["encoder.heads.logits.main.bias"] = checkpoint.take("criterion.b", ())
        heads_config["logit"] = {"main": {"scale": 10.0, "bias": -10.0}}
    text = _text(checkpoint, lora_folded)
    checkpoint.finish()
    slice_mm = 0.75 * 16 / patch[0]  # 3 mm for patches of 4 voxels, 1.5 mm for 8: depth bins of 12 mm
    image = {
        "spacing_mm": [slice_mm, 0.75, 0.75],
        "window": [WINDOW_PATCHES * vox for vox in patch],
        "patch": patch,
        "width": width,
        "depth": depth,
        "heads": heads,
        "combiner_depth": combiner_depth,
        "depth_branch": depth_branch,
        "norm_eps": eps,
    }
    model = {"image": _class("image.windowed.WindowedViT", image), "readouts": _READOUTS, "heads": heads_config}
    return Imported(weights, model, LICENCE, checkpoint.left_out, text)


def tower(checkpoint: Checkpoint, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    """Blocks, summary and closing norm of either transformer, as a ``GridTower``."""
    take = checkpoint.take
    weights = {ours + "summary": take(theirs + "cls_token", (1, 1, width))}
    for end in ("weight", "bias"):
        weights[f"{ours}norm.{end}"] = take(f"{theirs}norm.{end}", (width,))
    for place in range(checkpoint.blocks(theirs + "blocks.")):
        old, new = f"{theirs}blocks.{place}.", f"{ours}blocks.{place}."
        hidden = checkpoint.shape(old + "mlp.fc1.bias")[0]
        for end, tail in (("weight", (width,)), ("bias", ())):
            plain = {
                "attention_norm": ("norm1", (width,)),
                "mlp_norm": ("norm2", (width,)),
                "attention.out": ("attn.proj", (width, *tail)),
                "mlp.0": ("mlp.fc1", (hidden, *tail)),
                "mlp.2": ("mlp.fc2", (width, hidden) if tail else (width,)),
            }
            for name, (source, shape) in plain.items():
                weights[f"{new}{name}.{end}"] = take(f"{old}{source}.{end}", shape)
            query = take(f"{old}attn.q.{end}", (width, *tail))
            key_value = take(f"{old}attn.kv.{end}", (2 * width, *tail))
            weights[f"{new}attention.qkv.{end}"] = torch.cat([query, key_value])
        gains = [take(f"{old}ls{branch}.gamma", (width,)) for branch in (1, 2)]
        weights[new + "layer_scale"] = torch.stack(gains)
    return weights


def _patch(checkpoint: Checkpoint, halve_depth: bool) -> tuple[dict[str, Tensor], list[int]]:
    name = IMAGE + "patch_embed.proj."
    width, channels, *_ = checkpoint.shape(name + "weight")
    kernel = checkpoint.take(name + "weight").permute(0, 1, 4, 3, 2)
    if channels != 1:
        raise CheckpointError(f"'{name}weight' reads {channels} channels, but the published models read one.")
    if halve_depth:
        kernel = kernel[:, :, 0::2] + kernel[:, :, 1::2]
    weight, bias = unit_range(kernel, checkpoint.take(name + "bias", (width,)))
    return {OURS + "embed.weight": weight.flatten(1), OURS + "embed.bias": bias}, list(kernel.shape[2:])


def _heads(checkpoint: Checkpoint, prefix: str, base: float) -> int:
    """Attention heads, which the number of rotary periods tells."""
    width = checkpoint.shape(prefix + "cls_token")[-1]
    periods = checkpoint.take(prefix + "rope.periods")
    expected = base ** (torch.arange(len(periods)) / len(periods))
    if not torch.allclose(periods, expected, rtol=1e-3):
        raise CheckpointError(f"'{prefix}rope.periods' do not grow by the base {base:g} that this model has.")
    return width // (6 * len(periods))


def _inputs(checkpoint: Checkpoint, depth_branch: DepthBranch, width: int) -> dict[str, Tensor]:
    weight = checkpoint.take(COMBINER + "patch_proj.weight", (width, 2 * width))
    bias = checkpoint.take(COMBINER + "patch_proj.bias", (width,))
    weights = {OURS + "window_in.weight": weight, OURS + "window_in.bias": bias}
    own = COMBINER + "axis_patch_proj."
    if depth_branch == "zero_shot":
        checkpoint.leave_out(own.replace(".", r"\.") + ".*", "the zero-shot depth branch reads through window_in")
    elif own + "weight" in checkpoint:
        weights[OURS + "depth_in.weight"] = checkpoint.take(own + "weight", (width, width))
        weights[OURS + "depth_in.bias"] = checkpoint.take(own + "bias", (width,))
    else:
        weights[OURS + "depth_in.weight"] = weight[:, width:].clone()
        weights[OURS + "depth_in.bias"] = bias.clone()
    return weights


def _head(checkpoint: Checkpoint, theirs: str, ours: str, config: dict[str, Any]) -> dict[str, Tensor]:
    take = checkpoint.take
    hidden, inputs = checkpoint.shape(f"{theirs}.layers.0.weight")
    bottleneck = checkpoint.shape(f"{theirs}.layers.4.bias")[0]
    sizes = {0: (hidden, inputs), 2: (hidden, hidden), 4: (bottleneck, hidden)}
    weights = {}
    for place, shape in sizes.items():
        weights[f"{ours}.layers.{place}.weight"] = take(f"{theirs}.layers.{place}.weight", shape)
        weights[f"{ours}.layers.{place}.bias"] = take(f"{theirs}.layers.{place}.bias", shape[:1])
    new, old = "parametrizations.weight.original", "weight_"
    gain, direction = (new + "0", new + "1") if f"{theirs}.last_layer.{new}0" in checkpoint else (old + "g", old + "v")
    width = checkpoint.shape(f"{theirs}.last_layer.{direction}")[0]
    if not torch.allclose(take(f"{theirs}.last_layer.{gain}", (width, 1)), torch.ones(1), atol=1e-4):
        raise CheckpointError(f"The gain of '{theirs}.last_layer' is not 1, at which both models keep it.")
    weights[f"{ours}.layers.5.direction"] = take(f"{theirs}.last_layer.{direction}", (width, bottleneck))
    kind, name = ours.removeprefix("encoder.heads.").split("_heads.")
    copied = theirs.endswith("_copy")
    weights[f"{ours}.copied"] = torch.tensor(copied)
    config[kind][name] = {"copy": "main"} if copied else {"kind": "radfinder", "hidden": hidden, "width": width}
    return weights


def _text(checkpoint: Checkpoint, lora_folded: bool) -> TextFolder | None:
    if TEXT + "embed_tokens.weight" not in checkpoint:
        return None
    take = checkpoint.take
    words, width = checkpoint.shape(TEXT + "embed_tokens.weight")
    layers, first = checkpoint.blocks(TEXT + "layers."), f"{TEXT}layers.0."
    head = checkpoint.shape(first + "self_attn.q_norm.weight")[0]
    queries, keys = (checkpoint.shape(f"{first}self_attn.{name}_proj.weight")[0] for name in "qk")
    hidden = checkpoint.shape(first + "mlp.gate_proj.weight")[0]
    tensors = {
        "embed_tokens.weight": take(TEXT + "embed_tokens.weight"),
        "norm.weight": take(TEXT + "norm.weight", (width,)),
    }
    adapted = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries)}
    plain = {
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
        "mlp.gate_proj.weight": (hidden, width),
        "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    for place in range(layers):
        part = f"layers.{place}."
        tensors |= {part + name: take(TEXT + part + name, shape) for name, shape in plain.items()}
        for letter, shape in adapted.items():
            name = f"{part}self_attn.{letter}_proj."
            tensors[name + "weight"] = _folded(checkpoint, TEXT + name, shape, lora_folded)
    config = {
        "architectures": ["Qwen3Model"],
        "model_type": "qwen3",
        "vocab_size": words,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": queries // head,
        "num_key_value_heads": keys // head,
        "head_dim": head,
        "intermediate_size": hidden,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    }
    return TextFolder(config, tensors, TOKENIZER, "last")


def _folded(checkpoint: Checkpoint, name: str, shape: tuple[int, int], lora_folded: bool) -> Tensor:
    weight = checkpoint.take(name + "weight", shape)
    if name + "lora_A" not in checkpoint:
        return weight
    if lora_folded:
        checkpoint.leave_out(name.replace(".", r"\.") + "lora_[AB]", "already contained in the weight")
        return weight
    rank = checkpoint.shape(name + "lora_A")[0]
    up, down = checkpoint.take(name + "lora_B", (shape[0], rank)), checkpoint.take(name + "lora_A", (rank, shape[1]))
    return weight + LORA_FACTOR * up @ down


def _check(found: Imported) -> None:
    check_complete(partial(WindowedViT, **found.model["image"]["init_args"]), found.weights, OURS)


def _class(path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": f"ctgrounding.encoders.{path}", "init_args": init_args}


_READOUTS = {
    "global": _class("readouts.GlobalReadout", {"parts": ["summary", "mean"]}),
    "depth": _class("readouts.DepthReadout", {"parts": ["summary", "mean"]}),
}
