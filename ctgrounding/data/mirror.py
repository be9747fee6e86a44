"""Left and right changed for each other: in words, in label ids and in voxels."""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ctgrounding.errors import ReportError

_SIDES = {"left": "right", "right": "left", "lt": "rt", "rt": "lt"}
_SIDES |= {german: "recht" + german[4:] for german in ("links", "linke", "linker", "linken", "linkes", "linkem")}
_SIDES |= {right: left for left, right in list(_SIDES.items())}
_LOBES = {"rul": "lul", "lul": "rul", "rll": "lll", "lll": "rll"}
_SWAPS = _SIDES | _LOBES

_NOT_LETTER = r"(?<![A-Za-zÄÖÜäöüß])", r"(?![A-Za-zÄÖÜäöüß])"
_SUFFIX = r"(?=(?:wards?|most|sided|seitige?[rnsm]?)?(?![A-Za-zÄÖÜäöüß]))"
_SWAPPABLE = re.compile(
    f"{_NOT_LETTER[0]}({'|'.join(sorted(_SWAPS, key=len, reverse=True))}){_SUFFIX}", flags=re.IGNORECASE
)
_ONE_SIDED = re.compile(
    rf"{_NOT_LETTER[0]}(?:RML|lingulae?|lingular|middle lobe|Mittellappens?|situs|(?:dextro|dextra|levo|laevo|sinistr)"
    rf"\w*|left (?:in (?:place|situ)|behind|untreated|unchanged)){_NOT_LETTER[1]}",
    flags=re.IGNORECASE,
)
_LONE_LETTER = re.compile(rf"{_NOT_LETTER[0]}[LR]{_NOT_LETTER[1]}(?![0-9])")


def mirror_text(text: str) -> str:
    """The text as it would be written about the mirrored body.

    Words for sides change places, English and German, with their case; "bilateral", "upright" and the like
    stay.

    Args:
        text: A report, a sentence or a label's name.

    Returns:
        The text with sides exchanged.

    Raises:
        ReportError: If the text says a side in a way that has no counterpart, such as "middle lobe",
            "dextroscoliosis" or a lone "L".

    Examples:
        >>> mirror_text("Left-sided cyst, RIGHT kidney spared, bilateral effusions.")
        'Right-sided cyst, LEFT kidney spared, bilateral effusions.'
    """
    stuck = _ONE_SIDED.search(text) or _LONE_LETTER.search(text)
    if stuck:
        raise ReportError(
            f"A scan cannot be mirrored because its text says '{stuck.group()}', which has no counterpart on the other "
            "side. It is shown as it is; set data.mirror_probability to 0 if many are refused."
        )
    return _SWAPPABLE.sub(lambda match: _with_case_of(match.group(), _SWAPS[match.group().casefold()]), text)


def mirror_labels(classes: Mapping[int, str]) -> npt.NDArray[np.uint8]:
    """For each label id, the id of the same organ on the other side; itself where there is none.

    Args:
        classes: Label id to organ name, sides as words between underscores (``kidney_left``).

    Returns:
        A table of 256 ids to index with a label map.
    """
    table = np.arange(256, dtype=np.uint8)
    by_name = {name: label for label, name in classes.items()}
    other = {"left": "right", "right": "left"}
    for label, name in classes.items():
        swapped = "_".join(other.get(word, word) for word in name.split("_"))
        table[label] = by_name.get(swapped, label)
    return table


def _with_case_of(pattern: str, word: str) -> str:
    if pattern.isupper():
        return word.upper()
    return word.capitalize() if pattern[0].isupper() else word
