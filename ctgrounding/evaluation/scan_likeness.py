"""What scans found for a scan are worth: three published definitions, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray

DefinitionName = Literal["ct_clip", "spectre", "radfinder"]
Labels = Bool[np.ndarray, "N Q"]
Worth = Callable[[Labels, Int64[np.ndarray, "R"], Int64[np.ndarray, "R K"], int], Float64[np.ndarray, "R"]]


@dataclass(frozen=True)
class Definition:
    """How one paper scores the scans found for a scan.

    Attributes:
        measure: Name of the number.
        k: Depths that the paper reports.
        finds_itself: Whether the query is among the candidates.
        abnormal_queries: Whether only scans with a finding are queries.
        abnormal_candidates: Whether only scans with a finding are candidates.
        worth: From labels, queries, answers in order and k, the worth of each query's answers; NaN leaves a
            query out.
        text: The definition in words.
    """

    measure: str
    k: tuple[int, ...]
    finds_itself: bool
    abnormal_queries: bool
    abnormal_candidates: bool
    worth: Worth
    text: str


def jaccard(
    labels: Labels, queries: Int64[np.ndarray, "R"], answers: Int64[np.ndarray, "R K"], k: int
) -> Float64[np.ndarray, "R"]:
    """Mean over the first k answers of shared findings over findings of either."""
    own, found = labels[queries][:, None], labels[answers[:, :k]]
    with np.errstate(invalid="ignore"):
        shared = (own & found).sum(-1) / (own | found).sum(-1)
    mean: NDArray[np.float64] = shared.mean(1)
    return mean


def precision_of_identical(
    labels: Labels, queries: Int64[np.ndarray, "R"], answers: Int64[np.ndarray, "R K"], k: int
) -> Float64[np.ndarray, "R"]:
    """Average precision at k of scans with the same label row; NaN where there is no other such scan."""
    rows = np.unique(labels, axis=0, return_inverse=True)[1].reshape(len(labels))
    others = np.bincount(rows, minlength=1)[rows[queries]] - 1
    hits = rows[answers[:, :k]] == rows[queries][:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        worth: NDArray[np.float64] = _precisions(hits) / np.where(others > 0, np.minimum(others, k), np.nan)
    return worth


def precision_of_shared(
    labels: Labels, queries: Int64[np.ndarray, "R"], answers: Int64[np.ndarray, "R K"], k: int
) -> Float64[np.ndarray, "R"]:
    """Sum of precisions at the ranks of scans that share a finding, over k."""
    hits = (labels[queries][:, None] & labels[answers[:, :k]]).any(-1)
    return _precisions(hits) / k


def _precisions(hits: Bool[np.ndarray, "R k"]) -> Float64[np.ndarray, "R"]:
    total: NDArray[np.float64] = (hits.cumsum(1) / np.arange(1, hits.shape[1] + 1) * hits).sum(1)
    return total


DEFINITIONS: Mapping[DefinitionName, Definition] = {
    "ct_clip": Definition(
        "jaccard",
        (1, 5, 10, 50),
        True,
        False,
        True,
        jaccard,
        "mean Jaccard index of the label rows over the first k; candidates have a finding; a scan may find itself",
    ),
    "spectre": Definition(
        "map",
        (1, 5, 10, 50),
        False,
        False,
        False,
        precision_of_identical,
        "average precision at k over min(positives, k); positives have the identical label row; a scan without "
        "another such scan is no query",
    ),
    "radfinder": Definition(
        "map",
        (5, 10, 50),
        False,
        True,
        True,
        precision_of_shared,
        "sum of precisions at relevant ranks over k; relevant scans share a finding; scans with a finding only",
    ),
}
