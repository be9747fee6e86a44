"""Statements about organs: place, side, negation, doubt and what is carried from clause to clause."""

import pytest

from ctgrounding import label_sets
from ctgrounding.reports import read
from ctgrounding.reports.lexicon import lexicon

CASES = [
    ("No pleural effusion.", [("pleura", None, "normal")]),
    ("Small right pleural effusion.", [("pleura", "right", "abnormal")]),
    ("No effusion on the left, but a small one is possible on the right.", [("pleura", "left", "normal")]),
    (
        "Bilateral pleural effusions with atelectasis of the left lower lobe.",
        [("pleura", "bilateral", "abnormal"), ("lung_lower_lobe_left", "left", "abnormal")],
    ),
    (
        "No evidence of consolidation, but there is a nodule in the right middle lobe.",
        [("lung", None, "normal"), ("lung_middle_lobe_right", "right", "abnormal")],
    ),
    (
        "Nodules in the right lower and left upper lobe.",
        [("lung_lower_lobe_right lung_upper_lobe_left", "bilateral", "abnormal")],
    ),
    ("Liver, spleen and pancreas are unremarkable.", [("liver spleen pancreas", None, "normal")]),
    (
        "The right kidney is normal, the left kidney has a stone.",
        [("kidney_right", "right", "normal"), ("kidney_left", "left", "abnormal")],
    ),
    ("Both adrenal glands are normal.", [("adrenal_gland", "bilateral", "normal")]),
    ("Possible metastasis in the liver.", [("liver", None, "uncertain")]),
    ("Pneumothorax cannot be excluded.", [("pleura", None, "uncertain")]),
    ("Enlarged mediastinal, hilar and axillary lymph nodes.", [("lymph_node", None, "abnormal")]),
    ("Fracture of the 4th to 6th left ribs.", [("rib_left_4 rib_left_5 rib_left_6", "left", "abnormal")]),
    ("Degenerative changes at L4/5.", [("vertebrae_L4 vertebrae_L5", None, "abnormal")]),
    ("Compression fracture of T12.", [("vertebrae_T12", None, "abnormal")]),
    ("Pleural drain at the level of T6.", [("pleura", None, "abnormal")]),
    ("The previously seen effusion has resolved.", [("pleura", None, "normal")]),
    ("Lungs: Clear.\nHeart: Normal size.", [("lung", None, "normal"), ("heart", None, "normal")]),
    ("KIDNEYS: 3 mm stone in the left lower pole.", [("kidney_left", "left", "abnormal")]),
    (
        "Thyroid nodule on the right. The left lobe is normal.",
        [("thyroid_gland", "right", "abnormal"), ("thyroid_gland", "left", "normal")],
    ),
    ("The appendix is normal. No free fluid.", []),
    ("The SMA and IMA are patent.", []),
    ("Kein Pleuraerguss.", [("pleura", None, "normal")]),
    ("Pleuraerguss rechts.", [("pleura", "right", "abnormal")]),
    ("Keine Rundherde, Infiltrate oder Milchglastrübungen.", [("lung", None, "normal")]),
    ("Herz normal groß, kein Perikarderguss.", [("heart", None, "normal"), ("pericardium", None, "normal")]),
    ("Leberzysten. Milz unauffällig.", [("liver", None, "abnormal"), ("spleen", None, "normal")]),
    ("V.a. Nierenstein links.", [("kidney_left", "left", "uncertain")]),
    ("Frakturen der 4. und 5. Rippe rechts.", [("rib_right_4 rib_right_5", "right", "abnormal")]),
    ("Sinterung BWK 9.", [("vertebrae_T9", None, "abnormal")]),
    ("Konsolidierungen beider Unterlappen.", [("lung_lower_lobe_left lung_lower_lobe_right", "bilateral", "abnormal")]),
    (
        "Ober- und Unterlappen rechts mit Verdichtung.",
        [("lung_upper_lobe_right lung_lower_lobe_right", "right", "abnormal")],
    ),
    ("Nebennieren bds. schlank.", [("adrenal_gland", "bilateral", "normal")]),
    ("Tiny left plerual efusion.", [("pleura", "left", "abnormal")]),
]


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text for text, _ in CASES])
def test_statement(text, expected):
    found = [(set(s.organs), s.side, s.status) for s in read({"findings": text}).organ_statements]
    assert found == [(set(organs.split()), side, status) for organs, side, status in expected]


LABELS = [
    ("No consolidation.", "Consolidation", 0),
    ("Heart size is normal.", "Cardiomegaly", 0),
    ("Normal heart.", "Cardiomegaly", None),
    ("Calcified plaques in the aorta and coronary arteries.", "Coronary artery wall calcification", 1),
    ("Calcified plaques in the aorta and coronary arteries.", "Arterial wall calcification", 1),
    ("Possible emphysema.", "Emphysema", None),
    ("Port catheter on the right.", "Medical material", 1),
    ("No pleural or pericardial effusion.", "Pericardial effusion", 0),
    ("No pleural or pericardial effusion.", "Pleural effusion", 0),
    ("Nodule in the thyroid.", "Lung nodule", None),
    ("Koronarkalk.", "Coronary artery wall calcification", 1),
    ("Keine Lymphadenopathie.", "Lymphadenopathy", 0),
    ("Small effusion left. No effusion right.", "Pleural effusion", 1),
]


@pytest.mark.parametrize(("text", "label", "expected"), LABELS)
def test_label(text, label, expected):
    assert read(text).ct_rate_labels[label] == expected


def test_masks_are_of_the_label_set():
    known = set(label_sets.load("total_v2").values())
    for place in lexicon().places.values():
        assert {mask for masks in place.masks.values() for mask in masks} <= known, place.name


def test_left_and_right_trade_places():
    text = "Left pleural effusion. 4 mm nodule in the right upper lobe. Stone in the left kidney. Right adrenal normal."
    swapped = text.replace("eft", "#").replace("ight", "eft").replace("#", "ight").replace("Leftt", "Left")
    swapped = (
        swapped.replace("Lright", "Right").replace("lright", "right").replace("Reft", "Left").replace("reft", "left")
    )
    swapped = swapped.replace("Light", "Right").replace("light", "right")
    other = {"left": "right", "right": "left"}
    one, two = read(text).organ_statements, read(swapped).organ_statements
    assert [s.side for s in two] == [other[s.side] for s in one]
    assert [s.organs for s in two] == [
        tuple(o[: o.rfind("_") + 1] + other[s.side] if o.endswith(("left", "right")) else o for o in s.organs)
        for s in one
    ]
