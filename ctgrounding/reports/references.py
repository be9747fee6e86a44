"""Image references in report text: which series and images a reader is sent to.

The grammar is written over numbers (:mod:`~ctgrounding.reports.numbers`), since every reference holds one and
numbers are rare. With ``n`` for a list of numbers and ranges, it takes

* ``series m image n``, ``image n of series m``, ``Se: m, Im: n``, ``Sm/In``, ``Sm Bn``, ``series/image m/n``;
* ``(m:n)``, ``[m/n]``, ``(m; n)`` in brackets, ``m:n`` between commas, ``m/n`` in a table's cell;
* ``image n``, with the series named earlier in the sentence where there is one;
* ``image n of total``, several series to one list, number words after series or image.

English and German words are alike. A number with a unit, a decimal, a date or a glued letter never counts.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from ctgrounding.reports.numbers import Number, lowered, numbers
from ctgrounding.reports.prior import is_prior
from ctgrounding.reports.report import Reference

LONGEST_RANGE = 2000
LARGEST_IMAGE = 9999
OVERLAP = 48

_RANGE = re.compile(r"\s*(?:[-–—‐‑−]+|\bto\b|\bthrough\b|\bthru\b|\bbis\b|\buntil\b)\s*")
_LIST = re.compile(r"\s*(?:,|;|&|\+|\band\b|\bund\b|\bsowie\b|\bor\b|\boder\b|,\s*and\b|,\s*und\b|,\s*&)\s*")
_TIGHT = re.compile(r"[\s,;:./()\[\]|-]*(?:\bon\b|\bat\b|\bauf\b|\bimage\b)?[\s,;:(]*")
_OF_SERIES = re.compile(
    r"[\s,)\]]*(?:\(|\[|\bof\b|\bin\b|\bon\b|\bfrom\b|\bder\b|\bdes\b|\bvon\b|\baus\b|\bin der\b)+[\s(\[]*(?:the"
    r"|der|axial|coronal|sagittal|axiale[nr]?)?\s*"
)
_COMMA_SERIES = re.compile(r"[\s,;/|]*")
_TOTAL = re.compile(r"\s*(?:\(?\s*\bof\b|\(?\s*\bvon\b|/|\bout of\b)\s*")
_PAIR_LINK = re.compile(r"\s*[:;/]\s*")
_SERIES_LINK = re.compile(r"\s*(?:[:;/,]|[-–])?\s*(?:\()?\s*")
_LIST_END = re.compile(
    r"\s*(?:[,;.:)\]|&+/<–—‐-]|$|\n|and\b|und\b|sowie\b|to\b|bis\b|through\b|of\b|in\b|on\b|from\b|der\b|von\b|aus\b)"
)
_SENTENCE_END = re.compile(
    r"[.!?](?=\s+[^\W\da-z])|\n\s*\n|\n\s*(?:[-*•·]|\d+[.)])\s|\n[^\n:]{2,40}:\s|[^,;(\s]\s(?:no|kein\w*)\s"
)
_NO_TIME = re.compile(r"\s?(?:uhr|hours?|hrs?|h\b|am\b|pm\b|a\.m|p\.m|o'clock)")
_CLOCK = re.compile(
    r"\b(?:at|um|gegen|time|uhrzeit|called|telefon\w*|discussed|reported|notified|acquired|since|ab)\s*$"
)
_CONTACT = re.compile(
    r"\b(?:contacted|called|notified|informed|communicated|discussed|paged|telefon\w*|mitgeteilt|informiert"
    r"|übermittelt)\b"
)
_SCORE = re.compile(
    r"(?:scor\w*|grad(?:e|es|ing|ed)?|stage|stadi\w+|deauville|fazekas|power|strength|quality|qualit\w+"
    r"|nodes?\s+positive"
    r"|positive\s+nodes?|resected|cycles?|zykl\w+|ratio|verh\w+ltnis|verd\w+nnt|dilut\w+|tit(?:er|re)|ecog"
    r"|gleason|asa"
    r"|bi-?rads|birads|pi-?rads|nyha|pain|schmerz\w*|gcs|lymph\s?nodes?\s+\w*|fraktion\w*|fractions?|gy|weeks?"
    r"|pregnan\w*"
    r"|seite|page|p\.|abb\.?|fig\.?|figure|tabelle|table|chapter|kapitel|segments?|segmente?|level|lwk|bwk|hwk"
    r"|sts)\W*$"
)
_TABLE = re.compile(r"(?:series|serie|ser|se|s)\s?[/|:]\s?(?:images?|img|im|i|bild|b)\b")


def find_references(text: str) -> list[Reference]:
    """Every reference to images in a text, in reading order.

    Args:
        text: A report, a section or a sentence, English or German.

    Returns:
        References with spans in ``text``; their ``snippet`` and ``section`` are empty.

    Examples:
        >>> [(r.series, r.images) for r in find_references("Cyst (series 4, images 12-14), was 9 mm.")]
        [(4, (12, 13, 14))]
        >>> find_references("Im Segment 4 der Leber 2 Zysten, 3:2 cm.")
        []
    """
    low = lowered(text)
    tokens = numbers(low)
    return _Parser(low, tokens).parse() if tokens else []


class _Parser:
    """One pass over the numbers of a text; every method that reads returns the place after what it took."""

    def __init__(self, low: str, tokens: Sequence[Number]) -> None:
        self.low = low
        self.tokens = tokens
        self.found: list[Reference] = []
        self.carried: int | None = None
        self.last_series: int | None = None
        self.carried_at = 0
        self.scanned = 0
        self.has_table = bool(_TABLE.search(low)) if "|" in low or "\t" in low else False

    def parse(self) -> list[Reference]:
        place = 0
        while place < len(self.tokens):
            token = self.tokens[place]
            if self.carried is not None and _SENTENCE_END.search(
                self.low, max(self.carried_at - 1, self.scanned - OVERLAP), token.tag_start
            ):
                self.carried = None
            self.scanned = token.tag_start
            place = max(self._read(place, token), place + 1)
        return self.found

    def _read(self, place: int, token: Number) -> int:
        if token.value < 0:
            return place
        if token.tag in ("series", "letter_series"):
            return self._from_series(place)
        if token.tag in ("image", "im", "same") and not token.has_comma:
            return self._from_image(place)
        if token.tag == "pair":
            return self._pairs(place)
        if token.tag == "" and self._is_bare_pair(place):
            return self._pairs(place)
        if token.tag == "" and self._is_further_image(place):
            return self._from_image(place)
        return place

    def _from_series(self, place: int) -> int:
        """``series m [, m ...] image n``; a series without image is carried to an image later in the sentence."""
        first = self.tokens[place]
        series = [first.value]
        at = place + 1
        while self._is_untagged(at) and _LIST.fullmatch(self.tokens[at].link) and self._leads_to_image(at + 1):
            series.append(self.tokens[at].value)
            at += 1
        token = self._token(at)
        if token is None or token.value < 0:
            return self._carry(first, at)
        if (self._is_image_after_series(first, token) and _TIGHT.fullmatch(token.link)) or (
            token.tag == "" and self._is_plain_pair(first, token, at)
        ):
            images, end = self._images(at)
        else:
            return self._carry(first, at)
        if not images:
            return self._carry(first, at)
        for number in series:
            self._add(number, images, place, end)
        return end

    def _is_image_after_series(self, series: Number, token: Number) -> bool:
        letters = series.tag == "letter_series" and token.tag == "letter_image" and "," in token.link
        if letters and not self._opens_bracket(series.tag_start):
            return False
        return token.tag in ("image", "im", "letter_image") and not token.has_comma

    def _leads_to_image(self, at: int) -> bool:
        token = self._token(at)
        if token is None:
            return False
        if token.tag == "image":
            return bool(_TIGHT.fullmatch(token.link))
        return token.tag == "" and bool(_LIST.fullmatch(token.link)) and self._leads_to_image(at + 1)

    def _is_plain_pair(self, series: Number, token: Number, at: int) -> bool:
        """Whether an untagged number after ``series m`` is its image: ``S7: 313``, ``series 4/112``, ``se 4, 112``."""
        if not _SERIES_LINK.fullmatch(token.link) or not token.link.strip() or "(" in token.link:
            return False
        if series.tag == "letter_series":
            return token.link.strip() in (":", "/") and self._opens_bracket(series.tag_start)
        return token.link.strip() != "," or self._closes(at)

    def _closes(self, at: int) -> bool:
        return bool(re.compile(r"\s*[)\],;.]").match(self.low, self.tokens[at].end))

    def _carry(self, series: Number, at: int) -> int:
        if series.tag == "series" or (series.tag == "letter_series" and self._opens_bracket(series.tag_start)):
            self.carried, self.carried_at = series.value, series.end
        return at

    def _from_image(self, place: int) -> int:
        """``image n``, with ``of series m`` after it or the series carried from before."""
        token = self.tokens[place]
        pair = self._token(place + 1)
        if (
            pair is not None
            and pair.tag == ""
            and pair.value >= 0
            and pair.link.strip() == ":"
            and token.tag == "image"
        ):
            return self._pairs(place)
        images, at = self._images(place)
        if not images:
            return place
        series, end = self._series_after(at)
        if series is None:
            if token.tag == "im" and not self._is_im_tag(place, at):
                return place
            if token.tag == "same":
                series = self.last_series
            elif self.carried is not None:
                series = self.carried
            self._add(series, images, place, at)
            return at
        self._add(series, images, place, end)
        return end

    def _is_further_image(self, place: int) -> bool:
        """Whether "50 (series 4)" goes on from "images 45 (series 3) and"."""
        token, series = self.tokens[place], self._token(place + 1)
        if place == 0 or series is None or self.tokens[place - 1].tag != "series" or not self.found:
            return False
        follows = (
            _LIST.fullmatch(token.link.lstrip(" )]")) is not None and self.found[-1].end >= self.tokens[place - 1].end
        )
        return follows and series.tag == "series" and _OF_SERIES.fullmatch(series.link) is not None

    def _is_im_tag(self, place: int, end: int) -> bool:
        """Whether ``im n`` alone is an image: German "im 6. Segment" is not."""
        token = self.tokens[place]
        after = self.low[self.tokens[end - 1].end :][:2].lstrip()[:1]
        before = self.low[max(0, token.tag_start - 4) : token.tag_start]
        return after in (")", "]", ",", ";") and (
            self._opens_bracket(token.tag_start) or before.strip() in ("on", "see")
        )

    def _series_after(self, at: int) -> tuple[int | None, int]:
        token = self._token(at)
        if token is None or token.value < 0 or token.tag not in ("series", "letter_series"):
            return None, at
        if _OF_SERIES.fullmatch(token.link):
            return token.value, at + 1
        following = self._token(at + 1)
        own_image = (
            following is not None
            and following.tag in ("image", "im", "letter_image")
            and following.value >= 0
            and _TIGHT.fullmatch(following.link)
            and not re.search(r"[)\]\n]|\.\s", following.link)
        )
        if _COMMA_SERIES.fullmatch(token.link) and not own_image:
            return token.value, at + 1
        return None, at

    def _is_bare_pair(self, place: int) -> bool:
        series, image = self.tokens[place], self._token(place + 1)
        if image is None or image.tag != "" or image.value < 0 or not _PAIR_LINK.fullmatch(image.link):
            return False
        sign = image.link.strip()
        written = self.low[series.start : image.end]
        before = self.low[max(0, series.start - 40) : series.start]
        if self._in_cell(place):
            return sign == "/"
        if image.value > LARGEST_IMAGE or _NO_TIME.match(self.low, image.end) or written.startswith("0"):
            return False
        in_brackets = self._opens_bracket(series.start) or self._continues(series)
        if _SCORE.search(before.rstrip(" ([")) or (series.value == 1 and sign == ":" and not in_brackets):
            return False
        if sign == ":":
            return self._colon_pair(series, image, in_brackets, before)
        return in_brackets and (sign == ";" or self._slash_pair(place))

    def _colon_pair(self, series: Number, image: Number, in_brackets: bool, before: str) -> bool:
        is_time = series.value < 24 and image.value < 60 and image.end - image.start == 2
        if _CLOCK.search(before.rstrip(" ([")) or (is_time and _CONTACT.search(before)):
            return False
        if in_brackets:
            return not re.match(r"\s?(?:ratio|verd|dil|mischung)", self.low[image.end : image.end + 12])
        lead = re.search(r"(?:,|\bon|\bsee|\bimages?|\bat|\bauf|\bsiehe|\be\.g\.|\bcf\.?)\s*$", before)
        return bool(lead) and bool(_LIST_END.match(self.low, image.end))

    def _slash_pair(self, place: int) -> bool:
        """Whether ``(m/n)`` is a reference and not a fraction, a score or a month with its year."""
        series, image = self.tokens[place], self.tokens[place + 1]
        if 1900 <= image.value <= 2100 and series.value <= 12:
            return False
        following = self._token(place + 2)
        if following is not None and following.link.strip() == "/" and following.tag == "":
            return False
        if self.last_series is not None and series.value in {r.series for r in self.found[-8:]}:
            return True
        return image.value > 12 or image.value < series.value

    def _pairs(self, place: int) -> int:
        """``m:n``, its further images, and pairs listed after it."""
        series = self.tokens[place]
        if self._token(place + 1) is None:
            return place
        images, at = self._images(place + 1)
        if not images:
            return place
        self._add(series.value, images, place, at)
        token = self._token(at)
        if (
            token is not None
            and token.tag == ""
            and token.value >= 0
            and _LIST.fullmatch(token.link)
            and self._pair_follows(at)
        ):
            return self._pairs_iterative(at)
        return at

    def _pairs_iterative(self, at: int) -> int:
        while True:
            images, end = self._images(at + 1)
            if not images:
                return at
            self._add(self.tokens[at].value, images, at, end)
            at = end
            token = self._token(at)
            if (
                token is None
                or token.tag
                or token.value < 0
                or not _LIST.fullmatch(token.link)
                or not self._pair_follows(at)
            ):
                return at

    def _pair_follows(self, at: int) -> bool:
        token = self._token(at + 1)
        return token is not None and token.tag == "" and token.value >= 0 and token.link.strip() in (":", "/", ";")

    def _images(self, place: int) -> tuple[tuple[int, ...], int]:
        """Numbers and ranges from ``place`` on, the total of ``n of total`` passed over."""
        first = self.tokens[place]
        if not 0 <= first.value <= LARGEST_IMAGE:
            return (), place
        images = [first.value]
        at = place + 1
        while (token := self._token(at)) is not None and token.value >= 0:
            if token.tag == "" and _RANGE.fullmatch(token.link):
                images += _range(images[-1], token)
            elif (
                token.tag == ""
                and _TOTAL.fullmatch(token.link)
                and (token.link.strip() != "/" or not self._pair_follows(at))
            ):
                pass
            elif self._is_listed(at, token):
                images.append(token.value)
            else:
                break
            at += 1
        return tuple(dict.fromkeys(images)), at

    def _is_listed(self, at: int, token: Number) -> bool:
        if token.value > LARGEST_IMAGE:
            return False
        if token.tag in ("image", "letter_image", "im") and not token.has_comma:
            if not (_LIST.fullmatch(token.link) or _RANGE.fullmatch(token.link)):
                return False
            following = self._token(at + 1)
            return (
                following is None
                or following.tag not in ("series", "letter_series")
                or not _COMMA_SERIES.fullmatch(following.link)
                or following.link.strip() == ""
            )
        return (
            token.tag == ""
            and bool(_LIST.fullmatch(token.link))
            and not self._pair_follows(at)
            and bool(_LIST_END.match(self.low, token.end))
        )

    def _token(self, at: int) -> Number | None:
        return self.tokens[at] if at < len(self.tokens) else None

    def _is_untagged(self, at: int) -> bool:
        token = self._token(at)
        return token is not None and token.tag == "" and token.value >= 0

    def _opens_bracket(self, start: int) -> bool:
        return _opening(self.low[max(0, start - 28) : start]) > 0

    def _continues(self, series: Number) -> bool:
        """Whether a pair follows a reference within its bracket."""
        if not self.found:
            return False
        between = self.low[self.found[-1].end : series.start]
        return len(between) < 8 and bool(re.fullmatch(r"\s*(?:,|;|&|and|und)\s*(?:see\s*)?", between))

    def _in_cell(self, place: int) -> bool:
        if not self.has_table:
            return False
        before = self.low[max(0, self.tokens[place].start - 4) : self.tokens[place].start].rstrip(" ")[-1:]
        after = self.low[self.tokens[place + 1].end :][:4].lstrip(" ")[:1]
        return before in ("|", "\t", "") and after in ("|", "\t", "\n", "")

    def _add(self, series: int | None, images: tuple[int, ...], place: int, end: int) -> None:
        start, stop = self.tokens[place].tag_start, self.tokens[end - 1].end
        start, stop = _with_brackets(self.low, start, stop)
        prior = is_prior(self.low, start, stop, self.found[-1].end if self.found else 0)
        self.found.append(Reference(series, images, start, stop, prior))
        if series is not None:
            self.last_series = series
            if not prior:
                self.carried, self.carried_at = series, stop


def _range(first: int, last: Number) -> Sequence[int]:
    """Images after ``first`` up to ``last``; ``110-6`` is read as 110 to 116."""
    stop = last.value
    if stop < first:
        digits = len(str(last.value))
        completed = first - first % 10**digits + stop
        stop = completed if completed > first and digits < len(str(first)) else stop
    if first < stop <= first + LONGEST_RANGE:
        return range(first + 1, stop + 1)
    if first - LONGEST_RANGE <= stop < first:
        return range(first - 1, stop - 1, -1)
    return (stop,)


_INSIDE = re.compile(
    r"[(\[]\s*(?:see|best seen on|in|on|e\.g\.|siehe|vgl\.?|cf\.?|dort|prior|previous(?: study| exam| ct)?|axial"
    r"|same series,|same series)?\s*$"
)
_AFTER_INSIDE = re.compile(r"[^()\[\]\n]{0,40}?[)\]]")


@lru_cache(maxsize=4096)
def _opening(before: str) -> int:
    match = _INSIDE.search(before)
    return len(before) - match.start() if match else 0


def _with_brackets(low: str, start: int, stop: int) -> tuple[int, int]:
    """The span widened to the brackets that hold it, where they hold little else."""
    opening = _opening(low[max(0, start - 28) : start])
    if not opening:
        return start, stop
    match = _AFTER_INSIDE.match(low, stop)
    if match is None or re.search(r"\d", match[0]):
        return start, stop
    return start - opening, match.end()
