"""Who fills the shards: processes of this machine or workers of a Dask cluster, and what happens when they die."""

from collections.abc import Iterator, Mapping, Sequence

from joblib import Parallel, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ctgrounding.errors import ConfigError, MissingDependencyError, ShardError
from ctgrounding.ingest.notes import ShardNote, progress_path
from ctgrounding.ingest.plan import ShardPlan
from ctgrounding.ingest.worker import Job, fill_shard

DEATHS = 2
"""So often may one scan kill its worker, alone in a process, before it is put aside."""
PATIENCE_S = 60
"""How long a cluster may take to answer and to have its first worker."""


def fill_shards(plans: Sequence[ShardPlan], job: Job, workers: int, cluster: str | None) -> Iterator[ShardNote]:
    """Fill shards, in whatever order they are finished.

    Args:
        plans: What to fill.
        job: How.
        workers: Processes of this machine; 1 works in this one, -1 takes every core.
        cluster: Address of a Dask scheduler that takes the place of this machine.

    Yields:
        The note of every shard.

    Raises:
        ShardError: If a shard cannot be written, or its worker is killed whatever is left out.
        ConfigError: If the cluster cannot be reached or has no workers.
        MissingDependencyError: If Dask is needed but not installed.
    """
    if cluster is not None:
        yield from _on_cluster(plans, job, cluster)
    elif workers == 1:
        yield from (fill_shard(plan, job) for plan in plans)
    else:
        yield from _on_this_machine(plans, job, workers)


def _on_this_machine(plans: Sequence[ShardPlan], job: Job, workers: int) -> Iterator[ShardNote]:
    """All at once; when a worker is killed, those begun go on one by one, so that the guilty scan shows itself."""
    left = {plan.name: plan for plan in plans}
    while left:
        try:
            parallel = Parallel(n_jobs=workers, backend="loky", return_as="generator_unordered")
            for note in parallel(delayed(fill_shard)(plan, job) for plan in list(left.values())):
                del left[note.name]
                yield note
        except TerminatedWorkerError:
            begun = [plan for plan in left.values() if progress_path(job.output, plan.name).exists()]
            for plan in begun or list(left.values())[:1]:
                del left[plan.name]
                yield _alone(plan, job)


def _alone(plan: ShardPlan, job: Job) -> ShardNote:
    deaths: dict[int, int] = {}
    while True:
        with ProcessPoolExecutor(max_workers=1) as executor:
            try:
                note: ShardNote = executor.submit(fill_shard, plan, job, _killers(deaths, DEATHS)).result()
                return note
            except TerminatedWorkerError as error:
                _count_death(plan, job, deaths, error)


def _killers(deaths: Mapping[int, int], enough: int) -> frozenset[int]:
    return frozenset(row for row, count in deaths.items() if count >= enough)


def _count_death(plan: ShardPlan, job: Job, deaths: dict[int, int], error: Exception) -> None:
    """Charge a death to the row that was being read.

    Raises:
        ShardError: If it was not a scan's reading that killed the worker more than once.
    """
    path = progress_path(job.output, plan.name)
    row = path.stat().st_size if path.exists() else len(plan.scans)
    deaths[row] = deaths.get(row, 0) + 1
    if row >= len(plan.scans) and deaths[row] >= DEATHS:
        raise ShardError(
            f"The worker of {plan.name} was killed twice before its first scan or after its last, most likely because "
            "memory ran out. Use fewer workers or fewer scans_per_shard."
        ) from error


def _on_cluster(plans: Sequence[ShardPlan], job: Job, address: str) -> Iterator[ShardNote]:
    try:
        from distributed import Client, Future, KilledWorker, as_completed
    except ImportError as error:
        raise MissingDependencyError(
            "A cluster needs Dask, which is not installed. Install it with: pip install 'ctgrounding[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"There is no Dask scheduler at {address}. Start one, or correct --cluster.") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError as error:
            raise ConfigError(f"The cluster at {address} has no workers after {PATIENCE_S} s. Start some.") from error
        deaths: dict[str, dict[int, int]] = {plan.name: {} for plan in plans}
        running: dict[Future, ShardPlan] = {client.submit(fill_shard, plan, job, pure=False): plan for plan in plans}
        try:
            finished = as_completed(running, loop=client.loop)
            for future in finished:
                plan = running.pop(future)
                try:
                    yield future.result()
                except KilledWorker as error:  # the scheduler has already tried it several times
                    _count_death(plan, job, deaths[plan.name], error)
                    again = client.submit(fill_shard, plan, job, _killers(deaths[plan.name], 1), pure=False)
                    running[again] = plan
                    finished.add(again)
        finally:
            client.cancel(list(running))
