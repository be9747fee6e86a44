"""Values of the objectives against loops over scans, and what they refuse."""

import math
from dataclasses import replace
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch

from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.functional.prompts import draw_variants, text_keys
from ctgrounding.objectives import DiseasePrompts, GlobalContrastive, OrganGrounding, SnippetLocalization
from ctgrounding.testing.scans import AXIAL_MM, QUESTIONS, TinyStatement, tiny_scans
from ctgrounding.testing.tiny import (
    text_vectors,
    tiny_batch,
    tiny_dims,
    tiny_encoded,
    tiny_questions_file,
    with_fixed_texts,
)


def encoded_for(objective, scans, step=0):
    batch = tiny_batch(scans)
    return with_fixed_texts(tiny_encoded(scans, batch), objective, batch, step), batch


def text_of(encoded, text, head="main"):
    return encoded.heads.text(head, text_vectors([text]))[0].detach().numpy()


def image_of(encoded, vector, head="main"):
    return encoded.heads.image(head, vector[None])[0].detach().numpy()


@pytest.mark.parametrize("duplicates", ["ignore", "positive", "negative"])
def test_global_contrast_is_siglip_over_reported_scans(duplicates):
    scans = tiny_scans(7)
    objective = GlobalContrastive(tiny_dims(), duplicates=duplicates)
    encoded, batch = encoded_for(objective, scans)
    reported = [scan for scan in scans if scan.report is not None]
    total = 0.0
    for i, one in enumerate(reported):
        for j, other in enumerate(reported):
            cosine = image_of(encoded, one.whole) @ text_of(encoded, other.report)
            alike = one.study == other.study or one.report == other.report
            sign = 1 if i == j or (alike and duplicates == "positive") else -1
            if i == j or not alike or duplicates != "ignore":
                total += math.log1p(math.exp(-sign * (10 * cosine - 4)))
    term = objective(encoded, batch)["contrast"]
    assert any(a.study == b.study for a in reported for b in reported if a is not b)
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-12)
    assert term.weight == len(reported)


def test_softmax_contrast_is_the_mean_of_both_directions():
    scans = tiny_scans(3)
    objective = GlobalContrastive(tiny_dims(), loss="softmax")
    encoded, batch = encoded_for(objective, scans)
    scores = np.array(
        [[10 * image_of(encoded, one.whole) @ text_of(encoded, other.report) for other in scans] for one in scans]
    )
    to_text = np.log(np.exp(scores).sum(1)) - scores.diagonal()
    to_scan = np.log(np.exp(scores).sum(0)) - scores.diagonal()
    term = objective(encoded, batch)["contrast"]
    assert float(term.total.detach()) == pytest.approx((to_text + to_scan).sum() / 2, rel=1e-12)


def test_localization_compares_a_snippet_with_its_own_scan_only():
    scans = tiny_scans(6)
    objective = SnippetLocalization(tiny_dims(), tau=0.2, sigma_mm=18.0, text_head="other")
    encoded, batch = encoded_for(objective, scans)
    total, count = 0.0, 0
    for scan in scans:
        depth_mm = scan.lowest_mm + AXIAL_MM * np.arange(len(scan.bins))
        slices = np.stack([image_of(encoded, vector) for vector in scan.bins])
        for snippet in scan.snippets:
            low, high = snippet.depth_mm
            if low > depth_mm[-1] + AXIAL_MM / 2:
                continue
            outside = np.maximum(np.maximum(low - depth_mm, depth_mm - high), 0)
            target = np.exp(-0.5 * (outside / 18) ** 2)
            logits = slices @ text_of(encoded, snippet.text, "other") / 0.2
            total -= (target / target.sum() * (logits - np.log(np.exp(logits).sum()))).sum()
            count += 1
    term = objective(encoded, batch)["depth"]
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-10)
    assert term.weight == count < sum(len(scan.snippets) for scan in scans)


def test_prompts_are_binary_cross_entropy_on_the_difference():
    scans = tiny_scans(6)
    objective = DiseasePrompts(
        tiny_dims(), questions=str(tiny_questions_file()), question_weights={"*": 2.0, "c*": 5.0}
    )
    objective.set_label_counts(torch.tensor([[40, 10], [1000, 1], [10, 10]]))
    encoded, batch = encoded_for(objective, scans, step=4)
    key = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(4)))
    variants = draw_variants(key, text_keys(scan.name for scan in scans), 3, 3)
    total = 0.0
    for number, scan in enumerate(scans):
        for question, label in enumerate(scan.labels):
            if label < 0:
                continue
            asked = objective.questions[question]
            variant = int(variants[number, question])
            image = image_of(encoded, scan.whole)
            gap = image @ text_of(encoded, asked.positive[variant]) - image @ text_of(encoded, asked.negative[variant])
            loss = [1, [4.0, 20.0, 1.0][question]][label] * math.log1p(math.exp(-(2 * label - 1) * 10 * gap))
            total += [2.0, 2.0, 5.0][question] * loss
    term = objective(encoded, batch)["answers"]
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-6)
    assert term.weight == sum(label >= 0 for scan in scans for label in scan.labels)


