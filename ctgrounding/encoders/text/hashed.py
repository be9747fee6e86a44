"""A token embedding whose cost does not grow with the vocabulary."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ctgrounding.errors import ConfigError

_MULTIPLIERS = (2654435761, 2246822519)
"""Odd constants of two multiplicative hashes (Knuth's golden ratio; a prime of xxHash32)."""


class HashedEmbedding(nn.Module):
    """Each token is the sum of two rows of a small table that two hashes choose.

    An optimizer step visits every row of a table: for 49,408 tokens of width 128 that is 6.3 M numbers a step.
    Two tokens share both rows with a probability of ``1 / rows**2``. After Svenstrup et al., Hash Embeddings
    (NeurIPS 2017), without their learned importances.

    Args:
        rows: Rows of each of the two tables.
        width: Width of a row.

    Raises:
        ConfigError: If there are no rows.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        if rows < 1:
            raise ConfigError(f"hashed_rows is the length of a table, at least 1, but is {rows}.")
        self.rows = rows
        self.weight = nn.Parameter(torch.randn(2 * rows, width) * 0.02)

    def forward(self, tokens: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape E"]:
        """Vectors of tokens."""
        places = [((tokens * factor) % 2**32 * self.rows) // 2**32 for factor in _MULTIPLIERS]
        return nn.functional.embedding(places[0], self.weight) + nn.functional.embedding(
            places[1] + self.rows, self.weight
        )
