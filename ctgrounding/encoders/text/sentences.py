"""A report as the sentences it is made of, each encoded by itself."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ctgrounding.encoders.readouts.base import LearnedQueries, check_parts
from ctgrounding.encoders.text.base import TextEncoder, Tokenizer
from ctgrounding.errors import ConfigError

SentencePart = Literal["mean", "max", "attention"]

_BOUNDARY = -1
_KEPT_SENTENCES = 20_000
"""Sentences whose tokens a tokenizer keeps; reports are drawn anew in each epoch, their sentences come back."""

_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+(?=[^\W\d_])|\n+")


class SentenceTokenizer(Tokenizer):
    """The tokens of each sentence with a boundary between sentences.

    A sentence that is longer than the inner tokenizer takes is cut between words, so none of it is lost.

    Args:
        inner: Tokenizer of a sentence.
        context_length: Most tokens of a text, all sentences and boundaries together.

    Examples:
        >>> from ctgrounding.encoders.text.open_clip import OpenClipTokenizer
        >>> tokenizer = SentenceTokenizer(OpenClipTokenizer(32), context_length=64)
        >>> tokenizer("No effusion. Cyst.").tolist()
        [49406, 871, 1490, 9364, 269, 49407, -1, 49406, 1470, 545, 269, 49407]
    """

    pad_id = 0

    def __init__(self, inner: Tokenizer, context_length: int) -> None:
        self.inner = inner
        self.context_length = context_length
        self._kept: dict[str, Int64[Tensor, "L"]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": {}}

    def __call__(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids, cut to the context length."""
        tokens = torch.cat([self._tokens(sentence) for sentence in _split(text)])[1 : self.context_length + 1]
        return tokens[:-1] if tokens[-1] == _BOUNDARY else tokens

    def count(self, text: str) -> int:
        """Number of tokens and boundaries before any cut."""
        counts = [self.inner.count(piece) for sentence in _split(text) for piece in self._fitting(sentence)]
        return sum(counts) + len(counts) - 1

    def _tokens(self, sentence: str) -> Int64[Tensor, "L"]:
        """Tokens of a sentence, a boundary before it and between its pieces."""
        if sentence not in self._kept:
            if len(self._kept) >= _KEPT_SENTENCES:
                self._kept.clear()
            boundary = torch.tensor([_BOUNDARY])
            self._kept[sentence] = torch.cat(
                [row for piece in self._fitting(sentence) for row in (boundary, self.inner(piece))]
            )
        return self._kept[sentence]

    def _fitting(self, sentence: str) -> Iterator[str]:
        words = sentence.split()
        if len(words) < 2 or self.inner.count(sentence) <= self.inner.context_length:
            yield sentence
            return
        half = len(words) // 2
        yield from self._fitting(" ".join(words[:half]))
        yield from self._fitting(" ".join(words[half:]))


def _split(text: str) -> list[str]:
    return [stripped for sentence in _SENTENCE_END.split(text) if (stripped := sentence.strip())] or [""]


