"""What ``data.shards`` names: one data set or several to be mixed, their index, and the words laid over it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ctgrounding.data.index import ScanIndex, load_index
from ctgrounding.data.overlay import lay_over
from ctgrounding.data.sampler import Source
from ctgrounding.data.shards import find_shards
from ctgrounding.data.shares import Shares
from ctgrounding.errors import ConfigError


@dataclass
class ShardSource:
    """One of several data sets that a run mixes.

    Attributes:
        paths: Shards, or folders of shards.
        weight: Share of the training mixture before normalisation; its number of scans or studies if null.
    """

    paths: list[str]
    weight: float | None = None


class Sources:
    """The data sets of a run by name.

    Args:
        shards: As in :class:`ctgrounding.data.datamodule.ShardDataModule`.
        supervision: Supervision file to lay over all of them, None for none.
        shares: Shares of training by what supervises a scan, None for what there is.
        one_scan_per_study: Whether training draws the reconstructions of a study as one.

    Raises:
        ConfigError: If no shard is named.
    """

    def __init__(
        self,
        shards: str | Sequence[str] | Mapping[str, ShardSource],
        supervision: str | None = None,
        shares: Shares | None = None,
        one_scan_per_study: bool = True,
    ) -> None:
        self._sources = _named(shards)
        self._supervision = supervision
        self._shares = shares
        self._one_scan_per_study = one_scan_per_study
        self._owner: dict[Path, str] = {}

    def load(self) -> ScanIndex:
        """The scans of all of them.

        Raises:
            ShardError: If a shard is missing or damaged.
            ConfigError: If the shards do not fit each other, a patient is in two splits, or the supervision
                does not fit the shards.
        """
        self._owner = _owners(self._sources)
        index = load_index(self._owner)
        _refuse_leaks(index)
        return index if self._supervision is None else lay_over(index, self._supervision)

    def training(self, scans: ScanIndex) -> list[Source]:
        """What training draws from: studies or scans, by source where weights tell them apart.

        Args:
            scans: The scans to train on, of :meth:`load`.

        Raises:
            ConfigError: If a share is asked for of which there is no scan.
        """
        sources = self._by_name(scans)
        return sources if self._shares is None else self._shares.divide(sources, scans)

    def _by_name(self, scans: ScanIndex) -> list[Source]:
        units: dict[str, list[tuple[int, ...]]] = {name: [] for name in self._sources}
        groups = scans.of_studies() if self._one_scan_per_study else [(i,) for i in range(len(scans))]
        for group in groups:
            units[self._owner[scans.shard(group[0])[0].path]].append(group)
        if all(source.weight is None for source in self._sources.values()):
            return [Source("all", [unit for several in units.values() for unit in several])]
        named = [Source(name, units[name], source.weight) for name, source in self._sources.items()]
        return [source for source in named if source.units or source.weight is not None]  # some are for tests alone


def _named(shards: str | Sequence[str] | Mapping[str, ShardSource]) -> dict[str, ShardSource]:
    if isinstance(shards, Mapping):
        named = dict(shards)
    else:
        named = {"all": ShardSource([shards] if isinstance(shards, str) else list(shards))}
    if not named or not all(source.paths for source in named.values()):
        raise ConfigError("data.shards names no shard. Name a folder that ctgrounding ingest wrote.")
    return named


def _owners(sources: Mapping[str, ShardSource]) -> dict[Path, str]:
    owner: dict[Path, str] = {}
    for name, source in sources.items():
        for path in find_shards(source.paths):
            if owner.setdefault(path, name) != name:
                raise ConfigError(f"{path} is under data.shards twice, in {owner[path]} and {name}. Name it once.")
    return owner


def _refuse_leaks(index: ScanIndex) -> None:
    split_of: dict[tuple[str, str], str] = {}
    columns = index.columns
    for dataset, patient, split in zip(columns["dataset"], columns["patient_id"], columns["split"], strict=True):
        if split_of.setdefault((dataset, patient), split) != split:
            raise ConfigError(
                f"Patient {patient} of dataset {dataset} is in splits {split_of[dataset, patient]} and {split}. "
                "Split by patient in the dataset card and ingest again."
            )
