"""Published protocols: their facts as fixtures, what a plan makes of them, and evaluators built from them."""

import json

import numpy as np
import pytest
import torch
from evaluated_world import Scan, batch_of, noisy, random_scans, vector
from sklearn.metrics import roc_auc_score

from ctgrounding import questions
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation import ReportRetrieval, Resampling, Selection, SnippetDepth, ZeroShotFindings, protocols
from ctgrounding.evaluation.asked import FindingSet, Judging, Prompts
from ctgrounding.evaluation.prompted_findings import PromptedFindings
from ctgrounding.evaluation.protocols import Heads, label_set, load, names, plan
from ctgrounding.evaluation.results import evaluated
from ctgrounding.evaluation.rows import Table
from ctgrounding.evaluation.selection import bare, read_list
from ctgrounding.evaluation.summary import lines, protocol_facts, text

FEW = Resampling(resamples=20)
CT_RATE = [
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
]  # fmt: skip
"""Order of the published label tables."""

HEADS = Heads(("main", "main"), ("main", "main"), ("organ", "organ"), ("local", "local"))


def columns(name):
    return dict(label_set(name).columns)


def test_every_protocol_of_the_field_is_there():
    assert names() == ("colipri", "ct_clip", "fvlm", "hlip", "merlin", "radfinder", "spectre", "strict")
    with pytest.raises(ConfigError, match="no protocol 'clip'"):
        load("clip")


def test_label_order_and_counts():
    assert list(columns("ct_rate18")) == CT_RATE
    assert [question.name for question in questions.load("ct_rate18")] == CT_RATE
    assert list(columns("ct_rate16")) == [n for n in CT_RATE if n not in ("Medical material", "Lymphadenopathy")]
    assert len(columns("merlin30")) == len({c for cs in columns("merlin30").values() for c in cs}) == 30
    assert label_set("all").columns is None
    with pytest.raises(ConfigError, match="no label set 'ct_rate17'"):
        label_set("ct_rate17")


def test_rad_chestct_mappings():
    standard, extended = columns("rad_chestct16_standard"), columns("rad_chestct18_extended")
    dropped = {"Coronary artery wall calcification", "Mosaic attenuation pattern"}
    assert list(standard) == [name for name in CT_RATE if name not in dropped]
    assert standard["Pulmonary fibrotic sequela"] == ("scarring",)
    assert standard["Arterial wall calcification"] == ("calcification",)
    assert standard["Lung nodule"] == ("nodule", "nodulegr1cm")
    assert standard["Hiatal hernia"] == ("hernia",)
    assert standard["Peribronchial thickening"] == ("bronchial_wall_thickening",)
    assert len(standard["Medical material"]) == 11
    assert label_set("rad_chestct16_standard").scores == {
        "Arterial wall calcification": ("Arterial wall calcification", "Coronary artery wall calcification")
    }
    assert list(extended) == CT_RATE
    assert extended["Medical material"][11:] == ("heart_valve_replacement", "cabg", "sternotomy")
    assert extended["Mosaic attenuation pattern"] == ("air_trapping",)
    assert extended["Arterial wall calcification"] == ("atherosclerosis",)
    assert extended["Coronary artery wall calcification"] == ("coronary_artery_disease",)
    assert extended["Lung opacity"] == ("opacity", "groundglass", "infiltrate", "airspace_disease")
    fifteen = columns("rad_chestct15")
    assert len(fifteen) == 15
    assert not {"Medical material", "Lymphadenopathy", "Mosaic attenuation pattern"} & set(fifteen)
    assert fifteen["Pulmonary fibrotic sequela"] == ("fibrosis",)


@pytest.mark.parametrize(
    ("name", "part", "rule", "scans"),
    [
        ("ct_clip", "retrieval", "all", 3039),
        ("ct_clip", "findings", "all", 3039),
        ("ct_clip", "findings_rad_chestct", "all", 3630),
        ("spectre", "retrieval", "first", 1564),
        ("radfinder", "retrieval", "all", 3039),
        ("radfinder", "findings", "first", 1564),
        ("colipri", "retrieval", "listed", 1493),
        ("hlip", "findings", "all", 3039),
        ("fvlm", "findings", "all", 3039),
        ("merlin", "findings", "all", 5125),
    ],
)
def test_which_scans(name, part, rule, scans):
    assert (load(name).parts[part].scans, load(name).parts[part].published_scans) == (rule, scans)


