"""Evaluators against hand-worked cases and plain loops, and alike on any number of ranks."""

import json
import math
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
from evaluated_world import AXIAL_MM, BINS, WIDTH, Scan, Snippet, batch_of, noisy, number, random_scans, vector
from sklearn.metrics import roc_auc_score

from ctgrounding import label_sets
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation import (
    Cohort,
    OrganAbnormality,
    OrganPointing,
    OrganRecognition,
    PooledRetrieval,
    ReportRetrieval,
    Resampling,
    ScanRetrieval,
    SnippetDepth,
    ZeroShotFindings,
    depth_prior,
)
from ctgrounding.testing.ranks import simulate_ranks

FEW = Resampling(resamples=50)
PREFIX = "snippet_localization/"


@pytest.fixture(scope="module")
def question_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "toy.yaml"
    path.write_text(
        "cyst: {positive: ['A cyst.', 'Cyst seen.'], negative: ['No cyst.', 'Cyst not seen.'],\n"
        "  organs: [spleen, liver]}\n"
        "stone: {positive: ['A stone.'], negative: ['No stone.'], organs: [gallbladder]}\n"
        "ascites: {positive: ['Ascites.'], negative: ['No ascites.']}\n"
    )
    return str(path)


def fed(evaluator, batches):
    for scans in batches:
        evaluator.update(*batch_of(scans, evaluator.fixed_texts()))
    return evaluator


def makers(question_file):
    return [
        Cohort,
        partial(ReportRetrieval, resampling=FEW),
        partial(ReportRetrieval, duplicates="group", resampling=FEW),
        partial(ReportRetrieval, duplicates="each", resampling=FEW),
        partial(ZeroShotFindings, question_file, min_cases=2, resampling=FEW),
        partial(ZeroShotFindings, question_file, min_cases=2, organ_negative=["Normal {organ}."], resampling=FEW),
        partial(SnippetDepth, resampling=FEW, examples=5),
        partial(OrganRecognition, resampling=FEW),
        partial(ScanRetrieval, resampling=FEW),
        partial(PooledRetrieval, pools=(2, 5), repeats=3),
        partial(OrganAbnormality, question_file, min_cases=2, resampling=FEW),
        partial(OrganPointing, resampling=FEW),
    ]


@pytest.mark.parametrize("which", range(12))
@pytest.mark.parametrize("ranks", [2, 4])
def test_numbers_do_not_depend_on_ranks_cut_order_or_repeats(question_file, which, ranks):
    make = makers(question_file)[which]
    scans = random_scans(23, questions=3)
    alone = fed(make(), [scans])
    expected = (alone.compute(), json.dumps(alone.results()))

    def work(rank: int):
        mine = scans[rank::ranks][::-1] if rank else [*scans[0::ranks], scans[1], scans[0]]
        cuts = [mine[start : start + 3 + rank] for start in range(0, len(mine), 3 + rank)]
        evaluator = fed(make(), [] if rank == 3 else cuts)
        if rank == 0 and ranks == 4:
            fed(evaluator, [scans[3::ranks]])
        return evaluator.compute(), json.dumps(evaluator.results())

    for found in simulate_ranks(ranks, work):
        assert found == expected


@pytest.mark.parametrize("which", range(12))
def test_no_scans_give_counts_and_no_numbers(question_file, which):
    evaluator = makers(question_file)[which]()
    assert set(evaluator.compute().values()) == {0.0}
    json.dumps(evaluator.results())


@pytest.mark.parametrize("which", range(12))
def test_a_batch_without_anything_to_evaluate(question_file, which):
    bare = [Scan("bare", "p", labels=(-1, -1, -1))]
    evaluator = fed(makers(question_file)[which](), [bare])
    assert all(math.isfinite(value) for value in evaluator.compute().values())
    json.dumps(evaluator.results())


@pytest.mark.parametrize("which", range(12))
def test_what_is_read_is_declared_and_reset_forgets(question_file, which):
    evaluator = makers(question_file)[which]()
    encoded, batch = batch_of(random_scans(6, questions=3), evaluator.fixed_texts())
    named = {"scan_id", "dataset", "volume"} | evaluator.requires
    seen = Encodings(encoded)
    evaluator.update(seen, {key: value for key, value in batch.items() if key in named})
    assert seen.image_pairs == evaluator.reads().image
    assert seen.text_heads == evaluator.reads().text
    assert {readout for readout, _ in seen.image_pairs} <= evaluator.requires
    evaluator.reset()
    assert set(evaluator.compute().values()) == {0.0}


