"""Several ranks inside a test: threads that simulate them at once, or a pool of gloo processes."""

import queue
import tempfile
import threading
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, multiprocessing

from ctgrounding import distributed

Result = TypeVar("Result")


class ScheduleError(AssertionError):
    """Ranks did not make the same collectives in the same order."""


class _Exchange:
    """Where simulated ranks meet: each puts its tensor down and takes everyone's."""

    def __init__(self, world_size: int, timeout_s: float) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=timeout_s)
        self.calls: list[str] = [""] * world_size
        self.tensors: list[Tensor] = [torch.empty(0)] * world_size

    def swap(self, rank: int, call: str, tensor: Tensor) -> list[Tensor]:
        self.calls[rank] = f"{call} of {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        self.tensors[rank] = tensor
        self._meet()
        calls, everyone = list(self.calls), list(self.tensors)
        self._meet()
        if len(set(calls)) > 1:
            named = ", ".join(f"rank {number}: {what}" for number, what in enumerate(calls))
            raise ScheduleError(f"Ranks disagree on a collective ({named}). Make the same calls on every rank.")
        return everyone

    def _meet(self) -> None:
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise ScheduleError(
                "A rank waits in a collective that another rank never makes. Make the same calls on every rank."
            ) from error


class _SimulatedRank:
    """One rank's side of the exchange; a :class:`ctgrounding.distributed.Transport`."""

    def __init__(self, exchange: _Exchange, rank: int) -> None:
        self.exchange, self.rank, self.world_size = exchange, rank, exchange.world_size

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        gathered = torch.cat(self.exchange.swap(self.rank, "all_gather", tensor))
        return lambda: gathered

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.exchange.swap(self.rank, "all_reduce", tensor)).sum(0, dtype=tensor.dtype)

    def reduce_scatter(self, tensor: Tensor) -> Tensor:
        everyone = self.exchange.swap(self.rank, "reduce_scatter", tensor)
        return torch.stack([part.chunk(self.world_size)[self.rank] for part in everyone]).sum(0)


def simulate_ranks(world_size: int, work: Callable[[int], Result], timeout_s: float = 30.0) -> list[Result]:
    """Run ``work(rank)`` on threads that :mod:`ctgrounding.distributed` takes for ranks.

    Forward and backward exchange what real ranks would, so a gather without gradient or a sum that is
    only local gives a wrong number here as well. It starts in no time and needs no pickling. CPU tensors
    only; a backward pass must be started inside ``work``.

    Args:
        world_size: Number of ranks.
        work: What each rank does. It must not share modules or leaves with the other ranks.
        timeout_s: Longest wait of one rank for the others.

    Raises:
        ScheduleError: If ranks make different collectives.
        Exception: What ``work`` raised on the lowest rank that raised something of its own.
    """
    exchange = _Exchange(world_size, timeout_s)
    results: list[Any] = [None] * world_size
    errors: list[BaseException | None] = [None] * world_size

    def run(rank: int) -> None:
        member = _SimulatedRank(exchange, rank)
        try:
            with distributed.transport(member):
                results[rank] = work(rank)
            exchange.swap(rank, "end", torch.empty(0))
        except BaseException as error:
            errors[rank] = error
            exchange.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    raised = sorted((error for error in errors if error is not None), key=_remoteness)
    if raised:
        raise raised[0]
    return results


def _remoteness(error: BaseException) -> int:
    """A rank's own error tells most, then a difference between ranks, then that others never came."""
    return isinstance(error, ScheduleError) + (error.__cause__ is not None)


def _serve(rank: int, world_size: int, meeting_file: Path, tasks: "Queue[Any]", answers: "Queue[Any]") -> None:
    torch.set_num_threads(1)
    with distributed.process_group(rank, world_size, meeting_file):
        while (task := tasks.get()) is not None:
            function, arguments = task
            try:
                answers.put((rank, True, function(*arguments)))
            except Exception:
                answers.put((rank, False, traceback.format_exc()))


class RankPool:
    """Gloo processes that stay alive between calls, since starting one costs seconds.

    Examples:
        >>> with RankPool(2) as pool:  # doctest: +SKIP
        ...     pool.run(distributed.rank)
        [0, 1]
    """

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.world_size = world_size
        self._folder = tempfile.TemporaryDirectory()
        self._answers = context.Queue()
        self._tasks = [context.Queue() for _ in range(world_size)]
        meeting_file = Path(self._folder.name) / "meeting"
        self._processes = [
            context.Process(target=_serve, args=(rank, world_size, meeting_file, tasks, self._answers), daemon=True)
            for rank, tasks in enumerate(self._tasks)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Result], *arguments: object, timeout_s: float = 120.0) -> list[Result]:
        """Call an importable ``function(*arguments)`` on every rank and return what each returned, in rank order.

        Raises:
            RuntimeError: If it raised on a rank; the message is that rank's traceback. The pool is of no
                use afterwards, since the other ranks may wait for it.
            TimeoutError: If a rank gave no answer in time.
        """
        for tasks in self._tasks:
            tasks.put((function, arguments))
        results: dict[int, Any] = {}
        while len(results) < self.world_size:
            try:
                rank, fine, value = self._answers.get(timeout=timeout_s)
            except queue.Empty:
                missing = sorted(set(range(self.world_size)) - set(results))
                raise TimeoutError(f"Ranks {missing} gave no answer within {timeout_s} s.") from None
            if not fine:
                raise RuntimeError(f"Rank {rank} failed:\n{value}")
            results[rank] = value
        return [results[rank] for rank in range(self.world_size)]

    def close(self) -> None:
        """End the processes."""
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.terminate()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
