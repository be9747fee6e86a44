"""Text that may identify a person: what ``inspect`` warns of before shards are handed on.

A search by patterns finds what looks like a date, a name or a number. It misses much and is no de-identification.
"""

import re
from collections.abc import Iterator, Sequence

from ctgrounding.data.records import ScanRecord

_MONTH = r"(?:jan|feb|m[aä]r|mrz|apr|ma[iy]|jun|jul|aug|sep|o[ck]t|nov|de[cz])(?:\.|[a-zä]{1,7})?"  # English and German
PATTERNS = {
    "dates": re.compile(
        r"(?<![\d.])(?:\d{1,2}([./-])\d{1,2}\1(?:19|20)?\d{2}|(?:19|20)\d{2}([./-])\d{1,2}\2\d{1,2})(?![\d.]*\d)"
        rf"|\b\d{{1,2}}\.?\s*{_MONTH}\s+(?:19|20)\d{{2}}\b|\b{_MONTH}\s+\d{{1,2}},?\s+(?:19|20)\d{{2}}\b",
        re.IGNORECASE,
    ),
    "names after titles": re.compile(
        r"\b(?:(?:Dr|Drs|Prof|PD|Mr|Mrs|Ms)\b\.?|Herrn?\b|Frau\b|Miss\b|Doctor\b|Professor\b|Schwester\b)"
        r"(?:\s+(?:med|Dr|dent|univ)\b\.?)*\s+[A-ZÄÖÜ][\w'’-]+"
    ),
    "long numbers": re.compile(r"(?<![\d.,])\d{6,}(?![\d,]*\d)|\b\d+(?:\.\d+){4,}\b"),
}
"""What is looked for, by name."""


def suspicious_kinds(text: str) -> list[str]:
    """Names of the patterns that a text has.

    Examples:
        >>> suspicious_kinds("Compared with 12.03.2019, discussed with Dr. med. Weber.")
        ['dates', 'names after titles']
        >>> suspicious_kinds("Nodule of 12.5 x 8 mm (series 3, images 5-7), cf. 2/14.")
        []
    """
    return [name for name, pattern in PATTERNS.items() if pattern.search(text)]


def suspicious_texts(records: Sequence[ScanRecord]) -> dict[str, tuple[str, ...]]:
    """Name of each pattern that occurs, and the scans in whose texts it does, in order."""
    found: dict[str, list[str]] = {}
    for record in records:
        kinds = {kind for text in _texts(record) for kind in suspicious_kinds(text)}
        for kind in kinds:
            found.setdefault(kind, []).append(record.scan_id)
    return {name: tuple(found[name]) for name in PATTERNS if name in found}


def _texts(record: ScanRecord) -> Iterator[str]:
    yield from record.report.values()
    yield from (snippet.text for snippet in record.snippets)
    yield from (sentence.text for sentence in record.organ_sentences)
