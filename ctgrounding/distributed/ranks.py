"""Who the ranks are and what carries tensors between them. The only importer of ``torch.distributed``."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import local
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Transport(Protocol):
    """Equal-shape collectives among ranks: what a backend must offer.

    Processes under ``torch.distributed`` are one; :mod:`ctgrounding.testing` simulates ranks by threads.
    """

    rank: int
    world_size: int

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to stack every rank's ``tensor`` along dimension 0; the result is made by calling what is returned."""

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum of every rank's ``tensor``; the argument is left as it is."""

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        """This rank's part, of ``world_size`` equal ones along dimension 0, of the sum of every rank's ``tensor``.

        The argument may be used up.
        """


class _Processes:
    """Ranks of the default process group."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        sent = self._on_wire(tensor).contiguous()
        received = sent.new_empty((self.world_size * sent.shape[0], *sent.shape[1:]))
        work = dist.all_gather_single(received, sent, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return received.to(tensor.device)

        return wait

    def all_reduce(self, tensor: Tensor) -> Tensor:
        summed = self._on_wire(tensor).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed.to(tensor.device)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        sent = self._on_wire(tensor).contiguous()
        if dist.get_backend() == "gloo":  # its own reduce-scatter is an all-reduce of a copy
            dist.all_reduce(sent)
            return sent.chunk(self.world_size)[self.rank].clone()
        received = sent.new_empty((sent.shape[0] // self.world_size, *sent.shape[1:]))
        dist.reduce_scatter_single(received, sent)
        return received.to(tensor.device)

    @staticmethod
    def _on_wire(tensor: Tensor) -> Tensor:
        """NCCL carries nothing from host memory."""
        return tensor.cuda() if dist.get_backend() == "nccl" and not tensor.is_cuda else tensor


_override = local()


def connection() -> Transport | None:
    """What connects this rank to others; None where there are none."""
    simulated: Transport | None = getattr(_override, "transport", None)
    if simulated is not None:
        return simulated
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _Processes()
    return None


@contextmanager
def transport(replacement: Transport) -> Iterator[None]:
    """Send this thread's collectives over ``replacement``; for simulated ranks."""
    before = getattr(_override, "transport", None)
    _override.transport = replacement
    try:
        yield
    finally:
        _override.transport = before


@contextmanager
def process_group(rank: int, world_size: int, meeting_file: Path, timeout_s: float = 120.0) -> Iterator[None]:
    """Join ``world_size`` local processes over gloo; for tests and benchmarks that start their own ranks.

    Args:
        rank: Number of this process.
        world_size: Number of processes.
        meeting_file: A path that all of them share and that does not exist before.
        timeout_s: Longest wait in one collective.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_file.absolute()}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_initialized() -> bool:
    """Whether this process is one of several ranks."""
    return connection() is not None


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    channel = connection()
    return 1 if channel is None else channel.world_size


def rank() -> int:
    """Number of this rank; 0 without a process group."""
    channel = connection()
    return 0 if channel is None else channel.rank
