"""Abnormal organs and pointing by text, against loops and by hand."""

import numpy as np
import pytest
import torch
from evaluated_world import WIDTH, Scan, Snippet, Statement, batch_of, noisy, vector
from sklearn.metrics import f1_score, roc_auc_score

from ctgrounding import label_sets
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation import (
    OrganAbnormality,
    OrganPointing,
    OrganRecognition,
    Resampling,
    SnippetDepth,
    ZeroShotFindings,
)
from ctgrounding.evaluation.thresholds import choose_thresholds

FEW = Resampling(resamples=30)
LEFT, RIGHT, SPLEEN = (label_sets.label_of(name) for name in ("kidney_left", "kidney_right", "spleen"))


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    path = tmp_path_factory.mktemp("questions") / "kidneys.yaml"
    path.write_text(
        "stone: {positive: ['A stone.'], negative: ['No stone.'], organs: [kidney_left, kidney_right]}\n"
        "cyst: {positive: ['A cyst.'], negative: ['No cyst.'], organs: [kidney_left]}\n"
        "fever: {positive: ['Fever.'], negative: ['No fever.']}\n"
    )
    return str(path)


def patients(count, seed, name="s"):
    """Kidneys that look like what is said of them, more or less."""
    rng = np.random.default_rng(seed)
    scans = []
    for place in range(count):
        labels = rng.choice([-1, 0, 1], 3)
        organs, statements = {}, []
        for organ, spoken in ((LEFT, "left kidney"), (RIGHT, "right kidney")):
            said = rng.choice([-1, 0, 1])
            if said >= 0:
                statements.append(Statement(f"{spoken} {said}", organ, bool(said)))
            if rng.random() > 0.15:
                base = vector("A stone.") if said == 1 else vector(f"no evident abnormality in the {spoken}")
                organs[organ] = noisy(base, 1.2, f"{name}{seed}{place}{organ}")
        scans.append(
            Scan(f"{name}{place:03d}", f"{name}{place}", organs=organs, labels=tuple(labels.tolist()),
                 statements=tuple(statements))
        )  # fmt: skip
    return scans


def fed(evaluator, scans, cut=8):
    for start in range(0, len(scans), cut):
        evaluator.update(*batch_of(scans[start : start + cut], evaluator.fixed_texts()))
    return evaluator


def truths(scan, organ, question):
    """What the report says of an organ, and of a finding in it, written anew."""
    said = [item.is_abnormal for item in scan.statements if item.organ == organ]
    abnormal = -1 if not said else int(any(said))
    label = scan.labels[question]
    if label == 1 and abnormal == 1:
        return abnormal, 1
    return abnormal, 0 if label == 0 or (label == 1 and abnormal == 0) else -1


def scored(scan, organ, texts):
    if organ not in scan.organs:
        return np.nan
    unit = torch.nn.functional.normalize(scan.organs[organ], dim=0)
    denial = f"no evident abnormality in the {label_sets.spoken(label_sets.load('total_v2')[organ])}"
    return max(float(unit @ vector(text)) for text in texts) - float(unit @ vector(denial))


def test_areas_and_calls_equal_a_loop(questions):
    scans, others = patients(120, 0), patients(60, 1, "v")
    evaluator = fed(OrganAbnormality(questions, min_cases=3, resampling=FEW), scans)
    for start in range(0, 60, 9):
        evaluator.update_validation(*batch_of(others[start : start + 9], evaluator.fixed_texts()))
    numbers = evaluator.compute()
    asked = {LEFT: ["A stone.", "A cyst."], RIGHT: ["A stone."]}
    areas, calls = [], []
    for organ, texts in asked.items():
        table = {}
        for name, group in (("test", scans), ("validation", others)):
            pairs = [(truths(s, organ, 0)[0], scored(s, organ, texts)) for s in group]
            table[name] = np.array([(t, v) for t, v in pairs if t >= 0 and not np.isnan(v)])
        truth, score = table["test"].T
        areas.append(roc_auc_score(truth, score))
        cut = choose_thresholds(table["validation"][:, 1:], table["validation"][:, :1].astype(int))[0]
        calls.append(f1_score(truth, score >= cut))
    assert numbers["organ_abnormality/organs"] == 2
    assert numbers["organ_abnormality/auroc_macro"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert numbers["organ_abnormality/f1_macro"] == pytest.approx(np.mean(calls), abs=1e-6)
    findings = []
    for organ, question, text in ((LEFT, 0, "A stone."), (RIGHT, 0, "A stone."), (LEFT, 1, "A cyst.")):
        pairs = [(truths(s, organ, question)[1], scored(s, organ, [text])) for s in scans]
        truth, score = np.array([(t, v) for t, v in pairs if t >= 0 and not np.isnan(v)]).T
        findings.append(roc_auc_score(truth, score))
    assert numbers["organ_abnormality/findings"] == 3
    assert numbers["organ_abnormality/finding_auroc_macro"] == pytest.approx(np.mean(findings), abs=1e-6)
    rows = evaluator.results()["findings"]
    assert {row["name"] for row in rows} == {"stone in left kidney", "stone in right kidney", "cyst in left kidney"}
    assert [row["auroc"] for row in rows] == pytest.approx(findings, abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda questions: OrganAbnormality(questions, min_cases=2, resampling=FEW),
        lambda questions: ZeroShotFindings(questions, min_cases=2, resampling=FEW),
    ],
)
def test_a_run_in_double_precision_has_the_same_numbers(make, questions):
    """Lightning makes float64 the type of new tensors there, while cosines stay float32."""
    expected = fed(make(questions), patients(30, 3)).compute()
    torch.set_default_dtype(torch.float64)
    try:
        found = fed(make(questions), patients(30, 3)).compute()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_a_stone_on_the_left_says_nothing_against_the_right_kidney(questions):
    said = (Statement("A stone in the left kidney.", LEFT), Statement("Right kidney normal.", RIGHT, False))
    scan = Scan("s", "p", organs={LEFT: vector("a"), RIGHT: vector("b")}, labels=(1, 0, 0), statements=said)
    rows = fed(OrganAbnormality(questions, resampling=FEW), [scan]).results()["findings"]
    counts = {row["name"]: (row["positives"], row["negatives"]) for row in rows}
    assert counts == {"stone in left kidney": (1, 0), "stone in right kidney": (0, 1), "cyst in left kidney": (0, 1)}


