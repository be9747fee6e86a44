"""2D image towers of timm and open_clip as networks that give a map of any image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.errors import ConfigError

_TROUBLE = (RuntimeError, AssertionError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What a tower throws at an image that it cannot take."""


def make_tower(
    library: Literal["timm", "open_clip"], name: str, pretrained: bool | str, channels: int, *, strided: bool
) -> "Tower":
    """A tower by name, tried on an image of another size than its own; what lies behind its map is frozen.

    Args:
        library: Where it comes from.
        name: Its architecture.
        pretrained: Whether to fetch weights, and for open_clip which.
        channels: Channels of an image.
        strided: Whether images end at the first pixel of a cell, instead of at its last.

    Raises:
        ConfigError: If there is no such tower, it gives no map, it takes images of its own size only, or its weights
            cannot be had.
    """
    made = (
        _timm_tower(name, pretrained, channels) if library == "timm" else _open_clip_tower(name, pretrained, channels)
    )
    _settle(made, name, channels, made.stride - 1 if strided else 0)
    return made


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


def _settle(tower: Tower, name: str, channels: int, less: int) -> None:
    """Try a tower on an image of another size than its own, and freeze what lies behind its map: nothing trains it."""
    advice = "Use another, such as a ViT or ResNet" + (", or set strided to false." if less else ".")
    height, width = (cells * tower.stride - less for cells in (2, 3))
    modes = {part: part.training for part in tower.modules()}
    tower.eval()
    try:
        with torch.enable_grad():
            cells = tower(torch.zeros(1, channels, height, width))
    except _TROUBLE as error:
        raise ConfigError(
            f"Tower '{name}' gives no map of an image of {height} x {width} pixels ({_first(error)}), but slices have "
            f"any size. {advice}"
        ) from error
    if cells.shape[2:] != (2, 3):
        raise ConfigError(
            f"Tower '{name}' makes {tuple(cells.shape[2:])} cells of {height} x {width} pixels where (2, 3) are due, "
            f"so where they lie is not known. {advice}"
        )
    for part, mode in modes.items():
        part.training = mode
    reached = _parameters_of(cells)
    for parameter in tower.parameters():
        if parameter not in reached:
            parameter.requires_grad_(False)


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
