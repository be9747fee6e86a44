import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctgrounding import label_sets
from ctgrounding.data.augment import Crop
from ctgrounding.data.keys import keyed_generator, stable_hash
from ctgrounding.data.mirror import mirror_labels, mirror_text
from ctgrounding.data.report_text import ReportText
from ctgrounding.errors import ConfigError, ReportError

SPACING_MM = (3.0, 1.5, 0.75)


@given(
    scan=st.tuples(*[st.integers(1, 200)] * 3),
    extent=st.tuples(*[st.none() | st.integers(1, 150)] * 3),
    multiple=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_random_crops_lie_inside_and_start_at_multiples_or_at_the_end(scan, extent, multiple, seed):
    start, shape = Crop(extent, start_multiple=multiple).box(scan, SPACING_MM, np.random.default_rng(seed))
    for first, n, side, wanted in zip(start, shape, scan, extent, strict=True):
        assert n == (side if wanted is None else min(wanted, side))
        assert 0 <= first <= side - n
        assert first % multiple == 0 or first == side - n


def test_random_crops_show_every_voxel():
    seen = np.zeros(20, int)
    for seed in range(400):
        (first, _, _), (n, _, _) = Crop((7, 1, 1), start_multiple=4).box(
            (20, 1, 1), SPACING_MM, np.random.default_rng(seed)
        )
        seen[first : first + n] += 1
    assert seen.min() > 0


def test_mm_are_rounded_to_voxels_of_the_scan():
    assert Crop((30, 30, 29.9), unit="mm").box((99, 99, 99), SPACING_MM)[1] == (10, 20, 40)


def test_without_a_generator_the_centre_is_shown():
    assert Crop((4, 5, None)).box((10, 10, 10), SPACING_MM) == ((3, 2, 0), (4, 5, 10))
    assert Crop().box((3, 4, 5), SPACING_MM, np.random.default_rng(0)) == ((0, 0, 0), (3, 4, 5))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (0, 4, 4)},
        {"shape": (4, 4, -1)},
        {"start_multiple": 0},
        {"shape": (math.nan, 4, 4)},
        {"shape": (math.inf, 4, None)},
    ],
)
def test_impossible_crops_are_refused(changes):
    with pytest.raises(ConfigError, match=r"data\.crop"):
        Crop(**changes)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Cyst in the left kidney", "Cyst in the right kidney"),
        ("LEFT and Right", "RIGHT and Left"),
        ("Right-sided effusion, leftward shift, leftmost", "Left-sided effusion, rightward shift, rightmost"),
        ("bilateral upright bright copyright rightly", "bilateral upright bright copyright rightly"),
        ("kidney_left", "kidney_right"),
        ("L1 vertebra, T12-L2, R2 lymph node", "L1 vertebra, T12-L2, R2 lymph node"),
        ("Nodule in the RUL and LLL; Lt. adrenal", "Nodule in the LUL and RLL; Rt. adrenal"),
        (
            "Zyste der linken Niere, rechtsseitiger Erguss, Links",
            "Zyste der rechten Niere, linksseitiger Erguss, Rechts",
        ),
    ],
)
def test_words_for_sides_change_places(text, mirrored):
    assert mirror_text(text) == mirrored
    assert mirror_text(mirrored) == text


WORDS = ["left", "Right", "LEFT,", "ruled", "cleft", "RLL", "bilateral", ".", "-", "rechte", "Linker", "1.5"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=9).map(" ".join))
def test_mirroring_twice_changes_nothing(text):
    try:
        once = mirror_text(text)
    except ReportError:
        return
    assert mirror_text(once) == text


@pytest.mark.parametrize(
    "text",
    ["RML nodule", "atelectasis of the middle lobe", "Lingula clear", "dextroscoliosis", "situs solitus", "L kidney",
     "the drain was left in place"],
)  # fmt: skip
def test_sides_without_counterpart_refuse_the_mirror(text):
    with pytest.raises(ReportError, match="no counterpart"):
        mirror_text(text)


@pytest.mark.parametrize("name", label_sets.NAMES)
def test_label_table_agrees_with_the_label_set(name):
    table = mirror_labels(label_sets.load(name))
    expected = label_sets.mirrored(name)
    assert {label: int(table[label]) for label in expected} == expected
    assert (table[table] == np.arange(256)).all()


REPORT = {
    "technique": "Portal venous.",
    "findings": "Cyst of 3.5 cm. Liver normal. Spleen normal.",
    "impression": "A cyst.",
}


def test_report_is_composed_of_the_sections_named():
    assert ReportText().compose(REPORT) == f"Findings: {REPORT['findings']}\nImpression: A cyst."
    assert ReportText(["impression"], headings=False, minimum_words=1).compose(REPORT) == "A cyst."
    assert ReportText(["impression", "findings", "none"]).compose(REPORT).startswith("Impression: A cyst.\nFindings: ")


@pytest.mark.parametrize(
    "report", [{}, {"findings": "  "}, {"findings": "No change."}, {"technique": "Portal venous CT."}]
)
def test_short_reports_count_as_none(report):
    assert ReportText(minimum_words=3).compose(report) == ""


def test_findings_are_left_out_as_often_as_asked_but_never_alone():
    wording = ReportText(findings_dropout=0.176)
    texts = [wording.compose(REPORT, np.random.default_rng(seed)) for seed in range(2000)]
    assert abs(sum("Findings" not in text for text in texts) / 2000 - 0.176) < 0.03
    alone = {"findings": REPORT["findings"]}
    assert ReportText(findings_dropout=1.0).compose(alone, np.random.default_rng(0)) == "Findings: " + alone["findings"]


def test_sentences_are_dropped_and_moved_whole():
    wording = ReportText(["findings"], headings=False, sentence_dropout=0.5, sentence_shuffle=True)
    sentences = ["Cyst of 3.5 cm.", "Liver normal.", "Spleen normal."]
    seen = set()
    for seed in range(200):
        text = wording.compose(REPORT, np.random.default_rng(seed))
        kept = sorted((text.index(s), s) for s in sentences if s in text)
        assert " ".join(s for _, s in kept) == text
        assert kept
        seen.add(text)
    assert len(seen) == 3 + 6 + 6


def test_full_text_without_a_generator():
    wording = ReportText(findings_dropout=1.0, sentence_dropout=1.0, sentence_shuffle=True)
    assert wording.compose(REPORT) == ReportText().compose(REPORT)


@pytest.mark.parametrize("changes", [{"findings_dropout": 1.1}, {"sentence_dropout": -0.1}, {"sections": []}])
def test_impossible_wordings_are_refused(changes):
    with pytest.raises(ConfigError, match=r"data\.report_text"):
        ReportText(**changes)


def test_keys_are_told_apart_and_hashes_stay_what_they_are():
    draws = {keyed_generator(*key).random() for key in [("a", 1, 23), ("a", 12, 3), ("b", 1, 23), ("a", "1", 23)]}
    assert len(draws) == 4
    assert 0 <= stable_hash("study", "demo", "1") < 2**63
    assert stable_hash("study", "demo", "1") == 5553956425461059263
