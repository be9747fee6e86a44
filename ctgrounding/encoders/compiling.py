"""``torch.compile`` block by block: the blocks of a tower are alike, so one is compiled and all are quicker."""

import os
import shutil
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch._dynamo
from torch import nn

from ctgrounding.encoders.layers import blocks
from ctgrounding.errors import ConfigError

VARIANTS = 32
"""Compiled forms that a block may have: with and without gradient, padding, several rows, dropout, changed sizes."""


def compile_blocks(
    tower: nn.Module, device: torch.device, backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
) -> list[str]:
    """Compile the numbered blocks of a tower in place.

    Names and tensors of the state dict stay as they are, so checkpoints load into compiled and plain models alike,
    and a copy of the tower is a plain one. Random numbers are drawn as without compiling, so that a replayed pass
    repeats its dropout. Compiling happens in the first steps, anew where a block meets another kind of input.

    Args:
        tower: Image or text encoder.
        device: Where it will run.
        backend: ``inductor`` writes kernels; the others only trace, for tests.

    Returns:
        Names of the compiled blocks.

    Raises:
        ConfigError: If the tower has no numbered blocks, or there is no compiler for the device.

    Examples:
        >>> tower = nn.ModuleDict({"blocks": nn.Sequential(nn.Sequential(nn.Linear(2, 2)))})
        >>> compile_blocks(tower, torch.device("cpu"), backend="eager"), list(tower.state_dict())
        (['blocks.0'], ['blocks.0.0.weight', 'blocks.0.0.bias'])
    """
    found = blocks(tower)
    if not found:
        raise ConfigError(
            f"model.compile_blocks finds no numbered blocks in {type(tower).__name__}. Leave its tower out."
        )
    if backend == "inductor" and (lacking := _lacking(device)):
        raise ConfigError(f"model.compile_blocks needs {lacking}. Install it, or set model.compile_blocks to [].")
    limit: int = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, VARIANTS)
    options: dict[str, Any] = {"options": {"fallback_random": True}} if backend == "inductor" else {}
    for block in found.values():
        block.compile(backend=backend, **options)
    return list(found)


def _lacking(device: torch.device) -> str | None:
    """The compiler that is missing, if any."""
    if device.type != "cpu":
        return None if find_spec("triton") else "Triton, which writes kernels for the device and is not installed"
    named = os.environ.get("CXX")
    if any(shutil.which(name) for name in ([named] if named else ["g++", "clang++"])):
        return None
    return "a C++ compiler, and there is no g++ or clang++ here (CXX can name another)"
