"""Yes/no questions about a scan, each with sentences that affirm and deny it. Open to every room.

A list is a YAML file: question name to ``positive`` and ``negative`` sentences (as many of one as of the
other, so that a variant is a pair), and the ``organs`` of the TotalSegmentator v2 label set in which the
finding lies, empty where it has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import yaml

from ctgrounding import label_sets, mappings
from ctgrounding.errors import ConfigError


@dataclass(frozen=True)
class Question:
    """One finding as sentence pairs.

    Attributes:
        name: Column name in the labels of a dataset.
        positive: Sentences that affirm it.
        negative: Sentences that deny it; ``negative[i]`` belongs to ``positive[i]``.
        organs: Organs in which it lies; empty where it has none.
    """

    name: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    organs: tuple[str, ...] = ()


def packaged() -> tuple[str, ...]:
    """Names of the lists that come with the package."""
    return tuple(
        sorted(
            entry.name.removesuffix(".yaml") for entry in files(__package__).iterdir() if entry.name.endswith(".yaml")
        )
    )


@cache
def load(source: str) -> tuple[Question, ...]:
    """Read a list by its packaged name or from a YAML file.

    Args:
        source: A name of :func:`packaged` or the path of a file.

    Raises:
        ConfigError: If there is no such list, two questions have one name, or an entry is incomplete or names an
            unknown organ.
    """
    if source in packaged():
        text = files(__package__).joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    elif Path(source).is_file():
        text = _read(source)
    else:
        raise ConfigError(
            f"Question list '{source}' is neither packaged ({', '.join(packaged())}) nor a file. "
            "Name one of those or a path."
        )
    try:
        entries = mappings.from_yaml(text, f"Question list '{source}'")
    except yaml.YAMLError as error:
        raise ConfigError(f"Question list '{source}' is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(entries, Mapping) or not entries:
        raise ConfigError(
            f"Question list '{source}' holds no questions. Write 'name: {{positive: [...], negative: [...]}}'."
        )
    return tuple(_question(str(name), entry, source) for name, entry in entries.items())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Question list '{path}' cannot be read as text ({type(error).__name__}).") from error


def _question(name: str, entry: object, source: str) -> Question:
    where = f"Question '{name}' in list '{source}'"
    if not isinstance(entry, Mapping) or set(entry) - {"positive", "negative", "organs"}:
        raise ConfigError(f"{where} must have 'positive', 'negative' and perhaps 'organs', nothing else.")
    for key, value in entry.items():
        if not isinstance(value, list):
            raise ConfigError(f"{where}: '{key}' is {value!r}, but must be a list. Write {key}: [...].")
    positive, negative = (tuple(map(str, entry.get(key, ()))) for key in ("positive", "negative"))
    if not positive or len(positive) != len(negative):
        raise ConfigError(
            f"{where} has {len(positive)} positive and {len(negative)} negative sentences. "
            "Give as many of one as of the other."
        )
    organs = tuple(map(str, entry.get("organs", ())))
    for organ in organs:
        label_sets.label_of(organ)
    return Question(name, positive, negative, organs)
