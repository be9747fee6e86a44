"""Lists of ``vocabulary/words.yaml``."""

from functools import cache
from importlib.resources import files

import yaml


@cache
def words(name: str) -> frozenset[str]:
    """A list by its name, folded as the lexicon folds words."""
    text = files(__package__).joinpath("vocabulary", "words.yaml").read_text(encoding="utf-8")
    return frozenset(yaml.safe_load(text)[name])
