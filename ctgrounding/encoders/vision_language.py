"""The model itself: image encoder, readouts, text encoder and declared heads in one module."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Float64, Int16, Int64
from torch import Tensor, nn

from ctgrounding.encoders.heads import Heads, HeadsConfig
from ctgrounding.encoders.image.base import ImageEncoder
from ctgrounding.encoders.layers import layers_above, with_prefix
from ctgrounding.encoders.lora import Lora, adapt
from ctgrounding.encoders.readouts import Readout, ReadoutContext, Rows
from ctgrounding.encoders.text.base import TextEncoder
from ctgrounding.geometry import depth_bins
from ctgrounding.types import Encoded, EncoderDims

ReadoutFactory = Callable[[int], Readout]


@dataclass(frozen=True)
class VolumeRows:
    """What the readouts made of one micro-batch.

    Attributes:
        rows: Readout name to its rows.
        depth_mm: World z of the centre of each depth bin.
    """

    rows: Mapping[str, Rows]
    depth_mm: Float64[Tensor, "b Z"]


class VisionLanguageEncoder(nn.Module):
    """Everything a trained model consists of; the task trains it, :class:`ctgrounding.model.Model` uses it.

    Args:
        image: Image encoder.
        text: Text encoder.
        readouts: Name to readout, made for the width of the image encoder's map.
        heads: Declared heads by name.
        image_lora: Adapters of the image encoder, which is frozen beside them; None trains it whole.
    """

    def __init__(
        self,
        image: ImageEncoder,
        text: TextEncoder,
        readouts: Mapping[str, ReadoutFactory],
        heads: HeadsConfig,
        image_lora: Lora | None = None,
    ) -> None:
        super().__init__()
        if image_lora is not None:
            adapt(image, image_lora)
        self.image, self.text = image, text
        self.readouts = nn.ModuleDict({name: make(image.width) for name, make in readouts.items()})
        self.heads = Heads(heads, self.readout_widths, text.width)

    @property
    def readout_widths(self) -> dict[str, int]:
        """Width of each readout by name."""
        return {name: readout.width for name, readout in self.readouts.items() if isinstance(readout, Readout)}

    @property
    def dims(self) -> EncoderDims:
        """Sizes that objectives may need."""
        heads = self.heads
        return EncoderDims(
            self.readout_widths, self.text.width, heads.image_widths, heads.text_widths, self.image.axial_mm
        )

    def layers_above(self) -> dict[str, dict[str, int]]:
        """For each tower how many of its layers lie between a parameter and its output, by name in this module."""
        image, text = (
            layers_above(self.image, self.image.ordered_layers()),
            layers_above(self.text, self.text.ordered_layers()),
        )
        return {"image": with_prefix("image", image), "text": with_prefix("text", text)}

    def encode_volumes(
        self,
        image_hu: Float[Tensor, "b D H W"] | Int16[Tensor, "b D H W"],
        valid_box: Int64[Tensor, "b 3 2"],
        origin_mm: Float64[Tensor, "b 3"],
        context: ReadoutContext,
    ) -> VolumeRows:
        """One pass of the image encoder and every readout.

        Args:
            image_hu: Volumes in HU.
            valid_box: Half-open box of real voxels of each.
            origin_mm: World position of the centre of each volume's first voxel.
            context: Spacing, and organ maps where there are any.
        """
        dense = self.image(image_hu, valid_box)
        context = replace(context, image_hu=image_hu)
        rows = {name: readout(dense, context) for name, readout in self.readouts.items()}
        cell, offset = dense.cell_vox[0], dense.offset_vox[0]
        depth_mm = depth_bins(origin_mm[:, 2], context.spacing_mm[:, 0], cell, offset, dense.map.shape[2])
        return VolumeRows(rows, depth_mm)

    def encode_tokens(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a text; no text is legal."""
        if len(tokens) == 0:
            return torch.zeros((0, self.text.width), dtype=next(self.parameters()).dtype, device=tokens.device)
        vectors: Tensor = self.text(tokens, mask)
        return vectors

    def join(self, parts: Sequence[VolumeRows], text: Float[Tensor, "T E"]) -> Encoded:
        """Put the rows of several micro-batches together, indices counted over all of them.

        Args:
            parts: One for each micro-batch; none is legal.
            text: One vector for each unique text.
        """
        scans = [len(part.depth_mm) for part in parts]
        first = [sum(scans[:index]) for index in range(len(scans))]
        total, bins = sum(scans), max((part.depth_mm.shape[1] for part in parts), default=0)
        depth_valid = torch.zeros((total, bins), dtype=torch.bool, device=text.device)
        depth_mm = torch.zeros((total, bins), dtype=torch.float64, device=text.device)
        readouts: dict[str, Tensor] = {}
        # Zero, so that a rank without scans takes part in the collectives of every backward.
        attached = text[:0].sum(dtype=text.dtype)
        organs: list[tuple[Tensor, Tensor, Tensor]] = []
        for name, width in self.readout_widths.items():
            rows = [part.rows[name] for part in parts]
            for start, part, found in zip(first, parts, rows, strict=True):
                if found.depth_valid is not None:
                    depth_valid[start : start + len(part.depth_mm), : part.depth_mm.shape[1]] = found.depth_valid
                if found.organ_scan is not None and found.organ_class is not None and found.organ_visible is not None:
                    organs.append((found.organ_scan + start, found.organ_class, found.organ_visible))
            values = [_with_bins(found.values, bins) for found in rows]
            empty = (0, 0, width) if name == "depth" else (0, width)
            readouts[name] = torch.cat(values) if values else text.new_zeros(empty) + attached
        for start, part in zip(first, parts, strict=True):
            depth_mm[start : start + len(part.depth_mm), : part.depth_mm.shape[1]] = part.depth_mm
        return _encoded(self.heads, readouts, text, depth_valid, depth_mm, organs)


def _with_bins(values: Tensor, bins: int) -> Tensor:
    """Rows of a depth readout with padding bins appended; others as they are."""
    if values.ndim != 3:
        return values
    return nn.functional.pad(values, (0, 0, 0, bins - values.shape[1]))


def _encoded(
    heads: Heads,
    readouts: Mapping[str, Tensor],
    text: Tensor,
    depth_valid: Tensor,
    depth_mm: Tensor,
    organs: Sequence[tuple[Tensor, Tensor, Tensor]],
) -> Encoded:
    none = torch.zeros(0, dtype=torch.int64, device=text.device)
    columns = list(zip(*organs, strict=True)) if organs else [(none,), (none,), (none.float(),)]
    scan, organ, visible = (torch.cat(column) for column in columns)
    return Encoded(heads, readouts, text, depth_valid, depth_mm, scan, organ, visible, none, none)
