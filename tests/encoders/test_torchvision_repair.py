"""torchvision beside a CPU-only torch, in fresh processes."""

import subprocess
import sys

import pytest

from ctgrounding import _torchvision_repair


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "torchvision", "numpy", "lightning", "importlib.metadata")
    assert run(f"import sys, ctgrounding; print([name for name in {heavy} if name in sys.modules])") == "[]\n"


def test_torchvision_imports_and_runs_and_the_finder_leaves():
    code = """
import sys, ctgrounding
finders = len(sys.meta_path)
import torch
from torchvision.transforms.v2.functional import hflip
print(finders - len(sys.meta_path), hflip(torch.arange(3)[None, None]).tolist())
"""
    assert run(code) == "1 [[[2, 1, 0]]]\n"


@pytest.mark.parametrize(
    ("torch_version", "needed"), [("2.13.0+cpu", True), ("2.13.0+cu130", False), ("2.13.0", False)]
)
def test_needed_beside_a_cpu_build_only(monkeypatch, torch_version, needed):
    versions = {"torch": torch_version, "torchvision": "0.28.0"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    assert _torchvision_repair.is_needed() is needed
