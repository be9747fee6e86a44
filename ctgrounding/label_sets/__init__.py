"""Organ label sets: which number of a label map is which organ. Open to every room, like types and errors."""

import json
from functools import cache
from importlib.resources import files

from ctgrounding.errors import ConfigError

NAMES = ("total_v1", "total_v2", "radgenome_regions")


@cache
def load(name: str) -> dict[int, str]:
    """Label id to organ name, for example ``{1: "spleen", 2: "kidney_right", ...}``.

    Args:
        name: ``total_v1`` (104 classes) or ``total_v2`` (117 classes) of TotalSegmentator, or
            ``radgenome_regions`` (10 regions of RadGenome-Chest CT).

    Raises:
        ConfigError: If there is no such label set.
    """
    if name not in NAMES:
        raise ConfigError(f"Label set '{name}' is not known. Use one of {', '.join(NAMES)}.")
    table = json.loads(files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return {int(label): organ for label, organ in table["classes"].items()}


def label_of(organ: str, name: str = "total_v2") -> int:
    """Label id of an organ.

    Raises:
        ConfigError: If the label set has no such organ; the message names the nearest ones.
    """
    by_name = {organ_name: label for label, organ_name in load(name).items()}
    if organ not in by_name:
        from difflib import get_close_matches

        near = get_close_matches(organ, by_name, n=3) or sorted(by_name)[:5]
        raise ConfigError(f"Organ '{organ}' is not in label set {name}. Nearest names: {', '.join(near)}.")
    return by_name[organ]


def spoken(organ: str) -> str:
    """Organ name as people say it: ``kidney_left`` is "left kidney", ``vertebrae_L1`` is "L1 vertebra".

    Examples:
        >>> spoken("lung_upper_lobe_left")
        'left lung upper lobe'
    """
    words = organ.split("_")
    if words[0] == "vertebrae":
        return f"{words[1]} vertebra"
    if words[0] == "rib":
        return f"{words[1]} rib {words[2]}"
    side = [word for word in words if word in ("left", "right")]
    return " ".join(side + [word for word in words if word not in ("left", "right")])


def mirrored(name: str = "total_v2") -> dict[int, int]:
    """For each label id, the id of the same organ on the other side; itself where there is none."""
    table = load(name)
    by_name = {organ: label for label, organ in table.items()}
    swap = {"left": "right", "right": "left"}
    return {
        label: by_name.get("_".join(swap.get(word, word) for word in organ.split("_")), label)
        for label, organ in table.items()
    }
