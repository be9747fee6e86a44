"""Two numbers without a word: ``(4:112)`` and ``(4/112)`` are references, times, scores and fractions are not."""

import re
from collections.abc import Sequence

from ctgrounding.reports.image_lists import LARGEST_IMAGE, LIST_END, ImageLists
from ctgrounding.reports.numbers import Number

_PAIR_LINK = re.compile(r"\s*[:;/]\s*")
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
    r"|sts|p?n[0-3][abc]?)\W*$"
)
_MIXTURE = re.compile(r"\s?(?:ratio|verd|dil|mischung)")
_LEAD = re.compile(r"(?:,|\bon|\bsee|\bimages?|\bat|\bauf|\bsiehe|\be\.g\.|\bcf\.?)\s*$")
_FURTHER = re.compile(r"\s*(?:,|;|&|and|und)\s*(?:see\s*)?(?:(?:ax|cor|kor|sag)(?:ial|onal|onar|ittal)?\.?:?\s*)?")
_TABLE = re.compile(r"(?:series|serie|ser|se|s)\s?[/|:]\s?(?:images?|img|im|i|bild|b)\b")


class BarePairs(ImageLists):
    """Tells series and image from other pairs of numbers."""

    def __init__(self, low: str, tokens: Sequence[Number]) -> None:
        super().__init__(low, tokens)
        self.has_table = bool(_TABLE.search(low)) if "|" in low or "\t" in low else False

    def is_bare_pair(self, place: int) -> bool:
        """Whether the number and the next are series and image."""
        series, image = self.tokens[place], self.token(place + 1)
        if image is None or image.tag != "" or image.value < 0 or not _PAIR_LINK.fullmatch(image.link):
            return False
        sign = image.link.strip()
        written = self.low[series.start : image.end]
        before = self.low[max(0, series.start - 40) : series.start]
        if self._in_cell(place):
            return sign == "/"
        if image.value > LARGEST_IMAGE or _NO_TIME.match(self.low, image.end) or written.startswith("0"):
            return False
        in_brackets = self.opens_bracket(series.start) or self._continues(series)
        if _SCORE.search(before.rstrip(" ([")) or (
            series.value == 1 and sign == ":" and (not in_brackets or image.value % 1000 == 0)
        ):
            return False
        if sign == ":":
            return self._colon_pair(series, image, in_brackets, before)
        if before.rstrip().endswith("#"):  # which numbers images as often as series
            return in_brackets and self._is_cited(series)
        return in_brackets and (sign == ";" or self._slash_pair(place))

    def _colon_pair(self, series: Number, image: Number, in_brackets: bool, before: str) -> bool:
        is_time = series.value < 24 and image.value < 60 and image.end - image.start == 2
        if _CLOCK.search(before.rstrip(" ([")) or (is_time and _CONTACT.search(before)):
            return False
        if in_brackets:
            return not _MIXTURE.match(self.low, image.end, image.end + 12)
        lead = _LEAD.search(before)
        return bool(lead) and bool(LIST_END.match(self.low, image.end))

    def _slash_pair(self, place: int) -> bool:
        """Whether ``(m/n)`` is a reference and not a fraction, a score or a month with its year."""
        series, image = self.tokens[place], self.tokens[place + 1]
        if 1900 <= image.value <= 2100 and series.value <= 12:
            return False
        following = self.token(place + 2)
        if following is not None and following.link.strip() == "/" and following.tag == "":
            return False
        return self._is_cited(series) or image.value > 12 or image.value < series.value

    def _is_cited(self, series: Number) -> bool:
        """Whether a series of that number was cited shortly before."""
        return series.value in {reference.series for reference in self.found[-8:]}

    def _continues(self, series: Number) -> bool:
        """Whether a pair follows a reference within its bracket."""
        if not self.found:
            return False
        between = self.low[self.found[-1].end : series.start]
        return len(between) < 20 and bool(_FURTHER.fullmatch(between))

    def _in_cell(self, place: int) -> bool:
        if not self.has_table:
            return False
        before = self.low[max(0, self.tokens[place].start - 4) : self.tokens[place].start].rstrip(" ")[-1:]
        after = self.low[self.tokens[place + 1].end :][:4].lstrip(" ")[:1]
        return before in ("|", "\t", "") and after in ("|", "\t", "\n", "")
