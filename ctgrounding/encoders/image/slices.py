"""Slices through a 2D image tower, and neighbouring slices pooled to one depth bin."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.image.counts import check_counts
from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.slice_towers import make_tower
from ctgrounding.encoders.image.windows import AIR_HU, DEFAULT_WINDOWS
from ctgrounding.errors import BatchError


class SlicesEncoder(CroppedEncoder):
    """2.5D: any image tower of timm or open_clip, each slice an image whose channels are HU windows.

    A tower's position table is brought to the size of the slices. A tower that takes images of one size only, such as
    BEiT, MaxViT or Hiera, gets it by ``slice_shape``. Batch norms of a tower become fixed: batch statistics would
    make a scan's features depend on its neighbours. Pretrained towers were trained on photographs of other mean and
    variance than HU windows in [-1, 1]; fine-tune them.

    Args:
        tower: Name of the architecture, such as ``resnet18`` or ``vit_small_patch16_224`` (timm), ``ViT-B-16``
            (open_clip, or ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME`` of a model of it).
        library: ``timm`` or ``open_clip``.
        pretrained: Fetch published weights: true for timm, whose names may end in the tag of the weights, such as
            ``vit_small_patch16_224.augreg_in1k``; for open_clip the tag or a file, or true for those of a folder.
        slices: Slices of a depth bin.
        pooling: How they become one: ``mean``, ``max``, or ``attention`` by a learned score.
        strided: Whether the tower is a stack of padded strided convolutions (``resnet18``, ``efficientnet_b0``),
            whose cells are centred at their first pixel, or cuts patches (ViT, ConvNeXt, Swin). Shortcuts that
            average pixels (``resnet50d``) lie half way between; it moves rows and columns, never depth bins.
        slice_shape: Rows and columns that every slice is filled to with air at its ends; larger ones are refused. Null
            leaves slices as they are.
        spacing_mm: Voxel size along ``D H W``.
        slices_per_pass: Most slices that go through the tower at a time.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If there is no such tower, it gives no map, it does not take images of this size, or its weights
            cannot be had.

    Examples:
        >>> encoder = SlicesEncoder("vit_tiny_patch16_224", slices=4, spacing_mm=(3, 1.5, 1.5))
        >>> dense = encoder(torch.zeros(1, 8, 32, 48), torch.tensor([[[0, 8], [0, 32], [0, 48]]]))
        >>> dense.map.shape, encoder.axial_mm
        (torch.Size([1, 192, 2, 2, 3]), 12.0)
    """

    def __init__(
        self,
        tower: str,
        library: Literal["timm", "open_clip"] = "timm",
        pretrained: bool | str = False,
        slices: int = 4,
        pooling: Literal["mean", "max", "attention"] = "mean",
        strided: bool = False,
        slice_shape: tuple[int, int] | None = None,
        spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
        slices_per_pass: int = 64,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        check_counts("SlicesEncoder", slices=slices, slices_per_pass=slices_per_pass)
        made = make_tower(library, tower, pretrained, len(windows), slice_shape, strided=strided)
        cell = (slices, made.stride, made.stride)
        super().__init__(
            width=made.width,
            spacing_mm=spacing_mm,
            cell_vox=cell,
            align_vox=cell,
            strided=(False, strided, strided),
            windows=windows,
            axial_mm=axial_mm,
        )
        self.tower, self.pooling, self.slices_per_pass, self.slice_shape = made, pooling, slices_per_pass, slice_shape
        self.norm = nn.LayerNorm(made.width)
        self.score = nn.Linear(made.width, 1) if pooling == "attention" else None

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """Maps of the slices, pooled over the slices of each bin.

        Raises:
            BatchError: If slices are larger than ``slice_shape``.
        """
        images = self._filled(volume_hu.flatten(0, 1))
        maps = [self.tower(self.windows(part)) for part in torch.split(images, self.slices_per_pass)]
        cells = self.norm(torch.cat(maps).permute(0, 2, 3, 1))
        cells = cells.unflatten(0, (volume_hu.shape[0], -1, self.cell[0]))
        if self.score is not None:
            weight = self.score(cells).softmax(dim=2)
            return (cells * weight).sum(2)  # type: ignore[no-any-return]
        return cells.amax(2) if self.pooling == "max" else cells.mean(2)  # type: ignore[no-any-return]

    def _filled(self, images: Shaped[Tensor, "n H W"]) -> Shaped[Tensor, "n H W"]:
        if self.slice_shape is None:
            return images
        rows, columns = (whole - side for whole, side in zip(self.slice_shape, images.shape[1:], strict=True))
        if min(rows, columns) < 0:
            raise BatchError(
                f"Slices of {tuple(images.shape[1:])} voxels, whole cells, are larger than the slice_shape "
                f"{tuple(self.slice_shape)} of SlicesEncoder. Set data.crop.shape to no more, or slice_shape to more."
            )
        return functional.pad(images, (0, columns, 0, rows), value=AIR_HU)
