"""Sections of a run configuration that mean the same on every machine, and what they mean in a folder."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ctgrounding.errors import CheckpointError, ConfigError

TEXT_FOLDER = "text"
"""Subfolder of a ``transformers`` text tower's configuration and tokenizer."""

_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_ELSEWHERE = re.compile(r"(/|~|\\\\|[A-Za-z]:[\\/]|file:|local-dir:|hf-hub:)")


def portable(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of ``model`` without anything of the machine that they were trained on.

    A ``transformers`` text tower comes from the folder's own ``text``; nothing is fetched, since the weights are
    all in the folder, and no cache is kept.

    Args:
        sections: Plain values, as a run's configuration holds them.

    Raises:
        ConfigError: If another argument is a path.
    """
    written = _portable(sections)
    for where, value in _strings(written, "model"):
        if _ELSEWHERE.match(value):
            raise ConfigError(
                f"{where} is '{value}', which is elsewhere than in the folder, so an exported model cannot have it. "
                "Give the encoder what it reads there as a part of its weights."
            )
    if not isinstance(written, dict):
        raise ConfigError(f"The sections of a model are a mapping, not {type(written).__name__}.")
    return written


def placed(sections: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same sections with the folder's text tower in its place.

    Args:
        sections: What :func:`portable` gave, as somebody's folder holds it.
        folder: That folder.

    Raises:
        CheckpointError: If they name a file outside of the folder, or something that is no class.
    """
    for where, value in _strings(sections, "encoder"):
        if _ELSEWHERE.match(value) or ".." in Path(value).parts:
            raise CheckpointError(f"{folder}: {where} is '{value}', which is outside of the folder; it is refused.")
        if where.endswith(".class_path") and not _CLASS_PATH.fullmatch(value):
            raise CheckpointError(f"{folder}: {where} is '{value}', which is no name of a class; it is refused.")
    readouts = sections.get("readouts")
    if not isinstance(readouts, Mapping) or not all(isinstance(item, Mapping) for item in readouts.values()):
        raise CheckpointError(f"{folder}: encoder.readouts names something that is no class; it is refused.")
    return {name: _placed(value, folder) for name, value in sections.items()}


def uses_text_folder(sections: Any) -> bool:  # noqa: ANN401 - plain values of any shape
    """Whether a ``transformers`` text tower is among the sections."""
    if isinstance(sections, Mapping):
        return _is_transformers_text(sections) or any(uses_text_folder(value) for value in sections.values())
    return False


def _portable(value: Any) -> Any:  # noqa: ANN401 - plain values of any shape
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    plain = {str(name): _portable(item) for name, item in value.items()}
    arguments = plain.get("init_args")
    if isinstance(arguments, dict) and str(plain.get("class_path", "")).startswith("ctgrounding."):
        if _is_transformers_text(plain):
            arguments |= {"model": TEXT_FOLDER, "cache": None, "pretrained": False}
        elif "pretrained" in arguments:
            arguments["pretrained"] = False
    return plain


def _placed(value: Any, folder: Path) -> Any:  # noqa: ANN401 - plain values of any shape
    if isinstance(value, list):
        return [_placed(item, folder) for item in value]
    if not isinstance(value, Mapping):
        return value
    inside = {name: _placed(item, folder) for name, item in value.items()}
    if _is_transformers_text(inside):
        arguments = inside.get("init_args") or {}
        if arguments.get("model") != TEXT_FOLDER or arguments.get("pretrained") is not False or arguments.get("cache"):
            raise CheckpointError(
                f"{folder}: its text tower is not the folder's own '{TEXT_FOLDER}'; a folder of 'ctgrounding export' "
                "holds everything that it needs."
            )
        inside["init_args"] = {**arguments, "model": str(folder / TEXT_FOLDER)}
    return inside


def _is_transformers_text(value: Mapping[str, Any]) -> bool:
    return str(value.get("class_path", "")).endswith(".TransformersText")


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - plain values of any shape
    """Every string among plain values, with where it stands."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _strings(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _strings(item, f"{where}[{place}]")
