"""Parsers whose errors are one sentence that names the key."""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import isroutine
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from ctgrounding.errors import ConfigError
from ctgrounding.written import Written, near

_NOISE = (
    r"Parser key ",
    r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: ",
    r"Type collections\.abc\.Callable\[.*?\] expects a function or a callable class: ",
    r"Problem with given class_path '[^']*': ",
    r"(- )?Expected a path but \S* either not accessible or invalid (?=- )",
    r"(- )?Expected a <class 'NoneType'>\.?",
    r"\.? ?Got value: (Namespace|\{).*",
    r"Given value type: .*",
)
LONGEST_QUOTE = 60
_TRUTHS = ("true", "false", "yes", "no")
_LACKS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_OPTION = re.compile(r"Option '([\w.]+)' is not accepted")
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_NO_PATH = re.compile(r"Expected a dot import path string: (\w+)")
_ALONE = r"(?: - Expected <class 'NoneType'>|\. Got value: .*)?\.?"
_NO_LIST = re.compile(rf"([\w.]+): Expected (?:a )?(?:<class '(?:list|tuple)'>|tuple with (\d+) elements){_ALONE}")
_NO_CHOICE = re.compile(rf"([\w.]+): Expected (?:a )?typing\.Literal\[(.*?)\]{_ALONE}")
_GIVEN = re.compile(r".*Given value: (.*)$|Got value: (.*)$")
_WRONG_TYPE = re.compile(r"Expected a <class '([\w.]+)'>\. Got value: (.*?)\.?$")
_UNKNOWN = re.compile(r"unrecognized arguments: (.*?)\.?$")
_NO_SETTING = re.compile(r"Interpolation key '\.?([\w.]+)' not found .*full_key: ([\w.]+).*")
_REQUIRED = re.compile(r"the following arguments are required: (.*?)\.?$")


class BriefParser(ArgumentParser):
    """A jsonargparse parser that raises :class:`ConfigError` instead of printing its whole usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (jsonargparse's own signature)
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is telling in a parser's message."""
        raise ConfigError(brief(message)) from ex


def with_bare_flags(function: Callable[..., object], words: Sequence[str]) -> list[str]:
    """The words of a command line with ``true`` after every flag that stands alone.

    Args:
        function: What the command calls; its parameters of type bool are flags.
        words: What the user wrote, for example ``shards --verify``.
    """
    if not isroutine(function):
        return list(words)
    flags = {f"--{name}" for name, kind in get_type_hints(function).items() if kind is bool}
    following = [*words, ""][1:]
    return [
        f"{word}=true" if word in flags and after.lower() not in _TRUTHS else word
        for word, after in zip(words, following, strict=True)
    ]


def brief(message: object, written: Written | None = None) -> str:
    """A parser's message without types, alternatives and repetition, and with the key it is about.

    Args:
        message: What jsonargparse or OmegaConf said.
        written: What the user wrote, to find the key and what may have been meant.
    """
    text = re.sub(r"\s+", " ", str(message)).strip()
    got = _got(text)
    for pattern in _NOISE:
        text = re.sub(pattern, "", text)
    text = re.sub(r"^(- )+", "", re.sub(r"\s+", " ", text).strip())
    text = re.sub(r'^"([\w.]+)": (- )?', r"\1: ", text).rstrip("!")
    text = _as_expected(text, got) or _in_words(text, written)
    return text if text.endswith((".", "?")) else f"{text}."


def _got(text: str) -> str:
    """The end of a message that quotes the value, where that is short."""
    found = _GIVEN.search(text)
    value = (found[1] or found[2] or "") if found else ""
    return f", got '{value}'" if 0 < len(value) <= LONGEST_QUOTE else ""


def _as_expected(text: str, got: str) -> str:
    """A message about a value that should be a list or one of a few words; empty for other messages."""
    if found := _NO_LIST.fullmatch(text):
        count = f"{found[2]} values" if found[2] else "values"
        return f"{found[1]}: expected {count} in square brackets, such as [1, 2, 3]{got}."
    if found := _NO_CHOICE.fullmatch(text):
        return f"{found[1]}: expected one of {found[2]}{got}."
    return ""


def _in_words(text: str, given: Written | None) -> str:
    written = given or Written([])
    key = text.partition(": ")[0]
    if found := _LACKS.search(text):
        module, name = found.groups()
        place = written.place_of(f"{module}.{name}") or written.place_of(name) or key
        return f"{place}: {module} has no '{name}'." + _perhaps(near(name, dir(import_module(module))))
    if found := _NO_MODULE.search(text):
        return f"{key}: there is no module '{found[1]}'. Install it, or put the folder that it lies in on PYTHONPATH."
    if found := _NO_PATH.search(text):
        place = written.place_of(found[1]) or key
        return f"{place}: there is no class '{found[1]}'. Give its full import path, or check the spelling."
    if found := _NO_OPTION.search(text):
        name = found[1].rpartition(".")[2]
        place = written.place_of(name) or key
        return f"{place}: there is no such argument." + _perhaps(written.arguments_near(place))
    if found := _UNKNOWN.search(text):
        if not any(word.startswith("-") for word in found[1].split()):
            return f"Nothing takes '{found[1]}'. Put text of several words in quotes, or see --help."
        return f"There is no option {found[1]}. Check the spelling with --help."
    if found := _NO_SETTING.search(text):
        key = re.sub(r"^(fit|validate|test|predict)\.", "", found[2])
        return f"{key}: '${{{found[1]}}}' refers to a setting that does not exist. Check the name between the braces."
    if found := _REQUIRED.search(text):
        missing = re.sub(r"\b(fit|validate|test|predict)\.", "", found[1])
        if given is None:
            return f"Nothing says what {missing} should be. Give it; --help says what it is."
        return f"Nothing says what {missing} should be. Give a run config with --config; 'ctgrounding configs list'."
    return _WRONG_TYPE.sub(lambda found: f"expected {found[1]}, got '{found[2]}'.", text)


def _perhaps(names: list[str]) -> str:
    return f" Did you mean '{names[0]}'?" if names else " See the documentation of its class."
