"""The text tower of open_clip with its bundled tokenizer: nothing is downloaded."""

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ctgrounding.encoders.image.attention import head_width
from ctgrounding.encoders.text.base import Pooling, TextEncoder, TokenAttention, Tokenizer, pool
from ctgrounding.encoders.text.hashed import HashedEmbedding
from ctgrounding.errors import ConfigError

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

VOCABULARY = 49408


class OpenClipTokenizer(Tokenizer):
    """CLIP's lower-case byte-pair encoding between a start and an end mark.

    Args:
        context_length: Most tokens of a text, marks included.

    Examples:
        >>> OpenClipTokenizer(8)("No pleural effusion.").tolist()
        [49406, 871, 926, 33948, 1490, 9364, 269, 49407]
    """

    pad_id = 0

    def __init__(self, context_length: int = 512) -> None:
        if context_length < 3:
            raise ConfigError(
                f"A context holds two marks and a token at least, but context_length is {context_length}."
            )
        self.context_length = context_length

    def __call__(self, text: str) -> Int64[Tensor, "L"]:
        """Token ids, cut to the context length with the end mark kept."""
        return torch.tensor([_START, *_ids(text)[: self.context_length - 2], _END], dtype=torch.int64)

    def count(self, text: str) -> int:
        """Number of tokens and marks before any cut."""
        return len(_ids(text)) + 2


_START, _END = VOCABULARY - 2, VOCABULARY - 1


@cache
def _bundled() -> "SimpleTokenizer":
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@lru_cache(maxsize=2**14)
def _ids(text: str) -> tuple[int, ...]:
    """Ids without marks; sentences come back often, and a report is encoded once an epoch."""
    is_plain = text.isascii() and text.isprintable() and "&" not in text  # so that cleaning would change nothing
    words = text.split() if is_plain else [text]
    return tuple(number for word in words for number in _word_ids(word))


@lru_cache(maxsize=2**14)
def _word_ids(word: str) -> tuple[int, ...]:
    """Ids of what stands between two spaces, over which no token goes."""
    return tuple(_bundled().encode(word))


class OpenClipText(TextEncoder):
    """open_clip's causal text transformer, from random weights, sized here.

    Args:
        width: Width of a token and of the vector.
        layers: Number of blocks.
        heads: Attention heads.
        context_length: Most tokens of a text; longer ones are cut.
        pooling: ``mean`` over a text's tokens, ``last`` (the end mark, as CLIP does), ``first``, or ``attention`` by a
            learned query.
        hashed_rows: If set, token vectors are sums of two rows of tables this long instead of one row of a
            table of 49,408: cheaper steps on a CPU.
        mlp_ratio: Hidden width of a block's MLP over ``width``.
        bucket_ratio: Longest over shortest text of a pass.

    Examples:
        >>> encoder = OpenClipText(width=32, layers=1, heads=2, context_length=64)
        >>> tokens = encoder.tokenizer("Cyst in the left kidney.")[None]
        >>> encoder(tokens, torch.ones_like(tokens, dtype=torch.bool)).shape
        torch.Size([1, 32])
    """

    def __init__(
        self,
        width: int = 512,
        layers: int = 12,
        heads: int = 8,
        context_length: int = 512,
        pooling: Pooling = "mean",
        hashed_rows: int | None = None,
        mlp_ratio: float = 4.0,
        bucket_ratio: float = 1.5,
    ) -> None:
        super().__init__(width, OpenClipTokenizer(context_length), bucket_ratio)
        head_width(width, heads)
        from open_clip.transformer import TextTransformer

        self.pooling = pooling
        self.tower = TextTransformer(
            context_length=context_length,
            vocab_size=VOCABULARY,
            width=width,
            heads=heads,
            layers=layers,
            mlp_ratio=mlp_ratio,
            output_dim=None,
        )
        if hashed_rows is not None:
            self.tower.token_embedding = HashedEmbedding(hashed_rows, width)
        self.attention = TokenAttention(width) if pooling == "attention" else None

    def encode(self, tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"]) -> Float[Tensor, "T E"]:
        """One vector a row; attention looks back only, so padding behind a text reaches none of its tokens."""
        length = tokens.shape[1]
        states = self.tower.token_embedding(tokens) + self.tower.positional_embedding[:length]
        states = self.tower.transformer(states, attn_mask=self.tower.attn_mask[:length, :length])
        states = self.tower.ln_final(states)
        return pool(states, mask, self.pooling) if self.attention is None else self.attention(states, mask)
