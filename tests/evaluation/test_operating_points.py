"""Thresholds, calls and calibration against scikit-learn, SciPy and loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn import metrics

from ctgrounding import questions
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation import Resampling
from ctgrounding.evaluation.calibration import Platt, fit_platt, reliability
from ctgrounding.evaluation.finding_numbers import FindingNumbers
from ctgrounding.evaluation.operating import NUMBERS, OperatingPoint, Scored
from ctgrounding.evaluation.rows import Rows
from ctgrounding.evaluation.thresholds import choose_thresholds, count_calls


def cases(n, columns, seed, levels=6):
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (n, columns)) / 4, rng.integers(-1, 2, (n, columns))


def worth(rule, truth, called):
    sensitivity, specificity = called[truth == 1].mean(), 1 - called[truth == 0].mean()
    if rule == "youden":
        return sensitivity + specificity
    if rule == "corner":
        return -np.hypot(1 - sensitivity, 1 - specificity)
    return metrics.f1_score(truth, called, zero_division=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 50), st.sampled_from(["youden", "f1", "corner"]), st.integers(0, 10_000))
def test_no_other_threshold_does_better(n, rule, seed):
    scores, labels = cases(n, 1, seed)
    known = labels[:, 0] >= 0
    truth, score = labels[known, 0], scores[known, 0]
    threshold = choose_thresholds(scores, labels, rule)[0]
    if len(set(truth.tolist())) < 2:
        assert np.isnan(threshold)
        return
    tried = [worth(rule, truth, score >= cut) for cut in np.unique(score)]
    assert worth(rule, truth, score >= threshold) == pytest.approx(max(tried))
    assert threshold in (np.unique(score)[:-1] + np.diff(np.unique(score)) / 2) or threshold == score.min()


def test_a_threshold_lies_halfway_between_what_it_parts():
    scores, labels = np.array([[0.0], [1.0], [5.0], [9.0]]), np.array([[0], [0], [1], [1]])
    for rule in ("youden", "f1", "corner"):
        assert choose_thresholds(scores, labels, rule).tolist() == [3.0]
    with pytest.raises(ConfigError, match="'best'"):
        choose_thresholds(scores, labels, "best")


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(0, 10_000))
def test_calls_equal_scikit_learn_on_repeated_cases(n, seed):
    scores, labels = cases(n, 2, seed)
    weights = np.random.default_rng(seed).integers(0, 3, (4, n)).astype(float)
    calls = count_calls(scores, labels, np.array([0.5, 0.75]), weights)
    for row in range(4):
        for column, cut in enumerate((0.5, 0.75)):
            drawn = np.repeat(np.arange(n), weights[row].astype(int))
            drawn = drawn[labels[drawn, column] >= 0]
            truth, called = labels[drawn, column], (scores[drawn, column] >= cut).astype(int)
            if len(set(truth.tolist())) < 2:
                assert np.isnan(calls.balanced_accuracy[row, column])
                continue
            found = {
                "f1": metrics.f1_score(truth, called),
                "weighted_f1": metrics.f1_score(truth, called, average="weighted"),
                "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
                "accuracy": metrics.accuracy_score(truth, called),
                "precision": metrics.precision_score(truth, called, zero_division=0.0),
                "sensitivity": metrics.recall_score(truth, called),
            }
            for name, value in found.items():
                assert getattr(calls, name)[row, column] == pytest.approx(value, abs=1e-12)


def test_no_cases_and_no_threshold_have_no_rates():
    nothing = count_calls(np.zeros((0, 1)), np.zeros((0, 1), int), np.array([0.0]))
    assert np.isnan([nothing.f1, nothing.weighted_f1, nothing.accuracy]).all()
    unset = count_calls(np.ones((3, 1)), np.array([[0], [1], [1]]), np.array([np.nan]))
    assert np.isnan(unset.balanced_accuracy).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 80), st.floats(0.001, 1000.0), st.integers(0, 1000))
def test_platt_finds_the_optimum_that_a_general_minimiser_finds(n, scale, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.normal(size=n) * scale, rng.integers(-1, 2, n)
    fitted = fit_platt(scores, labels)
    truth = labels[labels >= 0]
    if len(set(truth.tolist())) < 2:
        assert fitted is None
        return
    unit = scores[labels >= 0] / scale
    positives, negatives = (truth == 1).sum(), (truth == 0).sum()
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(point):
        logits = point[0] * unit + point[1]
        return (np.logaddexp(0, logits) - target * logits).sum()

    best = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 4000})
    assert loss([fitted.slope * scale, fitted.intercept]) <= best.fun + 1e-7


def test_platt_of_parted_classes_stays_finite_and_of_equal_scores_is_the_prevalence():
    parted = fit_platt(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 1]))
    assert 0 < parted.slope < 100
    level = fit_platt(np.zeros(10), np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, -1]))
    # Smoothed targets: 2/3 for the positive, 1/10 for each of eight negatives.
    assert level.probability(np.zeros(1))[0] == pytest.approx((2 / 3 + 8 / 10) / 9, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 1000))
def test_reliability_equals_a_loop(n, bins, seed):
    rng = np.random.default_rng(seed)
    chance, labels = rng.integers(0, 13, n) / 12, rng.integers(-1, 2, n)
    found = reliability(chance, labels, bins)
    total, error = 0, 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (labels >= 0) & (chance >= low) & ((chance < high) | ((number == bins - 1) & (chance == 1)))
        assert found.cases[number] == inside.sum()
        if inside.any():
            total += inside.sum()
            error += inside.sum() * abs(chance[inside].mean() - labels[inside].mean())
    assert found.ece == pytest.approx(error / total if total else np.nan, nan_ok=True)


def test_a_probability_outside_its_range_is_refused():
    with pytest.raises(BatchError, match="no probability"):
        reliability(np.array([1.2]), np.array([1]))
    assert np.isnan(reliability(np.array([np.nan]), np.array([-1])).ece)


def test_numbers_at_a_fixed_operating_point():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (80, 3))
    labels[:, 2] = 1  # a label with one class only
    scores = labels + rng.normal(size=(80, 3))
    chosen = Scored(scores[:40], labels[:40], np.arange(40))
    judged = Scored(scores[40:], labels[40:], np.arange(40, 80))
    point = OperatingPoint.fitted(chosen)
    numbers = point.judged(NUMBERS, judged, Resampling(resamples=200))
    cuts = point.thresholds[:2]
    expected = [metrics.f1_score(labels[40:, q], scores[40:, q] >= cuts[q]) for q in range(2)]
    assert numbers["f1_macro"] == pytest.approx(np.mean(expected))
    assert numbers["threshold_classes"] == 2
    assert numbers["threshold_patients"] == 40
    assert numbers["f1_ci_low"] < numbers["f1_macro"] < numbers["f1_ci_high"]
    assert 0 < numbers["ece"] < 1
    assert [np.isnan(row["f1"]) for row in point.rows(judged)] == [False, False, True]
    assert point.calibration(judged)["patients"] == 40


def test_nothing_to_fit_on_gives_no_numbers():
    nothing = Scored(np.zeros((0, 2)), np.zeros((0, 2), int), np.zeros(0, int))
    point = OperatingPoint.fitted(nothing)
    some = Scored(np.zeros((3, 2)), np.array([[0, 1], [1, 0], [1, 1]]), np.arange(3))
    assert point.judged(NUMBERS, some, Resampling(resamples=5)) == {"threshold_classes": 0.0, "threshold_patients": 0.0}
    assert point.calibration(some) is None
    assert isinstance(OperatingPoint.fitted(some).platt, Platt)


def test_calls_by_the_global_score_have_thresholds_of_their_own():
    asked = questions.load("phantom")[:3]
    rng = np.random.default_rng(1)

    def table(patients):
        labels = rng.integers(0, 2, (60, 3))
        rows = Rows()
        rows.add(
            [f"scan {patients} {row}" for row in range(60)],
            labels=torch.from_numpy(labels),
            patient=torch.arange(60),
            organ=torch.from_numpy(labels + rng.normal(size=(60, 3))),
            **{"global": torch.from_numpy(10 + labels + 2 * rng.normal(size=(60, 3)))},
        )
        return rows.table()

    chosen, judged = table("val"), table("test")
    few = Resampling(resamples=20)
    told = FindingNumbers(asked, judged, chosen, min_cases=2, rule="f1", resampling=few)
    cuts = choose_thresholds(chosen.array("global"), chosen.array("labels"), "f1")
    expected = [
        metrics.f1_score(judged.array("labels")[:, q], judged.array("global")[:, q] >= cuts[q]) for q in range(3)
    ]
    numbers = told.macro()
    assert numbers["findings/global_f1_macro"] == pytest.approx(np.mean(expected))
    assert numbers["findings/f1_macro"] != pytest.approx(np.mean(expected))
    assert [row["global_threshold"] for row in told.rows()] == cuts.tolist()
    alone = FindingNumbers(asked, judged, None, min_cases=2, rule="f1", resampling=few)
    assert "findings/global_f1_macro" not in alone.macro()
    assert "global_threshold" not in alone.rows()[0]
