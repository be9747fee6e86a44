"""Whether an organ map can be what its card says: numbers, places and sizes of its organs.

TotalSegmentator numbers its organs differently in version 1 and 2, and a map does not say which it is. Read by
the wrong one, a lung lobe becomes a vertebra and nothing fails. But organs have places: a kidney on the right
lies to the right, T5 above T6, a lung above the liver, and no adrenal gland holds a litre. What holds under the
declared label set and what under the other one tells which of them the map is. Where only sides are wrong,
left and right are exchanged.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product

import numpy as np
from jaxtyping import Float64, UInt8

from ctgrounding import label_sets
from ctgrounding.geometry import Grid
from ctgrounding.ingest.audit.kinds import Remark

VERSIONS = ("total_v1", "total_v2")
"""Label sets that are taken for each other."""
MIN_RELATIONS = 4
"""Fewer say nothing."""
MIN_WRONG = 3
WRONG_SHARE = 0.05
"""A map of another version breaks at least so many relations and so large a share of them. Real maps that are
read rightly break none or few."""
BETTER = 4.0
"""So many times smaller the share under the other version must be."""
SIDES_SHARE = 0.75
"""Share of sides that are wrong in a map that is mirrored."""
MARGIN_MM = 3.0
"""How far a place may be on the wrong side, for cut organs and coarse grids."""

_SPINE = (
    *(f"vertebrae_C{number}" for number in range(1, 8)),
    *(f"vertebrae_T{number}" for number in range(1, 13)),
    *(f"vertebrae_L{number}" for number in range(1, 6)),
    "sacrum",
)
_LUNGS = ("lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right", "lung_lower_lobe_right")
_BELLY = ("kidney_left", "kidney_right", "pancreas", "duodenum", "small_bowel", "colon", "gallbladder")
_PELVIS = (
    *("urinary_bladder", "prostate", "sacrum", "hip_left", "hip_right", "femur_left", "femur_right"),
    *("gluteus_maximus_left", "gluteus_maximus_right", "iliac_artery_left", "iliac_artery_right"),
    *("iliac_vena_left", "iliac_vena_right"),
)
_TOP = ("brain", "skull", "face", "thyroid_gland", "trachea", "clavicula_left", "clavicula_right")
_LOINS = ("vertebrae_L2", "vertebrae_L3", "vertebrae_L4", "vertebrae_L5")
_FRONT = ("sternum", "heart", "trachea", "thyroid_gland", "liver", "stomach", *_BELLY[2:], "urinary_bladder")
_BACK = tuple(f"vertebrae_{level}" for level in ("T6", "T8", "T10", "T12", "L2", "L4"))
_RIGHT_SIDED = ("liver", "gallbladder")
_LEFT_SIDED = ("spleen", "stomach")
_MOST_ML = {
    **dict.fromkeys(("adrenal_gland_left", "adrenal_gland_right"), 60.0),
    **dict.fromkeys(_SPINE[:7], 80.0),
    **dict.fromkeys(_SPINE[7:-1], 200.0),
    **dict.fromkeys((f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)), 120.0),
    **dict.fromkeys(("iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right"), 200.0),
    **dict.fromkeys(("clavicula_left", "clavicula_right", "trachea", "esophagus"), 250.0),
    **dict.fromkeys(("pancreas", "duodenum", "gallbladder", "portal_vein_and_splenic_vein"), 600.0),
}
"""Volumes in ml that no organ of that name reaches, with generous room for disease."""


@dataclass(frozen=True)
class _Organs:
    """Where each label's organ lies and how large it is."""

    centre_mm: dict[int, Float64[np.ndarray, "3"]]
    volume_ml: dict[int, float]