def test_questions_own_denials(questions):
    evaluator = OrganAbnormality(questions, negative=(), resampling=FEW)
    assert set(evaluator.fixed_texts()) == {"A stone.", "A cyst.", "Fever.", "No stone.", "No cyst.", "No fever."}
    fed(evaluator, patients(10, 2)).compute()
    with pytest.raises(BatchError, match="1 label columns"):
        evaluator.update(*batch_of([Scan("x", "p", labels=(1,))], evaluator.fixed_texts()))


@pytest.mark.parametrize("negative", [("nothing in the {organ}",), ()])
def test_a_list_whose_questions_lie_in_no_organ_has_no_numbers(tmp_path, negative):
    (tmp_path / "general.yaml").write_text("fever: {positive: ['Fever.'], negative: ['No fever.']}")
    evaluator = OrganAbnormality(str(tmp_path / "general.yaml"), negative=negative)
    scans = [Scan(f"s{n}", f"p{n}", organs={LEFT: vector("stone")}, labels=(n % 2,)) for n in range(4)]
    assert fed(evaluator, scans).compute() == {"organ_abnormality/organs": 0.0}
    assert evaluator.results()["findings"] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda template: OrganAbnormality("phantom", negative=[template]),
        lambda template: OrganRecognition(templates=[template]),
        lambda template: ZeroShotFindings("phantom", organ_negative=[template]),
    ],
)
def test_templates_name_the_organ_and_may_hold_other_braces(make):
    assert "{x} in the left kidney" in make("{x} in the {organ}").fixed_texts()
    with pytest.raises(ConfigError, match=r"has 'nothing in \{organs\}', which does not name the organ"):
        make("nothing in {organs}")


@pytest.mark.parametrize("make", [OrganAbnormality, ZeroShotFindings])
def test_findings_without_cases_cannot_count(make):
    with pytest.raises(ConfigError, match="min_cases is 0"):
        make("phantom", min_cases=0)


def test_validation_patients_that_are_evaluated_too_are_refused(questions):
    scans = patients(10, 3)
    evaluator = fed(OrganAbnormality(questions, min_cases=1, resampling=FEW), scans)
    evaluator.update_validation(*batch_of(scans[:2], evaluator.fixed_texts()))
    with pytest.raises(ConfigError, match="2 patients are among the validation scans"):
        evaluator.compute()


def test_pointing_by_hand():
    left, right, spleen = (vector(name) for name in ("left", "right", "spleen"))
    texts = {"one": left, "two": right, "both": 0.9 * spleen + 0.5 * right, "gone": left, "level": left}
    organs = {LEFT: left, RIGHT: right, SPLEEN: spleen}
    first = Scan(
        "a", "p", organs=organs,
        statements=(
            Statement("one", LEFT), Statement("two", LEFT, False),
            Statement("both", RIGHT, False), Statement("both", SPLEEN, False),
        ),
    )  # fmt: skip
    second = Scan("b", "q", organs={RIGHT: right}, statements=(Statement("gone", LEFT),))
    third = Scan("c", "q", organs={LEFT: left, RIGHT: left}, statements=(Statement("level", LEFT),))
    evaluator = OrganPointing(resampling=FEW)
    evaluator.update(*batch_of([first, second, third], (), texts.__getitem__))
    numbers = evaluator.compute()
    assert numbers["organ_pointing/statements"] == 4  # "both" is one statement about two organs
    assert numbers["organ_pointing/not_visible"] == 1
    # one: right; two: wrong; both: right with either; level: shared with a rival.
    assert numbers["organ_pointing/top1"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert numbers["organ_pointing/chance_top1"] == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 1 / 2) / 4)
    assert numbers["organ_pointing/abnormal_statements"] == 2
    assert numbers["organ_pointing/abnormal_top1"] == pytest.approx(0.75)
    assert sum(row["statements"] for row in evaluator.results()["organs"]) == 4


def test_pointing_refuses_what_is_not_finite():
    broken = Scan("a", "p", organs={LEFT: torch.full((WIDTH,), torch.nan)}, statements=(Statement("x", LEFT),))
    with pytest.raises(BatchError, match="not finite"):
        OrganPointing().update(*batch_of([broken]))


def test_zero_shot_baseline_reads_other_heads():
    depth = torch.stack([vector(f"b{b}") for b in range(6)])
    depth[4] = vector("cyst")
    scan = Scan("a", "p", depth=depth, snippets=(Snippet("cyst", (100.0, 100.0)),))
    evaluator = SnippetDepth(zero_shot_heads=("main", "main"), resampling=FEW)
    assert evaluator.reads().image == {("depth", "local"), ("depth", "main")}
    numbers = fed(evaluator, [scan]).compute()
    assert numbers["snippet_localization/zero_shot_mae_mm"] == 48.0
    with pytest.raises(ConfigError, match="does not exist"):
        fed(SnippetDepth(zero_shot_heads=("none", "main")), [scan])
