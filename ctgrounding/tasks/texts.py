"""One text pass a step: every string that a step needs, once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ctgrounding.types import Batch

Tokenize = Callable[[str], Int64[Tensor, "L"]]


@dataclass(frozen=True)
class StepTexts:
    """The unique texts of a step and where each role finds the ones it planned.

    Attributes:
        tokens: Token rows, the batch's own texts first, in its order.
        mask: Which tokens are real.
        planned: For each role, indices into its fixed texts.
        planned_rows: For each role, the row in ``tokens`` of each of them.
    """

    tokens: Int64[Tensor, "T L"]
    mask: Bool[Tensor, "T L"]
    planned: Mapping[str, Int64[Tensor, "P"]]
    planned_rows: Mapping[str, Int64[Tensor, "P"]]


class FixedTexts:
    """Texts that do not depend on the batch (prompts, organ names, dictionaries), tokenised once at start.

    Args:
        texts: Role to its texts; a text that several roles share is kept once.
        tokenize: The text encoder's tokenizer.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], tokenize: Tokenize) -> None:
        self.by_role = {role: tuple(items) for role, items in texts.items()}
        unique = dict.fromkeys(text for items in self.by_role.values() for text in items)
        self._tokens = {text: tokenize(text) for text in unique}

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def rows(self) -> dict[str, Int64[Tensor, "P"]]:
        """For each role, the row of each of its texts in :meth:`all_rows`."""
        row_of = {text: row for row, text in enumerate(self._tokens)}
        return {
            role: torch.tensor([row_of[text] for text in items], dtype=torch.int64)
            for role, items in self.by_role.items()
        }

    def all_rows(self, pad_id: int) -> tuple[Int64[Tensor, "T L"], Bool[Tensor, "T L"]]:
        """Tokens and mask of every fixed text, each once."""
        none = torch.zeros((0, 1), dtype=torch.int64)
        return _append(none, none.bool(), list(self._tokens.values()), pad_id)

    def step(self, batch: Batch, plans: Mapping[str, Int64[Tensor, "P"]], pad_id: int) -> StepTexts:
        """Join a batch's texts with the fixed ones that its roles planned.

        Args:
            batch: Its ``texts``, ``tokens`` and ``token_mask`` are used.
            plans: For each role, indices into its fixed texts.
            pad_id: Token that fills rows up.
        """
        device = batch["tokens"].device
        row_of = {text: row for row, text in enumerate(batch["texts"])}
        extra: list[Int64[Tensor, "L"]] = []
        rows: dict[str, Int64[Tensor, "P"]] = {}
        for role, plan in plans.items():
            texts = [self.by_role[role][index] for index in plan.tolist()]
            for text in texts:
                if text not in row_of:
                    row_of[text] = len(row_of)
                    extra.append(self._tokens[text])
            rows[role] = torch.tensor([row_of[text] for text in texts], dtype=torch.int64, device=device)
        tokens, mask = _append(batch["tokens"], batch["token_mask"], extra, pad_id)
        return StepTexts(tokens, mask, plans, rows)


def _append(
    tokens: Int64[Tensor, "T L"], mask: Bool[Tensor, "T L"], extra: Sequence[Int64[Tensor, "L"]], pad_id: int
) -> tuple[Int64[Tensor, "T2 L2"], Bool[Tensor, "T2 L2"]]:
    if not extra:
        return tokens, mask
    lengths = torch.tensor([row.shape[0] for row in extra])
    length = max(int(lengths.max()), tokens.shape[1])
    real = torch.arange(length) < lengths[:, None]
    padded = torch.full(real.shape, pad_id).masked_scatter_(real, torch.cat(list(extra)))
    if length > tokens.shape[1]:
        room = (0, length - tokens.shape[1])
        tokens = torch.nn.functional.pad(tokens, room, value=pad_id)
        mask = torch.nn.functional.pad(mask, room, value=False)
    return torch.cat([tokens, padded.to(tokens.device)]), torch.cat([mask, real.to(mask.device)])