class Encodings:
    """An Encoded that writes down what is asked of it."""

    def __init__(self, encoded):
        self._encoded, self.image_pairs, self.text_heads = encoded, set(), set()

    def __getattr__(self, name):
        return getattr(self._encoded, name)

    def image(self, readout, head):
        self.image_pairs.add((readout, head))
        return self._encoded.image(readout, head)

    def texts(self, rows, head):
        self.text_heads.add(head)
        return self._encoded.texts(rows, head)


def test_cohort_counts():
    scans = [Scan("a", "p"), Scan("b", "p"), Scan("c", "q")]
    assert fed(Cohort(), [scans]).compute() == {"patients": 2.0, "studies": 3.0, "scans": 3.0}


def test_retrieval_by_hand():
    axes = torch.eye(WIDTH)
    texts = {f"r{i}": axes[i] for i in range(4)}
    # Report 1's scan points at report 0; scan 3 repeats scan 2's report.
    scans = [
        Scan("a", "p0", "r0", axes[0]),
        Scan("b", "p1", "r1", 0.9 * axes[0] + 0.1 * axes[1]),
        Scan("c", "p2", "r2", axes[2]),
        Scan("d", "p3", "r2", axes[3]),
        Scan("e", "p4", "", axes[3]),
    ]
    for rule, pool, right in (("distinct", 3.0, 3), ("group", 4.0, 3), ("each", 4.0, 3)):
        evaluator = ReportRetrieval(k=(1, 2), duplicates=rule, resampling=FEW)
        evaluator.update(*batch_of(scans, (), texts.__getitem__))
        numbers = evaluator.compute()
        assert numbers["report_to_scan/pool"] == pool
        queries = {"distinct": 3, "group": 3, "each": 4}[rule]
        assert numbers["report_to_scan/queries"] == queries
        # Report r2 (of d) alone finds nothing of d: level with a and b behind c, it is second, third or fourth.
        expected = right / queries if rule != "each" else 3 / 4
        assert numbers["report_to_scan/r_at_1"] == pytest.approx(expected)
        assert numbers["report_to_scan/chance_r_at_1"] == 1 / pool
    # Scan b answers with report 0; its own is second.
    evaluator = ReportRetrieval(k=(1, 2), resampling=FEW)
    evaluator.update(*batch_of(scans, (), texts.__getitem__))
    numbers = evaluator.compute()
    assert numbers["scan_to_report/r_at_1"] == pytest.approx(2 / 3)
    assert numbers["scan_to_report/r_at_2"] == 1.0
    assert numbers["scan_to_report/mean_rank"] == pytest.approx(4 / 3)
    assert "report_to_scan/r_at_5" not in numbers


def test_retrieval_examples_show_text_and_own_answers():
    scans = random_scans(30, questions=0)
    examples = fed(ReportRetrieval(resampling=FEW, examples=4), [scans]).results()["examples"]
    assert len(examples) == 4
    by_name = {f"toy/{scan.name}": scan for scan in scans}
    for item in examples:
        assert item["report"] == by_name[item["scan"]].report
        assert [answer["own"] for answer in item["answers"]].count(True) == (item["rank"] <= 3)