def test_prompts_and_depths():
    def prompts(name, finding, part="findings"):
        table = load(name).parts[part].settings["prompts"]
        words = {key: tuple(value) for key, value in table.get("words", {}).items()}
        return Prompts(tuple(table["positive"]), tuple(table["negative"]), words).of(finding)

    assert prompts("ct_clip", "Emphysema") == (("Emphysema is present.",), ("Emphysema is not present.",))
    assert prompts("fvlm", "Cardiomegaly") == (("Cardiomegaly.",), ("Not Cardiomegaly.",))
    assert prompts("fvlm", "Atelectasis") == (("Atelectatic.",), ("Not Atelectatic.",))
    shows = "The volume shows: "
    assert prompts("hlip", "Emphysema") == ((f"{shows}Emphysema.",), (f"{shows}Not emphysema.",))
    seven = prompts("radfinder", "Emphysema")
    assert [len(side) for side in seven] == [7, 7]
    assert seven[1][1] == "Findings are not compatible with Emphysema."
    assert [len(side) for side in prompts("strict", "renal_cyst")] == [7, 7]
    assert prompts("strict", "renal_cyst")[0][2] == "There is renal cyst."
    assert load("ct_clip").parts["retrieval"].settings["k"] == [5, 10, 50, 100]
    assert load("radfinder").parts["retrieval"].settings["k"] == [1, 5, 10, 50, 100]
    assert load("merlin").parts["pools"].settings["pools"] == [32, 64, 128]
    assert load("colipri").report_sections == ("findings",)


def test_only_strict_chooses_thresholds_on_validation_and_refuses_leaks():
    assert [name for name in names() if load(name).wants_validation] == ["strict"]
    assert [name for name in names() if load(name).refuses_leaks] == ["strict"]
    assert all(load(name).departures for name in names() if name != "strict")


def test_heads_come_from_the_runs_own_evaluators(tmp_path):
    made = [
        ReportRetrieval("a", "b"),
        ZeroShotFindings("phantom", "c", "d", "e", "f"),
        SnippetDepth("g", "h"),
    ]
    assert Heads.of(made) == Heads(("a", "b"), ("c", "d"), ("e", "f"), ("g", "h"))
    assert Heads.of([]) == Heads()


def test_a_list_that_is_missing_says_where_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match=r"--scan_list.*no_chest_valid.txt.*huggingface|--scan_list.*huggingface"):
        plan(load("colipri"), HEADS, CT_RATE)
    file = tmp_path / "list.txt"
    with pytest.raises(ConfigError, match="cannot be read"):
        plan(load("colipri"), HEADS, CT_RATE, scan_list=file)
    file.write_text("# none\n\n")
    with pytest.raises(ConfigError, match="names no scan"):
        plan(load("colipri"), HEADS, CT_RATE, scan_list=file)
    file.write_text("valid_1_a_1.nii.gz\nfolder/valid_2_a_1\n")
    assert read_list(file) == {"valid_1_a_1", "valid_2_a_1"}
    made = plan(load("colipri"), HEADS, CT_RATE, ["ct_rate"], file)
    assert set(made.evaluators) == {"retrieval", "findings", "patients"}


def test_what_cannot_be_evaluated_is_said():
    made = plan(load("ct_clip"), HEADS, ["renal_cyst"], ())
    assert set(made.evaluators) == {"retrieval", "patients"}
    assert any("findings is left out: the data have none of its 18 label columns" in line for line in made.left_out)
    with pytest.raises(ConfigError, match="lack 17 of the 18 label columns"):
        plan(load("ct_clip"), HEADS, ["Emphysema"], ())
    with pytest.raises(ConfigError, match=r"Nothing of protocol ct_clip.*defined on ct_rate and the data are phantom"):
        plan(load("ct_clip"), HEADS, CT_RATE, ["phantom"])
    with pytest.raises(ConfigError, match="lack 17 of the 18"):
        plan(load("strict"), HEADS, ["Emphysema"], ["ct_rate"])
    made = plan(load("strict"), HEADS, ["renal_cyst"], ["phantom"])
    assert set(made.evaluators) == {"findings", "retrieval", "scan_to_scan", "localization", "patients"}
    without = plan(load("strict"), Heads(), ["renal_cyst"], ["phantom"])
    assert "localization" not in without.evaluators
    nothing = plan(load("strict"), HEADS, [], ["own"])
    assert "findings is left out: the data have no labels." in nothing.left_out
    assert "names heads of the organ readout" in plan_error("fvlm", Heads())


