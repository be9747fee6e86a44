"""Clauses around references: as written for a reader to check, and cleaned for a model to be trained on."""

import re
from bisect import bisect_left
from collections.abc import Sequence

from ctgrounding.reports.cleaning import largest_size_mm, tidy, without_comparison, without_remnants
from ctgrounding.reports.report import OrganStatement, Reference, Snippet
from ctgrounding.reports.sentences import Sentence

_LEAD_OUT = re.compile(
    r"[\s,(]*(?:,?\s*(?:as\s+)?(?:best\s+|well\s+)?(?:seen|appreciated|visuali[sz]ed|demonstrated|shown|depicted"
    r"|identified|noted|observed|zu sehen|dargestellt|erkennbar)\s*(?:on|in|at|auf|im|in der)?|\b(?:see|e\.g\."
    r"|siehe|vgl\.?|on|in|at|auf|in der)|\bthe)?[\s,(]*$",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{3,}")
_SIZE = re.compile(r"\d\s?(?:mm|cm)")


def with_clauses(
    text: str,
    parts: Sequence[Sentence],
    section: str,
    references: Sequence[Reference],
    statements: Sequence[OrganStatement],
) -> tuple[list[Reference], list[Snippet]]:
    """References with their clause, and the snippets made of them, repeats merged.

    Args:
        text: The text that all spans count in.
        parts: Sentences of the section.
        section: Its name.
        references: References of the section, in order.
        statements: Statements of the section, in order.
    """
    if not references:
        return [], []
    spans = _up_to_next(_spans(text, parts, references, statements))
    inside: dict[tuple[int, int], list[Reference]] = {}
    for reference, span in zip(references, spans, strict=True):
        inside.setdefault(span, []).append(reference)
    starts = [statement.start for statement in statements]
    clauses = {span: _cut_references(text, *span, found) for span, found in inside.items()}
    pointed, snippets = [], []
    for reference, (first, last) in zip(references, spans, strict=True):
        about = statements[max(0, bisect_left(starts, first) - 1) : bisect_left(starts, last)]
        about = [one for one in about if one.end > first]
        clause = clauses[first, last]
        pointed.append(reference._replace(snippet=clause, section=section))
        snippets.append(_snippet(first, last, clause, reference, section, about))
    return pointed, _merged(snippets)


def _spans(
    text: str, parts: Sequence[Sentence], references: Sequence[Reference], statements: Sequence[OrganStatement]
) -> list[tuple[int, int]]:
    """Characters of the clause of each reference, not yet cut where the next begins."""
    found: list[tuple[int, int]] = []
    at = said = 0
    for number, reference in enumerate(references):
        while at < len(parts) - 1 and parts[at].end <= reference.start:
            at += 1
        first, last = parts[at].start, max(parts[at].end, reference.end)
        before = references[number - 1] if number else None
        if before is not None and found[-1][0] >= first and _goes_on(text, before, reference, found[-1]):
            found.append(found[-1])
            continue
        while said < len(statements) and statements[said].end <= reference.start:
            said += 1
        if before is not None and first <= before.start:
            first = before.end
        found.append(_within(first, last, reference, statements[max(0, said - 1) : said + 3]))
    return found


def _goes_on(text: str, before: Reference, reference: Reference, span: tuple[int, int]) -> bool:
    """Whether a reference belongs to the clause of the one before: only a comparison lies between."""
    between = text[before.end : reference.start]
    if reference.end > span[1]:
        return False
    has_content = len(_WORD.findall(between)) > 1 or _SIZE.search(between)
    return reference.is_prior or not has_content


def _within(first: int, last: int, reference: Reference, near: Sequence[OrganStatement]) -> tuple[int, int]:
    """The span narrowed to the statement that holds the reference, or kept clear of its neighbours."""
    for statement in near:
        if statement.start <= reference.start and reference.end <= statement.end + 1:
            first, last = max(first, statement.start), min(last, statement.end)
            return first, max(last, reference.end)
        if statement.end <= reference.start:
            first = max(first, statement.end)
        elif statement.start >= reference.end:
            last = min(last, statement.start)
    return first, max(last, reference.end)


def _up_to_next(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans cut where the clause of the next reference begins."""
    found: list[tuple[int, int]] = []
    limit: int | None = None
    for place in range(len(spans) - 1, -1, -1):
        first, last = spans[place]
        following = spans[place + 1] if place + 1 < len(spans) else None
        if following is not None and following != spans[place]:
            limit = following[0]
        found.append((first, last if limit is None or limit <= first else min(last, limit)))
    return found[::-1]


def _cut_references(text: str, start: int, end: int, inside: Sequence[Reference]) -> str:
    pieces = []
    at = start
    for reference in sorted(inside, key=lambda one: one.start):
        before = text[at : max(at, reference.start)]
        bracketed = text[reference.start : reference.start + 1] in ("(", "[")
        pieces.append(before.rstrip() if bracketed else _LEAD_OUT.sub("", before))
        at = max(at, reference.end)
    rest = text[at:end]
    pieces.append(rest if rest[:1] in (",", ".", ";", ")", "") or not pieces[-1] else f" {rest.lstrip()}")
    return tidy(without_remnants("".join(pieces)))


def _snippet(
    first: int, last: int, clause: str, reference: Reference, section: str, about: Sequence[OrganStatement]
) -> Snippet:
    told = [one for one in about if one.status != "normal"] or about
    organs = tuple(dict.fromkeys(organ for one in told for organ in one.organs))
    masks = tuple(dict.fromkeys(mask for one in told for mask in one.masks))
    cleaned = without_comparison(clause)
    size_mm = largest_size_mm(cleaned)
    return Snippet(
        cleaned, reference.series, reference.images, first, last, section, organs, masks, size_mm, reference.is_prior
    )


def _merged(snippets: Sequence[Snippet]) -> list[Snippet]:
    """The same text at the same series and time once, with the images of all."""
    kept: dict[tuple[str, int | None, bool, str], Snippet] = {}
    for one in snippets:
        if not one.text:
            continue
        key = one.text.lower(), one.series, one.is_prior, one.section
        if key in kept:
            one = kept[key]._replace(images=tuple(dict.fromkeys((*kept[key].images, *one.images))))
        kept[key] = one
    return list(kept.values())