def test_findings_equal_a_loop(question_file):
    scans = random_scans(90, questions=3, seed=4)
    evaluator = fed(ZeroShotFindings(question_file, min_cases=2, resampling=FEW), [scans[:20], scans[20:]])
    labels = np.array([scan.labels for scan in scans])
    organs = [["spleen", "liver"], ["gallbladder"], []]
    pairs = [
        (["A cyst.", "Cyst seen."], ["No cyst.", "Cyst not seen."]),
        (["A stone."], ["No stone."]),
        (["Ascites."], ["No ascites."]),
    ]

    def score(embedding, question):
        sides = []
        for texts in pairs[question]:
            mean = torch.stack([vector(text) for text in texts]).mean(0)
            sides.append(float(embedding @ mean / mean.norm()))
        return sides[0] - sides[1]

    areas, whole = [], []
    for question, names in enumerate(organs):
        wanted = {label_sets.label_of(name) for name in names}
        truth, scores, everyone, whole_scores = [], [], [], []
        for scan, label in zip(scans, labels[:, question], strict=True):
            shown = [v for organ, v in scan.organs.items() if organ in wanted] if names else [scan.whole]
            if label >= 0:
                everyone.append(label)
                whole_scores.append(score(scan.whole, question))
            if label >= 0 and shown:
                truth.append(label)
                scores.append(max(score(v, question) for v in shown))
        areas.append(roc_auc_score(truth, scores))
        whole.append(roc_auc_score(everyone, whole_scores))
    numbers = evaluator.compute()
    assert numbers["findings/classes"] == 3
    assert numbers["findings/organ_classes"] == 2
    assert numbers["findings/auroc_macro"] == pytest.approx(np.mean(areas), abs=1e-9)
    assert numbers["findings/organ_auroc_macro"] == pytest.approx(np.mean(areas[:2]), abs=1e-9)
    assert numbers["findings/global_auroc_macro"] == pytest.approx(np.mean(whole), abs=1e-9)
    assert numbers["findings/auroc_ci_low"] < numbers["findings/auroc_macro"] < numbers["findings/auroc_ci_high"]
    rows = evaluator.results()["classes"]
    assert [row["auroc"] for row in rows] == pytest.approx(areas, abs=1e-9)
    assert rows[1]["positives"] + rows[1]["negatives"] + rows[1]["not_visible"] == (labels[:, 1] >= 0).sum()


def test_a_finding_needs_enough_of_both(question_file):
    scans = [Scan(f"s{i}", f"p{i}", whole=vector(f"w{i}"), labels=(-1, 1, i % 2)) for i in range(16)]
    numbers = fed(ZeroShotFindings(question_file, resampling=FEW), [scans]).compute()
    assert numbers["findings/classes"] == 1
    assert numbers["findings/organ_classes"] == 0
    assert "findings/organ_auroc_macro" not in numbers
    numbers = fed(ZeroShotFindings(question_file, min_cases=9, resampling=FEW), [scans]).compute()
    assert numbers["findings/classes"] == 0
    assert "findings/auroc_macro" not in numbers


def test_denial_by_organ(question_file):
    spleen, text = label_sets.label_of("spleen"), "Nothing wrong in the spleen."
    like_normal, like_cyst = noisy(vector(text), 0.1, "a"), noisy(vector("A cyst."), 0.1, "b")
    scans = [
        Scan(f"s{i}", f"p{i}", organs={spleen: like_cyst if i % 2 else like_normal}, labels=(i % 2, -1, -1))
        for i in range(16)
    ]
    evaluator = ZeroShotFindings(question_file, organ_negative=["Nothing wrong in the {organ}."], resampling=FEW)
    assert text in evaluator.fixed_texts()
    assert fed(evaluator, [scans]).compute()["findings/auroc_macro"] == 1.0


def test_labels_of_another_list_are_refused(question_file):
    with pytest.raises(BatchError, match="5 label columns"):
        fed(ZeroShotFindings(question_file), [random_scans(2, questions=5)])


def located(bin_of_scan: int, snippet_bin: int, **other) -> Scan:
    depth = torch.stack([vector("cyst") if b == bin_of_scan else vector(f"b{b}") for b in range(BINS)])
    centre = 100.0 + AXIAL_MM * snippet_bin
    snippet = Snippet("cyst", (centre - 3.0, centre + 5.0), other.pop("organ", 0), other.pop("size_mm", math.nan))
    name = other.pop("name")
    return Scan(name, other.pop("patient", name), depth=depth, snippets=(snippet,), **other)


