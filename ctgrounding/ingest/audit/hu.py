"""How a scan's values become HU. Decided by the data.

Headers lie about HU: in CT-RATE 850 of 3,039 validation volumes carry an intercept of -8192, and files that
are already in HU keep their scanner's intercept in a table beside them. So every way that files are known
to go wrong is a candidate, the values that each would give are looked at, and the header only breaks ties.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Shaped

from ctgrounding.errors import ScanError
from ctgrounding.ingest.readers import Stored
from ctgrounding.ingest.resample import HU_RANGE

AIR_HU = (-1100.0, -880.0)
"""Where air lies on any scanner, table and bowel gas included."""
SOFT_HU = (-150.0, 250.0)
"""Where fat, muscle and organs lie, with and without contrast."""
MIN_SOFT = 0.04
MIN_AIR = 0.01
MAX_BELOW = 0.02
"""Share of values below air that a scan in HU may have, constant padding left out."""
FAT_BELOW_HU = -10.0
"""What a body cut out of its air still reaches, while pictures of 0..1 or 0..255 do not."""
MIN_SPREAD_HU = 30.0
BETWEEN_HU = (-650.0, -200.0)
"""Between lung and fat there is next to nothing in CT; MR and shifted values spread over it."""
DENSE_HU = 300.0
MAX_BETWEEN, MAX_DENSE = 0.6, 0.4
"""Shares of soft tissue that lie between lung and fat, and that are as dense as bone, at most. Real scans of chest
and abdomen have 0.1 and 0.03, lungs on a 12 mm grid 0.4 and 0.05."""
PADDING_SHARE = 0.005
LOST_INTERCEPTS = (-1024.0, -1000.0, -8192.0)

_SAMPLES = 60_000


@dataclass(frozen=True)
class HuRule:
    """How stored values become HU: ``slope * value + intercept``.

    Attributes:
        name: ``header``, ``already_hu`` (the header's rule would apply it twice), ``lost_intercept`` or ``trusted``.
        slope: Factor.
        intercept: Offset in HU.
    """

    name: str
    slope: float
    intercept: float

    @property
    def verdict(self) -> str:
        """``already_hu``, ``slope_and_intercept``, ``intercept_trap``, or ``trusted`` where the card decided."""
        if self.name == "header":
            return "already_hu" if (self.slope, self.intercept) == (1.0, 0.0) else "slope_and_intercept"
        return "trusted" if self.name == "trusted" else "intercept_trap"


@dataclass(frozen=True)
class Evidence:
    """What the values of a candidate rule look like.

    Attributes:
        air: Share of values where air lies.
        soft: Share where soft tissue lies.
        below: Share below air, constant padding left out.
        between: Share between lung and fat.
        dense: Share as dense as bone.
        air_peak_hu: Most frequent value among air, None if there is none.
        soft_peak_hu: Most frequent value among soft tissue, None if there is none.
        padding_hu: Constant value below air that pads the scan, None if there is none.
        low_hu: First percentile.
        high_hu: 99th percentile.
    """

    air: float
    soft: float
    below: float
    between: float
    dense: float
    air_peak_hu: float | None
    soft_peak_hu: float | None
    padding_hu: float | None
    low_hu: float
    high_hu: float

    @property
    def is_ct(self) -> bool:
        """Whether there is soft tissue, next to nothing below air, and air or, in a plain picture, at least fat."""
        has_fat = self.low_hu < FAT_BELOW_HU and self.high_hu - self.low_hu > MIN_SPREAD_HU
        vouched = self.has_air or (has_fat and self.is_plain)
        return self.soft >= MIN_SOFT and self.below <= MAX_BELOW and vouched

    @property
    def is_plain(self) -> bool:
        """Whether tissue lies together as in CT; what a rule that no header states must show as well."""
        return self.between <= MAX_BETWEEN * self.soft and self.dense <= MAX_DENSE * self.soft

    @property
    def has_air(self) -> bool:
        """Whether there is air too, which settles the offset."""
        return self.air >= MIN_AIR


def decide(stored: Stored, hu: str = "auto") -> tuple[HuRule, Evidence]:
    """Decide how a scan's values become HU.

    Args:
        stored: Its values.
        hu: ``auto`` decides by the data; ``stored`` takes the header's slope and intercept as they are.

    Raises:
        ScanError: If a value is not finite, all values are one, or no rule gives values that look like CT.
    """
    sample = _sample(stored.values)
    if sample.min() == sample.max() and stored.values.min() == stored.values.max():
        raise ScanError(f"The scan is blank: every voxel is {float(sample[0]):g}.", "blank")
    header = HuRule("header", stored.slope, stored.intercept)
    if hu == "stored":
        return HuRule("trusted", stored.slope, stored.intercept), _look(sample, header)
    return _decide(sample, header)


def to_hu(values: Shaped[np.ndarray, "k j i"], rule: HuRule) -> Shaped[np.ndarray, "k j i"]:
    """Values in HU, clipped to [-1024, 3071]: int16 where the rule only shifts whole numbers, else float32."""
    low, high = HU_RANGE
    offset = int(rule.intercept) if rule.intercept == int(rule.intercept) else None
    if offset is None or rule.slope != 1 or not np.issubdtype(values.dtype, np.integer):
        scaled = values.astype(np.float32) * np.float32(rule.slope)
        scaled += np.float32(rule.intercept)
        np.clip(scaled, low, high, out=scaled)
        return scaled
    limits, narrow = np.iinfo(values.dtype), np.iinfo(np.int16)
    first, last = low - offset, high - offset
    if first < narrow.min or last > narrow.max or first > limits.max or last < limits.min:
        return np.clip(values.astype(np.int64) + offset, low, high).astype(np.int16)
    clipped: np.ndarray = np.clip(values, max(first, limits.min), min(last, limits.max)).astype(np.int16)
    clipped += np.int16(offset)
    return clipped


def _sample(values: Shaped[np.ndarray, "k j i"]) -> Float32[np.ndarray, "n"]:
    """Every n-th voxel, sorted."""
    if np.issubdtype(values.dtype, np.floating):
        broken = int(values.size - np.isfinite(values).sum())
        if broken:
            raise ScanError(
                f"{broken} of {values.size} voxels are not finite (NaN or infinite). Export it again.", "not_finite"
            )
    flat = values.reshape(-1)
    return np.sort(flat[:: max(1, flat.size // _SAMPLES) | 1]).astype(np.float32)


def _decide(sample: Float32[np.ndarray, "n"], header: HuRule) -> tuple[HuRule, Evidence]:
    """The first rule with soft tissue and air; else the first with soft tissue and fat.

    A rule that nobody states must give a plain picture too; of several the one whose air lies nearest to -1000.
    """
    stated = [(rule, _look(sample, rule)) for rule in _stated(header)]
    guessed = [(rule, _look(sample, rule)) for rule in _guessed(header)]
    guessed.sort(key=lambda pair: abs(_air_hu(sample, pair[0]) + 1000))
    usable: tuple[HuRule, Evidence] | None = None
    for rule, look in (*stated, *(pair for pair in guessed if pair[1].is_plain)):
        if look.is_ct and look.has_air:
            return rule, look
        if look.is_ct and usable is None:
            usable = rule, look
    if usable is None:
        low, middle, high = (float(sample[int(share * (len(sample) - 1))]) for share in (0.01, 0.5, 0.99))
        raise ScanError(
            f"The values are not HU by any known rule: 1, 50 and 99 % lie at {low:g}, {middle:g}, {high:g}, "
            f"and the header says slope {header.slope:g}, intercept {header.intercept:g}.",
            "not_hu",
        )
    return usable


def _stated(header: HuRule) -> Iterator[HuRule]:
    if not (np.isfinite((header.slope, header.intercept)).all() and header.slope > 0):
        raise ScanError(
            f"The header's slope {header.slope:g} and intercept {header.intercept:g} cannot be.", "no_header"
        )
    yield header
    if (header.slope, header.intercept) != (1.0, 0.0):
        yield HuRule("already_hu", 1.0, 0.0)


def _guessed(header: HuRule) -> Iterator[HuRule]:
    for offset in LOST_INTERCEPTS:
        yield HuRule("lost_intercept", header.slope, offset)


def _look(sample: Float32[np.ndarray, "n"], rule: HuRule) -> Evidence:
    values = sample * np.float32(rule.slope) + np.float32(rule.intercept)
    padding = _padding(values)
    if padding is not None:
        values = values[np.searchsorted(values, padding, "right") :]
    count = max(1, len(values))
    air, soft = _within(values, AIR_HU), _within(values, SOFT_HU)
    return Evidence(
        air=round(len(air) / count, 4),
        soft=round(len(soft) / count, 4),
        below=round(int(np.searchsorted(values, AIR_HU[0])) / count, 4),
        between=round(len(_within(values, BETWEEN_HU)) / count, 4),
        dense=round((len(values) - int(np.searchsorted(values, DENSE_HU))) / count, 4),
        air_peak_hu=_peak(air, AIR_HU),
        soft_peak_hu=_peak(soft, SOFT_HU),
        padding_hu=padding,
        low_hu=round(float(values[count // 100]), 1) if len(values) else 0.0,
        high_hu=round(float(values[count - 1 - count // 100]), 1) if len(values) else 0.0,
    )


def _air_hu(sample: Float32[np.ndarray, "n"], rule: HuRule) -> float:
    """Where air lies, the lowest value left out, in which clipping and padding pile up; 0 where there is none."""
    values = sample[np.searchsorted(sample, sample[0], "right") :] * np.float32(rule.slope) + np.float32(rule.intercept)
    return _peak(_within(values, AIR_HU), AIR_HU) or 0.0


def _within(values: Float32[np.ndarray, "n"], bounds: tuple[float, float]) -> Float32[np.ndarray, "m"]:
    return values[np.searchsorted(values, bounds[0]) : np.searchsorted(values, bounds[1], "right")]


def _padding(values: Float32[np.ndarray, "n"]) -> float | None:
    """The lowest value, if it lies below air and enough voxels share exactly it."""
    lowest = float(values[0])
    share = int(np.searchsorted(values, values[0], "right")) / len(values)
    return lowest if lowest < AIR_HU[0] and share > PADDING_SHARE else None


def _peak(values: Float32[np.ndarray, "n"], bounds: tuple[float, float]) -> float | None:
    """Middle of the fullest bin of 5 HU."""
    if not len(values):
        return None
    edges = np.arange(bounds[0], bounds[1] + 5, 5, dtype=np.float32)
    place = int(np.diff(np.searchsorted(values, edges)).argmax())
    return float(edges[place]) + 2.5
