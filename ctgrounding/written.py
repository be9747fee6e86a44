"""What the user wrote in config files and on the command line: where a name stands, and what may not be combined."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import yaml

from ctgrounding.errors import ConfigError
from ctgrounding.mappings import from_yaml

_FILE_OPTIONS = ("-c", "--config")
_NULLS = ("null", "None", "~")


class Written:
    """Config files and overrides of one command, read without knowing what they mean.

    Args:
        words: The words of a trainer command, its name first.

    Attributes:
        files: Content of each config file, in order.
        overrides: Dotted key to word, as on the command line.

    Raises:
        ConfigError: If a file is missing, no YAML, has a key twice, or holds no settings.

    Examples:
        >>> Written(["fit", "--data.batch_size", "8"]).place_of("batch_size")
        'data.batch_size'
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.overrides: dict[str, str] = {}
        for option, value in _options(words):
            if option in _FILE_OPTIONS:
                self.files[value] = _read(Path(value))
            else:
                self.overrides[option.removeprefix("--")] = value

    def check_objectives(self) -> None:
        """Refuse a second file with objectives, and null for an objective or evaluator that no file has.

        Raises:
            ConfigError: With the files, or the roles that there are.
        """
        roles = {name: _at(content, "model.objectives") for name, content in self.files.items()}
        owners = {name: found for name, found in roles.items() if isinstance(found, Mapping)}
        if len(owners) > 1:
            raise ConfigError(
                f"model.objectives is set in {' and in '.join(owners)}; the last one would drop the others' entries. "
                "Keep objectives in one file and change single values on the command line."
            )
        for kind in ("objectives", "evaluators"):
            sections = [_at(content, f"model.{kind}") for content in self.files.values()]
            known = sorted({role for found in sections if isinstance(found, Mapping) for role in found})
            for key, value in self.overrides.items():
                section, _, role = key.rpartition(".")
                if section == f"model.{kind}" and value in _NULLS and role not in known:
                    raise ConfigError(f"{key} switches off an {kind[:-1]} that does not exist; there are {known}.")

    def place_of(self, name: str) -> str | None:
        """Dotted key under which a key or a value of that name was written last; None if nowhere."""
        for key, value in reversed(self.overrides.items()):
            if name in (key.rpartition(".")[2], value):
                return key
        for content in reversed(self.files.values()):
            for key, value in _leaves(content):
                if name == value or name in key.split("."):
                    return key[: key.index(name) + len(name)] if name in key.split(".") else key
        return None

    def arguments_near(self, key: str) -> list[str]:
        """Arguments of the class that owns ``key`` whose names are close to its last part."""
        owner = key
        while owner:
            owner = owner.rpartition(".")[0]
            path = self._class_at(owner)
            if path and "." in path:
                module, _, attribute = path.rpartition(".")
                return near(key.rpartition(".")[2], signature(getattr(import_module(module), attribute)).parameters)
        return []

    def _class_at(self, key: str) -> str | None:
        if (written := self.overrides.get(f"{key}.class_path", self.overrides.get(key))) is not None:
            return written
        for content in reversed(self.files.values()):
            found = _at(content, f"{key}.class_path")
            if isinstance(found, str):
                return found
        return None


def near(name: str, choices: Mapping[str, object] | Sequence[str]) -> list[str]:
    """The closest of the choices to a misspelt name; empty where none is close."""
    return get_close_matches(name, list(choices), n=1)


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option.startswith("--") or option in _FILE_OPTIONS:
            following = words[place + 1] if place + 1 < len(words) else ""
            yield option, value if equals else following


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"There is no config file '{file}'. 'ctgrounding configs copy' brings the ones that come along."
        )
    try:
        content = from_yaml(file.read_text(encoding="utf-8"), str(file))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file} is no YAML{where}: {getattr(error, 'problem', error)}. Mend that place.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds no settings. A run config has the keys model, data and trainer.")
    return content


def _at(content: Any, key: str) -> Any:  # noqa: ANN401 (what a YAML holds has no type)
    for part in key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            return None
        content = content[part]
    return content


def _leaves(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    if not isinstance(content, Mapping) or not content:
        yield prefix.removesuffix("."), content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{prefix}{key}.")