def test_localization_by_hand():
    scans = [
        located(1, 1, name="a", organ=2, size_mm=10.0),
        located(5, 2, name="b", organ=2),
        located(3, 3, name="c", bins=3),
    ]
    evaluator = SnippetDepth(resampling=FEW)
    evaluator.use_prior({2: 0.25, 0: 0.5})
    numbers = fed(evaluator, [scans]).compute()
    # Midpoint is 1 mm above the bin centre; scan c has three real bins, so bin 3 lies outside.
    assert numbers[PREFIX + "outside"] == 1
    assert numbers[PREFIX + "snippets"] == 2
    assert numbers[PREFIX + "mae_mm"] == pytest.approx((1 + 35) / 2)
    assert numbers[PREFIX + "median_mm"] == pytest.approx(18)
    # Bins at 100..160, middle 130; targets 113 and 125.
    assert numbers[PREFIX + "middle_mae_mm"] == pytest.approx((17 + 5) / 2)
    bins = 100 + 12 * np.arange(6)
    assert numbers[PREFIX + "random_mae_mm"] == pytest.approx(np.mean([abs(bins - 113).mean(), abs(bins - 125).mean()]))
    # Real voxels reach from 94 to 166 mm; a quarter of the way is 112.
    assert numbers[PREFIX + "organ_prior_mae_mm"] == pytest.approx((1 + 13) / 2)
    assert numbers[PREFIX + "within_12_mm"] == 0.5
    assert numbers[PREFIX + "small_snippets"] == 1
    assert numbers[PREFIX + "small_mae_mm"] == pytest.approx(1)
    assert numbers[PREFIX + "small_middle_mae_mm"] == pytest.approx(17)
    assert numbers[PREFIX + "mae_over_best_baseline"] == pytest.approx(18 / 11)
    assert PREFIX + "untrained_mae_mm" not in numbers


def test_untrained_twin_stands_beside():
    evaluator = SnippetDepth(resampling=FEW)
    evaluator.update(*batch_of([located(1, 1, name="a")]))
    evaluator.update_untrained(*batch_of([located(4, 1, name="a")]))
    assert evaluator.compute()[PREFIX + "untrained_mae_mm"] == pytest.approx(35)
    other = SnippetDepth(resampling=FEW)
    other.update(*batch_of([located(1, 1, name="a")]))
    other.update_untrained(*batch_of([located(4, 1, name="b")]))
    with pytest.raises(BatchError, match="same batches"):
        other.compute()


def test_a_model_that_says_nothing_gets_the_lowest_bin_and_no_credit():
    scan = Scan("a", "p", depth=torch.ones(BINS, WIDTH), snippets=(Snippet("cyst", (160.0, 160.0)),))
    assert fed(SnippetDepth(resampling=FEW), [[scan]]).compute()[PREFIX + "mae_mm"] == 60.0


def test_per_scan_mean_weighs_scans_alike():
    one, many = located(0, 0, name="a"), located(0, 2, name="b")
    many.snippets = many.snippets * 3
    numbers = fed(SnippetDepth(resampling=FEW), [[one, many]]).compute()
    assert numbers[PREFIX + "mae_mm"] == pytest.approx((1 + 3 * 25) / 4)
    assert numbers[PREFIX + "per_scan_mae_mm"] == pytest.approx((1 + 25) / 2)


def test_localization_examples_carry_a_picture_and_a_probability():
    evaluator = fed(SnippetDepth(resampling=FEW, examples=3), [random_scans(20, questions=0)])
    examples = evaluator.results()["examples"]
    assert len(examples) == 3
    for item in examples:
        assert sum(item["probability"]) == pytest.approx(1, abs=1e-3)
        assert item["chosen_mm"] == pytest.approx(item["depth_mm"][int(np.argmax(item["probability"]))])
        assert item["coronal"]["shape"][0] % 4 == 0


def test_depth_prior_is_a_mean_by_organ_and_over_all():
    assert depth_prior([(3, 0.2), (3, 0.4), (0, 0.9)]) == pytest.approx({3: 0.3, 0: 0.5})
    assert depth_prior([]) == {}


def test_organ_recognition_by_hand():
    names = {label: vector(label_sets.spoken(name)) for label, name in label_sets.load("total_v2").items()}
    # Label 7 occurs only once and looks like 3; 9 never occurs, so looking like it costs nothing unless 5 does.
    scans = [
        Scan("a", "p", organs={3: names[3], 7: names[3]}),
        Scan("b", "q", organs={3: names[3], 5: names[5] + 1.5 * names[9]}),
    ]
    evaluator = fed(OrganRecognition(resampling=FEW), [scans])
    numbers = evaluator.compute()
    assert numbers["organ_recognition/candidates"] == 3
    assert numbers["organ_recognition/top1"] == 0.75
    assert numbers["organ_recognition/macro_top1"] == pytest.approx(2 / 3)
    assert numbers["organ_recognition/top5"] == 1.0
    table = {row["name"]: row["taken_for"] for row in evaluator.results()["classes"]}
    assert table[label_sets.load("total_v2")[7]] == {label_sets.load("total_v2")[3]: 1}


