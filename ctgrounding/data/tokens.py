"""Texts to token rows, of which a process keeps many, since most texts come again in each epoch."""

from typing import Protocol

from jaxtyping import Int64
from torch import Tensor

_KEPT_TEXTS = 20_000


class Tokenizer(Protocol):
    """What the data module needs of a text encoder's tokenizer; it must pickle."""

    pad_id: int

    def __call__(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids of a text, without padding."""


class TokenRows:
    """A tokenizer that remembers.

    Args:
        tokenizer: Text to token ids, without padding.

    Examples:
        >>> import torch
        >>> rows = TokenRows(lambda text: torch.tensor([len(word) for word in text.split()]))
        >>> rows.of("cyst of the liver")
        tensor([4, 2, 3, 5])
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[str, Int64[Tensor, "L"]] = {}

    @property
    def pad_id(self) -> int:
        """Token that fills up shorter texts."""
        return self._tokenizer.pad_id

    def of(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids of a text."""
        if text not in self._kept:
            if len(self._kept) >= _KEPT_TEXTS:
                self._kept.clear()
            self._kept[text] = self._tokenizer(text)
        return self._kept[text]
