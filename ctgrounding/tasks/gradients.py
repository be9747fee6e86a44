"""How hard each objective pulls at the encoders that all of them share."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ctgrounding import distributed
from ctgrounding.tasks.accumulation import Outputs, Segment
from ctgrounding.tasks.balance import balance
from ctgrounding.types import Term


class GradientProbe:
    """The gradient norm of each objective, times its weight, at each tower, for one step.

    The norm is that of the whole step's batch over all ranks, whatever the micro-batch size: what the optimizer
    would get if the objective were alone, before clipping. :meth:`look` takes every objective's gradient at
    the outputs of the segments from the graph that the step has anyway; :meth:`norms` runs each segment once more
    and sends them on. ``torch.autograd.grad`` leaves the step's own gradients and DDP's hooks alone.

    Args:
        towers: Name to parameters; those that are frozen are left out.

    Examples:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> probe = GradientProbe({"image": list(layer.parameters())})
        >>> leaf = torch.tensor([[3.0]], requires_grad=True)
        >>> terms = {"fit": {"error": Term((2 * leaf).sum(), torch.tensor(1.0))}}
        >>> probe.look(terms, {"fit": 0.5}, [(leaf,)])
        >>> probe.norms([lambda: (layer(torch.tensor([[4.0]])),)])
        {'fit/gradient_norm_image': 4.0}
    """

    def __init__(self, towers: Mapping[str, Sequence[nn.Parameter]]) -> None:
        self._towers = {name: [item for item in tower if item.requires_grad] for name, tower in towers.items()}
        self._pulls: dict[str, list[tuple[Tensor | None, ...]]] = {}

    def look(
        self, terms: Mapping[str, Mapping[str, Term]], weights: Mapping[str, float], outputs: Sequence[Outputs]
    ) -> None:
        """Take every objective's gradient at the outputs of the segments.

        Args:
            terms: Role to term name to term, made from ``outputs``.
            weights: Weight of each role at this step.
            outputs: Leaves, one tuple a segment.
        """
        leaves = [leaf for group in outputs for leaf in group if leaf.requires_grad]
        for role, by_name in terms.items():
            loss = balance({role: by_name}, weights).loss
            gradients: Iterator[Tensor | None] = (
                iter(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))
                if loss.requires_grad and leaves
                else itertools.repeat(None)
            )
            self._pulls[role] = [
                tuple(next(gradients) if leaf.requires_grad else None for leaf in group) for group in outputs
            ]

    def norms(self, segments: Sequence[Segment]) -> dict[str, float]:
        """Norms by ``role/gradient_norm_tower``; zero for a tower that the objective does not reach."""
        tower_of = [name for name, tower in self._towers.items() for _ in tower]
        parameters = [item for tower in self._towers.values() for item in tower]
        sums = {role: [torch.zeros_like(item) for item in parameters] for role in self._pulls}
        for number, segment in enumerate(segments):
            outputs = segment()
            for role, pulls in self._pulls.items():
                _add_gradients(sums[role], outputs, pulls[number], parameters)
        return {
            f"{role}/gradient_norm_{tower}": float(
                _norm([item for item, name in zip(found, tower_of, strict=True) if name == tower])
            )
            for role, found in sums.items()
            for tower in self._towers
        }


def _add_gradients(
    sums: Sequence[Tensor], outputs: Outputs, pulls: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]
) -> None:
    reached = [
        (output, pull) for output, pull in zip(outputs, pulls, strict=True) if pull is not None and output.requires_grad
    ]
    if not reached or not parameters:
        return
    found = torch.autograd.grad(
        [output for output, _ in reached],
        parameters,
        [pull for _, pull in reached],
        retain_graph=True,
        allow_unused=True,
    )
    for total, gradient in zip(sums, found, strict=True):
        if gradient is not None:
            total += gradient


def _norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Norm of the gradient averaged over ranks, as DDP would hand it on."""
    if not gradients:
        return torch.zeros(())
    flat = distributed.sum_over_ranks(torch.cat([item.detach().double().flatten() for item in gradients]))
    norm: Tensor = torch.linalg.vector_norm(flat / distributed.world_size())
    return norm
