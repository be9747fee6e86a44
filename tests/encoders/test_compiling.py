"""Compiled blocks: the same numbers, names and random draws as plain ones."""

import copy
import shutil

import pytest
import torch
from torch import nn

from ctgrounding.encoders import compiling
from ctgrounding.encoders.compiling import compile_blocks
from ctgrounding.encoders.image.attention import Block
from ctgrounding.encoders.image.vit import ViT
from ctgrounding.encoders.lora import Lora, adapt
from ctgrounding.errors import ConfigError

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def tower(depth=1):
    """A ViT with adapters whose dropout is at work, recomputed in backward."""
    torch.manual_seed(0)
    made = ViT(patch=(4, 8, 8), width=12, depth=depth, heads=2, checkpoint_every=1)
    adapt(made, Lora(rank=2, alpha=8.0, dropout=0.3))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return made.train()


def run(made, depth=8):
    """Features without and with gradient, and the gradient, from the same state of the generator."""
    volume = torch.arange(2 * depth * 16 * 8).reshape(2, depth, 16, 8) % 700 - 400
    box = torch.tensor([[[0, depth], [0, 16], [0, 8]]] * 2)
    with torch.no_grad():
        torch.manual_seed(1)
        first = made(volume.short(), box).map
    torch.manual_seed(1)
    again = made(volume.short(), box).map
    made.zero_grad()
    again.square().mean().backward()
    return first, again.detach(), {name: p.grad for name, p in made.named_parameters() if p.requires_grad}


def compare(found, wanted, tolerance):
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=tolerance)  # a replay repeats its dropout
    torch.testing.assert_close(found[1], wanted[1], rtol=tolerance, atol=tolerance)
    for name, gradient in wanted[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=10 * tolerance, atol=tolerance)


@pytest.mark.slow
def test_traced_blocks():
    plain, compiled = tower(2), tower(2)
    assert compile_blocks(compiled, CPU, backend="aot_eager") == ["blocks.0", "blocks.1"]
    compare(run(compiled), run(plain), 0.0)
    assert run(plain)[2]["blocks.0.attention.qkv.lora_A.default.weight"].any()


def test_names_and_copies_stay_plain():
    plain, compiled = tower(2), tower(2)
    compile_blocks(compiled, CPU, backend="eager")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in compiled.named_modules()] == [name for name, _ in plain.named_modules()]
    compiled.load_state_dict(plain.state_dict())
    plain.load_state_dict(compiled.state_dict())
    assert copy.deepcopy(compiled).blocks[0]._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_blocks_compiled_by_inductor():
    torch.manual_seed(0)
    plain = nn.ModuleDict({"blocks": nn.ModuleList([Block(12, 2)])})
    plain["blocks"][0].mlp.append(nn.Dropout(0.3))
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled, CPU)
    compare(passes(compiled), passes(plain), 1e-5)


def passes(made):
    """As :func:`run`, of the block alone."""
    tokens, results = torch.linspace(-2, 2, 2 * 5 * 12).view(2, 5, 12), []
    for with_gradient in (False, True):
        torch.manual_seed(1)
        with torch.set_grad_enabled(with_gradient):
            results.append(made["blocks"][0](tokens))
    results[1].square().mean().backward()
    return results[0], results[1].detach(), {name: p.grad for name, p in made.named_parameters()}


def test_a_tower_without_blocks():
    with pytest.raises(ConfigError, match="no numbered blocks in Linear"):
        compile_blocks(nn.Linear(2, 2), CPU)


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*set model.compile_blocks to \[\]"):
        compile_blocks(tower(), CPU)
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Triton"):
        compile_blocks(tower(), torch.device("cuda"))
