"""Entries of the vocabulary files: places and findings as they are written down."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, eq=False)
class Place:
    """An entry of ``organs.yaml``; ``masks`` by side, "" for both or none."""

    name: str
    region: str
    masks: Mapping[str, tuple[str, ...]]
    sided: bool
    alone: str
    grouped: bool
    side: str
    parent: str
    called: tuple[str, ...]
    plural_bilateral: bool


@dataclass(frozen=True, eq=False)
class Finding:
    """An entry of ``findings.yaml``."""

    name: str
    homes: tuple[str, ...]
    fixed: bool
    also: frozenset[str]
    label: str
    labels_at: Mapping[str, str]
    by_organ: Mapping[str, str]
    vague: bool
    device: bool
    cyst: bool
    bundle: bool
    focal: bool


def load_table(name: str) -> dict[str, Any]:
    """A vocabulary file by its name."""
    text = files(__package__).joinpath("vocabulary", name).read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def place_of(name: str, entry: Mapping[str, Any]) -> Place:
    """A place from its entry in ``organs.yaml``."""
    masks = entry.get("masks", [])
    sided = isinstance(masks, Mapping)
    by_side = {side: tuple(names) for side, names in masks.items()} if sided else {}
    every = tuple(mask for names in by_side.values() for mask in names) if sided else tuple(masks)
    side = entry.get("side", "")
    return Place(
        name=name,
        region=entry.get("region", ""),
        masks={"": every, "bilateral": every, "left": by_side.get("left", every), "right": by_side.get("right", every)},
        sided=sided or bool(entry.get("paired")) or bool(side),
        alone=entry.get("alone", "group"),
        grouped=entry.get("names") == "group" or not sided,
        side=side,
        parent=entry.get("parent", ""),
        called=tuple(entry.get("called", (name,))),
        plural_bilateral=entry.get("plural") == "bilateral",
    )


def finding_of(key: str, entry: Mapping[str, Any]) -> Finding:
    """A finding from its entry in ``findings.yaml``."""
    return Finding(
        name=entry.get("name", key),
        homes=tuple(entry.get("homes", [entry["home"]] if "home" in entry else [])),
        fixed=bool(entry.get("fixed")),
        also=frozenset(entry.get("also", ())),
        label=entry.get("label", ""),
        labels_at=entry.get("labels_at", {}),
        by_organ=entry.get("by_organ", {}),
        vague=bool(entry.get("vague")),
        device=bool(entry.get("device")),
        cyst=bool(entry.get("cyst")),
        bundle=bool(entry.get("bundle")),
        focal=bool(entry.get("focal")),
    )