def test_only_asked_sentences_are_planned_and_draws_change_with_the_step():
    scans = tiny_scans(2)
    objective = DiseasePrompts(tiny_dims(), questions=str(tiny_questions_file()))
    plans = [objective.plan(tiny_batch(scans), torch.Generator().manual_seed(step)) for step in range(8)]
    known = sum(label >= 0 for scan in scans for label in scan.labels)
    assert all(0 < len(plan) <= 2 * known for plan in plans)
    assert len({tuple(plan.tolist()) for plan in plans}) > 1
    assert len(objective.plan(tiny_batch([scan.bare() for scan in scans]), torch.Generator())) == 0
    assert len(objective.fixed_texts()) == 6 * len(QUESTIONS)


def grounding_by_hand(objective, encoded, scans, entries):
    """Diagnosis as its page says it, by loops; organs are all visible enough or left out by their share."""
    organs = []
    for scan in scans:
        for label, (vector, share) in scan.organs.items():
            if share >= 0.5:
                said = [item for item in scan.statements if item.organ == label]
                abnormal = any(item.is_abnormal for item in said)
                used = [item.text for item in said if item.is_abnormal or not abnormal]
                if said and not abnormal:
                    used.append(objective.fixed_texts()[int(objective.organ_texts.normal_of[label])])
                organs.append((label, image_of(encoded, vector), abnormal, used, {item.text.lower() for item in said}))
    total, count = 0.0, 0
    for place, (label, image, abnormal, used, own) in enumerate(organs):
        opposed = [text for kind, text in entries if kind == label and text.lower() not in own]
        for other_place, (other_label, _, other_abnormal, other_used, _) in enumerate(organs):
            if other_label == label and other_place != place and (abnormal or other_abnormal):
                opposed += [text for text in other_used if text.lower() not in own]
        for text in used:
            if opposed:
                scores = np.array([image @ text_of(encoded, item) for item in [text, *opposed]]) / 0.07
                total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[0]
                count += 1
    return total, count


@pytest.mark.parametrize("with_dictionary", [False, True])
def test_diagnosis_against_loops(with_dictionary, tmp_path):
    scans = tiny_scans(8)
    scans[0] = replace(scans[0], statements=[*scans[0].statements, TinyStatement("Fatty LIVER", 5, True)])
    path = tmp_path / "dictionary.yaml"
    path.write_text("liver: [fatty liver, liver mass]\nspleen: [large spleen]\n")
    objective = OrganGrounding(tiny_dims(), dictionary=str(path) if with_dictionary else None)
    encoded, batch = encoded_for(objective, scans)
    entries = [(5, "fatty liver"), (5, "liver mass"), (1, "large spleen")] if with_dictionary else []
    total, count = grounding_by_hand(objective, encoded, scans, entries)
    term = objective(encoded, batch)["diagnosis"]
    assert term.weight == count > 3
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-10)


def test_anatomy_is_cross_entropy_over_names_of_visible_organs():
    scans = tiny_scans(6)
    objective = OrganGrounding(tiny_dims(), visible_fraction=0.5)
    encoded, batch = encoded_for(objective, scans)
    shown = [(label, v) for scan in scans for label, (v, share) in scan.organs.items() if share >= 0.5]
    kinds = sorted({label for label, _ in shown})
    spoken = {1: "spleen", 2: "right kidney", 5: "liver"}
    names = np.stack([text_of(encoded, f"this is a {spoken[kind]} in the CT scan") for kind in kinds])
    total = 0.0
    for label, vector in shown:
        scores = names @ image_of(encoded, vector) / 0.07
        total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[kinds.index(label)]
    term = objective(encoded, batch)["anatomy"]
    assert term.weight == len(shown) < sum(len(scan.organs) for scan in scans)
    assert float(term.total.detach()) == pytest.approx(total, rel=1e-10)


