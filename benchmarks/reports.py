"""Reports read a second and core: references, sections and organ sentences together.

Run ``python benchmarks/reports.py [--reports 10000] [--stream 0]``. Prints one JSON object. Distinct reports of about
250 words are put together from sentence frames with drawn places, findings, sizes and references; every memory of
words and sentences is cleared before the clock starts, and the share of sentences that come back is printed, since
those are read once. ``--stream N`` also reads N reports one after the other and prints how the peak memory grew.
"""

import argparse
import json
import random
import resource
import time

from ctgrounding.reports import read, statements
from ctgrounding.reports.lexicon import lexicon
from ctgrounding.reports.sections import find_sections
from ctgrounding.reports.sentences import sentences

LOBES = ["right upper lobe", "middle lobe", "right lower lobe", "left upper lobe", "lingula", "left lower lobe"]
ORGANS = [
    "liver",
    "spleen",
    "pancreas",
    "left kidney",
    "right kidney",
    "left adrenal gland",
    "prostate",
    "thyroid gland",
]
LESIONS = ["cyst", "hypodense lesion", "calcification", "enhancing mass", "nodule", "hemangioma"]
DEGREES = ["small", "mild", "moderate", "large", "stable", "new", "unchanged", "ill-defined", "subtle"]
FRAMES = [
    "There is a {mm} mm {degree} nodule in the {lobe} (series {s}, image {i}), previously {pmm} mm.",
    "{Degree} ground-glass opacity in the {lobe} measuring {mm} x {pmm} mm ({s}:{i}).",
    "A {degree} {lesion} of {mm} mm is seen in the {organ}, best seen on image {i} of series {s}.",
    "The {organ} shows a {degree} {lesion} measuring up to {mm} mm without other abnormality.",
    "{Degree} bilateral pleural effusions with compressive atelectasis of the {lobe}.",
    "No consolidation, pneumothorax or pleural effusion in the {lobe}.",
    "The {organ} and the {organ2} are unremarkable.",
    "Degenerative changes of the spine at L{v}/{v1} with {degree} disc space narrowing.",
    "Enlarged {degree} mediastinal lymph node measuring {mm} mm in short axis (series {s}, images {i}-{i2}).",
    "The ascending aorta measures {mm} mm with {degree} calcified plaques.",
    "The heart is normal in size, but there is a {degree} pericardial effusion of {pmm} mm.",
    "No evidence of metastasis in the {organ}; no enlarged lymph nodes.",
]


def report(rng: random.Random) -> str:
    """One report of about 250 words."""
    said = [sentence(rng) for _ in range(17)]
    return f"INDICATION: Staging.\n\nFINDINGS: {' '.join(said)}\n\nIMPRESSION: {sentence(rng)} {sentence(rng)}"


def sentence(rng: random.Random) -> str:
    degree, first = rng.choice(DEGREES), rng.randint(10, 400)
    vertebra = rng.randint(1, 4)
    values = {"mm": rng.randint(3, 60), "pmm": rng.randint(3, 60), "s": rng.randint(2, 9), "i": first, "i2": first + 4}
    return rng.choice(FRAMES).format(
        lobe=rng.choice(LOBES), organ=rng.choice(ORGANS), organ2=rng.choice(ORGANS), lesion=rng.choice(LESIONS),
        degree=degree, Degree=degree.capitalize(), v=vertebra, v1=vertebra + 1, **values,
    )  # fmt: skip


def clear() -> None:
    lexicon.cache_clear()
    statements._spoken.cache_clear()
    statements._topic.cache_clear()
    lexicon()


def repeated(texts: list[str]) -> float:
    seen: set[str] = set()
    total = 0
    for text in texts:
        for start, end in find_sections(text).values():
            for one in sentences(text, start, end):
                total += 1
                seen.add(text[one.start : one.end])
    return 1 - len(seen) / max(1, total)


def measure(texts: list[str]) -> float:
    clear()
    begin = time.process_time()
    for text in texts:
        read(text)
    return len(texts) / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=10_000)
    parser.add_argument("--stream", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(0)
    texts = [report(rng) for _ in range(given.reports)]
    numbers = {
        "reports_per_core_second": round(measure(texts), 1),
        "words_per_report": round(sum(len(text.split()) for text in texts) / len(texts), 1),
        "repeated_sentences": round(repeated(texts), 3),
        "reports": len(texts),
    }
    if given.stream:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(given.stream):
            read(report(rng))
        numbers["peak_growth_mb"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
