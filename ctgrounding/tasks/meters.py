"""Metrics of many steps in one tensor: no host sync a step, one collective every few steps."""

from collections.abc import Mapping

import torch
from jaxtyping import Float64
from lightning.pytorch import LightningModule
from torch import Tensor

from ctgrounding import distributed


class PackedMeter:
    """Weighted means that every rank accumulates and all ranks reduce together.

    Keys are fixed when the first values arrive, so every rank reduces the same vector in the same order.

    Attributes:
        empty: Names that the last :meth:`reduce` found nothing added to.

    Examples:
        >>> meter = PackedMeter()
        >>> meter.add(["loss"], torch.tensor([6.0]), torch.tensor([2.0]))
        >>> meter.reduce()
        {'loss': 3.0}
    """

    def __init__(self) -> None:
        self.empty: frozenset[str] = frozenset()
        self._names: list[str] = []
        self._sums: Float64[Tensor, "2 names"] | None = None

    def add(self, names: list[str], totals: Float64[Tensor, "names"], weights: Float64[Tensor, "names"]) -> None:
        """Add sums and the weights that they were taken over."""
        values = torch.stack([totals.detach().double(), weights.detach().double()])
        self._names = names
        self._sums = values if self._sums is None else self._sums + values

    def reduce(self) -> dict[str, float]:
        """Means over all ranks since the last call, by name; NaN where nothing was added. Starts afresh."""
        if self._sums is None:
            return {}
        totals, weights = distributed.sum_over_ranks(self._sums).cpu()
        self._sums = None
        nothing = ((totals == 0) & (weights == 0)).tolist()
        self.empty = frozenset(name for name, is_empty in zip(self._names, nothing, strict=True) if is_empty)
        return dict(zip(self._names, (totals / weights).tolist(), strict=True))


def send(module: LightningModule, values: Mapping[str, float]) -> None:
    """Give a training step's numbers to the loggers as one row.

    ``LightningModule.log`` keeps a metric object for every name, which for twenty names costs more than a small step.

    Args:
        module: Whose trainer's loggers get them, at its present step and epoch.
        values: Name to number, the same on every rank.
    """
    row = {**values, "epoch": float(module.current_epoch)}
    for logger in module.loggers:
        logger.log_metrics(row, step=module.global_step)
        logger.save()
