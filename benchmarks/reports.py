"""Reports read a second and core: references, sections and organ sentences together.

Run ``python benchmarks/reports.py [--quick] [--reports 10000] [--stream 0] [--workers 1]``. Prints one JSON object.
Distinct reports of about 250 words are put together from sentence frames with drawn places, findings, sizes and
references; every memory of words and sentences is cleared before the clock starts. Printed beside the rate are
the share of sentences that come back word for word (``repeated_sentences``), the share whose statements were
remembered from a sentence that differs in sizes and image numbers alone (``alike_sentences``), the rate of the
quickest hundred reports, and what a call of a Python function costs here (about 40 ns on an idle core of 2024;
more on a shared one).

``--stream N`` also reads N reports one after the other and prints how much memory grew from the first fifth to the
end. ``--workers N`` also reads them in N processes and says whether the results are the same to the byte.
"""

import argparse
import itertools
import json
import os
import random
import time
from pathlib import Path

from ctgrounding.reports import read, statements
from ctgrounding.reports.commands import read_lines
from ctgrounding.reports.lexicon import lexicon
from ctgrounding.reports.sections import find_sections
from ctgrounding.reports.sentences import sentences

PACE = 100
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


def measure(texts: list[str]) -> dict[str, float]:
    clear()
    marks = [time.process_time()]
    for number, text in enumerate(texts, 1):
        read(text)
        if number % PACE == 0:
            marks.append(time.process_time())
    seconds = time.process_time() - marks[0]
    quickest = min((later - sooner for sooner, later in itertools.pairwise(marks)), default=seconds)
    known = statements._spoken.cache_info()
    return {
        "reports_per_core_second": round(len(texts) / seconds, 1),
        "quickest_reports_per_core_second": round(PACE / quickest, 1) if len(texts) >= PACE else 0.0,
        "alike_sentences": round(known.hits / max(1, known.hits + known.misses), 3),
    }


def call_ns() -> float:
    def same(value: int) -> int:
        return value

    begin = time.process_time()
    for number in range(200_000):
        same(number)
    return (time.process_time() - begin) / 200_000 * 1e9


def memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def stream(count: int, rng: random.Random) -> float:
    """Growth of memory in MB from the first fifth of a stream to its end."""
    early = 0.0
    for number in range(count):
        if number == count // 5:
            early = memory_mb()
        read(report(rng))
    return memory_mb() - early


def same_with(workers: int, texts: list[str]) -> bool:
    lines = [(f"line {number}", json.dumps({"id": number, "text": text})) for number, text in enumerate(texts)]
    return list(read_lines(lines)) == list(read_lines(lines, workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a thousand reports")
    parser.add_argument("--reports", type=int, default=10_000)
    parser.add_argument("--stream", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(0)
    texts = [report(rng) for _ in range(1000 if given.quick else given.reports)]
    numbers: dict[str, object] = {
        **measure(texts),
        "repeated_sentences": round(repeated(texts), 3),
        "words_per_report": round(sum(len(text.split()) for text in texts) / len(texts), 1),
        "reports": len(texts),
        "distinct_reports": len(set(texts)),
        "python_call_ns": round(call_ns(), 1),
    }
    if given.stream:
        numbers["memory_growth_mb"] = round(stream(given.stream, rng), 1)
    if given.workers > 1:
        numbers["same_with_workers"] = same_with(given.workers, texts[:1000])
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
