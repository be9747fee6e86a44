"""Slices through a 2D image tower, and neighbouring slices pooled to one depth bin."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.image.cropped import CroppedEncoder
from ctgrounding.encoders.image.windows import DEFAULT_WINDOWS
from ctgrounding.errors import ConfigError


class SlicesEncoder(CroppedEncoder):
    """2.5D: any image tower of timm or open_clip, each slice an image whose channels are HU windows.

    A tower's position table is brought to the size of the slices. Its batch norms, if any, become fixed: batch
    statistics would make a scan's features depend on its neighbours. Pretrained towers were trained on
    photographs of other mean and variance than HU windows in [-1, 1]; fine-tune them.

    Args:
        tower: Name of the architecture, such as ``resnet18`` or ``vit_small_patch16_224`` (timm), ``ViT-B-16``
            (open_clip).
        library: ``timm`` or ``open_clip``.
        pretrained: Fetch published weights: true for timm, whose names may end in the tag of the weights, such as
            ``vit_small_patch16_224.augreg_in1k``; for open_clip the tag.
        slices: Slices of a depth bin.
        pooling: How they become one: ``mean``, ``max``, or ``attention`` by a learned score.
        strided: Whether the tower is a stack of padded strided convolutions (``resnet18``, ``efficientnet_b0``),
            whose cells are centred at their first pixel, or cuts patches (ViT, ConvNeXt, Swin). Shortcuts that
            average pixels (``resnet50d``) lie half way between; it moves rows and columns, never depth bins.
        spacing_mm: Voxel size along ``D H W``.
        slices_per_pass: Most slices that go through the tower at a time.
        windows: Low and high end of each HU window.
        axial_mm: Size of a depth bin that is asked for; another one is refused.

    Raises:
        ConfigError: If there is no such tower, it gives no map, or its weights cannot be had.

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
        spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
        slices_per_pass: int = 64,
        windows: Sequence[tuple[float, float]] = DEFAULT_WINDOWS,
        axial_mm: float | None = None,
    ) -> None:
        make = _timm_tower if library == "timm" else _open_clip_tower
        made = make(tower, pretrained, len(windows))
        cell = (slices, made.stride, made.stride)
        super().__init__(
            width=made.width, spacing_mm=spacing_mm, cell_vox=cell, align_vox=cell, windows=windows, axial_mm=axial_mm
        )
        if strided:
            self._offset_vox = ((slices - 1) / 2, 0.0, 0.0)
        self.tower, self.pooling, self.slices_per_pass = made, pooling, slices_per_pass
        self.norm = nn.LayerNorm(made.width)
        self.score = nn.Linear(made.width, 1) if pooling == "attention" else None

    def encode(self, volume_hu: Shaped[Tensor, "g D H W"]) -> Float[Tensor, "g d h w C"]:
        """Maps of the slices, pooled over the slices of each bin."""
        images = volume_hu.flatten(0, 1)
        maps = [self.tower(self.windows(part)) for part in torch.split(images, self.slices_per_pass)]
        cells = self.norm(torch.cat(maps).permute(0, 2, 3, 1))
        cells = cells.unflatten(0, (volume_hu.shape[0], -1, self.cell[0]))
        if self.score is not None:
            weight = self.score(cells).softmax(dim=2)
            return (cells * weight).sum(2)  # type: ignore[no-any-return]
        return cells.amax(2) if self.pooling == "max" else cells.mean(2)  # type: ignore[no-any-return]


