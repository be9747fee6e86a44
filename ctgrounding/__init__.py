"""Pretrain, evaluate and use 3D CT vision-language models that can say where."""

from ctgrounding import _torchvision_repair

__version__ = "0.1.0"

_torchvision_repair.install()