class SentenceText(TextEncoder):
    """What a text's sentences say, pooled: their order does not matter, and equal ones are encoded once.

    A small tower learns sentences from organs and snippets, where they stand alone; encoded one by one, they mean the
    same in a report. ``max`` keeps what a single sentence says however many others stand beside it.

    Args:
        sentence: Encoder of a sentence.
        context_length: Most tokens of a text over all its sentences; longer ones are cut.
        parts: ``mean`` and ``max`` over sentences, and ``attention``, their mean by the weight of a learned
            query; concatenated in this order.

    Raises:
        ConfigError: If a part is unknown or the context is too short.

    Examples:
        >>> from ctgrounding.encoders.text.open_clip import OpenClipText
        >>> encoder = SentenceText(OpenClipText(width=32, layers=1, heads=2, context_length=64), parts=["mean", "max"])
        >>> tokens = encoder.tokenizer("Cyst in the left kidney. No effusion.")[None]
        >>> encoder(tokens, torch.ones_like(tokens, dtype=torch.bool)).shape
        torch.Size([1, 64])
    """

    def __init__(
        self,
        sentence: TextEncoder,
        context_length: int = 512,
        parts: Sequence[SentencePart] = ("attention", "max"),
    ) -> None:
        if context_length < sentence.tokenizer.context_length:
            raise ConfigError(
                f"SentenceText's context_length is {context_length}, less than a sentence's "
                f"{sentence.tokenizer.context_length}. Raise it; it counts all sentences of a text."
            )
        check_parts("SentenceText", parts, ("mean", "max", "attention"))
        tokenizer = SentenceTokenizer(sentence.tokenizer, context_length)
        super().__init__(sentence.width * len(parts), tokenizer, bucket_ratio=math.inf)  # the inner one has buckets
        self.sentence = sentence
        self.parts = tuple(parts)
        self.query = LearnedQueries(sentence.width, 1) if "attention" in parts else None

    def keep_vectors(self, folder: str | Path) -> None:
        """Keep the vectors of sentences, which come back in other reports and in another order."""
        self.sentence.keep_vectors(folder)

    def encode(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row; every sentence that the rows hold is encoded once."""
        unique, shown, which, text = (
            found.to(tokens.device) for found in _sentences(tokens, mask, self.tokenizer.pad_id)
        )
        return self._pool(self.sentence(unique, shown), which, text, len(tokens))

    def _pool(
        self, vectors: Float[Tensor, "U E"], which: Int64[Tensor, "N"], text: Int64[Tensor, "N"], texts: int
    ) -> Float[Tensor, "T P"]:
        """Pool over texts, given the sentence (``which``) and the text of each place."""
        placed = vectors[which]
        weight = {"mean": placed.new_ones(len(placed))}
        if self.query is not None:
            weight["attention"] = self.query(vectors[None])[0, :, 0].to(vectors.dtype)[which]
        pooled = [
            _maximum(placed, text, texts) if part == "max" else _weighted_mean(placed, weight[part], text, texts)
            for part in self.parts
        ]
        return torch.cat(pooled, dim=-1)


def _sentences(
    tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"], pad_id: int
) -> tuple[Int64[Tensor, "U M"], Bool[Tensor, "U M"], Int64[Tensor, "N"], Int64[Tensor, "N"]]:
    """Each different sentence once as a padded row, its real tokens, and where they stand.

    Found on the host, where comparing sentences is cheap. The last two tensors name, for each place of a sentence in
    order, the sentence and the text that it stands in.
    """
    real = mask.cpu().numpy()
    words = tokens.cpu().numpy()[real]
    ends = real.sum(1).cumsum()
    marks = np.flatnonzero(words == _BOUNDARY)
    stops = np.concatenate([ends, marks])  # an empty first sentence stops where the text before it ends
    order = stops.argsort(kind="stable")
    starts = np.concatenate([[0], (stops + (np.arange(len(stops)) >= len(ends)))[order][:-1]])
    raw = words.astype(">i8").tobytes()  # big-endian bytes are in the order of their numbers
    placed = [raw[8 * start : 8 * stop] for start, stop in zip(starts.tolist(), stops[order].tolist(), strict=True)]
    number = {sentence: row for row, sentence in enumerate(sorted(set(placed)))}
    lengths = np.array([len(sentence) // 8 for sentence in number])
    shown = np.arange(lengths.max())[None] < lengths[:, None]
    unique = np.full(shown.shape, pad_id, np.int64)
    unique[shown] = np.frombuffer(b"".join(number), ">i8")
    is_last = order < len(ends)
    text = is_last.cumsum() - is_last
    which = np.array([number[sentence] for sentence in placed])
    return torch.from_numpy(unique), torch.from_numpy(shown), torch.from_numpy(which), torch.from_numpy(text)


def _weighted_mean(
    placed: Float[Tensor, "N E"], weight: Float[Tensor, "N"], text: Int64[Tensor, "N"], texts: int
) -> Float[Tensor, "T E"]:
    sums = placed.new_zeros(texts, placed.shape[1]).index_add(0, text, placed * weight[:, None])
    return sums / placed.new_zeros(texts).index_add(0, text, weight)[:, None]


def _maximum(placed: Float[Tensor, "N E"], text: Int64[Tensor, "N"], texts: int) -> Float[Tensor, "T E"]:
    lowest = placed.new_full((texts, placed.shape[1]), -torch.inf)
    return lowest.scatter_reduce(0, text[:, None].expand_as(placed), placed, reduce="amax")
