"""What an evaluation of held-out patients refuses, warns of, and where its results go."""

import warnings

import pytest

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import Cohort, ReportRetrieval, ZeroShotFindings
from ctgrounding.evaluation.results import RunResults
from ctgrounding.tasks.held_out import HeldOut, leak_numbers


class Data:
    """A data module that knows who is in it."""

    label_names = ("renal_cyst",)

    def __init__(self, **splits):
        self.splits = splits

    def identities(self, stage):
        for scan, patient, *others in self.splits.get(stage, ()):
            volume, dataset = (*others, "", "")[:2]
            yield scan, dataset or "own", patient, volume, ""


APART = Data(train=[("a", "1")], val=[("b", "2")], test=[("c", "3")])


@pytest.fixture(autouse=True)
def loud():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_apart_is_quiet():
    held_out = HeldOut()
    leaks = held_out.leaks(APART, "test")
    assert leaks.is_clean
    assert leak_numbers(leaks) == {"leaks/patients": 0.0, "leaks/volumes": 0.0, "leaks/reports": 0.0}
    assert held_out.can_choose_on_validation(APART)
    assert held_out.leaks(object(), "test") is None
    assert leak_numbers(None) == {}
    assert not held_out.can_choose_on_validation(object())


@pytest.mark.parametrize("known", ["train", "val"])
def test_a_patient_that_training_or_the_choice_of_a_model_knows_is_loud(known):
    data = Data(**{known: [("a", "3")], "test": [("c", "3"), ("d", "4")]})
    with pytest.warns(UserWarning, match="LEAK: 1 of 2 evaluated scans belong to patients of the training data"):
        leaks = HeldOut().leaks(data, "test")
    assert leak_numbers(leaks)["leaks/patients"] == 1
    assert not HeldOut().leaks(data, "test", is_loud=False).is_clean


def test_data_sets_built_on_each_other_share_patients_and_volumes_are_the_same_anywhere():
    data = Data(
        train=[("train_1_a_1", "valid_9", "", "radgenome_chest_ct"), ("x", "7", "hash")],
        test=[("valid_9_a_1", "valid_9", "", "ct_rate_fixed"), ("y", "8", "hash", "other")],
    )
    with pytest.warns(UserWarning, match="LEAK") as caught:
        leaks = HeldOut().leaks(data, "test")
    assert [len(leaks.patients), len(leaks.volumes)] == [1, 1]
    assert len(caught) == 2


def test_validation_knows_training_only_of_training():
    data = Data(train=[("a", "1")], val=[("b", "2")])
    assert HeldOut().leaks(data, "val").is_clean


def test_thresholds_are_not_chosen_on_test_patients():
    data = Data(val=[("b", "3"), ("c", "4")], test=[("c", "3")])
    with pytest.warns(UserWarning, match="1 patients are in the validation and in the test split"):
        assert not HeldOut().can_choose_on_validation(data)
    assert not HeldOut().can_choose_on_validation(Data(test=[("c", "3")]))
    built = Data(val=[("a", "3", "", "ct_rate")], test=[("b", "3", "", "CT-RATE_fixed")])
    with pytest.warns(UserWarning, match="1 patients are in the validation and in the test split"):
        assert not HeldOut().can_choose_on_validation(built)


def test_strict_refuses_leaks_and_missing_validation_before_any_scan():
    configured = {"r": ReportRetrieval(), "f": ZeroShotFindings("phantom")}
    strict = HeldOut("strict")
    with pytest.warns(UserWarning, match="localization is left out"):
        made = strict.evaluators(configured, APART)
    assert {"findings", "retrieval", "scan_to_scan", "patients"} == set(made)
    strict.check(APART, strict.leaks(APART, "test"))
    known = Data(train=[("a", "3")], val=[("b", "2")], test=[("c", "3")])
    with pytest.raises(ConfigError, match=r"refuses patients and volumes that training knows\. 1 of 1"):
        strict.check(known, HeldOut().leaks(known, "test", is_loud=False))
    alone = HeldOut("strict")
    data = Data(train=[("a", "1")], test=[("c", "3")])
    with pytest.warns(UserWarning, match="localization"):
        alone.evaluators(configured, data)
    with pytest.raises(ConfigError, match=r"data\.val_split holds none"):
        alone.check(data, alone.leaks(data, "test"))


def test_without_a_protocol_all_is_as_configured():
    configured = {"patients": Cohort()}
    held_out = HeldOut()
    assert held_out.evaluators(configured, APART) is configured
    held_out.check(APART, None)
    about = held_out.about({"title": "run"}, held_out.leaks(APART, "test"))
    assert (about["title"], about["warnings"], about["leaks"]) == ("run", [], [])


def test_a_protocols_results_leave_those_of_the_run_alone(tmp_path):
    RunResults({"x": 1.0}).write(tmp_path)
    before = (tmp_path / "metrics.json").read_text()
    held_out = HeldOut("strict")
    with pytest.warns(UserWarning, match="localization is left out: the run has no SnippetDepth"):
        held_out.evaluators({"r": ReportRetrieval()}, Data(test=[("c", "3")]))
    page = held_out.write(RunResults({"strict/findings/auroc_macro": 0.5}, {}, held_out.about({}, None)), tmp_path)
    assert page == tmp_path / "protocols" / "strict" / "report.html"
    assert "Strict" in page.read_text()
    of_val = held_out.write(RunResults({}, {}, held_out.about({"split": "val"}, None)), tmp_path)
    assert of_val == tmp_path / "splits" / "val" / "protocols" / "strict" / "report.html"
    assert (tmp_path / "metrics.json").read_text() == before


def test_results_of_another_split_leave_those_of_the_test_split_alone(tmp_path):
    pages = {
        split: HeldOut().write(RunResults({split: 1.0}, {}, {"split": split}), tmp_path)
        for split in ("test", "val", "dev")
    }
    assert pages["test"] == tmp_path / "report.html"
    assert pages["dev"] == tmp_path / "splits" / "dev" / "report.html"
    assert all(RunResults.read(page.parent).metrics == {split: 1.0} for split, page in pages.items())
