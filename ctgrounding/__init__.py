"""Pretrain, evaluate and use 3D CT vision-language models that can say where."""

__version__ = "0.1.0"