def test_a_head_that_does_not_exist_is_named(question_file):
    for evaluator in (ReportRetrieval(image_head="disease"), SnippetDepth(text_head="disease")):
        with pytest.raises(ConfigError, match="'disease' does not exist"):
            fed(evaluator, [random_scans(3, questions=3)])


def test_fixed_texts_that_were_not_encoded_are_named(question_file):
    with pytest.raises(BatchError, match="was not encoded"):
        ZeroShotFindings(question_file).update(*batch_of(random_scans(2, questions=3), ["A cyst."]))


@pytest.mark.parametrize("which", [1, 4, 6, 7, 8, 9, 10, 11])
def test_embeddings_that_are_not_finite_are_refused(question_file, which):
    scans = random_scans(6, questions=3)
    for scan in scans:
        scan.whole, scan.depth = torch.full((WIDTH,), math.nan), torch.full((BINS, WIDTH), math.nan)
        scan.organs = dict.fromkeys(scan.organs, torch.full((WIDTH,), math.nan))
    with pytest.raises(BatchError, match="not finite"):
        fed(makers(question_file)[which](), [scans]).compute()


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match=r"k = \(0,\)"):
        ReportRetrieval(k=(0,))
    with pytest.raises(ConfigError, match="'ignore'"):
        ReportRetrieval(duplicates="ignore")
    with pytest.raises(ConfigError, match="templates has 'liver', which does not name the organ"):
        OrganRecognition(templates=["liver"])
    with pytest.raises(ConfigError, match="min_visible is 2"):
        OrganRecognition(min_visible=2)
    with pytest.raises(ConfigError, match="temperature is 0"):
        SnippetDepth(temperature=0)


def test_rows_refuse_what_would_make_ranks_wait_for_each_other():
    evaluator = fed(Cohort(), [[Scan("a", "p")]])
    evaluator.compute()
    with pytest.raises(BatchError, match="Reset"):
        fed(evaluator, [[Scan("b", "p")]])


def test_patients_not_scans_are_resampled():
    same = [located(0, 3, name=f"s{i}", patient="one") for i in range(10)] + [located(0, 0, name="x", patient="two")]
    found = fed(SnippetDepth(resampling=Resampling(resamples=400)), [same]).compute()
    # Two patients: a draw holds either one alone with chance 1/4 each, so the interval spans both.
    assert found[PREFIX + "mae_ci_low_mm"] == pytest.approx(1)
    assert found[PREFIX + "mae_ci_high_mm"] == pytest.approx(37)
    assert number("one") != number("two")


EDGES = {int: (0, -1), float: (0.0, -1.0, math.nan, math.inf)}
LEGAL = {
    (Resampling, "seed"): [0],
    (ReportRetrieval, "examples"): [0],
    (PooledRetrieval, "seed"): [0],
    (SnippetDepth, "examples"): [0],
    (SnippetDepth, "seed"): [0, -1],  # it is hashed
    (OrganRecognition, "min_visible"): [0.0],
}


@pytest.mark.parametrize(
    "kind",
    [
        Resampling,
        ReportRetrieval,
        PooledRetrieval,
        ScanRetrieval,
        SnippetDepth,
        OrganRecognition,
        OrganPointing,
        OrganAbnormality,
        ZeroShotFindings,
    ],
)
def test_each_number_at_the_edge_of_its_range_is_taken_or_named(kind, question_file):
    make = partial(kind, question_file) if kind in (OrganAbnormality, ZeroShotFindings) else kind
    for name, parameter in signature(kind).parameters.items():
        for value in EDGES.get(parameter.annotation, ()):
            if value in LEGAL.get((kind, name), ()):
                make(**{name: value})
                continue
            with pytest.raises(ConfigError, match=name) as caught:
                make(**{name: value})
            assert str(value) in str(caught.value)