def plan_error(name, heads):
    with pytest.raises(ConfigError) as caught:
        plan(load(name), heads, CT_RATE, ["ct_rate"])
    return str(caught.value)


def test_selection_of_scans():
    table = Table(
        ["ct_rate/v_1_a_2", "ct_rate/v_1_a_1", "ct_rate/v_1_b_1", "own/v_1_a_1"],
        {"study": torch.tensor([1, 1, 2, 9])},
    )
    assert Selection("first").of(table).keys == ["ct_rate/v_1_a_1", "ct_rate/v_1_b_1", "own/v_1_a_1"]
    assert Selection("first", ("CT-RATE",)).of(table).keys == ["ct_rate/v_1_a_1", "ct_rate/v_1_b_1"]
    assert Selection("first", listed=frozenset(["v_1_a_2"])).of(table).keys == ["ct_rate/v_1_a_2"]
    assert Selection(datasets=("none",)).of(table).keys == []
    assert Selection().of(Table([])).keys == []
    assert bare("a/b/x.nii.gz") == "x"
    assert "on a list of 1" in Selection(listed=frozenset(["x"])).described()


def world(count, seed, name="s"):
    """Scans with three label columns, their first two of one finding."""
    rng = np.random.default_rng(seed)
    scans = []
    for place in range(count):
        labels = rng.choice([-1, 0, 0, 1], 3)
        whole = 0.7 * max(labels[0], 0) * (vector("A is here.") - vector("A is away."))
        whole = whole + 0.7 * max(labels[2], 0) * (vector("B is here.") - vector("B is away."))
        whole = whole + noisy(torch.zeros(24), 1.0, f"{name}{place}")
        scans.append(Scan(f"{name}{place:03d}", f"{name}{place // 2}", whole=whole, labels=tuple(labels.tolist())))
    return scans


ASKED = FindingSet({"A": ("a1", "a2"), "B": ("b",)}, {"B": ("B", "A")})
PAIR = Prompts(("{finding} is here.",), ("{finding} is away.",))


def made(judging=None, **other):
    evaluator = PromptedFindings(ASKED, PAIR, judging=judging, resampling=FEW, **other)
    evaluator.use_label_names(["a1", "a2", "b"])
    return evaluator


def fed(evaluator, scans, as_validation=False):
    for start in range(0, len(scans), 7):
        pair = batch_of(scans[start : start + 7], evaluator.fixed_texts())
        (evaluator.update_validation if as_validation else evaluator.update)(*pair)
    return evaluator


def expected(scans):
    """Truth and score of both findings by a loop: A from two columns, B by the higher of two scores."""

    def score(scan, name):
        unit = torch.nn.functional.normalize(scan.whole, dim=0)
        return float(unit @ vector(f"{name} is here.")) - float(unit @ vector(f"{name} is away."))

    rows = []
    for scan in scans:
        first, second, third = scan.labels
        truth = 1 if 1 in (first, second) else 0 if (first, second) == (0, 0) else -1
        rows.append((truth, third, score(scan, "A"), max(score(scan, "A"), score(scan, "B"))))
    return np.array(rows)


