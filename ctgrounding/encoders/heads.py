"""The declared heads of a model: named maps from readouts and texts to unit vectors, and named logits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from ctgrounding.encoders.logit import Logit, LogitConfig
from ctgrounding.encoders.projections import (
    BatchStandardize,
    linear_projection,
    mlp_projection,
    radfinder_projection,
    without_last_bias,
)
from ctgrounding.errors import ConfigError


@dataclass
class HeadConfig:
    """One head: a network of its own, or ``copy`` of another head's weights.

    Attributes:
        copy: Name of the head whose settings this one takes and whose weights it starts from; nothing else
            may be set then. The copy is trained on its own.
        kind: ``linear``; ``mlp`` (Linear, GELU, Linear); ``radfinder`` (two GELU layers, a bottleneck of 256
            and a weight-normed map).
        width: Width of the embedding.
        hidden: Width of hidden layers; unused by ``linear``.
        layer_norm: Layer-normalise the input.
        standardize: Bring each channel to mean 0 and variance 1 over all rows of a call and all ranks before
            the unit length, with running statistics in evaluation. Without it small batches collapse to a cone.
    """

    copy: str | None = None
    kind: Literal["linear", "mlp", "radfinder"] = "linear"
    width: int = 512
    hidden: int = 2048
    layer_norm: bool = False
    standardize: bool = False


@dataclass
class ImageHeadConfig(HeadConfig):
    """A head for image readouts.

    Attributes:
        readout: Readout that sets the head's input width. Any readout of that width may use the head.
    """

    readout: str = "global"


@dataclass
class HeadsConfig:
    """All heads of a model by name.

    Attributes:
        image: Heads for readouts.
        text: Heads for text vectors.
        logit: Logit scales and biases.
    """

    image: dict[str, ImageHeadConfig] = field(default_factory=lambda: {"main": ImageHeadConfig()})
    text: dict[str, HeadConfig] = field(default_factory=lambda: {"main": HeadConfig()})
    logit: dict[str, LogitConfig] = field(default_factory=lambda: {"main": LogitConfig()})


class Head(nn.Module):
    """Rows to unit vectors of at least float32.

    Args:
        config: The head's settings; ``copy`` is not looked at.
        inputs: Width of the rows.
    """

    copied: Tensor

    def __init__(self, config: HeadConfig, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.width = config.width
        self.norm = nn.LayerNorm(inputs) if config.layer_norm else nn.Identity()
        if config.kind == "linear":
            self.layers = linear_projection(inputs, config.width)
        elif config.kind == "mlp":
            self.layers = mlp_projection(inputs, config.hidden, config.width)
        else:
            self.layers = radfinder_projection(inputs, config.hidden, config.width)
        if config.standardize:
            without_last_bias(self.layers)
        self.standard = BatchStandardize(config.width) if config.standardize else nn.Identity()
        self.register_buffer("copied", torch.zeros((), dtype=torch.bool))

    def forward(self, rows: Float[Tensor, "U C"], which: Int64[Tensor, "R"] | None = None) -> Float[Tensor, "R M"]:
        """Project and bring to unit length; zero rows are legal.

        Args:
            rows: What to project.
            which: Rows of the result, repeats included, which count in a standardisation; all of them if None.
        """
        projected = self.layers(self.norm(rows))
        if projected.dtype in (torch.float16, torch.bfloat16):
            projected = projected.float()
        projected = projected if which is None else projected.index_select(0, which)
        return functional.normalize(self.standard(projected), dim=-1)


class Heads(nn.Module):
    """Every head of a model; implements :class:`ctgrounding.types.HeadBank`.

    Args:
        config: The heads by name, as under ``model.heads``.
        readouts: Width of each readout of the model.
        text: Width of a text vector.

    Attributes:
        image_readouts: The readout that each image head was declared for.

    Raises:
        ConfigError: If a head copies one that does not exist or is a copy itself, sets more than ``copy``,
            names a readout that the model lacks, or a logit scale is out of range.

    Examples:
        >>> config = HeadsConfig(
        ...     image={"main": ImageHeadConfig(width=8), "disease": ImageHeadConfig(copy="main")},
        ...     text={"main": HeadConfig(width=8)},
        ... )
        >>> heads = Heads(config, readouts={"global": 16}, text=4)
        >>> heads.copy_declared()
        ['image.disease']
        >>> heads.image("disease", torch.randn(3, 16)).detach().norm(dim=1).round(decimals=4)
        tensor([1., 1., 1.])
    """

    def __init__(self, config: HeadsConfig, readouts: Mapping[str, int], text: int) -> None:
        super().__init__()
        image = {name: _settings("image", name, config.image) for name in config.image}
        words = {name: _settings("text", name, config.text) for name in config.text}
        self.image_readouts = {name: head.readout for name, head in image.items()}
        self.image_heads = nn.ModuleDict(
            {name: Head(head, _readout_width(name, head, readouts)) for name, head in image.items()}
        )
        self.text_heads = nn.ModuleDict({name: Head(head, text) for name, head in words.items()})
        self.logits = nn.ModuleDict({name: Logit(logit) for name, logit in config.logit.items()})
        self._copies = {f"image.{name}": head.copy for name, head in config.image.items() if head.copy}
        self._copies |= {f"text.{name}": head.copy for name, head in config.text.items() if head.copy}

    def image(self, name: str, rows: Float[Tensor, "R C"]) -> Float[Tensor, "R M"]:
        """Unit embeddings of readout rows by the image head ``name``.

        Raises:
            ConfigError: If there is no such head, or it reads rows of another width.
        """
        return _project("image", name, self.image_heads, rows)

    def text(
        self, name: str, rows: Float[Tensor, "U E"], which: Int64[Tensor, "R"] | None = None
    ) -> Float[Tensor, "R M"]:
        """Unit embeddings of text vectors by the text head ``name``.

        Args:
            name: The head.
            rows: Text vectors.
            which: Those that are wanted, repeats included; all if None.

        Raises:
            ConfigError: If there is no such head, or it reads rows of another width.
        """
        return _project("text", name, self.text_heads, rows, which)

    def logit(self, name: str) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Scale (at most 100) and bias of the logit ``name``.

        Raises:
            ConfigError: If there is no such logit.
        """
        scale, bias = _named("logit", name, self.logits)()
        return scale, bias

    @property
    def image_widths(self) -> dict[str, int]:
        """Width of the embeddings of each image head."""
        return {name: head.width for name, head in self.image_heads.items() if isinstance(head, Head)}

    @property
    def text_widths(self) -> dict[str, int]:
        """Width of the embeddings of each text head."""
        return {name: head.width for name, head in self.text_heads.items() if isinstance(head, Head)}

    def copy_declared(self) -> list[str]:
        """Give every declared copy the present weights of its original, once in the life of a model.

        Call after pretrained weights are loaded. That a copy was made is part of the state dict, so a
        resumed run does not copy again.

        Returns:
            The heads that were filled now, such as ``image.disease``.
        """
        filled = []
        for copy, original in self._copies.items():
            kind, name = copy.split(".", 1)
            heads = self.image_heads if kind == "image" else self.text_heads
            head = heads[name]
            if isinstance(head, Head) and not bool(head.copied):
                head.load_state_dict(heads[original].state_dict())
                head.copied.fill_(True)
                filled.append(copy)
        return filled


