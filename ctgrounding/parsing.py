"""Parsers whose errors are one sentence."""

import re
from typing import NoReturn

from jsonargparse import ArgumentParser

from ctgrounding.errors import ConfigError


class BriefParser(ArgumentParser):
    """A jsonargparse parser that raises :class:`ConfigError` instead of printing its whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the last and most telling lines of a parser's message."""
        raise ConfigError(brief(message)) from ex


def brief(message: object) -> str:
    """A parser's message without usage, object addresses and repetition."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    text = " ".join(lines)
    text = re.sub(r"\s+", " ", text).replace("Parser key ", "").strip()
    return text if text.endswith(".") else f"{text}."
