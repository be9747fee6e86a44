"""Exact gradients of a large batch from small forward passes.

A contrastive loss is no mean over micro-batches, so gradients of micro-batch losses do not add up to it.
What does: encode all micro-batches, keeping no graph, take the loss on the collected outputs, and send each
output's gradient back through a replay of its micro-batch (GradCache, arXiv 2101.06983). Differences from it:
all collectives of the losses, forward and backward, happen before the one backward in which ranks synchronise
their gradients, so the two never interleave; the last segment keeps its graph and is not replayed; and dropout
repeats itself because every segment sets its own seed.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, ...]
Segment = Callable[[], Outputs]
"""A piece of a step's forward pass that gives the same result when it is run again."""

LossOf = Callable[[list[Outputs]], Tensor]
"""The loss from the outputs of every segment, in order."""


def step_loss(
    segments: Sequence[Segment],
    loss_of: LossOf,
    parameters: Iterable[nn.Parameter],
    *,
    replay: bool,
    is_frozen: bool = False,
) -> Tensor:
    """The loss of a step, with all gradients but those that the caller's backward brings.

    Inside, ``loss_of`` is backpropagated to the outputs of the segments; its own parameters (heads) get
    their gradient there. With ``replay`` all segments but the last are then run again, one at a time, and
    backpropagated. The caller runs backward once on the result: that adds the rest, is the one backward in
    which DDP synchronises, and reaches every parameter.

    Args:
        segments: At least one.
        loss_of: Takes the outputs of all segments.
        parameters: All parameters of the model.
        replay: Whether only the last segment's graph may be in memory.
        is_frozen: Whether the segments have nothing to train, on any rank; then they are run once, without graph.

    Returns:
        A scalar with the value of the loss.
    """
    replay = replay and not is_frozen
    outputs = []
    for segment in segments:
        with torch.set_grad_enabled(not is_frozen and (not replay or segment is segments[-1])):
            outputs.append(segment())
        torch.clear_autocast_cache()  # weights cast without gradient would be reused where one is needed
    leaves = [tuple(_leaf(output, not is_frozen) for output in group) for group in outputs]
    loss = loss_of(leaves)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    pending = zero_of(parameters)
    for segment, output, leaf in zip(segments, outputs, leaves, strict=True):
        if replay and segment is not segments[-1]:
            surrogate = _surrogate(segment(), leaf)
            torch.clear_autocast_cache()
            if surrogate.requires_grad:
                torch.autograd.backward(surrogate)
        else:
            pending = pending + _surrogate(output, leaf)
    return pending + (loss - pending).detach()


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Zero, attached to every trainable parameter, so that DDP sees a gradient for each."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return torch.zeros(())
    kind = reduce(torch.promote_types, (parameter.dtype for parameter in trained), torch.float32)
    return _reaching(trained[0].new_zeros((), dtype=kind), *trained)


class _Reach(torch.autograd.Function):
    """A scalar as it is, whose gradient with respect to parameters is zero; it reads none of their values."""

    @staticmethod
    def forward(ctx: Any, scalar: Tensor, *parameters: Tensor) -> Tensor:  # noqa: ANN401 - autograd's own context
        ctx.parameters = parameters
        return scalar.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - autograd's own context
        return None, *(parameter.new_zeros(()).expand_as(parameter) for parameter in ctx.parameters)


_reaching: Callable[..., Tensor] = _Reach.apply


def _leaf(output: Tensor, has_gradient: bool) -> Tensor:
    leaf = output.detach()
    return leaf.requires_grad_() if has_gradient and leaf.is_floating_point() else leaf


def _surrogate(outputs: Outputs, leaves: Outputs) -> Tensor:
    """A scalar whose gradient with respect to the outputs is the leaves' gradient."""
    total = torch.zeros((), device=outputs[0].device, dtype=outputs[0].dtype)
    for output, leaf in zip(outputs, leaves, strict=True):
        if leaf.grad is not None and output.requires_grad:
            total = total + (output * leaf.grad).sum()
    return total
