"""Low-rank adapters: an image tower that learns beside its frozen weights, and ways back to plain weights."""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from ctgrounding.errors import ConfigError

ATTENTION_NAMES = frozenset({"attention", "attn", "self_attn", "self_attention"})
"""Names of the modules whose linear maps are adapted unless targets are given."""

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass
class Lora:
    """Low-rank adapters of linear maps; RadFinder's are rank 16, alpha 64, dropout 0.05 on q, k, v and o.

    Attributes:
        rank: Rank of an adapter.
        alpha: Adapters are scaled by ``alpha / rank``.
        dropout: Dropout before an adapter.
        targets: Ends of the names of the adapted modules; None for the usual ones: of a text tower peft's choice for
            its architecture, of an image tower the linear maps of its attention layers.
    """

    rank: int = 16
    alpha: float = 64.0
    dropout: float = 0.05
    targets: Sequence[str] | None = None


def adapt(tower: nn.Module, lora: Lora) -> list[str]:
    """Give linear maps of a tower adapters that start as zero, and freeze everything else of it.

    MedCT-VLM (arXiv 2512.00597) puts adapters into the attention layers of CT-CLIP's towers, as is done here
    without targets. What the tower froze itself gets none.

    Args:
        tower: Changed in place; adapted maps keep their weights under ``base_layer``.
        lora: The adapters.

    Returns:
        Names of the adapted maps.

    Raises:
        ConfigError: If rank or dropout is out of range, or there is nothing to adapt.

    Examples:
        >>> tower = nn.ModuleDict({"attention": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)})
        >>> adapt(tower, Lora(rank=2, alpha=4.0))
        ['attention']
        >>> [name for name, parameter in tower.named_parameters() if parameter.requires_grad]
        ['attention.lora_A.default.weight', 'attention.lora_B.default.weight']
    """
    check_lora(lora)
    linear = {name: part for name, part in tower.named_modules() if type(part) is nn.Linear}
    asked = [name for name in linear if _is_target(name, lora.targets)]
    targets = [name for name in asked if linear[name].weight.requires_grad]
    if not targets:
        what = "linear map of an attention layer" if lora.targets is None else f"linear map {list(lora.targets)}"
        ends = sorted({name.rpartition(".")[2] for name, part in linear.items() if part.weight.requires_grad})
        raise ConfigError(
            f"LoRA finds no trainable {what} in {type(tower).__name__}; its linear maps are named {ends}. "
            "Set targets to some of them, or remove the adapters."
        )
    if lora.targets is not None:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        check_targets(list(linear), lora.targets, type(tower).__name__, ends)
    from peft import LoraConfig, inject_adapter_in_model

    pattern = "|".join(re.escape(name) for name in targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=pattern, bias="none"
    )
    inject_adapter_in_model(config, tower)
    return targets


def check_lora(lora: Lora) -> None:
    """Refuse adapters that cannot be.

    Raises:
        ConfigError: If rank, alpha or dropout is out of range.
    """
    if lora.rank < 1 or lora.alpha <= 0 or not 0 <= lora.dropout < 1:
        raise ConfigError(
            "LoRA needs a rank of at least 1, an alpha above 0 and a dropout in [0, 1), but has "
            f"{lora.rank}, {lora.alpha:g} and {lora.dropout:g}."
        )


def check_targets(names: Sequence[str], targets: Sequence[str], where: str, ends: Sequence[str]) -> None:
    """Refuse targets of which one names nothing, which would be left out in silence.

    Args:
        names: Names of the parts of a tower that may be adapted.
        targets: Ends of names.
        where: The tower, for the message.
        ends: Ends of the names of its linear maps, for the message.

    Raises:
        ConfigError: With those that name nothing.
    """
    nothing = [target for target in targets if not any(_is_target(name, [target]) for name in names)]
    if nothing or not targets:
        raise ConfigError(f"LoRA finds no module {nothing} in {where}; its linear maps are named {list(ends)}.")


def named_as_adapted(weights: Mapping[str, Tensor], expected: Container[str]) -> dict[str, Tensor]:
    """Weights of a plain tower by the names that they have in an adapted one.

    Args:
        weights: By name.
        expected: Names in the adapted model.

    Examples:
        >>> list(named_as_adapted({"qkv.weight": Tensor()}, {"qkv.base_layer.weight"}))
        ['qkv.base_layer.weight']
    """
    found = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        adapted = f"{module}.base_layer.{leaf}"
        found[adapted if name not in expected and adapted in expected else name] = value
    return found


def fold_adapters(model: _Module) -> _Module:
    """Add every adapter to the weights beside it, so that the model is a plain one with plain names.

    Args:
        model: Changed in place; of a text tower what ``peft`` wraps around it stays.

    Returns:
        The same model.
    """
    for name, part in list(model.named_modules()):
        if not hasattr(part, "lora_A"):
            continue
        adapted: Any = part
        adapted.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, adapted.get_base_layer())
    return model


def _is_target(name: str, targets: Sequence[str] | None) -> bool:
    if targets is None:
        return not ATTENTION_NAMES.isdisjoint(name.split("."))
    return any(name == target or name.endswith(f".{target}") for target in targets)
