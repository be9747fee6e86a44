"""YAML and JSON that a user wrote, read so that nothing is lost: of two equal keys, other readers keep the last."""

import json
from collections.abc import Sequence
from typing import Any

import yaml

from ctgrounding.errors import ConfigError


def from_yaml(text: str, source: str) -> object:
    """What a YAML text says.

    Keys are compared as they are written, so that ``1`` and ``"1"``, which become one name, are two of one. A key
    beside the same one of a merge (``<<``) is none of two: it is there to take its place.

    Args:
        text: The YAML.
        source: Where it stands, for messages.

    Raises:
        ConfigError: If a mapping has a key twice.
        yaml.YAMLError: If it is no YAML.

    Examples:
        >>> from_yaml("{cyst: 1, nodule: 2}", "own.yaml")
        {'cyst': 1, 'nodule': 2}
    """
    try:
        found: object = yaml.load(text, Loader=_Loader)
    except _TwiceError as error:
        raise ConfigError(f"{source} has the key '{error.key}' twice, {error.where}. Keep one of them.") from error
    return found


def from_json(text: str, source: str) -> object:
    """What a JSON text says.

    Args:
        text: The JSON.
        source: Where it stands, for messages.

    Raises:
        ConfigError: If an object has a key twice.
        json.JSONDecodeError: If it is no JSON.
    """

    def mapping(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for place, key in enumerate(keys) if key in keys[:place])
            raise ConfigError(f"{source} has the key '{twice}' twice. Keep one of them.")
        return dict(pairs)

    found: object = json.loads(text, object_pairs_hook=mapping)
    return found


class _TwiceError(Exception):
    """A key that a mapping has twice, and the lines of both."""

    def __init__(self, key: str, first: int, second: int) -> None:
        super().__init__(key)
        self.key = key
        self.where = f"in line {first}" if first == second else f"in lines {first} and {second}"


class _Loader(yaml.SafeLoader):
    """Looks at keys as they are written, before merges bring others beside them."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401 (its stub names another type)
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _TwiceError(key.value, lines[key.value], line)
                lines[key.value] = line
        return node
