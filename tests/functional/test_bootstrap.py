"""Areas and intervals against scikit-learn, SciPy and loops."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.functional.auroc import auroc, average_precision, precision_recall_curve, roc_curve
from ctgrounding.functional.bootstrap import Bootstrap, draw_clusters, weighted_means


def cases(n: int, labels: int, seed: int, levels: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, levels, (n, labels)).astype(float), rng.integers(-1, 2, (n, labels))


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 80), st.integers(1, 3), st.integers(0, 10_000))
def test_areas_equal_scikit_learn_on_repeated_cases(n, columns, seed):
    scores, labels = cases(n, columns, seed)
    counts = np.random.default_rng(seed + 1).integers(0, 4, (70, n))
    roc, precision = (
        auroc(scores, labels, counts.astype(float)),
        average_precision(scores, labels, counts.astype(float)),
    )
    for column in range(columns):
        for row in range(0, 70, 23):
            drawn = np.repeat(np.arange(n), counts[row])
            drawn = drawn[labels[drawn, column] >= 0]
            truth, score = labels[drawn, column], scores[drawn, column]
            if len(set(truth.tolist())) < 2:
                assert np.isnan([roc[row, column], precision[row, column]]).all()
                continue
            assert roc[row, column] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)
            assert precision[row, column] == pytest.approx(metrics.average_precision_score(truth, score), abs=1e-12)


def test_auroc_by_hand():
    # Pairs of (positive, negative): 0.4-0.1 won, 0.4-0.4 tied, 0.8-0.1 won, 0.8-0.4 won.
    assert auroc(np.array([[0.1], [0.4], [0.4], [0.8]]), np.array([[0], [0], [1], [1]])).item() == 3.5 / 4


def test_single_class_and_no_cases_have_no_area():
    assert np.isnan(auroc(np.arange(3.0)[:, None], np.ones((3, 1), int))).all()
    assert np.isnan(average_precision(np.arange(3.0)[:, None], np.zeros((3, 1), int))).all()
    assert np.isnan(auroc(np.zeros((0, 2)), np.zeros((0, 2), int))).all()
    assert np.isnan(average_precision(np.zeros((0, 2)), np.zeros((0, 2), int))).all()


def test_a_score_of_an_unknown_label_may_be_nan_but_not_of_a_known_one():
    scores, labels = np.array([[np.nan], [1.0], [2.0]]), np.array([[-1], [0], [1]])
    assert auroc(scores, labels).item() == 1.0
    with pytest.raises(BatchError, match="Case 0 has a label"):
        auroc(scores, np.array([[1], [0], [1]]))


def test_bad_labels_and_shapes_are_refused():
    with pytest.raises(BatchError, match="none of 1, 0 and -1"):
        auroc(np.zeros((1, 1)), np.full((1, 1), 2))
    with pytest.raises(BatchError, match="do not fit"):
        auroc(np.zeros((2, 1)), np.zeros((2, 1), int), np.ones((5, 3)))


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 60), st.integers(0, 10_000))
def test_curves_equal_scikit_learn(n, seed):
    scores, labels = (column[:, 0] for column in cases(n, 1, seed))
    truth, known = labels[labels >= 0], scores[labels >= 0]
    if len(set(truth.tolist())) < 2:
        return
    false, true, thresholds = roc_curve(scores, labels)
    for found, expected in zip(
        (false, true, thresholds), metrics.roc_curve(truth, known, drop_intermediate=False), strict=True
    ):
        np.testing.assert_allclose(found, expected)
    precision, recall, thresholds = precision_recall_curve(scores, labels)
    expected_precision, expected_recall, expected_thresholds = metrics.precision_recall_curve(truth, known)
    np.testing.assert_allclose(precision, expected_precision[:-1][::-1])
    np.testing.assert_allclose(recall, expected_recall[:-1][::-1])
    np.testing.assert_allclose(thresholds, expected_thresholds[::-1])


def test_draws_keep_a_patient_together_and_have_its_size():
    clusters = np.array(["b", "a", "b", "c", "a", "b"])
    draws = draw_clusters(clusters, resamples=200, seed=3)
    weights = np.concatenate(list(draws.weights()))
    assert (draws.counts.sum(1) == 3).all()
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert weights[:, [0, 1, 3]].sum(1).tolist() == [3.0] * 200


def test_draws_depend_on_seed_and_number_of_clusters_only():
    first = draw_clusters(np.array([5, 5, 7]), 50, seed=1)
    assert (first.counts == draw_clusters(np.array(["x", "y"]), 50, seed=1).counts).all()
    assert (first.counts != draw_clusters(np.array([5, 7]), 50, seed=2).counts).any()


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipy(method):
    values = np.random.default_rng(0).gamma(1.0, 10.0, 60)
    ours = Bootstrap(weighted_means(values[:, None]), draw_clusters(np.arange(60), 20_000, seed=0)).interval(
        0.9, method
    )
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, confidence_level=0.9, method=method, rng=np.random.default_rng(1)
    ).confidence_interval
    # Two independent bootstraps of 20,000 draws; the spread of a bound is about 0.02 standard errors.
    error = values.std() / np.sqrt(60)
    assert ours.low[0] == pytest.approx(theirs.low, abs=0.06 * error)
    assert ours.high[0] == pytest.approx(theirs.high, abs=0.06 * error)
    assert ours.estimate[0] == pytest.approx(values.mean())


def test_bca_equals_a_plain_transcription_of_efron():
    values = np.random.default_rng(4).gamma(1.0, 1.0, 25)
    boot = Bootstrap(weighted_means(values[:, None]), draw_clusters(np.arange(25), 999, seed=0))
    samples = boot.samples[:, 0]
    z0 = scipy.stats.norm.ppf((samples < values.mean()).mean() + 0.5 * (samples == values.mean()).mean())
    jack = np.array([np.delete(values, i).mean() for i in range(25)])
    away = jack.mean() - jack
    a = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    z = scipy.stats.norm.ppf([0.025, 0.975])
    alpha = scipy.stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
    found = boot.interval(0.95, "bca")
    assert [found.low[0], found.high[0]] == pytest.approx(np.quantile(samples, alpha).tolist())


def test_clustering_widens_the_interval_of_repeated_rows():
    values = np.repeat(np.random.default_rng(0).normal(size=30), 10)[:, None]
    patients = np.repeat(np.arange(30), 10)
    clustered = Bootstrap(weighted_means(values), draw_clusters(patients, 2000, 0)).interval()
    naive = Bootstrap(weighted_means(values), draw_clusters(np.arange(300), 2000, 0)).interval()
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio.item() == pytest.approx(np.sqrt(10), rel=0.1)


def test_draws_without_a_value_are_counted_and_left_out():
    scores, labels = np.array([[0.0], [1.0], [2.0]]), np.array([[0], [0], [1]])
    draws = draw_clusters(np.arange(3), 1000, seed=0)
    found = Bootstrap(lambda weights: auroc(scores, labels, weights), draws).interval()
    single_class = (draws.counts[:, 2] == 0) | (draws.counts[:, :2].sum(1) == 0)
    assert found.undefined.tolist() == [single_class.sum()]
    assert found.low[0] == found.high[0] == 1.0


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_one_patient_has_no_spread(method):
    found = Bootstrap(weighted_means(np.array([[1.0], [3.0]])), draw_clusters(np.array([7, 7]), 20, 0)).interval(
        method=method
    )
    assert found.low[0] == found.estimate[0] == found.high[0] == 2.0


def test_nothing_has_no_interval():
    found = Bootstrap(weighted_means(np.zeros((0, 2))), draw_clusters(np.zeros(0), 20, 0)).interval()
    assert np.isnan([found.estimate, found.low, found.high]).all()
    assert found.undefined.tolist() == [20, 20]


def test_means_leave_out_nan():
    statistic = weighted_means(np.array([[1.0, np.nan], [3.0, 4.0]]))
    np.testing.assert_allclose(statistic(np.array([[1.0, 1.0], [3.0, 1.0]])), [[2.0, 4.0], [1.5, 4.0]])


def test_bad_requests():
    with pytest.raises(ConfigError, match="0 resamples"):
        draw_clusters(np.arange(3), 0, 0)
    boot = Bootstrap(weighted_means(np.ones((2, 1))), draw_clusters(np.arange(2), 5, 0))
    with pytest.raises(ConfigError, match="level 95"):
        boot.interval(95)
    with pytest.raises(ConfigError, match="'normal'"):
        boot.interval(method="normal")  # type: ignore[arg-type]
