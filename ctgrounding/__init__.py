"""Pretrain, evaluate and use 3D CT vision-language models that can say where."""

from typing import TYPE_CHECKING

from ctgrounding import _torchvision_repair

if TYPE_CHECKING:
    from ctgrounding.model import Location, Model, load

__version__ = "0.1.0"
__all__ = ["Location", "Model", "load", "__version__"]

_torchvision_repair.install()


def __getattr__(name: str) -> object:
    """Import the few names most users need when they are first asked for."""
    if name in ("Location", "Model", "load"):
        from ctgrounding import model

        return getattr(model, name)
    raise AttributeError(f"module 'ctgrounding' has no attribute '{name}'")
