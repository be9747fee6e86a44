"""How parameters are grouped and stepped; swappable by class_path."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ctgrounding.errors import ConfigError
from ctgrounding.tasks.freezing import compiled


class OptimizerRecipe(ABC):
    """Builds the optimizer and its schedule once the model is complete, copied heads included."""

    def use_layers(self, above: Mapping[str, Mapping[str, int]]) -> None:  # noqa: B027 (most recipes need none)
        """Learn how deep parameters lie, before :meth:`build`; for recipes whose rates fall by layer.

        Args:
            above: For ``image`` and ``text`` how many layers of the tower lie between a trainable parameter and the
                tower's output, by the parameter's name in the task.
        """

    @abstractmethod
    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], total_steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Make the optimizer and a scheduler that is stepped after every optimizer step.

        Args:
            named_parameters: Trainable parameters with their names in the task.
            total_steps: Optimizer steps of the whole fit.
        """


class AdamWCosine(OptimizerRecipe):
    """AdamW without decay on what should not shrink, linear warm-up and cosine decay by step.

    Vectors and scalars (biases, norms, layer scales, logit scale and bias) and parameters whose name
    matches ``no_decay`` are not decayed.

    Args:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        betas: Moment coefficients; RadFinder uses (0.9, 0.95).
        warmup_fraction: Share of all steps over which the rate rises from zero.
        final_fraction: Rate at the end as a share of the peak.
        lr_scale: Regular expression on parameter names to a factor on the rate; the first match counts.
        no_decay: Regular expressions of further names without decay.
        layer_decay: Factor on the rate from each layer of a tower to the one below it, in (0, 1]; for both towers, or
            by tower, such as ``{image: 0.75}``. Layers are those that the encoders declare; the last one, a
            transformer's closing norm, and all that is no tower keep the rate (as in BEiT, arXiv 2106.08254).

    Raises:
        ConfigError: If a number is out of its range or a pattern is no regular expression.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> optimizer, _ = AdamWCosine(lr=1e-3).build(layer.named_parameters(), total_steps=10)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.05, 0.0]
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_fraction: float = 0.08,
        final_fraction: float = 0.0,
        lr_scale: Mapping[str, float] | None = None,
        no_decay: Sequence[str] = ("position", "queries", "token$", "logit", "layer_scale"),
        layer_decay: float | dict[str, float] = 1.0,
    ) -> None:
        if not 0 < lr < math.inf:
            raise ConfigError(f"Learning rate is {lr}; it must be positive, finite. Set model.optimizer.init_args.lr.")
        shares = {"warmup_fraction": warmup_fraction, "final_fraction": final_fraction}
        if wrong := [name for name, share in shares.items() if not 0 <= share <= 1]:
            raise ConfigError(f"{wrong[0]} is a share in [0, 1], but is {shares[wrong[0]]}.")
        if not 0 <= weight_decay < math.inf or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(
                f"AdamW needs weight_decay from 0 on and betas in [0, 1), but has {weight_decay} and {list(betas)}."
            )
        for key, patterns in (("lr_scale", lr_scale or {}), ("no_decay", no_decay)):
            for pattern in patterns:
                compiled(pattern, key)
        self._layer_decay = layer_decay
        for factor in layer_decay.values() if isinstance(layer_decay, dict) else (layer_decay,):
            if not 0 < factor <= 1:
                raise ConfigError(f"layer_decay is a factor in (0, 1], but is {factor}. 0.75 is usual for a ViT.")
        self._layer_scale: dict[str, float] = {}
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.warmup_fraction, self.final_fraction = warmup_fraction, final_fraction
        self.lr_scale = dict(lr_scale or {})
        self.no_decay = tuple(no_decay)

    def use_layers(self, above: Mapping[str, Mapping[str, int]]) -> None:
        """Learn how deep parameters lie.

        Raises:
            ConfigError: If ``layer_decay`` names no tower, or none with two layers that are trained.
        """
        asked = self._layer_decay
        decay = asked if isinstance(asked, dict) else dict.fromkeys(above, asked) if asked < 1 else {}
        if unknown := sorted(set(decay) - set(above)):
            raise ConfigError(f"layer_decay names {unknown}, but the towers are {sorted(above)}.")
        flat = [name for name in decay if len(set(above[name].values())) < 2]
        if flat and len(flat) == len(decay):
            raise ConfigError(
                f"layer_decay finds no two layers to train in {flat}. Remove it, unfreeze some, or give its encoder "
                "ordered_layers()."
            )
        self._layer_scale = {
            name: factor**count for tower, factor in decay.items() for name, count in above[tower].items()
        }

    def build(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], total_steps: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Make AdamW and its schedule.

        Raises:
            ConfigError: If no parameter is trainable, or an ``lr_scale`` pattern matches none.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        unused = set(self.lr_scale)
        for name, parameter in named_parameters:
            if not parameter.requires_grad:
                continue
            pattern = next((pattern for pattern in self.lr_scale if re.search(pattern, name)), None)
            unused.discard(pattern or "")
            decay = 0.0 if self._is_exempt(name, parameter) else self.weight_decay
            scale = self.lr_scale.get(pattern or "", 1.0) * self._layer_scale.get(name, 1.0)
            groups.setdefault((scale, decay), []).append(parameter)
        if not groups:
            raise ConfigError("Every parameter is frozen, so there is nothing to fit. Unfreeze an encoder or a head.")
        if unused:
            raise ConfigError(f"lr_scale patterns {sorted(unused)} match no parameter. Check them against the names.")
        described: list[dict[str, Any]] = [
            {"params": parameters, "lr": self.lr * scale, "weight_decay": decay}
            for (scale, decay), parameters in groups.items()
        ]
        optimizer = torch.optim.AdamW(described, lr=self.lr, betas=self.betas, fused=True)
        # A fused step would take a scaler's factor by itself, so Lightning refuses to clip gradients beside it in any
        # mixed precision. There never is a scaler: see check_trainer.
        optimizer._step_supports_amp_scaling = False
        return optimizer, LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def factor(self, step: int, total_steps: int) -> float:
        """Learning rate at a step as a share of the peak."""
        warmup = round(self.warmup_fraction * total_steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, total_steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self.final_fraction + (1 - self.final_fraction) * cosine

    def _is_exempt(self, name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim < 2 or any(re.search(pattern, name) for pattern in self.no_decay)