def test_an_unmentioned_organ_says_nothing_unless_asked_to():
    scans = [replace(scan, statements=[item for item in scan.statements if item.organ != 5]) for scan in tiny_scans(6)]
    scans[2] = replace(scans[2], statements=[*scans[2].statements, TinyStatement("A cyst of the liver", 5, True)])
    silent, speaking = OrganGrounding(tiny_dims()), OrganGrounding(tiny_dims(), unmentioned="normal")
    weights = [float(objective(*encoded_for(objective, scans))["diagnosis"].weight) for objective in (silent, speaking)]
    assert weights[1] > weights[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(GlobalContrastive, image_head="mian"), r"no image head 'mian'; declared are \['main', 'other'\]"),
        (partial(GlobalContrastive, loss="hinge"), "Loss 'hinge' is not known"),
        (partial(SnippetLocalization, tau=0.0), "tau is 0.0, but must be above 0"),
        (partial(SnippetLocalization, sigma_mm=math.nan), "sigma_mm is nan, but must be above 0"),
        (partial(OrganGrounding, temperature=math.nan), "temperature is nan, but must be above 0"),
        (partial(OrganGrounding, visible_fraction=50.0), r"visible_fraction is 50\.0, but a share"),
        (partial(OrganGrounding, negatives=-1), "negatives is -1, but must be at least 0"),
        (partial(DiseasePrompts, questions="phantom", largest_positive_weight=0.0), "largest_positive_weight is 0"),
        (partial(DiseasePrompts, questions="phantom", question_weights={"*": -1.0}), r"gives '\*' -1\.0"),
        (partial(DiseasePrompts, questions="phantom", question_weights={"*": math.inf}), r"gives '\*' inf"),
        (partial(SnippetLocalization, target="paper"), "Target 'paper'"),
        (partial(OrganGrounding, name_text="an organ"), "does not name the organ"),
        (partial(OrganGrounding, normal_text=None, unmentioned="normal"), "together with a normal_text"),
        (partial(OrganGrounding, dictionary="nowhere.yaml"), "'nowhere.yaml' does not exist"),
        (partial(OrganGrounding, label_set="total_v9"), "'total_v9' is not known"),
        (partial(DiseasePrompts, questions="nowhere"), "'nowhere' is neither packaged"),
        (
            partial(DiseasePrompts, questions=str(tiny_questions_file()), question_weights={"x*": 2.0}),
            r"Pattern 'x\*' of question_weights fits none of the 3",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make(tiny_dims())


EDGES = (0.0, -1.0, math.nan, math.inf)
LEGAL = {
    "largest_positive_weight": [math.inf],
    "visible_fraction": [0.0],
    "anatomy_weight": [0.0],
    "diagnosis_weight": [0.0],
}


@pytest.mark.parametrize("kind", [GlobalContrastive, SnippetLocalization, OrganGrounding, DiseasePrompts])
def test_each_number_at_the_edge_of_its_range_is_taken_or_named(kind):
    make = partial(kind, tiny_dims(), **({"questions": "phantom"} if kind is DiseasePrompts else {}))
    for name in (name for name, item in signature(kind).parameters.items() if item.annotation is float):
        for value in EDGES:
            if value in LEGAL.get(name, ()):
                make(**{name: value})
                continue
            with pytest.raises(ConfigError, match=f"{name} is {value}, but"):
                make(**{name: value})


def test_heads_of_different_width_and_missing_readouts_are_named():
    narrow = replace(tiny_dims(), text_heads={"main": 3})
    with pytest.raises(ConfigError, match="has width 8 and text head 'main' 3"):
        GlobalContrastive(narrow)
    with pytest.raises(ConfigError, match=r"Readout 'organ' is not made by this model, which has \['global'\]"):
        OrganGrounding(replace(tiny_dims(), readouts={"global": 6}))


def test_steps_that_do_not_fit_are_named(tmp_path):
    scans = tiny_scans(3)
    prompts = DiseasePrompts(tiny_dims(), questions=str(tiny_questions_file()))
    encoded, batch = encoded_for(prompts, scans)
    unplanned = replace(encoded, planned=encoded.planned[:0], planned_text=encoded.planned_text[:0])
    with pytest.raises(BatchError, match="Call plan in the same step"):
        prompts(unplanned, batch)
    with pytest.raises(BatchError, match="2 label columns, but the objective 3 questions"):
        prompts(encoded, {**batch, "labels": batch["labels"][:, :2]})
    with pytest.raises(ConfigError, match="Counts of 2 label columns"):
        prompts.set_label_counts(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(BatchError, match="needed but was not encoded"):
        OrganGrounding(tiny_dims())(unplanned, batch)
    path = tmp_path / "dictionary.yaml"
    for text, message in (("lung: [x]", "organ 'lung'"), ("- x", "no table of organs"), ("a: [", "cannot be read")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            OrganGrounding(tiny_dims(), dictionary=str(path))
