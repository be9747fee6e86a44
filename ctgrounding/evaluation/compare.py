"""Is run B better than run A, and where? Paired differences on the cases that both evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import NDArray

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Resampling
from ctgrounding.evaluation.cases import Cases
from ctgrounding.evaluation.results import RunResults
from ctgrounding.functional.bootstrap import Bootstrap, draw_clusters


@dataclass(frozen=True)
class Difference:
    """One number of two runs on their common cases.

    Attributes:
        name: Of the number.
        column: Class or depth that it belongs to; empty where there is one only, ``mean`` for the macro.
        first: Value of run A.
        second: Value of run B.
        difference: B less A.
        low: Lower bound of the difference.
        high: Upper bound of the difference.
        p: Chance of a difference at least as large if the runs were equal.
        p_corrected: The same, corrected for the number of columns by Holm's method.
        lower_is_better: Whether a negative difference is a gain.
        cases: Number of common cases that the number is of.
        undefined: Draws in which one of the values does not exist.
    """

    name: str
    column: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    lower_is_better: bool
    cases: int
    undefined: int

    def verdict(self, alpha: float = 0.05) -> str:
        """``better``, ``worse`` or ``no difference shown``, of B against A, after correction."""
        if not self.p_corrected < alpha:
            return "no difference shown"
        return "better" if (self.difference < 0) == self.lower_is_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Differences of two runs, and what of them could not be paired.

    Attributes:
        differences: Overall numbers first, then those of each class.
        notes: Sentences that a reader must know: cases left out, other pools, other labels.
        protocol: How intervals and p-values were made.
    """

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    protocol: str

    def answer(self, alpha: float = 0.05) -> str:
        """Where B is better, where it is worse, and where nothing was shown, as one sentence each."""
        sentences = []
        for verdict, start in (("better", "B is better in"), ("worse", "B is worse in")):
            named = [_label(item) for item in self.differences if item.verdict(alpha) == verdict]
            sentences.append(f"{start} {', '.join(named)}." if named else f"{start} nothing.")
        open_ones = sum(item.verdict(alpha) == "no difference shown" for item in self.differences)
        return " ".join([*sentences, f"No difference is shown in {open_ones} of {len(self.differences)} numbers."])


def compare(run_a: str | Path, run_b: str | Path, resampling: Resampling | None = None) -> Comparison:
    """Compare two runs on the cases that both evaluated, resampling patients.

    The same draws serve both runs. The p-value asks how often a draw's difference lies as far from the
    observed one as that lies from zero (Efron and Tibshirani 1993, chapter 16); with R draws it cannot be
    below 1 / (R + 1). Nor can it be below 2^(1 - n) for n patients, which is the least that changing the signs of n
    differences gives: drawing one patient again and again tells nothing of others. Holm's correction is over the
    columns of one number.

    Args:
        run_a: Folder with ``results.json``.
        run_b: Folder with ``results.json``.
        resampling: Draws and level; by default 5000 draws, 95 %.

    Raises:
        ConfigError: If a folder has no results, or the runs have no case in common.
    """
    how = resampling or Resampling(resamples=5000)
    first, second = (_cases_of(RunResults.read(folder)) for folder in (run_a, run_b))
    notes: list[str] = []
    overall: list[Difference] = []
    single: list[Difference] = []
    for name in sorted(set(first) | set(second)):
        if name not in first or name not in second:
            notes.append(f"{name} exists in run {'A' if name in first else 'B'} only.")
            continue
        pair = _paired(first[name], second[name], notes)
        if pair is None:
            continue
        overall.extend(_differences(*pair, how, together=True) if pair[0].has_mean else [])
        is_split = len(pair[0].columns) > 1 or not pair[0].has_mean
        single.extend(_differences(*pair, how, together=False) if is_split else [])
    if not overall and not single:
        raise ConfigError(f"{run_a} and {run_b} have no evaluated case in common. Test both on the same data.")
    return Comparison((*overall, *single), tuple(notes), how.described() + ", paired; Holm's correction over columns")


def holm(p: Float64[np.ndarray, "K"]) -> Float64[np.ndarray, "K"]:
    """P-values corrected for their number by Holm's step-down method; NaN stays and does not count."""
    corrected = np.full(len(p), np.nan)
    order = [place for place in np.argsort(p, kind="stable") if not np.isnan(p[place])]
    highest = 0.0
    for step, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - step) * float(p[place])))
        corrected[place] = highest
    return corrected


def _cases_of(results: RunResults) -> dict[str, Cases]:
    found = [Cases.from_json(item) for section in results.sections.values() for item in section.get("cases", ())]
    return {cases.name: cases for cases in found}


