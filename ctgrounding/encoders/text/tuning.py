"""What text encoders around a pretrained tower share: it is frozen, adapted or trained whole."""

from typing import Literal

import torch
from torch import nn

from ctgrounding.encoders.lora import Lora
from ctgrounding.encoders.text.base import TextEncoder, Tokenizer
from ctgrounding.errors import ConfigError

Tuning = Literal["frozen", "lora", "full"]


class TunedText(TextEncoder):
    """Base of text encoders whose ``tower`` a setting freezes.

    Args:
        tower: The pretrained part.
        width: Width of a vector.
        tokenizer: Its tokenizer.
        tuning: ``frozen`` (no gradient and no dropout), ``lora`` or ``full``.
        bucket_ratio: Longest over shortest text of a pass.
    """

    tower: nn.Module

    def __init__(
        self, tower: nn.Module, width: int, tokenizer: Tokenizer, tuning: Tuning, bucket_ratio: float = 1.5
    ) -> None:
        super().__init__(width, tokenizer, bucket_ratio)
        self.tuning = tuning
        tower.train(tuning != "frozen")  # transformers hands models out in evaluation mode
        if tuning == "frozen":
            tower.requires_grad_(False)
        self.tower = tower

    def train(self, mode: bool = True) -> "TunedText":
        """Set training mode; a frozen tower stays in evaluation mode."""
        super().train(mode)
        if self.tuning == "frozen":
            self.tower.eval()
        return self

    def gradient(self) -> torch.set_grad_enabled:
        """A context for the tower, without gradient where it is frozen."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and self.tuning != "frozen")


def check_tuning(tuning: Tuning, lora: Lora | None) -> None:
    """Refuse adapters for a tower that is to have none.

    Raises:
        ConfigError: If ``lora`` is given and ``tuning`` is another.
    """
    if lora is not None and tuning != "lora":
        raise ConfigError(f"lora has no effect where tuning is {tuning}. Set tuning to lora, or remove it.")