class Tower(nn.Module):
    """A 2D network that gives a map.

    Args:
        width: Channels of the map.
        stride: Pixels of a cell along both axes.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.width, self.stride = width, stride


class TimmTower(Tower):
    """Any timm model that can give its last map.

    Args:
        model: The model, without a classifier.
        name: Its name, for errors.

    Raises:
        ConfigError: If it gives no map.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        from timm.layers import freeze_batch_norm_2d

        about: Any = getattr(model, "feature_info", None)
        if not hasattr(model, "forward_intermediates") or not about:
            raise ConfigError(f"timm's '{name}' gives no map of its last stage. Use another, such as a ViT or ResNet.")
        last = about[-1]
        super().__init__(int(last["num_chs"]), int(last["reduction"]))
        self.model: Any = freeze_batch_norm_2d(model)
        for part in ("head", "fc_norm"):  # behind the map, so nothing would ever train it
            behind = getattr(self.model, part, None)
            if isinstance(behind, nn.Module):
                behind.requires_grad_(False)

    def forward(self, images: Float[Tensor, "n channels H W"]) -> Float[Tensor, "n C h w"]:
        """The last map."""
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True, output_fmt="NCHW"
        )
        return maps[-1]


class OpenClipTower(Tower):
    """open_clip's own vision transformer, with its position table brought to the size of the images.

    Args:
        visual: The ``visual`` part of a model.
    """

    def __init__(self, visual: Any) -> None:  # noqa: ANN401 - open_clip is not typed
        width, stride = int(visual.conv1.out_channels), int(visual.conv1.stride[0])
        super().__init__(width, stride)
        visual.proj = None
        self.visual = visual

    def forward(self, images: Float[Tensor, "n channels H W"]) -> Float[Tensor, "n C h w"]:
        """The last layer's tokens as a map."""
        cells = self.visual.conv1(images)
        grid = cells.shape[2:]
        tokens = cells.flatten(2).transpose(1, 2)
        summary = self.visual.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        tokens = torch.cat([summary, tokens], dim=1) + self._positions(grid).to(tokens.dtype)
        tokens = self.visual.ln_post(self.visual.transformer(self.visual.ln_pre(tokens)))
        return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]

    def _positions(self, grid: Sequence[int]) -> Tensor:
        table: Tensor = self.visual.positional_embedding
        if tuple(grid) == tuple(self.visual.grid_size):
            return table
        square = table[1:].t().unflatten(1, self.visual.grid_size)[None]  # type: ignore[no-untyped-call]
        resized = functional.interpolate(square.float(), tuple(grid), mode="bicubic", antialias=True)
        return torch.cat([table[:1], resized[0].flatten(1).t().to(table.dtype)])


def _timm_tower(name: str, pretrained: bool | str, channels: int) -> Tower:
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:4])
        raise ConfigError(f"timm has no model '{name}'" + (f"; it has {near}." if near else "."))
    if isinstance(pretrained, str):
        raise ConfigError(
            f"timm's weights are named with the tower: set tower to {name.partition('.')[0]}.{pretrained} and "
            "pretrained to true."
        )
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": channels}
    with _weights_of(f"timm's '{name}'"):
        try:
            model = timm.create_model(name, **options, dynamic_img_size=True)
        except TypeError:  # only transformers have a table of positions to resize
            model = timm.create_model(name, **options)
    return TimmTower(model, name)


@contextmanager
def _weights_of(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The weights of {model} cannot be had ({type(error).__name__}: {error}). Fetch them where there is a "
            "network, name others, or set pretrained to false."
        ) from error


def _open_clip_tower(name: str, pretrained: bool | str, channels: int) -> Tower:
    import open_clip

    if name not in open_clip.list_models():
        raise ConfigError(f"open_clip has no model '{name}', but has such as {', '.join(open_clip.list_models()[:4])}.")
    if channels != 3:
        raise ConfigError(f"open_clip's towers read three channels, but there are {channels} windows.")
    if pretrained is True:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)[:4])
        raise ConfigError(f"open_clip's weights are named by a tag: set pretrained to one of {tags or 'none it has'}.")
    with _weights_of(f"open_clip's '{name}'"):
        visual: Any = open_clip.create_model(name, pretrained=pretrained or None).visual
    if hasattr(visual, "trunk"):
        visual.trunk.reset_classifier(0)
        return TimmTower(visual.trunk, name)
    if not hasattr(visual, "positional_embedding") or getattr(visual, "attn_pool", None) is not None:
        raise ConfigError(f"open_clip's '{name}' has a tower that gives no plain map. Use a ViT, or timm's ResNets.")
    return OpenClipTower(visual)