def _paired(first: Cases, second: Cases, notes: list[str]) -> tuple[Cases, Cases] | None:
    """Both runs' cases in one order, common columns only; None where there are none."""
    if first.items is None or second.items is None:
        is_mixed = (first.items is None) != (second.items is None)
        first, second = replace(first, items=None), replace(second, items=None)
        if is_mixed or any(len(set(cases.scans)) < len(cases.scans) for cases in (first, second)):
            notes.append(
                f"{first.name}: cases are paired by their place in the scan, since a run tested by an older version "
                "does not say what they are of. Test both again if their data.supervision or reports differ."
            )
    rows = {identity: row for row, identity in enumerate(second.identities())}
    common = [(row, rows[identity]) for row, identity in enumerate(first.identities()) if identity in rows]
    columns = [name for name in first.columns if name in second.columns]
    dropped = len(first.scans) + len(second.scans) - 2 * len(common)
    if dropped:
        notes.append(f"{first.name}: {dropped} cases were evaluated in one run only and are left out.")
    if len(columns) < max(len(first.columns), len(second.columns)):
        notes.append(f"{first.name}: only {len(columns)} columns are in both runs.")
    if not common or not columns:
        return None
    a = _columns(first.take([row for row, _ in common]), columns)
    b = _columns(second.take([row for _, row in common]), columns)
    if a.labels is None or b.labels is None:
        return a, b
    both = (a.labels >= 0) & (b.labels >= 0)
    if (a.labels != b.labels)[both].any():
        raise ConfigError(f"The runs have different labels for {a.name}. Test both on the same data.")
    common_labels = np.where(both, a.labels, -1)
    return replace(a, labels=common_labels), replace(b, labels=common_labels)


def _columns(cases: Cases, names: Sequence[str]) -> Cases:
    places = [cases.columns.index(name) for name in names]
    labels = None if cases.labels is None else cases.labels[:, places]
    return replace(cases, columns=list(names), values=cases.values[:, places], labels=labels)


def _differences(first: Cases, second: Cases, how: Resampling, *, together: bool) -> list[Difference]:
    one, other = first.statistic(), second.statistic()
    macro = together and len(first.columns) > 1

    def difference(weights: Float64[np.ndarray, "R n"]) -> Float64[np.ndarray, "R K"]:
        found = other(weights) - one(weights)
        return found.mean(1, keepdims=True) if macro else found

    boot = Bootstrap(difference, draw_clusters(first.patients, how.resamples, how.seed))
    interval = boot.interval(how.level, how.method)
    every = np.ones((1, len(first.scans)))
    values = [statistic(every).mean(1) if macro else statistic(every)[0] for statistic in (one, other)]
    taking = _taking_part(first, second, together=macro)
    patients = [len(np.unique(first.patients[column])) for column in taking.T]
    p = np.maximum(_p_values(boot), [min(1.0, 2.0 ** (1 - count)) for count in patients])
    corrected = holm(p)
    is_only = first.has_mean and len(first.columns) == 1
    names = ["mean"] if macro else [""] if is_only else first.columns
    return [
        Difference(
            name=first.name,
            column=names[column],
            first=float(values[0][column]),
            second=float(values[1][column]),
            difference=float(interval.estimate[column]),
            low=float(interval.low[column]),
            high=float(interval.high[column]),
            p=float(p[column]),
            p_corrected=float(corrected[column]),
            lower_is_better=first.lower_is_better,
            cases=int(taking[:, column].sum()),
            undefined=int(interval.undefined[column]),
        )
        for column in range(len(interval.estimate))
        if not np.isnan(interval.estimate[column])
    ]


def _taking_part(first: Cases, second: Cases, *, together: bool) -> Bool[np.ndarray, "n K"]:
    """Which cases each column is of, or the mean of all columns."""
    known: NDArray[np.bool_] = ~np.isnan(first.values) & ~np.isnan(second.values)
    if first.labels is not None:
        known = first.labels >= 0
    return np.any(known, axis=1, keepdims=True) if together else known


def _p_values(boot: Bootstrap) -> Float64[np.ndarray, "K"]:
    away = np.abs(boot.samples - boot.estimate)
    defined = ~np.isnan(away)
    # Sums of the same cases in another order differ in the last bits; an equal difference is not a smaller one.
    as_far = (away >= np.abs(boot.estimate) - 1e-12) & defined
    p = (1.0 + as_far.sum(0)) / (1.0 + defined.sum(0))
    return np.where(np.isnan(boot.estimate), np.nan, p)


def _label(item: Difference) -> str:
    return f"{item.name} {item.column}".strip()
