"""The kinds of findings a phantom can have, and who gets which."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from ctgrounding.phantom.abdomen import ABDOMEN_KINDS
from ctgrounding.phantom.body import Sex
from ctgrounding.phantom.chance import keyed
from ctgrounding.phantom.chest import CHEST_KINDS
from ctgrounding.phantom.findings import Kind, Site, Zone

Coverage = Literal["chest", "abdomen", "both"]

KIND_TABLE: dict[str, Kind] = {kind.name: kind for kind in CHEST_KINDS + ABDOMEN_KINDS}
KINDS: tuple[str, ...] = tuple(KIND_TABLE)
"""Names of all kinds, in the order of the label columns."""

PREVALENCE = 0.24
"""Share of the patients whose scan settles a kind that have it; never exceeded within a block."""
BLOCK = 100
"""Patients are dealt their findings in blocks of so many, so that counts hold exactly."""
_CHEST, _ABDOMEN, _NORMAL = 35, 35, 7


@dataclass(frozen=True)
class Plan:
    """What one patient gets.

    Attributes:
        sex: Decided here, since it decides what can be found.
        coverage: Part of the body that is scanned.
        field_mm: Lowest and highest slice, in heights of the middle body.
        is_normal: Whether the report is one of the short all-normal ones.
        sites: Where the patient has each of its kinds.
        stated: Kinds that the scan settles, one way or the other.
    """

    sex: Sex
    coverage: Coverage
    field_mm: Zone
    is_normal: bool
    sites: dict[str, Site]
    stated: tuple[str, ...]


def plan_patient(seed: int, index: int) -> Plan:
    """What patient ``index`` of a data set gets; a function of its arguments alone."""
    return _plan_block(seed, index // BLOCK)[index % BLOCK]


@lru_cache(maxsize=16)
def _plan_block(seed: int, block: int) -> tuple[Plan, ...]:
    """Deal coverage, sex and findings to a block: within it no kind exceeds its prevalence."""
    rng = keyed(seed, block, "block")
    seats = rng.permutation(BLOCK)
    coverages: list[Coverage] = [
        "chest" if s < _CHEST else "abdomen" if s < _CHEST + _ABDOMEN else "both" for s in seats
    ]
    sexes: list[Sex] = ["male" if seat % 2 else "female" for seat in seats]
    normals = set(rng.permutation(BLOCK)[:_NORMAL].tolist())
    fields = [_field(coverage, keyed(seed, block * BLOCK + i, "field")) for i, coverage in enumerate(coverages)]
    stated = [_stated(field, sex) for field, sex in zip(fields, sexes, strict=True)]
    dealt: list[list[str]] = [[] for _ in range(BLOCK)]
    for name in KINDS:
        known = [i for i in range(BLOCK) if name in stated[i]]
        draw = keyed(seed, block, f"deal {name}")
        for hand in np.array_split(known, max(int(PREVALENCE * len(known)), 1)):
            eligible = [i for i in hand.tolist() if i not in normals]
            if eligible:
                dealt[draw.choice(eligible)].append(name)
    return tuple(
        Plan(
            sex=sexes[i],
            coverage=coverages[i],
            field_mm=fields[i],
            is_normal=i in normals,
            sites=_choose_sites(dealt[i], fields[i], keyed(seed, block * BLOCK + i, "sites")),
            stated=stated[i],
        )
        for i in range(BLOCK)
    )


def _field(coverage: Coverage, rng: np.random.Generator) -> Zone:
    """Lowest and highest slice: technicians start and stop where they like."""
    chest_end, liver_end = rng.uniform(-60, 20), rng.uniform(100, 160)
    pelvis_end = rng.uniform(-200, -120) if rng.uniform() < 0.12 else rng.uniform(-335, -305)
    neck_end = rng.uniform(290, 316) if rng.uniform() < 0.2 else rng.uniform(316, 350)
    low = float(chest_end if coverage == "chest" else pelvis_end)
    return low, float(liver_end if coverage == "abdomen" else neck_end)


def _stated(field_mm: Zone, sex: Sex) -> tuple[str, ...]:
    return tuple(kind.name for kind in KIND_TABLE.values() if kind.sex in (None, sex) and kind.covered_sites(field_mm))


def _choose_sites(names: list[str], field_mm: Zone, rng: np.random.Generator) -> dict[str, Site]:
    """One site for each kind, in organs without another finding where there is a choice."""
    chosen: dict[str, Site] = {}
    for name in names:
        sites = KIND_TABLE[name].covered_sites(field_mm)
        taken = {site.organ for site in chosen.values()}
        free = [site for site in sites if site.organ not in taken] or list(sites)
        chosen[name] = free[rng.integers(len(free))]
    return chosen
