"""Branches on numbers, which a program that is exported cannot take."""

import torch
from jaxtyping import Bool
from torch import Tensor


def is_exporting() -> bool:
    """Whether the code runs to be written down as a program, by ``torch.export`` or for ONNX."""
    return bool(torch.compiler.is_exporting())


def all_true(mask: Bool[Tensor, "..."]) -> bool:
    """Whether every entry is true; False while a program is exported, whose branches cannot look at numbers.

    For branches that only save work: the path taken on False must hold for any mask.
    """
    return not is_exporting() and bool(mask.all())
