"""The file of abnormal sentences by organ that organ grounding draws negatives from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ctgrounding.errors import ConfigError
from ctgrounding.mappings import from_json, from_yaml

KNOWN = "known_findings"
"""Key of the file under which all findings stand that its maker saw."""


class DictionaryEntry(NamedTuple):
    """A sentence that says what may be wrong with an organ.

    Attributes:
        kind: Label id of the organ.
        text: The sentence.
        apart: Findings that the organ may have without the sentence being true of it.
    """

    kind: int
    text: str
    apart: frozenset[str] = frozenset()


def read_dictionary(path: str | None, organs: Mapping[int, str]) -> list[DictionaryEntry]:
    """Entries in order of label ids and of the file.

    Args:
        path: YAML or JSON: organ to sentences, or to entries with ``text``, ``finding`` and ``may_be``, the other
            names under which a report may speak of it, beside ``known_findings``; None for no entries.
        organs: Organs of the label set.

    Raises:
        ConfigError: If the file is missing, no such table, or names an organ twice or one that the label set lacks.
    """
    if path is None:
        return []
    by_name = {organ: kind for kind, organ in organs.items()}
    table = _read_table(path)
    known = frozenset(map(str, table.pop(KNOWN, ())))
    found = []
    for organ, entries in table.items():
        if organ not in by_name:
            raise ConfigError(
                f"Abnormality dictionary '{path}' names organ '{organ}', which the label set does not have. "
                "Use its names, for example kidney_left."
            )
        found += [
            _entry(by_name[organ], entry, known, f"'{organ}' in abnormality dictionary '{path}'") for entry in entries
        ]
    return sorted(found, key=lambda entry: entry.kind)


def _read_table(path: str) -> dict[str, list[Any]]:
    if not Path(path).is_file():
        raise ConfigError(f"Abnormality dictionary '{path}' does not exist. Make one from training text, or use null.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = (from_json if path.endswith(".json") else from_yaml)(text, f"Abnormality dictionary '{path}'")
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"Abnormality dictionary '{path}' cannot be read: {error}.") from error
    if not isinstance(table, dict) or not all(isinstance(sentences, list) for sentences in table.values()):
        raise ConfigError(f"Abnormality dictionary '{path}' is no table of organs. Write 'liver: [sentence, ...]'.")
    return table


def _entry(kind: int, entry: object, known: frozenset[str], where: str) -> DictionaryEntry:
    if not isinstance(entry, Mapping):
        return DictionaryEntry(kind, str(entry))
    if "text" not in entry:
        raise ConfigError(f"An entry of {where} has no 'text'. Write one.")
    may_be = entry.get("may_be") or ()
    if not isinstance(may_be, list | tuple):
        raise ConfigError(f"'may_be' of an entry of {where} is '{may_be}', but must be a list. Write [{may_be}].")
    names = {str(entry.get("finding", "")), *map(str, may_be)}
    return DictionaryEntry(kind, str(entry["text"]), known - names)
