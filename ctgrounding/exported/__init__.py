"""Trained models outside of a run: a folder of plain files, and the image tower as a program."""

from ctgrounding.exported.folder import Description, is_exported, read_folder, write_folder
from ctgrounding.exported.image_tower import ImageTower, tower_outputs

__all__ = [
    "Description",
    "ImageTower",
    "is_exported",
    "read_folder",
    "tower_outputs",
    "write_folder",
]
