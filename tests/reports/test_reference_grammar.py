"""Image references: forms of radiologists' practice and what only looks like one. Written for this test."""

import time

import pytest

from ctgrounding.reports import find_references, read

ONE = [
    ("Nodule (series 3, image 45).", (3, [45])),
    ("Nodule (series 3 image 45).", (3, [45])),
    ("Nodule (Series #3, Image #45).", (3, [45])),
    ("Nodule (series no. 3, image no. 45).", (3, [45])),
    ("Nodule (series number 3 image number 45)", (3, [45])),
    ("Nodule (Ser: 3 Img: 45)", (3, [45])),
    ("Nodule (ser. 3, im. 45)", (3, [45])),
    ("Nodule [Se3 Im45]", (3, [45])),
    ("Nodule SE:3 IM:45.", (3, [45])),
    ("Nodule (s3i45).", (3, [45])),
    ("Nodule (S3, I45).", (3, [45])),
    ("Nodule (3:45).", (3, [45])),
    ("Nodule (3 : 45).", (3, [45])),
    ("Nodule (3/45).", (3, [45])),
    ("Nodule [3/45].", (3, [45])),
    ("Nodule (image 3:45).", (3, [45])),
    ("Nodule (see 3:45).", (3, [45])),
    ("Nodule, see image 45 of series 3.", (3, [45])),
    ("Nodule on image 45 (series 3).", (3, [45])),
    ("Nodule, best seen on axial image 45, series 3.", (3, [45])),
    ("Nodule (image 45, series 3)", (3, [45])),
    ("Nodule (img 45 ser 3)", (3, [45])),
    ("Nodule (series/image 3/45).", (3, [45])),
    ("Nodule (Se/Im: 3/45)", (3, [45])),
    ("Nodule (series 3, slice 45)", (3, [45])),
    ("Nodule (series 3, images 45 and 46)", (3, [45, 46])),
    ("Nodule (series 3, images 45, 47, and 49)", (3, [45, 47, 49])),
    ("Nodule (series 3, images 45-48)", (3, [45, 46, 47, 48])),
    ("Nodule (series 3, images 45 through 48)", (3, [45, 46, 47, 48])),
    ("Nodule (series 3, images 45–47, 52)", (3, [45, 46, 47, 52])),
    ("Nodules (3:45, 47, 49-51).", (3, [45, 47, 49, 50, 51])),
    ("Nodule (series 3, image 45/320)", (3, [45])),
    ("Nodule (series 3, image 45 of 320)", (3, [45])),
    ("Nodule (series 3,\nimage 45).", (3, [45])),
    ("Nodule (series\n3, image 45).", (3, [45])),
    ("Nodule (series 3, image\n45).", (3, [45])),
    ("Nodule (series 80233, image 45)", (80233, [45])),
    ("Nodule (series 3A, image 45)", (3, [45])),
    ("Nodule (series 3 - image 45)", (3, [45])),
    ("Nodule (series 3; images 45; 47)", (3, [45, 47])),
    ("Nodules (series 3, images 45,47,49)", (3, [45, 47, 49])),
    ("Nodules (images 45,47 and 49-51, series 3)", (3, [45, 47, 49, 50, 51])),
    ("Nodule of 5 mm (series 3, image 45) and 4 lesions.", (3, [45])),
    ("Series 3, image 45 shows 3 nodules.", (3, [45])),
    ("Nodule (image 45).", (None, [45])),
    ("Nodule on images 45 and 46.", (None, [45, 46])),
    ("Nodule (slice 45)", (None, [45])),
    ("Herd (Serie 3, Bild 45).", (3, [45])),
    ("Herd (Serie 3/Bild 45).", (3, [45])),
    ("Herd (Ser. 3, B. 45).", (3, [45])),
    ("Herd (Se 3, Bild 45).", (3, [45])),
    ("Herd (S3 B45).", (3, [45])),
    ("Herd (Serie 3, Bilder 45 bis 47).", (3, [45, 46, 47])),
    ("Herd (Serie 3, Bilder 45 und 47).", (3, [45, 47])),
    ("Herd auf Bild 45 in Serie 3.", (3, [45])),
    ("Herd (Bild 45 von 320, Serie 3)", (3, [45])),
    ("Herd (Serie Nr. 3, Bild Nr. 45)", (3, [45])),
    ("Herd (Serie 3, Schicht 45)", (3, [45])),
    ("Herd (Serie 3, Bildnummer 45)", (3, [45])),
    ("Herd in Schicht 45.", (None, [45])),
]
NONE = [
    "Compared to 03/15/2021 and 3/2021.",
    "Compared with CT of 12/2020.",
    "Signed 14:35.",
    "Contacted Dr. Smith (14:35).",
    "Dr. Smith was called at 9:45 am (09:45).",
    "Mass of 3.4 x 4.5 cm, previously 3 x 4 cm.",
    "T10/11 disc disease; L4/5 stenosis (L4/5).",
    "Grade 3/4 reflux, 2/6 systolic murmur.",
    "BI-RADS 3. Lung-RADS 4A. PI-RADS 4/5.",
    "Stage T2N1M0, Gleason 3+4.",
    "Segment 4/5 of the liver; segments 7/8.",
    "The IMA 4 mm is patent. IMA and SMA are patent.",
    "Liver S7 and S8 lesions.",
    "Ratio 1:10 dilution (1:10).",
    "5 images were obtained. Series of 12 patients.",
    "Images 3 mm thick. Slice thickness 5 mm, slices 1.25 mm.",
    "Schichten 1,5 mm, Bilder 12,5 cm, Schicht 10,25 x 3 mm.",
    "Image quality is 4/5.",
    "3 of 12 nodes (3/12) positive, resected (3/12).",
    "At the level of S1, an S2 cyst.",
    "Visit 3 in 4 weeks, 50% stenosis.",
    "im 4. Segment, im 5 cm messenden Herd.",
    "Im Vergleich 3 neue Herde; am 03.04.2021 um 14:20 Uhr.",
    "SUV 4.5, HU 45, 120 kV, 80/20 ratio.",
    "Serie von 3 Aufnahmen. Bildgebung 2 Wochen vorher.",
    "Schichtdicke 3 mm, Rekonstruktion 1/1 mm.",
    "NYHA III/IV, ASA 2/3, Child-Pugh A6.",
    "COVID-19, IL-6, S100, B12, I131 therapy.",
    "Rib 4/5 fracture, 4/5 strength.",
    "Cycle 4/6 of chemotherapy (4/6).",
    "Telephone 555:1234, page 3 of 4, figure 2.",
]
SEVERAL = [
    ("Nodules (3:45, 4:50).", {(3, 45), (4, 50)}),
    ("Nodules (3:45; 4:50 and 4:52)", {(3, 45), (4, 50), (4, 52)}),
    ("Nodules (series 3, image 45; series 4, image 50).", {(3, 45), (4, 50)}),
    ("Nodule in RUL (series 3, image 45) and in LUL (image 50).", {(3, 45), (3, 50)}),
    ("Nodules on images 45 (series 3) and 50 (series 4).", {(3, 45), (4, 50)}),
    ("Node (series 3 and 4, image 45).", {(3, 45), (4, 45)}),
    ("Cyst (image 45 series 3). Series 4 image 50 shows a stone.", {(3, 45), (4, 50)}),
    ("Cyst (3/45), stone (3/8).", {(3, 45), (3, 8)}),
    ("Herde (Serie 3, Bild 45 und Serie 4, Bild 50).", {(3, 45), (4, 50)}),
    ("Herd (Serie 3, Bild 45), Zyste (Bild 50).", {(3, 45), (3, 50)}),
    ("Coronal (601:33) and sagittal (602:41) reformats.", {(601, 33), (602, 41)}),
]
PRIOR = [
    ("Nodule 6 mm (3:45), previously 4 mm (4:50).", {(3, 45)}, {(4, 50)}),
    ("Nodule 6 mm (3:45), was 4 mm (4:50).", {(3, 45)}, {(4, 50)}),
    ("Nodule (series 3, image 45), prior series 4 image 50.", {(3, 45)}, {(4, 50)}),
    ("Nodule (3:45) compared to 4 mm (prior 4:50).", {(3, 45)}, {(4, 50)}),
    ("Nodule (3:45), which previously measured 4 mm.", {(3, 45)}, set()),
    ("Previously seen nodule (3:45) is stable.", {(3, 45)}, set()),
    ("Unchanged compared to prior (3:45).", {(3, 45)}, set()),
    ("Herd 6 mm (Serie 3, Bild 45), zuvor 4 mm (Serie 4, Bild 50).", {(3, 45)}, {(4, 50)}),
    ("Herd (3/45), Voruntersuchung (4/50).", {(3, 45)}, {(4, 50)}),
    ("New since the prior study: nodule (3:45).", {(3, 45)}, set()),
    ("Nodule (series 3, image 45; prior series 4 image 50).", {(3, 45)}, {(4, 50)}),
    ("Nodule (series 3, image 45; was 4 mm on series 4 image 50).", {(3, 45)}, {(4, 50)}),
    ("Nodule, series 3, image 45 (was series 4, image 50).", {(3, 45)}, {(4, 50)}),
    ("Nodule (series 3, image 45), was (4:50).", {(3, 45)}, {(4, 50)}),
    ("Nodule was seen (3:45).", {(3, 45)}, set()),
    ("Nodule 5 mm (CT from 01/02/2019, series 4, image 50).", set(), {(4, 50)}),
    ("Unchanged since CT from 01/02/2019 (3:45).", {(3, 45)}, set()),
    ("Unchanged compared to\nprior (3:45).", {(3, 45)}, set()),
    ("Herd (Ser. 3 Im. 45 vs. Voruntersuchung Ser. 4 Im. 50).", {(3, 45)}, {(4, 50)}),
    ("Herd (Ser. 3 Im. 45), CT vom 01.02.2019, Ser. 4 Im. 50.", {(3, 45)}, {(4, 50)}),
]


