"""What every text encoder and its tokenizer are."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ctgrounding.encoders.layers import Layer, numbered_layers
from ctgrounding.encoders.readouts.base import LearnedQueries
from ctgrounding.encoders.text.cache import VectorCache, row_keys, weights_digest
from ctgrounding.errors import ConfigError

Pooling = Literal["mean", "first", "last", "attention"]


class Tokenizer(ABC):
    """A text to token ids, without padding; small to pickle, so that data workers can have their own.

    Attributes:
        context_length: Most tokens that a text may keep.
        pad_id: Token that fills rows up; what it is does not matter to the features.
    """

    context_length: int
    pad_id: int

    @abstractmethod
    def __call__(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids with their start and end marks, cut to the context length with the end mark kept."""

    @abstractmethod
    def count(self, text: str) -> int:
        """Number of tokens before any cut; above ``context_length`` the text is truncated."""


class TextEncoder(nn.Module, ABC):
    """Base of text encoders: unique token rows in, one vector each out.

    A subclass writes :meth:`encode`, for rows of similar length. :meth:`forward` sorts rows by length, so that
    hundreds of short sentences are not padded to the length of a report; that changes no vector.

    Args:
        width: Width of a vector.
        tokenizer: Its tokenizer.
        bucket_ratio: Longest over shortest row of a pass, at least 1; infinite for one pass.

    Attributes:
        cache: Where vectors are kept, see :meth:`keep_vectors`; None for nowhere.
    """

    def __init__(self, width: int, tokenizer: Tokenizer, bucket_ratio: float = 1.5) -> None:
        super().__init__()
        if bucket_ratio < 1:
            raise ConfigError(f"bucket_ratio is the longest over the shortest row, at least 1, but is {bucket_ratio}.")
        self._width = width
        self._tokenizer = tokenizer
        self.bucket_ratio = bucket_ratio
        self.cache: VectorCache | None = None
        self._digest: str | None = None
        self.register_load_state_dict_post_hook(_forget_digest)  # type: ignore[no-untyped-call]

    @property
    def width(self) -> int:
        """Width of a vector."""
        return self._width

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes the rows that :meth:`forward` takes."""
        return self._tokenizer

    def ordered_layers(self) -> list[Layer]:
        """Names of its parts from the input to the output, for rates that fall by layer."""
        return numbered_layers(self)

    @property
    def settings(self) -> tuple[object, ...]:
        """What its vectors depend on besides weights and text; the plain attributes of all of its parts by default."""
        return tuple((name, type(part).__name__, _plain(part)) for name, part in self.named_modules())

    def keep_vectors(self, folder: str | Path) -> None:
        """Keep the vector of each text on disk from now on, by weights, settings and text.

        For weights that no longer change. A text comes back as it was first encoded, whose last digits depend on the
        texts beside it, and without gradient.

        Args:
            folder: Made when needed; several processes and encoders may use it at once.
        """
        self.cache = VectorCache(folder)

    @abstractmethod
    def encode(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row; every row starts with its tokens, and ``mask`` tells them from the padding."""

    def forward(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row; where vectors are kept, only rows that are not there are encoded.

        Args:
            tokens: Rows of token ids, each from its first token on.
            mask: Which of them are real; every row has one at least.
        """
        if not len(tokens):
            return torch.zeros(0, self._width, device=tokens.device)
        if self.cache is None:
            return self._encode_all(tokens, mask)
        keys, weights = row_keys(tokens, mask), self._weights(tokens.device.type)
        known = self.cache.read(weights, keys)
        missing = [row for row, key in enumerate(keys) if key not in known]
        if missing:
            made = self._encode_all(tokens[missing], mask[missing])
            new = {keys[row]: vector for row, vector in zip(missing, made.detach().cpu().float(), strict=True)}
            self.cache.write(weights, new)
            known |= new
        return torch.stack([known[key] for key in keys]).to(tokens.device, next(self.parameters()).dtype)

    def _encode_all(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        length, order = mask.sum(1).sort(descending=True, stable=True)
        vectors = [
            self.encode(tokens[rows, :longest], mask[rows, :longest])
            for rows, longest in self._buckets(order, length.tolist())
        ]
        return torch.cat(vectors)[order.argsort()]

    def _buckets(self, order: Tensor, lengths: list[int]) -> Iterator[tuple[Tensor, int]]:
        start = 0
        for place, length in enumerate(lengths):
            if length * self.bucket_ratio < lengths[start]:
                yield order[start:place], lengths[start]
                start = place
        yield order[start:], lengths[start]

    def _weights(self, device: str) -> str:
        """What the vectors depend on besides the text; hashed once, and anew after other weights are loaded."""
        if self._digest is None:
            self._digest = weights_digest(self, *self.settings)
        precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else ""
        return hashlib.sha256(f"{self._digest} {precision}".encode()).hexdigest()


def _forget_digest(encoder: nn.Module, _: object) -> None:
    if isinstance(encoder, TextEncoder):
        encoder._digest = None


def _plain(part: nn.Module) -> list[tuple[str, object]]:
    plain = (bool, int, float, str, tuple)
    named = sorted((name, value) for name, value in vars(part).items() if isinstance(value, plain))
    return [(name, value) for name, value in named if not name.startswith("_") and name != "training"]


class TokenAttention(nn.Module):
    """The mean of a row's real tokens, weighted by a learned query; its weights are those of ``GlobalReadout``.

    Args:
        width: Width of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = LearnedQueries(width, 1)

    def forward(self, states: Float[Tensor, "T L E"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row."""
        weight = self.query(states)[..., 0].masked_fill(~mask, 0)
        weight = weight / weight.sum(1, keepdim=True)
        return torch.bmm(weight[:, None].to(states.dtype), states)[:, 0]


def pool(states: Float[Tensor, "T L E"], mask: Bool[Tensor, "T L"], pooling: Pooling) -> Float[Tensor, "T E"]:
    """One vector a row from the states of its real tokens, by a rule without weights.

    Raises:
        ConfigError: If the pooling is ``attention``, which is :class:`TokenAttention`.
    """
    if pooling == "attention":
        raise ConfigError("Pooling by attention has a learned query; use TokenAttention.")
    if pooling == "first":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    share = mask.to(states.dtype)
    share = share / share.sum(1, keepdim=True)
    return torch.bmm(share[:, None], states)[:, 0]