_Config = TypeVar("_Config", bound=HeadConfig)


def _settings(kind: str, name: str, configs: Mapping[str, _Config]) -> _Config:
    """The settings a head is built from: its own, or those of the head it copies."""
    config = configs[name]
    where = f"model.heads.{kind}.{name}"
    if config.copy is None:
        return config
    changed = [
        item.name for item in fields(config) if item.name != "copy" and getattr(config, item.name) != item.default
    ]
    if changed:
        raise ConfigError(f"{where} is a copy of '{config.copy}' and takes its settings; remove {', '.join(changed)}.")
    originals = [other for other, settings in configs.items() if settings.copy is None]
    if config.copy not in originals:
        raise ConfigError(
            f"{where} copies '{config.copy}', which is not a head of its own. Copy one of {originals or 'none'}."
        )
    return configs[config.copy]


def _readout_width(name: str, head: ImageHeadConfig, readouts: Mapping[str, int]) -> int:
    if head.readout not in readouts:
        raise ConfigError(
            f"model.heads.image.{name} reads the readout '{head.readout}', but the model makes {sorted(readouts)}. "
            "Name one of those or add it under model.readouts."
        )
    return readouts[head.readout]


def _named(kind: str, name: str, modules: nn.ModuleDict) -> nn.Module:
    if name not in modules:
        raise ConfigError(
            f"There is no {kind} head '{name}'; model.heads.{kind} declares {sorted(modules)}. "
            "Name one of those or declare it."
        )
    return modules[name]


def _project(kind: str, name: str, heads: nn.ModuleDict, rows: Tensor, which: Tensor | None = None) -> Tensor:
    head = _named(kind, name, heads)
    if isinstance(head, Head) and rows.shape[-1] != head.inputs:
        raise ConfigError(
            f"The {kind} head '{name}' reads rows of width {head.inputs}, but got {rows.shape[-1]}. "
            f"Declare a head of that width under model.heads.{kind}."
        )
    embedded: Tensor = head(rows, which)
    return embedded
