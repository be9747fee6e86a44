"""Where the cells of an image encoder lie: measured by what they respond to, held against what is declared."""

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.testing.encoder_subject import EncoderSubject, encode, texture

GRID_TOLERANCE_MM = 1e-3
_DRAWS = 8
"""Random encoders whose responses are averaged where every cell sees everything."""


def misplaced_cells(subject: EncoderSubject, axis: int) -> Iterator[str]:
    """What is said of the first cell along an axis whose middle is not where the encoder declares it.

    How that middle is measured: see :func:`ctgrounding.testing.encoders.check_image_encoder`.

    Args:
        subject: The encoder.
        axis: 0, 1 or 2 for ``D H W``.

    Yields:
        The place declared and the place found; or that the volume is too small to tell.
    """
    encoder, name = subject.encoder, "DHW"[axis]
    vox, offset, mm = encoder.cell_vox[axis], encoder.offset_vox[axis], encoder.spacing_mm[axis]
    found, hint = _centres(subject, axis)
    if not found:
        yield f"no cell along {name} responds to what is inside the volume alone; give more cells."
    slack_mm = GRID_TOLERANCE_MM + (0.0 if vox.is_integer() else mm / 2)
    for cell, centre in found.items():
        error_mm = abs(centre - (offset + cell * vox)) * mm
        if error_mm > slack_mm:
            yield (
                f"cell {cell} along {name} is declared at voxel {offset + cell * vox:g} but sees voxel {centre:g} in "
                f"its middle, {error_mm:.3f} mm away.{hint}"
            )
            return


def _centres(subject: EncoderSubject, axis: int) -> tuple[dict[int, float], str]:
    """Middle of what each inner cell along an axis sees, in voxels; and what to try where that is not sure."""
    bare = _responses(_without_norms(subject.encoder), subject.shape, axis) > 0
    fields = {cell: seen for cell, seen in enumerate(bare.T) if seen.any() and not seen[0] and not seen[-1]}
    if fields and len({tuple(seen.tolist()) for seen in fields.values()}) == len(fields):
        return {cell: _middle(seen) for cell, seen in fields.items()}, ""
    hint = " No field of view fits into this volume; where it is bounded, give more cells."
    others = [subject.make().eval() for _ in range(_DRAWS)]
    responses = torch.stack([_responses(other, subject.shape, axis) for other in others])
    responses = (responses / responses.sum((1, 2), keepdim=True)).mean(0)
    if subject.encoder.cell_vox[axis] == 1:
        return _at_strongest_lag(responses), hint
    strongest = responses.argmax(1)
    inner = range(1, int(strongest.max()))
    return {cell: _middle(strongest == cell) for cell in inner if bool((strongest == cell).any())}, hint


def _at_strongest_lag(responses: Float[Tensor, "voxels voxels"]) -> dict[int, float]:
    """Of a map of single voxels, the lag at which cells respond most; cells near an end are left out."""
    count, reach = len(responses), max(1, len(responses) // 4)
    inner = torch.arange(reach, count - reach)
    strength = [float(responses[inner + lag, inner].sum()) for lag in range(-reach, reach + 1)]
    lag = strength.index(max(strength)) - reach
    return {int(cell): float(cell + lag) for cell in inner}


def _middle(seen: Bool[Tensor, "voxels"]) -> float:
    places = seen.nonzero()
    return (float(places.min()) + float(places.max())) / 2


def _responses(encoder: ImageEncoder, shape: tuple[int, int, int], axis: int) -> Float[Tensor, "voxels cells"]:
    """How much each layer of cells changes when one layer of voxels turns brighter."""
    slabs = texture(shape).repeat(shape[axis] + 1, 1, 1, 1)
    for place in range(shape[axis]):
        slabs[place].narrow(axis, place, 1).add_(60.0)
    cells = encode(encoder, slabs).map
    change = (cells[:-1] - cells[-1:]).square()
    return change.sum(dim=[dim for dim in range(1, 5) if dim != axis + 2]).sqrt()


def _without_norms(encoder: ImageEncoder) -> ImageEncoder:
    """A copy whose norms pass their input on, so that a cell sees what its convolutions reach and no more."""
    bare = copy.deepcopy(encoder)
    for module in list(bare.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm | nn.LayerNorm | nn.InstanceNorm3d):
                setattr(module, name, nn.Identity())
    return bare
