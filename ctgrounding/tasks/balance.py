"""From the terms of all objectives to one scalar, the same on any number of ranks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ctgrounding import distributed
from ctgrounding.errors import ConfigError
from ctgrounding.types import Term


class WeightSchedule(ABC):
    """Weight of an objective as a function of the optimizer step."""

    @abstractmethod
    def at(self, step: int) -> float:
        """Weight at a step, counted from 0."""


class LinearRamp(WeightSchedule):
    """A weight that goes from one value to another along a straight line and stays there.

    Args:
        start: Weight before ``from_step``.
        end: Weight from ``to_step`` on.
        from_step: First step of the ramp.
        to_step: Last step of the ramp.

    Raises:
        ConfigError: If a weight is none, or the ramp ends before it begins.

    Examples:
        >>> LinearRamp(start=0.0, end=1.0, from_step=0, to_step=10).at(5)
        0.5
    """

    def __init__(self, start: float, end: float, from_step: int = 0, to_step: int = 1000) -> None:
        if to_step <= from_step:
            raise ConfigError(f"LinearRamp goes from step {from_step} to {to_step}; give a later to_step.")
        for name, value in (("start", start), ("end", end)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} of LinearRamp is {value}, but a weight is a finite number from 0 on.")
        self.start, self.end, self.from_step, self.to_step = start, end, from_step, to_step

    def at(self, step: int) -> float:
        """Weight at a step."""
        done = (step - self.from_step) / (self.to_step - self.from_step)
        return self.start + (self.end - self.start) * min(max(done, 0.0), 1.0)


def weight_at(weight: float | WeightSchedule, step: int) -> float:
    """Value of a weight that is a number or a schedule."""
    return weight.at(step) if isinstance(weight, WeightSchedule) else float(weight)


@dataclass(frozen=True)
class Balanced:
    """A step's loss and what goes into the log.

    Attributes:
        loss: Its gradient, averaged over ranks as DDP does, is that of the loss over all ranks' elements.
        totals: Sum of every term on this rank, by ``role/term``.
        weights: Sum of weights of every term on this rank.
    """

    loss: Float[Tensor, ""]
    totals: Float64[Tensor, "terms"]
    weights: Float64[Tensor, "terms"]


def balance(terms: Mapping[str, Mapping[str, Term]], weights: Mapping[str, float]) -> Balanced:
    """Divide each term by its weight over all ranks and add the terms up by their roles' weights.

    One collective, of as many numbers as there are terms. A term that no rank has an element for
    counts as zero and stays attached.

    Args:
        terms: Role to term name to term; the same keys on every rank.
        weights: Weight of each role at this step.
    """
    flat = [(role, term) for role, by_name in terms.items() for term in by_name.values()]
    if not flat:
        raise ConfigError("No objective is active. Set at least one under model.objectives.")
    local = torch.stack([term.weight.detach().double() for _, term in flat])
    everywhere = distributed.sum_over_ranks(local)
    scale = distributed.world_size() / everywhere.clamp(min=torch.finfo(torch.float64).tiny)
    scale = torch.where(everywhere > 0, scale, torch.zeros_like(scale))
    loss = torch.zeros((), device=local.device, dtype=flat[0][1].total.dtype)
    for (role, term), factor in zip(flat, scale.unbind(), strict=True):
        loss = loss + term.total * (weights[role] * factor).to(term.total.dtype)
    totals = torch.stack([term.total.detach().double() for _, term in flat])
    return Balanced(loss, totals, local)


def term_names(terms: Mapping[str, Mapping[str, Term]]) -> list[str]:
    """``role/term`` in the order of :class:`Balanced`."""
    return [f"{role}/{name}" for role, by_name in terms.items() for name in by_name]
