"""2D image towers of timm and open_clip as networks that give a map of any image."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.open_clip_models import open_clip_model, weights_of
from ctgrounding.errors import ConfigError

_TROUBLE = (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What a tower throws at an image that it cannot take."""


def make_tower(
    library: Literal["timm", "open_clip"],
    name: str,
    pretrained: bool | str,
    channels: int,
    image_shape: tuple[int, int] | None,
    *,
    strided: bool,
) -> "Tower":
    """A tower by name, tried on an image; what lies behind its map is frozen.

    Args:
        library: Where it comes from.
        name: Its architecture.
        pretrained: Whether to fetch weights, and for open_clip which.
        channels: Channels of an image.
        image_shape: Height and width of all images; null for images of any size.
        strided: Whether images of any size end at the first pixel of a cell, instead of at its last.

    Raises:
        ConfigError: If there is no such tower, it gives no map, it does not take images of this size, or its weights
            cannot be had.
    """
    make = _timm_tower if library == "timm" else _open_clip_tower
    made = make(name, pretrained, channels, image_shape)
    _settle(made, name, channels, image_shape, strided=strided)
    return made


class Tower(nn.Module):
    """A 2D network that gives a map.

    Args:
        width: Channels of the map.
        stride: Pixels of a cell along both axes.
        own_shape: Height and width of the images that it was made for, if known.
    """

    def __init__(self, width: int, stride: int, own_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.width, self.stride, self.own_shape = width, stride, own_shape


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
        last, settings = about[-1], getattr(model, "pretrained_cfg", None) or {}
        super().__init__(int(last["num_chs"]), int(last["reduction"]), settings.get("input_size", (None,))[1:] or None)
        self.model: Any = freeze_batch_norm_2d(model)
        self.norm = True

    def forward(self, images: Float[Tensor, "n channels H W"]) -> Float[Tensor, "n C h w"]:
        """The last map."""
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=1, norm=self.norm, intermediates_only=True, output_fmt="NCHW"
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


def _settle(tower: Tower, name: str, channels: int, image_shape: tuple[int, int] | None, *, strided: bool) -> None:
    """Try a tower on an image, and freeze what lies behind its map: nothing trains it."""
    due = (2, 3) if image_shape is None else _cells(tower, name, image_shape)
    height, width = image_shape or [cells * tower.stride - (tower.stride - 1 if strided else 0) for cells in due]
    modes = {part: part.training for part in tower.modules()}
    tower.eval()
    try:
        with torch.enable_grad():
            cells = _map_of(tower, torch.zeros(1, channels, height, width))
    except _TROUBLE as error:
        wanted = "slices have any size" if image_shape is None else "slice_shape is that"
        raise ConfigError(
            f"Tower '{name}' gives no map of an image of {height} x {width} pixels ({_first(error)}), but {wanted}. "
            + _advice(tower.own_shape, image_shape, strided=strided)
        ) from error
    if cells.shape[2:] != due:
        raise ConfigError(
            f"Tower '{name}' makes {tuple(cells.shape[2:])} cells of {height} x {width} pixels where {due} are due, "
            f"so where they lie is not known. {_advice(None, image_shape, strided=strided)}"
        )
    for part, mode in modes.items():
        part.training = mode
    reached = _parameters_of(cells)
    for parameter in tower.parameters():
        if parameter not in reached:
            parameter.requires_grad_(False)


def _cells(tower: Tower, name: str, image_shape: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (side // tower.stride for side in image_shape)
    if min(rows, columns) < 1 or (rows * tower.stride, columns * tower.stride) != tuple(image_shape):
        raise ConfigError(
            f"slice_shape {tuple(image_shape)} is not made of whole cells of tower '{name}', which have "
            f"{tower.stride} x {tower.stride} pixels. Use multiples of {tower.stride}."
        )
    return rows, columns


def _map_of(tower: Tower, images: Float[Tensor, "n channels H W"]) -> Float[Tensor, "n C h w"]:
    try:
        return tower(images)  # type: ignore[no-any-return]
    except AssertionError:  # Hiera's, where a norm of its map is asked for, which it has none of
        if not isinstance(tower, TimmTower):
            raise
        tower.norm = False
        return tower(images)  # type: ignore[no-any-return]


def _advice(own_shape: Sequence[int] | None, image_shape: Sequence[int] | None, *, strided: bool) -> str:
    ways = ["Use another, such as a ViT or ResNet"]
    if own_shape and tuple(own_shape) != tuple(image_shape or ()):
        ways.append(f"set slice_shape to {list(own_shape)}, for which it was made")
    if strided and image_shape is None:
        ways.append("set strided to false")
    return ", or ".join(ways) + "."


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _parameters_of(result: Tensor) -> set[nn.Parameter]:
    """What a result's gradient would reach."""
    pending, seen, found = [result.grad_fn], set(), set()
    while pending:
        node: Any = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {node.variable} if hasattr(node, "variable") else set()
            pending += [before for before, _ in node.next_functions]
    return found


def _timm_tower(name: str, pretrained: bool | str, channels: int, image_shape: tuple[int, int] | None) -> Tower:
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
    sized = {"img_size": tuple(image_shape)} if image_shape else {"dynamic_img_size": True}
    with weights_of(f"timm's '{name}'"):
        try:
            model = timm.create_model(name, **options, **sized)
        except TypeError:  # only transformers have a table of positions to resize
            model = timm.create_model(name, **options)
        except AssertionError as error:
            raise ConfigError(
                f"timm's '{name}' has no images of slice_shape {image_shape}: {_first(error)}."
            ) from error
    return TimmTower(model, name)


def _open_clip_tower(name: str, pretrained: bool | str, channels: int, image_shape: tuple[int, int] | None) -> Tower:
    if channels != 3:
        raise ConfigError(f"open_clip's towers read three channels, but there are {channels} windows.")
    visual: Any = open_clip_model(name, pretrained, image_shape).visual
    if hasattr(visual, "trunk"):
        visual.trunk.reset_classifier(0)
        return TimmTower(visual.trunk, name)
    if not hasattr(visual, "positional_embedding") or getattr(visual, "attn_pool", None) is not None:
        raise ConfigError(f"open_clip's '{name}' has a tower that gives no plain map. Use a ViT, or timm's ResNets.")
    return OpenClipTower(visual)