def pairs(text: str, *, prior: bool = False) -> set[tuple[int | None, int]]:
    return {(r.series, image) for r in find_references(text) if r.is_prior is prior for image in r.images}


@pytest.mark.parametrize(("text", "expected"), ONE)
def test_one_reference(text, expected):
    assert [(r.series, list(r.images)) for r in find_references(text)] == [expected]


@pytest.mark.parametrize("text", NONE)
def test_no_reference(text):
    assert find_references(text) == []


@pytest.mark.parametrize(("text", "expected"), SEVERAL)
def test_several_references(text, expected):
    assert pairs(text) == expected


@pytest.mark.parametrize(("text", "current", "prior"), PRIOR)
def test_prior_references(text, current, prior):
    assert (pairs(text), pairs(text, prior=True)) == (current, prior)


@pytest.mark.parametrize(("text", "expected"), ONE)
def test_span_holds_the_numbers(text, expected):
    (reference,) = find_references(f"Before it. {text}")
    written = f"Before it. {text}"[reference.start : reference.end]
    assert str(expected[1][0]) in written
    assert expected[0] is None or str(expected[0]) in written


@pytest.mark.parametrize(
    "text",
    ["series 4 image 12 " * 5_000, "(3:4, " * 20_000, "images " + "1, " * 50_000, "\u202e\u200f(4:12) " * 5_000],
    ids=["references", "open brackets", "list", "right to left"],
)
def test_time_is_linear(text):
    def seconds(part: str) -> float:
        begin = time.process_time()
        find_references(part)
        return time.process_time() - begin

    seconds(text)
    assert seconds(text) < 24 * seconds(text[: len(text) // 8]) + 0.5


@pytest.mark.parametrize(
    ("text", "clause"),
    [
        ("Liver lesions (series 4, images 38 and 40; series 5, image 12).", "Liver lesions"),
        ("Cyst (se 4 im 38, previously se 3 im 71).", "Cyst"),
        ("Nodule (3:45, 4:50) in the lingula.", "Nodule in the lingula"),
        ("Nodule, series 3, image 45 (was series 4, image 50).", "Nodule"),
        ("Knoten (Ser. 4 Im. 38 vs. Voruntersuchung Ser. 3 Im. 71).", "Knoten"),
        (
            "Nodule (best seen on axial image 45, coronal image 5) in the lingula.",
            "Nodule (best seen on axial, coronal)",
        ),
        ("CT 1) Nodule (3:45)", "CT 1) Nodule"),
    ],
)
def test_no_bracket_of_a_cut_reference_stays(text, clause):
    snippets = read({"findings": text}).snippets
    assert snippets
    for snippet in snippets:
        rest = snippet.text.removeprefix(clause)
        assert snippet.text.startswith(clause)
        assert not set(rest) & set("()")
