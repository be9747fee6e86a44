"""Paired comparison of two runs, and the leak check."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluated_world import Snippet, Statement, batch_of, random_scans, vector
from sklearn.metrics import roc_auc_score

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import OrganPointing, OrganRecognition, ReportRetrieval, Resampling, SnippetDepth
from ctgrounding.evaluation.cases import Cases
from ctgrounding.evaluation.compare import compare, holm
from ctgrounding.evaluation.leaks import Identity, find_leaks
from ctgrounding.evaluation.results import RunResults, evaluated

DRAWS = Resampling(resamples=800)


def write(folder, *cases: Cases):
    RunResults({}, {"made": {"cases": [item.to_json() for item in cases]}}).write(folder)
    return folder


def errors(values, patients=None, scans=None, name="mae_mm"):
    values = np.asarray(values, float).reshape(len(values), -1)
    patients = np.arange(len(values)) if patients is None else np.asarray(patients)
    scans = [f"s{i}" for i in range(len(values))] if scans is None else scans
    return Cases(name, "mean", True, scans, patients, [f"c{i}" for i in range(values.shape[1])], values)


def test_a_small_paired_gain_is_seen_where_unpaired_noise_would_hide_it(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.gamma(1.0, 40.0, 80)
    a, b = write(tmp_path / "a", errors(hard)), write(tmp_path / "b", errors(hard - 2 + rng.normal(0, 2, 80)))
    (found,) = compare(a, b, DRAWS).differences
    assert found.difference == pytest.approx(found.second - found.first)
    assert found.low < found.difference < found.high < 0
    assert found.p_corrected < 0.01
    assert found.verdict() == "better"
    (other,) = compare(b, a, DRAWS).differences
    assert other.verdict() == "worse"
    assert other.difference == -found.difference
    assert "B is better in mae_mm." in compare(a, b, DRAWS).answer()


def test_equal_runs_differ_in_nothing(tmp_path):
    a = write(tmp_path / "a", errors([1.0, 5.0, 9.0, 2.0]))
    (found,) = compare(a, a, DRAWS).differences
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert compare(a, a, DRAWS).answer() == (
        "B is better in nothing. B is worse in nothing. No difference is shown in 1 of 1 numbers."
    )


def test_patients_are_drawn_whole(tmp_path):
    gain = np.repeat(np.random.default_rng(1).normal(0.4, 1.0, 12), 20)
    base, patients = np.full(240, 10.0), np.repeat(np.arange(12), 20)
    whole = compare(
        write(tmp_path / "a", errors(base, patients)), write(tmp_path / "b", errors(base - gain, patients)), DRAWS
    )
    single = compare(write(tmp_path / "c", errors(base)), write(tmp_path / "d", errors(base - gain)), DRAWS)
    width = [item.differences[0].high - item.differences[0].low for item in (whole, single)]
    assert width[0] > 3 * width[1]


def test_a_few_patients_show_nothing(tmp_path):
    """Each draw of one patient is that patient: the interval has no width, and yet nothing is known of others."""
    nan = np.nan
    base = np.full((8, 3), 10.0)
    better = base - 5.0
    base[2:, 1], better[2:, 1] = nan, nan
    patients = [0, 0, 1, 2, 3, 4, 5, 6]
    a, b = (write(tmp_path / name, errors(v, patients)) for name, v in (("a", base), ("b", better)))
    found = {item.column: item for item in compare(a, b, DRAWS).differences}
    assert (found["c1"].difference, found["c1"].cases, found["c1"].p) == (-5.0, 2, 1.0)
    assert found["c1"].verdict() == "no difference shown"
    assert (found["c0"].cases, found["c0"].p) == (8, 2.0**-6)
    assert found["c0"].verdict() == "better"


def test_areas_of_two_patients_show_nothing(tmp_path):
    labels = np.array([[0], [1], [-1], [-1]])
    runs = [
        write(tmp_path / name, Cases("auroc", "auroc", False, list("wxyz"), np.arange(4), ["a"], scores, labels))
        for name, scores in (("a", np.array([[1.0], [0.0], [0.0], [0.0]])), ("b", np.arange(4.0)[:, None]))
    ]
    (found,) = compare(*runs, DRAWS).differences
    assert (found.difference, found.cases) == (1.0, 2)
    assert found.p >= 0.5


def test_false_alarms_come_as_often_as_stated(tmp_path):
    rng = np.random.default_rng(2)
    p = []
    for trial in range(120):
        a, b = (errors(rng.normal(size=30)) for _ in range(2))
        found = compare(write(tmp_path / f"a{trial}", a), write(tmp_path / f"b{trial}", b), Resampling(resamples=200))
        p.append(found.differences[0].p)
    assert 0.005 <= np.mean(np.array(p) < 0.05) <= 0.12
    assert 0.35 < np.mean(p) < 0.65


def test_areas_by_class_with_unknown_labels(tmp_path):
    rng = np.random.default_rng(3)
    labels = rng.integers(-1, 2, (90, 3))
    noise = rng.normal(size=(90, 3))
    scans = [f"s{i}" for i in range(90)]
    sides = []
    for strength in (0.3, np.array([0.3, 0.3, 4.0])):
        scores = labels * strength + noise
        sides.append(Cases("auroc", "auroc", False, scans, np.arange(90), ["a", "b", "c"], scores, labels))
    result = compare(write(tmp_path / "a", sides[0]), write(tmp_path / "b", sides[1]), DRAWS)
    overall, *single = result.differences
    known = labels[:, 2] >= 0
    areas = [roc_auc_score(labels[known, 2], side.values[known, 2]) for side in sides]
    assert [item.column for item in result.differences] == ["mean", "a", "b", "c"]
    assert (single[2].first, single[2].second) == pytest.approx(areas)
    assert overall.difference == pytest.approx(single[2].difference / 3)
    assert [item.verdict() for item in single] == ["no difference shown", "no difference shown", "better"]


def test_only_common_cases_are_compared_and_the_rest_is_said(tmp_path):
    a = errors([1.0, 2.0, 3.0], scans=["x", "x", "y"])
    b = errors([9.0, 1.0, 2.0], scans=["z", "x", "x"])
    extra = errors([1.0], name="other")
    result = compare(write(tmp_path / "a", a, extra), write(tmp_path / "b", b), DRAWS)
    assert result.differences[0].cases == 2
    assert result.differences[0].difference == 0.0
    assert any("2 cases" in note for note in result.notes)
    assert any("other exists in run A only" in note for note in result.notes)


def test_runs_that_cannot_be_compared(tmp_path):
    a, b = write(tmp_path / "a", errors([1.0], scans=["x"])), write(tmp_path / "b", errors([1.0], scans=["y"]))
    with pytest.raises(ConfigError, match="no evaluated case in common"):
        compare(a, b)
    with pytest.raises(ConfigError, match="does not exist"):
        compare(a, tmp_path / "nowhere")
    sides = []
    for label in (0, 1):
        labels = np.array([[label], [1]])
        sides.append(Cases("auroc", "auroc", False, ["x", "y"], np.arange(2), ["a"], np.zeros((2, 1)), labels))
    with pytest.raises(ConfigError, match="different labels"):
        compare(write(tmp_path / "c", sides[0]), write(tmp_path / "d", sides[1]))


def test_cases_survive_json():
    cases = Cases(
        "n", "auroc", False, ["x", "x"], np.array([2**62, 1]), ["a"], np.array([[np.nan], [0.1]]), np.array([[-1], [1]])
    )
    again = Cases.from_json(json.loads(json.dumps(cases.to_json())))
    assert again.patients.tolist() == [2**62, 1]
    assert again.identities() == [("x", 0, 0), ("x", 0, 1)]
    marked = replace(cases, items=np.array([2**62, 5]))
    assert Cases.from_json(json.loads(json.dumps(marked.to_json()))).identities() == [("x", 2**62, 0), ("x", 5, 0)]
    assert marked.take([1]).identities() == [("x", 5, 0)]
    before = {key: value for key, value in marked.to_json().items() if key != "items"}  # of an older version
    assert Cases.from_json(before).items is None
    np.testing.assert_array_equal(again.values, cases.values)
    np.testing.assert_array_equal(again.labels, cases.labels)


def test_evaluators_leave_cases_that_give_back_their_numbers(tmp_path):
    evaluator = ReportRetrieval(k=(1, 5), resampling=DRAWS)
    evaluator.update(*batch_of(random_scans(20, questions=0)))
    results = evaluated({"retrieval": evaluator})
    results.write(tmp_path)
    found = compare(tmp_path, tmp_path, DRAWS)
    by_name = {(item.name, item.column): item.first for item in found.differences}
    for direction in ("report_to_scan", "scan_to_report"):
        for k in (1, 5):
            assert by_name[f"{direction}/recall", f"r_at_{k}"] == pytest.approx(
                results.metrics[f"{direction}/r_at_{k}"]
            )


def test_where_localization_differs_is_said_by_group(tmp_path):
    runs = []
    for name, shift in (("a", 24.0), ("b", 0.0)):
        evaluator = SnippetDepth(resampling=DRAWS)
        scans = random_scans(30, questions=0)
        for scan in scans:
            scan.snippets = tuple(
                Snippet(item.text, (scan.low_mm, scan.low_mm), item.organ, item.size_mm) for item in scan.snippets
            )
            scan.depth = torch.zeros(6, 24)
            scan.depth[0] = vector("other")
            wrong = any(item.organ == 1 for item in scan.snippets) and shift
            for item in scan.snippets:
                scan.depth[2 if wrong and item.organ == 1 else 0] += vector(item.text)
        evaluator.update(*batch_of(scans))
        evaluated({"snippets": evaluator}).write(tmp_path / name)
        runs.append(tmp_path / name)
    found = compare(*runs, DRAWS)
    columns = {item.column for item in found.differences if item.name == "snippet_localization/mae_mm of"}
    assert {"All snippets", "Spleen", "Stated size under 20 mm"} <= columns
    assert "mean" not in columns
    single = {item.column: item for item in found.differences if item.name.endswith(" of")}
    (overall,) = [item for item in found.differences if item.name == "snippet_localization/mae_mm"]
    assert single["All snippets"].difference == pytest.approx(overall.difference)
    assert single["Spleen"].difference < overall.difference < 0


def with_other_words(scan):
    """The scan as another mining reads its report: a snippet and a statement more in front, the rest turned round."""
    more, said = Snippet("other", (scan.low_mm + 3.0, scan.low_mm + 9.0)), Statement("other", 1)
    return replace(scan, snippets=(more, *scan.snippets[::-1]), statements=(said, *scan.statements[::-1]))


def with_less_visible(scan):
    """The scan as an evaluation with another ``min_visible`` sees it: without one of its organs."""
    left_out = 1 + int(scan.name[4:]) % 5
    return replace(scan, organs={label: rows for label, rows in scan.organs.items() if label != left_out})


@pytest.mark.parametrize(
    ("make", "changed"),
    [(SnippetDepth, with_other_words), (OrganPointing, with_other_words), (OrganRecognition, with_less_visible)],
)
def test_only_the_same_snippets_statements_and_organs_are_paired(tmp_path, make, changed):
    """The model is the same, so that every difference would be one of cases that are not the same."""
    scans = [
        replace(scan, organs={label: vector(f"{label} {scan.name}") for label in range(1, 6)})
        for scan in random_scans(24, questions=0)
    ]
    for name, shown in (("a", scans), ("b", [changed(scan) for scan in scans])):
        evaluator = make(resampling=DRAWS)
        evaluator.update(*batch_of(shown, evaluator.fixed_texts()))
        evaluated({"any": evaluator}).write(tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b", DRAWS)
    assert all((item.difference, item.low, item.high) == (0.0, 0.0, 0.0) for item in found.differences)
    assert max(item.cases for item in found.differences) > 20
    assert any("cases were evaluated in one run only and are left out" in note for note in found.notes)
    assert not any("paired by their place" in note for note in found.notes)


def test_runs_of_an_older_version_are_paired_by_place_and_that_is_said(tmp_path):
    scans = ["x", "x", "y"]
    old = errors([1.0, 2.0, 3.0], scans=scans)
    new = replace(errors([1.0, 2.0, 3.0], scans=scans), items=np.array([7, 8, 9]))
    single = replace(errors([1.0, 2.0], scans=["x", "y"], name="single"), items=None)
    folders = [write(tmp_path / name, item, single) for name, item in (("old", old), ("new", new))]
    for pair in (folders, folders[::-1], [folders[0], folders[0]]):
        found = compare(*pair, DRAWS)
        assert [item.difference for item in found.differences] == [0.0, 0.0]
        (note,) = found.notes
        assert "mae_mm: cases are paired by their place in the scan, since a run tested by an older version" in note
    alone = [write(tmp_path / f"{name} alone", item.take([0, 2])) for name, item in (("old", old), ("new", new))]
    (note,) = compare(*alone, DRAWS).notes
    assert "paired by their place" in note


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1 and never falling.
    assert holm(np.array([0.04, 0.01, np.nan, 0.02])).tolist() == pytest.approx([0.04, 0.03, np.nan, 0.04], nan_ok=True)
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.zeros(0)).tolist() == []


def test_leaks_of_each_kind():
    train = [
        Identity("t1", "ct_rate", "p1", "hash1", "A cyst."),
        Identity("t2", "ct_rate", "p2", "hash2", "Normal  chest."),
        Identity("t3", "house", "7", "", ""),
    ]
    evaluated_scans = [
        Identity("e1", "RadGenome", "p1"),  # same source, same patient
        Identity("e2", "house", "p1"),  # an unrelated dataset that uses the same name
        Identity("e3", "house", "8", "hash2"),  # same voxels under another name
        Identity("e4", "house", "9", "", "normal chest."),  # same words
        Identity("e5", "house", "10", "", ""),  # no hash and no report are no match
        Identity("e6", "ct-rate", "p2", "other", "NORMAL chest."),  # already counted as a patient
    ]
    found = find_leaks(train, evaluated_scans)
    assert found.patients == (("e1", "t1"), ("e6", "t2"))
    assert found.volumes == (("e3", "t2"),)
    assert found.reports == (("e4", "t2"),)
    assert not found.is_clean
    assert len(found.warnings()) == 3
    assert "2 of 6" in found.warnings()[0]


def test_no_leak_is_quiet():
    found = find_leaks([Identity("a", "d", "1")], [Identity("b", "d", "2")])
    assert found.is_clean
    assert found.warnings() == []
    assert find_leaks([], []).is_clean
