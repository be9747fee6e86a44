"""CT-FM (``project-lighter``): MONAI's SegResEncoder, trained with batch norm on ``S P L`` volumes.

Its rows run to posterior and its columns to the left, ours to anterior and to the right, so every kernel is
mirrored along both. That is exact where both sides are one more than a multiple of the stride; else its
strided convolutions start at the other end of an axis, less than a cell away.
"""

from functools import partial
from typing import Any

from torch import Tensor

from ctgrounding.encoders.image.segresnet import SegResNetEncoder
from ctgrounding.encoders.published.base import Checkpoint, Imported, check_complete

LICENCE = "code MIT; weights Apache-2.0"
NORM_EPS = 1e-5
OURS = "encoder.image."


def import_ct_fm(checkpoint: Checkpoint, *, axial_mm: float = 3.0) -> Imported:
    """CT-FM's encoder, from its feature extractor, its segmentation model or its pre-training checkpoint.

    Batch norms become the gains and shifts that they are in evaluation; those can be trained.

    Args:
        checkpoint: Its tensors, with the prefix ``encoder.``, ``backbone.`` or none.
        axial_mm: Slice distance of the scans; CT-FM was trained at 3 mm.

    Raises:
        CheckpointError: If it is no checkpoint of CT-FM.
    """
    theirs = next((prefix for prefix in ("encoder.", "backbone.") if prefix + "conv_init.weight" in checkpoint), "")
    checkpoint.leave_out(r"up_layers\..*", "the segmentation decoder is not used")
    checkpoint.leave_out(r"projection_head\..*", "the head of pre-training is not used")
    checkpoint.leave_out(r".*num_batches_tracked", "the statistics are fixed")
    filters = checkpoint.shape(theirs + "conv_init.weight")[0]
    stages = checkpoint.blocks(theirs + "layers.")
    weights = {OURS + "enter.conv.weight": _kernel(checkpoint, theirs + "conv_init.weight", (filters, 1, 3, 3, 3))}
    blocks = []
    for stage in range(stages):
        width, part = filters * 2**stage, f"{theirs}layers.{stage}."
        count = checkpoint.blocks(part + "blocks.")
        blocks.append(count)
        if stage:
            down = f"{theirs}layers.{stage - 1}.downsample.weight"
            weights[f"{OURS}stages.{stage}.0.conv.weight"] = _kernel(checkpoint, down, (width, width // 2, 3, 3, 3))
        for place in range(count):
            old, new = f"{part}blocks.{place}.", f"{OURS}stages.{stage}.{place + 1}."
            for number in (1, 2):
                kernel = _kernel(checkpoint, f"{old}conv{number}.weight", (width, width, 3, 3, 3))
                weights[f"{new}conv{number}.conv.weight"] = kernel
                weights |= _fixed_norm(checkpoint, f"{old}norm{number}.", f"{new}norm{number}.", width)
    checkpoint.finish()
    image: dict[str, Any] = {
        "spacing_mm": [axial_mm, 1.0, 1.0],
        "filters": filters,
        "blocks": blocks,
        "norm": "fixed",
        "final_norm": False,
        "unit_range": True,
        "windows": [[-1024.0, 2048.0]],
    }
    check_complete(partial(SegResNetEncoder, **image), weights, OURS)
    path = "ctgrounding.encoders.image.segresnet.SegResNetEncoder"
    readout = {"class_path": "ctgrounding.encoders.readouts.GlobalReadout", "init_args": {"parts": ["mean"]}}
    model = {"image": {"class_path": path, "init_args": image}, "readouts": {"global": readout}}
    return Imported(weights, model, LICENCE, checkpoint.left_out)


def _kernel(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Tensor:
    return checkpoint.take(name, shape).flip(3, 4).contiguous()


def _fixed_norm(checkpoint: Checkpoint, theirs: str, ours: str, width: int) -> dict[str, Tensor]:
    gain, shift, mean, variance = (
        checkpoint.take(theirs + name, (width,)) for name in ("weight", "bias", "running_mean", "running_var")
    )
    gain = gain * (variance + NORM_EPS).rsqrt()
    return {ours + "weight": gain, ours + "bias": shift - mean * gain}
