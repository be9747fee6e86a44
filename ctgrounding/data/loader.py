"""Steps of an epoch, read ahead by worker processes and collated in this one."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Sampler as TorchSampler

from ctgrounding.data.collate import Collate
from ctgrounding.data.dataset import Delivery, Request, ScanDataset
from ctgrounding.data.sampler import Sampler, share
from ctgrounding.errors import ConfigError, CTGroundingError
from ctgrounding.types import Batch

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where training stands: an epoch and the steps of it that are completed."""

    epoch: int = 0
    steps: int = 0


@dataclass
class Workers:
    """How the worker processes of a loader run.

    Attributes:
        count: Worker processes; 0 reads in this one.
        prefetch: Micro-batches that each worker reads ahead.
        start: ``fork``, ``spawn`` or ``forkserver``; the platform's default if None.

    Raises:
        ConfigError: If a number is out of range.
    """

    count: int = 0
    prefetch: int = 2
    start: str | None = None

    def __post_init__(self) -> None:
        for name, number, least in (("num_workers", self.count, 0), ("prefetch", self.prefetch, 1)):
            if number < least:
                raise ConfigError(f"data.{name} is {number}; it must be at least {least}.")


@dataclass
class Counts:
    """What was not as asked for, over the life of a loader.

    Attributes:
        skipped: Scan id to the reason why it was left out.
        unmirrored: Scan id to the reason why it was not mirrored.
    """

    skipped: dict[str, str] = field(default_factory=dict)
    unmirrored: dict[str, str] = field(default_factory=dict)


class StepLoader:
    """The batches of one rank, one for each optimizer step of an epoch.

    Which batches come, and in which order, depends on sampler, rank and position alone, not on workers.
    Where to begin is asked when the first batch of an epoch is: so a loader made before a checkpoint is read
    begins where the checkpoint says, and ``len`` stays the length of the whole epoch.

    Args:
        dataset: Makes samples.
        sampler: Chooses scans.
        collate: Makes batches.
        rank: Of this process.
        world_size: Number of processes.
        micro_batch_size: Scans of a forward pass; all of the rank's part if None.
        begin: Asked at the start of each epoch for the epoch and the steps to leave out.
        workers: How to read ahead.

    Attributes:
        counts: Scans that were left out or not mirrored.
        handed_out: The epoch and the steps of it handed out so far, None before the first; the last of them
            may still be in work.
    """

    def __init__(
        self,
        dataset: ScanDataset,
        sampler: Sampler,
        collate: Collate,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
        begin: Callable[[], Position] = Position,
        workers: Workers | None = None,
    ) -> None:
        self._sampler = sampler  # a public name would make Lightning look for torch's samplers in it
        self.counts = Counts()
        self.handed_out: Position | None = None
        self._collate = collate
        self._share = (sampler.batch_size, rank, world_size, micro_batch_size)
        self._micro_batches = len(share((), *self._share))
        self._begin = begin
        self._requests = _Requests()
        workers = workers or Workers()
        self._is_sealed = workers.count > 0
        self._deliveries = _delivering(_Sealed(dataset) if self._is_sealed else dataset, self._requests, workers)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        position = self._begin()
        self._requests.pending = lambda: self._requests_from(position)
        deliveries = iter(self._deliveries)
        for step in range(position.steps, len(self)):
            micro_batches = [self._next(deliveries) for _ in range(self._micro_batches)]
            for delivery in micro_batches:
                self._note(delivery)
            batch = self._collate([delivery.samples for delivery in micro_batches])
            self.handed_out = Position(position.epoch, step + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Steps handed out, for Lightning, which takes a loader with a state as one that can resume."""
        position = self.handed_out or Position()
        return {"epoch": position.epoch, "steps": position.steps}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Nothing: ``begin`` knows which steps are completed, and a loader only which were handed out."""

    def _requests_from(self, position: Position) -> Iterator[Request]:
        for step in range(position.steps, len(self)):
            for draws in share(self._sampler.batch(position.epoch, step), *self._share):
                yield Request(position.epoch, tuple(draws))

    def _next(self, deliveries: Iterator[Any]) -> Delivery:
        delivery: Delivery = _opened(next(deliveries)) if self._is_sealed else next(deliveries)
        return delivery

    def _note(self, delivery: Delivery) -> None:
        for scan_id, reason in delivery.skipped.items():
            if scan_id not in self.counts.skipped:
                _log.warning("Left out scan %s: %s", scan_id, reason)
        for scan_id, reason in delivery.unmirrored.items():
            if not self.counts.unmirrored:
                _log.warning("Did not mirror scan %s: %s", scan_id, reason)
        self.counts.skipped.update(delivery.skipped)
        self.counts.unmirrored.update(delivery.unmirrored)


class _Requests(TorchSampler[Request]):
    """What the torch loader asks of its workers; set anew at each start of an epoch."""

    def __init__(self) -> None:
        self.pending: Callable[[], Iterator[Request]] = lambda: iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.pending()


class _Sealed(Dataset[Any]):
    """Deliveries made fit for the way between processes: an error too, and small tensors as arrays.

    A tensor travels as a file descriptor of its own, which is right for a volume and wasteful for tokens.
    """

    def __init__(self, dataset: ScanDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, request: Request) -> "Delivery | CTGroundingError":
        try:
            delivery = self._dataset[request]
        except CTGroundingError as error:
            return error
        samples: list[Any] = [_each_leaf(sample, _to_array) for sample in delivery.samples]
        return replace(delivery, samples=samples)


def _opened(sealed: "Delivery | CTGroundingError") -> Delivery:
    if isinstance(sealed, CTGroundingError):
        raise sealed
    samples: list[Any] = [_each_leaf(sample, _to_tensor) for sample in sealed.samples]
    return replace(sealed, samples=samples)


def _each_leaf(values: Any, change: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    if isinstance(values, dict):
        return {key: _each_leaf(value, change) for key, value in values.items()}
    return change(values)


def _to_array(leaf: object) -> object:
    return leaf.numpy() if isinstance(leaf, Tensor) and leaf.numel() < 65536 else leaf


def _to_tensor(leaf: object) -> object:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf


def _as_delivered(sealed: Any) -> Any:  # noqa: ANN401
    return sealed


def _delivering(dataset: Dataset[Any], requests: _Requests, workers: Workers) -> DataLoader[Any]:
    own_generator = torch.Generator()  # the loader's default draws its workers' seed from the global stream
    ahead: dict[str, Any] = {"prefetch_factor": workers.prefetch, "persistent_workers": True} if workers.count else {}
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers.count,
        multiprocessing_context=workers.start if workers.count else None,
        collate_fn=_as_delivered,
        generator=own_generator,
        **ahead,
    )