def test_prompted_findings_equal_a_loop():
    scans = world(80, 0)
    numbers = fed(made(), scans).compute()
    table = expected(scans)
    areas = [roc_auc_score(table[table[:, q] >= 0, q], table[table[:, q] >= 0, 2 + q]) for q in range(2)]
    assert numbers["findings/auroc_macro"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert (numbers["findings/classes"], numbers["findings/asked"], numbers["findings/scans"]) == (2, 2, 80)
    assert numbers["findings/patients"] == 40
    assert not any("threshold" in name for name in numbers)


def test_thresholds_of_validation_patients_are_used_and_those_of_test_are_said_to_be_optimistic():
    scans, others = world(80, 1), world(60, 2, "v")
    clean = fed(made(Judging("youden", "validation", ("f1",))), scans)
    with pytest.raises(ConfigError, match="there are none"):
        clean.compute()
    clean = fed(made(Judging("youden", "validation", ("f1",))), scans)
    fed(clean, others, as_validation=True)
    optimistic = fed(made(Judging("youden", "test", ("f1",))), scans)
    found = [evaluator.compute() for evaluator in (clean, optimistic)]
    assert found[0]["findings/threshold_patients"] == 30
    assert "findings/ece" in found[0]
    assert "findings/ece" not in found[1]
    rows = [evaluator.results()["classes"] for evaluator in (clean, optimistic)]
    assert rows[0][0]["threshold"] != rows[1][0]["threshold"]
    assert "optimistic" in optimistic.results()["protocol"]["thresholds"]
    assert clean.wants_validation
    assert not optimistic.wants_validation


def test_a_finding_of_one_class_does_not_count():
    scans = [Scan(f"s{i}", f"p{i}", whole=vector(f"w{i}"), labels=(1, 0, i % 2)) for i in range(8)]
    numbers = fed(made(), scans).compute()
    assert (numbers["findings/classes"], numbers["findings/asked"]) == (1, 2)
    assert [row["counts"] for row in made_rows(scans)] == [False, True]


def made_rows(scans):
    return fed(made(), scans).results()["classes"]


def test_label_columns_must_be_named_and_there():
    with pytest.raises(BatchError, match="3 label columns, 0 were named"):
        PromptedFindings(ASKED, PAIR).update(*batch_of(world(2, 0)))
    with pytest.raises(ConfigError, match="no label 'a2'"):
        PromptedFindings(ASKED, PAIR).use_label_names(["a1", "b"])
    assert made(selection=Selection(datasets=("other",))).compute() == {"findings/scans": 0.0}


def test_organ_scores_are_the_highest_of_visible_organs():
    asked = FindingSet({"A": ("a",)}, organs={"A": ("spleen", "liver")})
    evaluator = PromptedFindings(asked, PAIR, "organ", "organ", resampling=FEW)
    evaluator.use_label_names(["a"])
    here, away = vector("A is here."), vector("A is away.")
    scans = [
        Scan("a", "p", organs={1: away, 5: here}, labels=(1,)),
        Scan("b", "q", organs={1: away, 5: away}, labels=(0,)),
        Scan("c", "r", organs={2: here}, labels=(0,)),
    ]
    rows = fed(evaluator, scans).results()["classes"]
    assert (rows[0]["positives"], rows[0]["negatives"], rows[0]["auroc"]) == (1, 1, 1.0)
    assert evaluator.reads().image == {("organ", "organ")}


def test_scans_without_a_finding_take_part_in_ct_clips_scan_to_scan():
    scans = random_scans(24, questions=18)
    for scan in scans:
        scan.labels = tuple(max(label, 0) for label in scan.labels)
    for scan in scans[:5]:
        scan.labels = (0,) * 18
    ready = plan(load("ct_clip"), HEADS, CT_RATE)
    one = ready.evaluators["scan_to_scan"]
    one.resampling, one.selection = FEW, Selection()
    metrics = evaluated({"scan_to_scan": fed(one, scans)}).metrics
    assert metrics["ct_clip/scan_to_scan/ct_clip/pool"] == 19
    said = [line for line in ready.deviations(metrics) if line.startswith("scan_to_scan")]
    assert said[0].startswith("scan_to_scan: 24 scans take part where CT-CLIP has 3039")


def test_numbers_bear_protocol_and_pool_and_differences_are_said(tmp_path):
    scans = random_scans(24, questions=18)
    ready = plan(load("radfinder"), HEADS, CT_RATE)
    for role, evaluator in ready.evaluators.items():
        assert evaluator.prefix.startswith("radfinder/"), role
        if hasattr(evaluator, "resampling"):
            evaluator.resampling = FEW
        evaluator.selection = Selection() if hasattr(evaluator, "selection") else None
        fed(evaluator, scans)
    results = evaluated(ready.evaluators, protocol_facts(ready))
    assert all(name.startswith("radfinder/") for name in results.metrics)
    assert "radfinder/retrieval/report_to_scan/r_at_5" in results.metrics
    table = text(results, "radfinder")
    assert all(line.endswith("radfinder") for line in table.splitlines()[1:])
    assert any(line.pool and line.interval for line in lines(results.metrics, "radfinder/"))
    deviations = ready.deviations(results.metrics)
    assert any("where RadFinder has 3039" in line for line in deviations)
    names_of_cases = [case["name"] for section in results.sections.values() for case in section.get("cases", ())]
    assert all(name.startswith("radfinder/") for name in names_of_cases)
    json.dumps(results.sections)
    from ctgrounding.evaluation.page import render

    page = render(results)
    assert "Retrieval: retrieval first" in page  # one of two
    assert "protocol RadFinder" in page
    assert protocols.load("radfinder").source.split(";")[0] in page
