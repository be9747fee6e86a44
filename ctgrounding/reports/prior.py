"""Whether a reference points into an earlier examination."""

import re

WINDOW = 72

_CUE = (
    r"(?:previous(?:ly)?|prior|former(?:ly)?|earlier|old|outside|zuvor|vormals|vorher(?:ig\w*)?|fr(?:ü|ue)her\w*"
    r"|ehemals|damals"
    r"|vorauf\w+|vorunter\w+|vorbefund\w*|vor-ct|vor-?studie|extern\w*)"
)
_INSIDE = re.compile(
    rf"\b{_CUE}\b|\bdort\b|\bdamals\b|\bthat (?:exam\w*|study|ct|scan|date)\b|\bon \d|\bof \d+/\d+/\d+|\bvom \d"
)
_SIZE = r"\d+(?:[.,]\d+)?(?:\s?[x×]\s?\d+(?:[.,]\d+)?){0,2}\s?(?:mm|cm|ml)\b"
_BEFORE_SIZE = re.compile(
    rf"(?:\b{_CUE}\b|[,;(]\s*(?:was|war)\b|\bvs\b\.?|\bversus\b|\bcompared (?:to|with)\b"
    r"|\b(?:down|up|increased|decreased|grown|shrunk) from\b|\bgegen(?:ü|ue)ber\b)"
    rf"[^,;()\[\]]{{0,44}}?{_SIZE}[^,;()\[\]]{{0,24}}$"
)
_DATED_SIZE = re.compile(
    r"\bon \d{1,4}[/.-]\d{1,2}(?:[/.-]\d{2,4})?\s*$|\b(?:am|vom) \d{1,2}\.\d{1,2}\.(?:\d{2,4})?\s*$"
)
_BEFORE_PLAIN = re.compile(
    rf"(?:\b(?:on|in|at|of|see|vs\.?|versus|auf|in der|im|an der|bei der)\s+(?:the\s+|der\s+|dem\s+|den\s+)?"
    rf"|[,;(]\s*){_CUE}"
    r"(?:\s+(?:exam\w*|stud\w+|ct|scan|imag\w+|series|vom|of|dated|[\d./-]+|unter\w+|auf\w+))*[\s,:(]*$"
)
_WAS = re.compile(r"[,;(]\s*(?:was|war)\s*$")
_DATED = re.compile(r"\b(?:from|dated|vom|von)\s+\d{1,4}[/.-]\d{1,2}[/.-]\d{2,4}[\s,:(]*$")
_SAME = re.compile(
    r"\b(?:unchanged|stable|compared|since|than|gegen(?:ü|ue)ber|unver(?:ä|ae)ndert|seit|im vergleich|wie)\b"
)
_AFTER = re.compile(
    rf"\s*[)\],]?\s*(?:(?:on|of|in|from|at|auf|in|der|aus)\s+(?:the\s+|der\s+|dem\s+)?(?:level-matched\s+)?{_CUE}"
    rf"|(?:on|in|of) that (?:exam|study|ct|scan)|(?:on|from|vom|am) \d+[/.-]\d)"
)
_ANY = re.compile(
    r"prev|prior|former|earlier|old|outside|vor|fr(?:ü|ue)h|ehemal|damal|extern|dort|that |\bwas\b|\bwar\b|vs|versus"
    r"|compar|from|dated|gegen|\bon \d|\bam \d|\bvom \d|\bof \d"
)
_BOUND = re.compile(r"(?<!\bvs)[.;!?\n]\s|\n|,\s(?=now|jetzt|current)")


def is_prior(low: str, start: int, end: int, floor: int) -> bool:
    """Whether the reference at ``start:end`` belongs to an earlier examination.

    Args:
        low: The text in lower case.
        start: First character of the reference.
        end: One past its last.
        floor: End of the reference before it; nothing before is looked at.
    """
    if not _ANY.search(low, max(floor, start - WINDOW), end + WINDOW):
        return False
    if _INSIDE.search(low, start, end) or _AFTER.match(low, end, end + 48):
        return True
    before = low[max(floor, start - WINDOW) : start]
    last = 0
    for bound in _BOUND.finditer(before):
        last = bound.start() if bound[0].startswith(";") else bound.end()
    before = before[last:]
    if any(cue.search(before) for cue in (_BEFORE_SIZE, _DATED_SIZE, _WAS)):
        return True
    match = _BEFORE_PLAIN.search(before) or _DATED.search(before)
    return match is not None and not _SAME.search(before[: match.start() + 1])
