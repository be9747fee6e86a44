"""The contract suite passes what keeps the laws and names the law that is broken, for each of them."""

from functools import partial

import broken_objectives as broken
import pytest

from ctgrounding.objectives import DiseasePrompts, GlobalContrastive, OrganGrounding, SnippetLocalization
from ctgrounding.testing import ContractError, check_objective
from ctgrounding.testing.tiny import tiny_questions_file


@pytest.fixture
def dictionaries(tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.json"
    first.write_text("liver: [fatty liver, liver mass, cirrhosis]\nspleen: [large spleen]\n")
    second.write_text('{"liver": ["ruptured liver"]}')
    return str(first), str(second)


@pytest.fixture
def other_questions(tmp_path):
    path = tmp_path / "questions.yaml"
    path.write_text(tiny_questions_file().read_text().replace("signs", "hints"))
    return str(path)


@pytest.mark.parametrize("settings", [{}, {"loss": "softmax", "image_head": "other"}])
def test_global_contrastive(settings):
    check_objective(partial(GlobalContrastive, **settings))


@pytest.mark.parametrize("settings", [{}, {"target": "release", "text_head": "other"}])
def test_snippet_localization(settings):
    check_objective(partial(SnippetLocalization, **settings))


def test_disease_prompts(other_questions):
    alternatives = {"questions": other_questions, "question_weights": {"question_weights": {"e*": 3.0}}}
    check_objective(partial(DiseasePrompts, questions=str(tiny_questions_file())), alternatives=alternatives)


@pytest.mark.parametrize(
    ("settings", "with_dictionary"), [({}, True), ({"unmentioned": "normal", "temperature": 0.5}, False)]
)
def test_organ_grounding(settings, with_dictionary, dictionaries):
    first, second = dictionaries
    alternatives = {
        "dictionary": second,
        "negatives": {"negatives": 1, "dictionary": first},
        "normal_text": "the {organ} is fine",
        "name_text": "the {organ}",
        "label_set": "total_v1",
        "logit": "main",
    }
    if settings:
        del alternatives["logit"]
        alternatives |= {"logit": "other", "unmentioned": "ignore"}
    if with_dictionary:
        settings = {**settings, "dictionary": first}
    check_objective(partial(OrganGrounding, **settings), alternatives=alternatives)


@pytest.mark.parametrize("lawful", [broken.Pull, broken.Repel])
def test_the_lawful_pattern_of_the_broken_ones_passes(lawful):
    check_objective(lawful)


@pytest.mark.parametrize(
    ("unlawful", "law", "message"),
    [
        (broken.MeanInsteadOfSum, "ranks", "total of term pull differs"),
        (broken.MeanWithWeightOfSum, "ranks", "total of term pull differs"),
        (broken.MeanOverAllRanks, "sums", "double the total of term 'pull'"),
        (broken.DetachedGather, "ranks", "gradient of .* differs"),
        (broken.OwnPartOfGatherOnly, "ranks", "gradient of .* differs"),
        (broken.LocalNegativesOnly, "ranks", "total of term repel differs"),
        (broken.AveragesPerRank, "ranks", "total of term pull differs"),
        (broken.UndeclaredKey, "declared keys", "'report_text' is read but not declared"),
        (broken.UndeclaredField, "declared keys", "'depth' is read but not declared"),
        (broken.UnusedKey, "declared keys", r"\['labels'\] is declared"),
        (broken.IgnoresValidBins, "padding", "no real voxel must not count"),
        (broken.LeavesEarly, "attached", "gets no gradient, not even zero"),
        (broken.ReturnsNoGraph, "attached", "has no graph"),
        (broken.SkipsACollective, "schedule", "Make the same calls on every rank"),
        (broken.NotANumberWhenEmpty, "finite", "total of term 'pull' is nan"),
        (broken.DependsOnOrder, "order", "total of term pull differs"),
        (broken.UnusedArgument, "arguments", "Argument 'smoothing' changes neither"),
        (broken.AnyArgument, "arguments", r"takes \*\*settings"),
        (broken.FillsTheBatch, "inputs", "changes 'report_text' of the batch.*Work on a copy"),
        (broken.EmptiesTheBatch, "inputs", "changes 'report_text' of the batch"),
        (broken.SeedsForAll, "inputs", "global generator. Draw in plan"),
        (broken.HeadByName, "keys are declared", "no head 'organ' here, only .*as arguments"),
        (broken.DeclaresAList, "declared keys", "not a frozenset"),
        (broken.NoObjective, "class", "NoObjective is no Objective. Derive it"),
        (broken.GlobalRandomness, "keyed randomness", "total of term pull differs"),
        (broken.NarrowSum, "precision", "sum in float32"),
        (broken.ForgetsItsState, "state_dict", "total of term pull differs"),
        (broken.CannotBePickled, "pickle", "cannot be pickled"),
        (broken.ReturnsATensor, "terms", "not a dict with a Term"),
        (broken.MixesDevices, "device", r"aten.mul.Tensor meets a tensor of \(\d, 1\) on the CPU"),
        (broken.CountsOnTheCpu, "device", "The weight of term 'pull' is on the CPU"),
    ],
)
def test_each_broken_law_is_named(unlawful, law, message):
    with pytest.raises(ContractError, match=message) as caught:
        check_objective(unlawful)
    assert caught.value.law == law


def test_an_argument_without_a_known_alternative_asks_for_one():
    with pytest.raises(ContractError, match="No other value is known for argument 'questions'"):
        check_objective(partial(DiseasePrompts, questions=str(tiny_questions_file())))