def contradictions(organs: UInt8[np.ndarray, "D H W"], grid: Grid, class_map: str) -> Remark | None:
    """What the places and sizes of organs say against a label set: ``mask_version``, ``mirrored`` or nothing.

    Args:
        organs: Label map.
        grid: Where it lies.
        class_map: Label set that the card declares.
    """
    found = _measure(organs, grid)
    sides, others = _tested(found, class_map)
    for other in _rivals(class_map):
        here, there = (*sides, *others), tuple(held for part in _tested(found, other) for held in part)
        if not {*found.volume_ml} <= {*label_sets.load(other)} or min(len(here), len(there)) < MIN_RELATIONS:
            continue
        is_wrong = here.count(False) >= MIN_WRONG and _wrong(here) >= WRONG_SHARE
        if is_wrong and BETTER * _wrong(there) <= _wrong(here):
            return Remark(
                "mask_version",
                f"As {class_map}, {here.count(False)} of {len(here)} relations of place and size between its organs "
                f"are impossible; as {other}, {there.count(False)} of {len(there)}. It is a map of {other}.",
            )
    if len(sides) >= MIN_RELATIONS and _wrong(sides) >= SIDES_SHARE and (not others or _wrong(others) < WRONG_SHARE):
        return Remark(
            "mirrored",
            f"{sides.count(False)} of {len(sides)} organs lie on the wrong side while all else is in place: scan or "
            "organ map has left and right exchanged (or the patient has, which is rare).",
        )
    return None


def of_other_version(labels: Iterable[float], class_map: str) -> str | None:
    """The label set that names all labels of a map which the declared one does not; None if none does.

    Args:
        labels: All labels of the map.
        class_map: The declared set.
    """
    wanted = {*labels} - {0}
    return next((name for name in _rivals(class_map) if wanted <= {*label_sets.load(name)}), None)


def _rivals(class_map: str) -> list[str]:
    return [name for name in VERSIONS if name != class_map] if class_map in VERSIONS else []


def _measure(organs: UInt8[np.ndarray, "D H W"], grid: Grid) -> _Organs:
    stride = 2 if organs.size > 2_000_000 else 1
    sparse = organs[::stride, ::stride, ::stride]
    places = np.nonzero(sparse)
    labels = sparse[places]
    counts = np.bincount(labels, minlength=256)
    sums = np.stack([np.bincount(labels, weights=place, minlength=256) for place in places], axis=1)
    present = np.flatnonzero(counts)
    centres = grid.voxel_to_world(sums[present] / counts[present, None] * stride)
    millilitres = float(np.prod(grid.spacing_mm)) * stride**3 / 1000
    return _Organs(
        {int(label): centre for label, centre in zip(present, centres, strict=True)},
        {int(label): float(counts[label]) * millilitres for label in present},
    )


def _tested(found: _Organs, class_map: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Which relations of sides, and which others, hold if the labels are of this set."""
    names = label_sets.load(class_map)
    centres = {names[label]: centre for label, centre in found.centre_mm.items() if label in names}
    volumes = {names[label]: volume for label, volume in found.volume_ml.items() if label in names}

    def held(pairs: Iterable[tuple[str, str]], axis: int) -> Iterator[bool]:
        for first, second in pairs:
            if first in centres and second in centres:
                yield bool(centres[first][axis] > centres[second][axis] - MARGIN_MM)

    sizes = (volumes[name] <= most for name, most in _MOST_ML.items() if name in volumes)
    return tuple(held(_right_of(), 0)), (*held(_above(), 2), *held(product(_FRONT, _BACK), 1), *sizes)


def _wrong(held: tuple[bool, ...]) -> float:
    return held.count(False) / len(held)


@cache
def _right_of() -> tuple[tuple[str, str], ...]:
    """Pairs of organs of which the first lies further to the patient's right."""
    organs = dict.fromkeys(organ for name in VERSIONS for organ in label_sets.load(name).values())
    sided = [(organ, organ.replace("right", "left")) for organ in organs if "right" in organ.split("_")]
    return (*sided, *((right, left) for right in _RIGHT_SIDED for left in _LEFT_SIDED))


@cache
def _above() -> tuple[tuple[str, str], ...]:
    """Pairs of organs of which the first lies higher."""
    ribs = [(f"rib_{side}_{upper}", f"rib_{side}_{upper + 3}") for side in ("left", "right") for upper in range(1, 10)]
    return (
        *pairwise(_SPINE),
        *ribs,
        *product((*_TOP, *_LUNGS, "heart"), (*_BELLY, *_PELVIS, *_LOINS)),
        *product(("liver", "spleen", "stomach", "esophagus", *_BELLY[:3]), _PELVIS),
        *product(_TOP, ("liver", "spleen", "lung_lower_lobe_left", "lung_lower_lobe_right")),
    )
