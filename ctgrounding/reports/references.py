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

from ctgrounding.reports.bare_pairs import BarePairs
from ctgrounding.reports.image_lists import COMMA_SERIES, LIST, with_brackets
from ctgrounding.reports.numbers import Number, lowered, numbers
from ctgrounding.reports.prior import is_prior
from ctgrounding.reports.report import Reference

OVERLAP = 48
_TIGHT = re.compile(r"[\s,;:./()\[\]|-]*(?:\bon\b|\bat\b|\bauf\b|\bimage\b)?[\s,;:(]*")
_OF_SERIES = re.compile(
    r"[\s,)\]]*(?:\(|\[|\bof\b|\bin\b|\bon\b|\bfrom\b|\bder\b|\bdes\b|\bvon\b|\baus\b|\bin der\b)+[\s(\[]*(?:the"
    r"|der|axial|coronal|sagittal|axiale[nr]?)?\s*"
)
_SERIES_LINK = re.compile(r"\s*(?:[:;/,]|[-–])?\s*(?:\()?\s*")
_CLOSING = re.compile(r"\s*[)\],;.]")
_APART = re.compile(r"[)\]\n]|\.\s")
_SENTENCE_END = re.compile(
    r"[.!?](?=\s+[^\W\da-z])|\n\s*\n|\n\s*(?:[-*•·]|\d+[.)])\s|\n[^\n:]{2,40}:\s|[^,;(\s]\s(?:no|kein\w*)\s"
)


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


