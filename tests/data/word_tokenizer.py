"""A tokenizer that spawned workers can unpickle, since its module has a name of its own."""

import torch


class WordTokenizer:
    """One token a word, by a hash that is equal in every process."""

    pad_id = 0

    def __call__(self, text: str) -> torch.Tensor:
        return torch.tensor([1 + sum(map(ord, word)) % 997 for word in text.split()], dtype=torch.int64)
