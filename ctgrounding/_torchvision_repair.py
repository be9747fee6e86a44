"""Lets torchvision import beside a CPU-only torch.

The registry's Linux wheel of torchvision is linked to CUDA. Beside a CPU-only torch its compiled operators
cannot load, which torchvision tolerates, and then it registers fake kernels for operators that were never
defined, which torch does not. Everything that imports torchvision goes down with it: ``lightning.pytorch``,
``torchmetrics``, ``open_clip``, ``timm``. Declaring the missing operators (without kernels) is enough for all
of them; calling ``torchvision.ops.nms`` still says that its kernels are missing.

Whether that is the case is read from package metadata, and everything waits for the first import of torchvision,
so ``import ctgrounding`` costs nothing and imports neither torch nor torchvision.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_OPERATORS = ("nms", "qnms")
"""Operators for which importing torchvision registers fake kernels."""

_definitions: list[Any] = []
"""Keeps the torch library alive: torch forgets the operators with it."""


def install() -> None:
    """Arrange for the repair at the first import of torchvision; nothing is done where none is needed."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _FirstImport())


def is_needed() -> bool:
    """Whether torch is a CPU-only build and torchvision is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch").endswith("+cpu") and bool(version("torchvision"))
    except PackageNotFoundError:
        return False


class _FirstImport(MetaPathFinder):
    """Runs the repair when torchvision is first looked for, and leaves finding it to the usual finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            if is_needed():
                declare_operators()
        return None


def declare_operators() -> None:
    """Define each operator that torchvision's own library does not bring."""
    import torch

    _load_native()
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _definitions.append(library)


def _load_native() -> None:
    """Load torchvision's compiled operators where they do fit this torch, as torchvision itself would."""
    import torch

    spec = PathFinder.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in Path(folder).glob("_C*.so"):
            try:
                torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
            except OSError:  # linked to CUDA libraries that a CPU-only torch does not have
                return
