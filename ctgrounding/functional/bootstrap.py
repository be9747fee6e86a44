"""Bootstrap intervals whose unit is the patient, for statistics that take weights.

Scans, reports and snippets of one patient are not independent, so whole patients are drawn. A draw is a
vector of weights, one a row of data: how often the row's patient was drawn. A statistic maps weights
``(R, n)`` to values ``(R, K)`` and is asked for many draws at once. The draws depend on seed and number of
patients only, so two models compared on the same rows are compared on the same draws.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float64, Shaped
from numpy.typing import NDArray

from ctgrounding.errors import BatchError, ConfigError

Statistic = Callable[[Float64[np.ndarray, "R n"]], Float64[np.ndarray, "R K"]]
Method = Literal["percentile", "bca"]

_CHUNK_BYTES = 2**25


@dataclass(frozen=True)
class Draws:
    """Resamples of clusters, held as counts.

    Attributes:
        cluster: For each row of data, the number of its cluster.
        counts: How often each draw holds each cluster.

    Examples:
        >>> draws = draw_clusters(np.array(["ann", "ann", "bob"]), resamples=1000, seed=0)
        >>> draws.cluster.tolist(), draws.counts.shape
        ([0, 0, 1], (1000, 2))
    """

    cluster: NDArray[np.int64]
    counts: NDArray[np.uint32]

    def weights(self) -> Iterator[Float64[np.ndarray, "r n"]]:
        """Weights of the rows, some draws at a time."""
        size = max(1, _CHUNK_BYTES // (8 * max(1, len(self.cluster))))
        for start in range(0, len(self.counts), size):
            yield self.counts[start : start + size][:, self.cluster].astype(np.float64)

    def left_out(self) -> Iterator[Float64[np.ndarray, "r n"]]:
        """Weights that leave out one cluster at a time, for the jackknife."""
        clusters = self.counts.shape[1]
        size = max(1, _CHUNK_BYTES // (8 * max(1, len(self.cluster))))
        for start in range(0, clusters, size):
            left = np.arange(start, min(start + size, clusters))
            yield (self.cluster[None, :] != left[:, None]).astype(np.float64)


def draw_clusters(clusters: Shaped[np.ndarray, "n"], resamples: int, seed: int) -> Draws:
    """Draw as many clusters as there are, with replacement, ``resamples`` times.

    Args:
        clusters: Cluster of each row, usually the patient; anything that sorts.
        resamples: Number of draws.
        seed: Same seed and number of clusters, same draws.

    Raises:
        ConfigError: If ``resamples`` is not positive.
    """
    if resamples < 1:
        raise ConfigError(f"A bootstrap of {resamples} resamples says nothing. Use at least 1, for intervals 1000.")
    names, cluster = np.unique(clusters, return_inverse=True)
    count = len(names)
    if count == 0:
        return Draws(cluster.astype(np.int64), np.zeros((resamples, 0), np.uint32))
    drawn = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    drawn += np.arange(resamples)[:, None] * count
    counts = np.bincount(drawn.ravel(), minlength=resamples * count).reshape(resamples, count)
    return Draws(cluster.astype(np.int64), counts.astype(np.uint32))


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds between which it lies.

    Attributes:
        estimate: The statistic on the data as they are.
        low: Lower bound; NaN where no draw has a value.
        high: Upper bound; NaN where no draw has a value.
        undefined: Draws in which the statistic has no value, for example because one class is missing.
    """

    estimate: Float64[np.ndarray, "K"]
    low: Float64[np.ndarray, "K"]
    high: Float64[np.ndarray, "K"]
    undefined: NDArray[np.int64]


@dataclass(frozen=True)
class Bootstrap:
    """A statistic's values on the data, on every draw, and with each cluster left out.

    Attributes:
        statistic: Maps weights ``(R, n)`` to values ``(R, K)``; NaN where undefined.
        draws: The resamples.
    """

    statistic: Statistic
    draws: Draws

    @cached_property
    def estimate(self) -> Float64[np.ndarray, "K"]:
        """Values on the data as they are."""
        value: NDArray[np.float64] = self.statistic(np.ones((1, len(self.draws.cluster))))[0]
        return value

    @cached_property
    def samples(self) -> Float64[np.ndarray, "R K"]:
        """Values on every draw."""
        return np.concatenate([self.statistic(weights) for weights in self.draws.weights()])

    @cached_property
    def jackknife(self) -> Float64[np.ndarray, "clusters K"]:
        """Values with one cluster left out."""
        parts = [self.statistic(weights) for weights in self.draws.left_out()]
        return np.concatenate([np.empty((0, len(self.estimate))), *parts])

    def interval(self, level: float = 0.95, method: Method = "percentile") -> Interval:
        """Bounds that hold the statistic with chance ``level``.

        ``percentile`` takes quantiles of the draws. ``bca`` shifts those quantiles for median bias and
        for a spread that depends on the value (Efron 1987), the acceleration coming from leaving out one
        cluster at a time; where draws show no spread it is the percentile interval. Draws without a value
        are left out of the quantiles and counted.

        Raises:
            ConfigError: If ``level`` is not between 0 and 1 or there is no such method.
        """
        if not 0.0 < level < 1.0:
            raise ConfigError(f"An interval of level {level} cannot be had. Use a level between 0 and 1, such as 0.95.")
        if method not in ("percentile", "bca"):
            raise ConfigError(f"Interval method '{method}' is not known. Use 'percentile' or 'bca'.")
        tails = np.array([(1 - level) / 2, (1 + level) / 2])
        bounds = np.full((2, len(self.estimate)), np.nan)
        for column, draws in enumerate(self.samples.T):
            defined = draws[~np.isnan(draws)]
            if len(defined) and not np.isnan(self.estimate[column]):
                quantiles = self._corrected(column, defined, tails) if method == "bca" else tails
                bounds[:, column] = np.quantile(defined, quantiles)
        return Interval(self.estimate, bounds[0], bounds[1], np.isnan(self.samples).sum(0))

    def _corrected(
        self, column: int, draws: Float64[np.ndarray, "r"], tails: Float64[np.ndarray, "2"]
    ) -> Float64[np.ndarray, "2"]:
        from scipy.special import ndtr, ndtri

        estimate = self.estimate[column]
        share = ((draws < estimate).sum() + 0.5 * (draws == estimate).sum()) / len(draws)
        left_out = self.jackknife[:, column]
        left_out = left_out[~np.isnan(left_out)]
        pull = left_out.sum() / max(1, len(left_out)) - left_out
        spread = (pull**2).sum()
        if not 0.0 < share < 1.0 or spread == 0.0:
            return tails
        acceleration = (pull**3).sum() / (6.0 * spread**1.5)
        bias, normal = ndtri(share), ndtri(tails)
        shifted = bias + (bias + normal) / (1.0 - acceleration * (bias + normal))
        corrected: NDArray[np.float64] = ndtr(shifted)
        return corrected


def weighted_means(values: Float64[np.ndarray, "n K"]) -> Statistic:
    """The statistic "mean of each column"; NaN entries take no part.

    Raises:
        BatchError: If ``values`` is not a table.
    """
    if values.ndim != 2:
        raise BatchError(f"Means need a table (rows, columns), not an array of shape {values.shape}.")
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)

    def means(weights: Float64[np.ndarray, "R n"]) -> Float64[np.ndarray, "R K"]:
        with np.errstate(invalid="ignore"):
            result: NDArray[np.float64] = (weights @ filled) / (weights @ known.astype(np.float64))
        return result

    return means
