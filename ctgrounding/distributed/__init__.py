"""Rows and sums across ranks, with exact gradients; :mod:`ctgrounding.distributed.ranks` carries them.

Convention: the loss of a step is the sum of what all ranks return, so the gradient of a row that several
ranks read is the sum of what each of them sends back. Nothing here averages.

Everything works in a single process without any set-up (one rank). Every function is a collective: all ranks
call it, in the same order, with zero rows where they have none. Counts may differ between ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.autograd.function import FunctionCtx

from ctgrounding.distributed.ranks import (
    Transport,
    connection,
    is_initialized,
    process_group,
    rank,
    transport,
    world_size,
)
from ctgrounding.errors import CTGroundingError

__all__ = [
    "Pending",
    "Transport",
    "counts",
    "deal",
    "first_derivative_only",
    "gather",
    "gather_strings",
    "is_initialized",
    "process_group",
    "rank",
    "reduce_blocks",
    "row_ids",
    "start_gather",
    "sum_over_ranks",
    "sum_with_gradient",
    "transport",
    "world_size",
]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pending:
    """Rows of all ranks on their way; see :func:`start_gather`.

    Attributes:
        counts: Rows that each rank sent.
    """

    counts: tuple[int, ...]
    wait: Callable[[], Shaped[Tensor, "W P ..."]]


def counts(rows: int, device: torch.device | str = "cpu") -> tuple[int, ...]:
    """How many rows each rank has.

    Args:
        rows: Number on this rank.
        device: Device that the number travels from.
    """
    channel = connection()
    if channel is None:
        return (rows,)
    return tuple(channel.start_all_gather(torch.tensor([rows], device=device))().tolist())


def start_gather(rows: Shaped[Tensor, "R ..."], counts_of_ranks: tuple[int, ...] | None = None) -> Pending:
    """Start to gather all ranks' rows, without gradient, to compute while they travel.

    Args:
        rows: This rank's rows.
        counts_of_ranks: What :func:`counts` said, where it was asked already.

    Returns:
        A handle whose ``wait()`` gives one block a rank, padded with zeros to the largest.
    """
    channel = connection()
    rows = rows.detach()
    if channel is None:
        return Pending((rows.shape[0],), lambda: rows[None])
    numbers = counts(rows.shape[0], rows.device) if counts_of_ranks is None else counts_of_ranks
    largest, world = max(numbers), channel.world_size
    finish = channel.start_all_gather(_padded(rows, largest))
    return Pending(numbers, lambda: finish().view(world, largest, *rows.shape[1:]))


def reduce_blocks(blocks: Float[Tensor, "W P ..."], rows: int) -> Float[Tensor, "R ..."]:
    """This rank's rows of the sum of all ranks' ``blocks``: what a gather sends back, without gradient.

    Args:
        blocks: One padded block a rank, as :func:`start_gather` laid them out; may be used up.
        rows: Number of this rank's rows. Narrow floats are summed in float32.
    """
    channel = connection()
    if channel is None:
        return blocks[0, :rows]
    wide = blocks.float() if blocks.dtype in (torch.bfloat16, torch.float16) else blocks
    return channel.reduce_scatter(wide.flatten(0, 1))[:rows].to(blocks.dtype)


def first_derivative_only(backward: Callable[..., Result]) -> Callable[..., Result]:
    """Make a custom ``backward`` refuse ``create_graph=True``, where it would silently lack second derivatives.

    PyTorch's ``once_differentiable`` refuses only when the incoming gradient has a graph of its own.
    """

    @wraps(backward)
    def refusing(*arguments: object) -> Result:
        if torch.is_grad_enabled():
            raise CTGroundingError(
                "Gathers and contrasts over ranks have no second derivative, but backward was called with "
                "create_graph=True. Call it without, or keep them out of what you differentiate twice."
            )
        return backward(*arguments)

    return refusing


class _GatherContext(FunctionCtx):
    counts: tuple[int, ...]
    mine: int


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _GatherContext, rows: Tensor) -> Tensor:
        pending = start_gather(rows)
        ctx.counts, ctx.mine = pending.counts, rows.shape[0]
        blocks = pending.wait()
        return torch.cat([block[:count] for block, count in zip(blocks, pending.counts, strict=True)])

    @staticmethod
    @first_derivative_only
    def backward(ctx: _GatherContext, gradient: Tensor) -> Tensor:
        largest = max(ctx.counts)
        blocks = torch.stack([_padded(part, largest) for part in torch.split(gradient, list(ctx.counts))])
        return reduce_blocks(blocks, ctx.mine)


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor)

    @staticmethod
    @first_derivative_only
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient)


_gather: Callable[[Tensor], Tensor] = _Gather.apply
_all_sum: Callable[[Tensor], Tensor] = _AllSum.apply


def gather(rows: Shaped[Tensor, "R ..."]) -> Shaped[Tensor, "G ..."]:
    """All ranks' rows in rank order, with exact gradient.

    The gradient that reaches ``rows`` is the sum of the gradients on all ranks, so a loss summed over ranks
    gets what one process with all rows would give. Integers and booleans are gathered as they are. A second
    derivative through it is an error.

    Args:
        rows: This rank's rows; the number may differ between ranks and be zero, the rest of the shape not.

    Examples:
        >>> gather(torch.ones(2, 3)).shape  # one rank
        torch.Size([2, 3])
    """
    if connection() is None:
        return rows
    if rows.dtype == torch.bool:
        return gather(rows.to(torch.uint8)).to(torch.bool)
    return _gather(rows)


def sum_with_gradient(tensor: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Sum over ranks, with exact gradient: for statistics over all ranks' rows, as in batch standardisation."""
    if connection() is None:
        return tensor
    return _all_sum(tensor)


@torch.no_grad()
def sum_over_ranks(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Sum over ranks without gradient; the argument is left as it is."""
    channel = connection()
    return tensor.detach() if channel is None else channel.all_reduce(tensor.detach())


def gather_strings(strings: Sequence[str]) -> list[str]:
    """All ranks' strings in rank order."""
    if connection() is None:
        return list(strings)
    encoded = [string.encode("utf-8") for string in strings]
    lengths = gather(torch.tensor([len(item) for item in encoded], dtype=torch.int64))
    joined = gather(
        torch.frombuffer(bytearray(b"".join(encoded)) or bytearray(1), dtype=torch.uint8)[: sum(map(len, encoded))]
    )
    parts = torch.split(joined, lengths.tolist())
    return [bytes(part.tolist()).decode("utf-8") for part in parts]


def row_ids(rows: int, device: torch.device | str = "cpu") -> Int64[Tensor, "R"]:
    """Numbers for this rank's rows that no other rank gives; needs no exchange."""
    return torch.arange(rows, device=device) + (rank() << 40)


def deal(rows: Shaped[Tensor, "R ..."]) -> Shaped[Tensor, "P ..."]:
    """This rank's share of rows that every rank holds alike, so that a later gather meets each of them once."""
    return rows[rank() :: world_size()]


def _padded(rows: Tensor, length: int) -> Tensor:
    if rows.shape[0] == length:
        return rows
    return torch.cat([rows, rows.new_zeros((length - rows.shape[0], *rows.shape[1:]))])
