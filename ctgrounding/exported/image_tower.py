"""The image tower of a model: volumes in HU to named embeddings, with readouts and heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from ctgrounding.encoders.readouts import OrganReadout, ReadoutContext
from ctgrounding.encoders.vision_language import VisionLanguageEncoder
from ctgrounding.errors import ConfigError

Use = tuple[str, str]
"""A readout and the image head that reads it."""


def tower_outputs(
    encoder: VisionLanguageEncoder, heads: Mapping[str, Mapping[str, Any]], locating: Mapping[str, Any] | None
) -> list[Use]:
    """Which embeddings a volume alone gives: each head on its readout, and the one that locates on depth bins.

    Heads of organs are left out: they need a label map.

    Args:
        encoder: The model.
        heads: Section ``heads.image`` of its configuration.
        locating: Heads of snippet localization, None if it was not trained to locate.
    """
    uses: dict[Use, None] = {}
    for name in heads:
        original = heads[heads[name].get("copy") or name]
        uses[original.get("readout") or "global", name] = None
    if locating is not None:
        uses["depth", str(locating["image_head"])] = None
    return [(readout, head) for readout, head in uses if not isinstance(encoder.readouts[readout], OrganReadout)]


class ImageTower(nn.Module):
    """Volumes on the model's voxel size to named embeddings; shares the model's parts.

    Args:
        encoder: The model.
        uses: What to give, of :func:`tower_outputs`.

    Raises:
        ConfigError: If there is nothing to give.
    """

    def __init__(self, encoder: VisionLanguageEncoder, uses: Sequence[Use]) -> None:
        super().__init__()
        if not uses:
            raise ConfigError(
                "This model has no image head that a volume alone feeds, so its image tower gives nothing."
            )
        self.image = encoder.image
        self.uses = tuple(uses)
        self.names = tuple(dict.fromkeys(readout for readout, _ in uses))
        # By number: a program's parts cannot have names such as "global", which are words of Python.
        self.readouts = nn.ModuleList(encoder.readouts[name] for name in self.names)
        self.heads = nn.ModuleList(encoder.heads.image_heads[head] for _, head in uses)

    def forward(
        self, image_hu: Shaped[Tensor, "b D H W"], valid_box: Int64[Tensor, "b 3 2"]
    ) -> dict[str, Float[Tensor, "..."]]:
        """Embed volumes.

        Args:
            image_hu: Volumes in HU, padded to one shape.
            valid_box: Half-open box of real voxels of each.

        Returns:
            ``READOUT.HEAD`` to unit vectors, one a scan (``b M``) or one a depth bin (``b Z M``, zero at bins without
            real voxels); and for readouts of depth bins ``READOUT.valid``, which bins hold real voxels.
        """
        dense = self.image(image_hu, valid_box)
        spacing_mm = torch.tensor([self.image.spacing_mm], dtype=torch.float64, device=dense.map.device)
        context = ReadoutContext(spacing_mm.expand(image_hu.shape[0], -1), image_hu=image_hu)
        rows = {name: readout(dense, context) for name, readout in zip(self.names, self.readouts, strict=True)}
        found: dict[str, Tensor] = {}
        for (readout, name), head in zip(self.uses, self.heads, strict=True):
            valid = rows[readout].depth_valid
            vectors = head(rows[readout].values)
            found[f"{readout}.{name}"] = vectors if valid is None else vectors.masked_fill(~valid[..., None], 0)
            if valid is not None:
                found[f"{readout}.valid"] = valid
        return found
