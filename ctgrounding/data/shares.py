"""How much of training's scans have masks, snippets, both or neither."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ctgrounding.data.index import ScanIndex
from ctgrounding.data.sampler import Source
from ctgrounding.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shares:
    """Shares of training scans by what supervises them besides their report.

    They are spread evenly over an epoch, so every step has them, but for rounding. Within each of several
    data sets they hold by themselves. Without shares, scans come as often as there are of their kind.

    Args:
        masks_and_snippets: Share of scans with an organ map and at least one snippet.
        masks: Share of scans with an organ map only.
        snippets: Share of scans with snippets only.
        neither: Share of scans with neither. A share of 0 leaves such scans out of training, which is logged.

    Raises:
        ConfigError: If a share is negative or all are zero.

    Examples:
        >>> Shares(masks_and_snippets=2, neither=1).kind(has_masks=True, has_snippets=False)
        'masks'
    """

    masks_and_snippets: float = 0.0
    masks: float = 0.0
    snippets: float = 0.0
    neither: float = 0.0

    def __post_init__(self) -> None:
        shares = {item.name: getattr(self, item.name) for item in fields(self)}
        for name, share in shares.items():
            if not 0 <= share < math.inf:
                raise ConfigError(f"data.shares.{name} is {share}; a share is a finite number, at least 0.")
        if not any(shares.values()):
            raise ConfigError(f"data.shares are all 0, which leaves nothing to train on. Set some of {list(shares)}.")

    @staticmethod
    def kind(*, has_masks: bool, has_snippets: bool) -> str:
        """The name of the share that a scan belongs to."""
        if has_masks:
            return "masks_and_snippets" if has_snippets else "masks"
        return "snippets" if has_snippets else "neither"

    def divide(self, sources: Sequence[Source], scans: ScanIndex) -> list[Source]:
        """Each source as one for each kind that it has and training wants.

        A study whose scans differ is of the kind of all of them together.

        Args:
            sources: What training draws from.
            scans: The scans that their units count in.

        Raises:
            ConfigError: If a kind is wanted of which a source has no scan.
        """
        return [part for source in sources for part in self._divide(source, scans)]

    def _divide(self, source: Source, scans: ScanIndex) -> list[Source]:
        units: dict[str, list[tuple[int, ...]]] = {item.name: [] for item in fields(self)}
        for unit in source.units:
            records = [scans.record(position) for position in unit]
            has_masks = any(record.organ_voxels is not None for record in records)
            units[self.kind(has_masks=has_masks, has_snippets=any(record.snippets for record in records))].append(unit)
        wanted = {kind: getattr(self, kind) for kind in units if getattr(self, kind) > 0}
        for kind, mine in units.items():
            if kind in wanted and not mine:
                counts = ", ".join(f"{name} {len(found)}" for name, found in units.items())
                raise ConfigError(
                    f"data.shares.{kind} is {wanted[kind]:g}, but no training scan of '{source.name}' is of that kind "
                    f"({counts}). Set it to 0 or ingest such scans."
                )
            if kind not in wanted and mine:
                _log.warning("%d of %d studies of %s are left out: share 0.", len(mine), len(source.units), kind)
        whole = (len(source.units) if source.weight is None else source.weight) / sum(wanted.values())
        return [Source(f"{source.name}/{kind}", units[kind], share * whole) for kind, share in wanted.items()]