class _Parser(BarePairs):
    """One pass over the numbers of a text; every method that reads returns the place after what it took."""

    def __init__(self, low: str, tokens: Sequence[Number]) -> None:
        super().__init__(low, tokens)
        self.carried: int | None = None
        self.carried_at = 0
        self.scanned = 0

    def parse(self) -> list[Reference]:
        place = 0
        while place < len(self.tokens):
            token = self.tokens[place]
            if self.carried is not None and self._has_ended(max(self.carried_at - 1, self.scanned - OVERLAP), token):
                self.carried = None
            self.scanned = token.tag_start
            place = max(self._read(place, token), place + 1)
        return self.found

    def _has_ended(self, start: int, token: Number) -> bool:
        """Whether the sentence of a carried series ends before a number."""
        between = self.low[start : token.tag_start]
        may_end = "." in between or "\n" in between or " no " in between or " kein" in between
        may_end = may_end or "!" in between or "?" in between
        return may_end and _SENTENCE_END.search(self.low, start, token.tag_start) is not None

    def _read(self, place: int, token: Number) -> int:
        if token.value < 0:
            return place
        if token.tag in ("series", "letter_series"):
            return self._from_series(place)
        if token.tag in ("image", "im", "same") and not token.has_comma:
            return self._from_image(place)
        if token.tag == "pair":
            return self._pairs(place)
        if token.tag == "" and self.is_bare_pair(place):
            return self._pairs(place)
        if token.tag == "" and self._is_further_image(place):
            return self._from_image(place)
        return place

    def _from_series(self, place: int) -> int:
        """``series m [, m ...] image n``; a series without image is carried to an image later in the sentence."""
        first = self.tokens[place]
        series = [first.value]
        at = place + 1
        while self.is_untagged(at) and LIST.fullmatch(self.tokens[at].link) and self._leads_to_image(at + 1):
            series.append(self.tokens[at].value)
            at += 1
        token = self.token(at)
        if token is None or token.value < 0:
            return self._carry(first, at)
        if (self._is_image_after_series(first, token) and _TIGHT.fullmatch(token.link)) or (
            token.tag == "" and self._is_plain_pair(first, token, at)
        ):
            images, end = self.images(at)
        else:
            return self._carry(first, at)
        if not images:
            return self._carry(first, at)
        for number in series:
            self._add(number, images, place, end)
        return end

    def _is_image_after_series(self, series: Number, token: Number) -> bool:
        letters = series.tag == "letter_series" and token.tag == "letter_image" and "," in token.link
        if letters and not self.opens_bracket(series.tag_start):
            return False
        return token.tag in ("image", "im", "letter_image") and not token.has_comma

    def _leads_to_image(self, at: int) -> bool:
        token = self.token(at)
        if token is None:
            return False
        if token.tag == "image":
            return bool(_TIGHT.fullmatch(token.link))
        return token.tag == "" and bool(LIST.fullmatch(token.link)) and self._leads_to_image(at + 1)

    def _is_plain_pair(self, series: Number, token: Number, at: int) -> bool:
        """Whether an untagged number after ``series m`` is its image: ``S7: 313``, ``series 4/112``, ``se 4, 112``."""
        if not _SERIES_LINK.fullmatch(token.link) or not token.link.strip() or "(" in token.link:
            return False
        if series.tag == "letter_series":
            return token.link.strip() in (":", "/") and self.opens_bracket(series.tag_start)
        return token.link.strip() != "," or self._closes(at)

    def _closes(self, at: int) -> bool:
        return bool(_CLOSING.match(self.low, self.tokens[at].end))

    def _carry(self, series: Number, at: int) -> int:
        if series.tag == "series" or (series.tag == "letter_series" and self.opens_bracket(series.tag_start)):
            self.carried, self.carried_at = series.value, series.end
        return at

    def _from_image(self, place: int) -> int:
        """``image n``, with ``of series m`` after it or the series carried from before."""
        token = self.tokens[place]
        pair = self.token(place + 1)
        if (
            pair is not None
            and pair.tag == ""
            and pair.value >= 0
            and pair.link.strip() == ":"
            and token.tag == "image"
        ):
            return self._pairs(place)
        images, at = self.images(place)
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
        token, series = self.tokens[place], self.token(place + 1)
        if place == 0 or series is None or self.tokens[place - 1].tag != "series" or not self.found:
            return False
        follows = (
            LIST.fullmatch(token.link.lstrip(" )]")) is not None and self.found[-1].end >= self.tokens[place - 1].end
        )
        return follows and series.tag == "series" and _OF_SERIES.fullmatch(series.link) is not None

    def _is_im_tag(self, place: int, end: int) -> bool:
        """Whether ``im n`` alone is an image: German "im 6. Segment" is not."""
        token = self.tokens[place]
        after = self.low[self.tokens[end - 1].end :][:2].lstrip()[:1]
        before = self.low[max(0, token.tag_start - 4) : token.tag_start]
        return after in (")", "]", ",", ";") and (
            self.opens_bracket(token.tag_start) or before.strip() in ("on", "see")
        )

    def _series_after(self, at: int) -> tuple[int | None, int]:
        token = self.token(at)
        if token is None or token.value < 0 or token.tag not in ("series", "letter_series"):
            return None, at
        if _OF_SERIES.fullmatch(token.link):
            return token.value, at + 1
        following = self.token(at + 1)
        own_image = (
            following is not None
            and following.tag in ("image", "im", "letter_image")
            and following.value >= 0
            and _TIGHT.fullmatch(following.link)
            and not _APART.search(following.link)
        )
        if COMMA_SERIES.fullmatch(token.link) and not own_image:
            return token.value, at + 1
        return None, at

    def _pairs(self, place: int) -> int:
        """``m:n``, its further images, and pairs listed after it."""
        series = self.tokens[place]
        if self.token(place + 1) is None:
            return place
        images, at = self.images(place + 1)
        if not images:
            return place
        self._add(series.value, images, place, at)
        token = self.token(at)
        if (
            token is not None
            and token.tag == ""
            and token.value >= 0
            and LIST.fullmatch(token.link)
            and self.pair_follows(at)
        ):
            return self._pairs_iterative(at)
        return at

    def _pairs_iterative(self, at: int) -> int:
        while True:
            images, end = self.images(at + 1)
            if not images:
                return at
            self._add(self.tokens[at].value, images, at, end)
            at = end
            token = self.token(at)
            if (
                token is None
                or token.tag
                or token.value < 0
                or not LIST.fullmatch(token.link)
                or not self.pair_follows(at)
            ):
                return at

    def _add(self, series: int | None, images: tuple[int, ...], place: int, end: int) -> None:
        start, stop = self.tokens[place].tag_start, self.tokens[end - 1].end
        start, stop = with_brackets(self.low, start, stop)
        prior = is_prior(self.low, start, stop, self.found[-1].end if self.found else 0)
        self.found.append(Reference(series, images, start, stop, prior))
        if series is not None:
            self.last_series = series
            if not prior:
                self.carried, self.carried_at = series, stop
