"""One scan from its row in the card's table to its grid: what ingest stores and what the audit reports."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from ctgrounding import label_sets
from ctgrounding.errors import CTGroundingError, GeometryError, ScanError
from ctgrounding.geometry import TripleMm, check_affine, slice_axis
from ctgrounding.ingest.audit.kinds import Remark
from ctgrounding.ingest.audit.organs import contradictions
from ctgrounding.ingest.audit.rule import AuditRule
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.readers import open_source
from ctgrounding.ingest.readers.masks import open_organs
from ctgrounding.ingest.scan import Scan, bring, bring_organs

Read = TypeVar("Read")


@dataclass(frozen=True)
class Rules:
    """What of a card decides about one scan.

    Attributes:
        spacing_mm: Grid along ``D H W``.
        hu: The card's HU rule.
        class_map: Label set of the organ maps.
        audit: The card's audit rule.
    """

    spacing_mm: TripleMm
    hu: str
    class_map: str
    audit: AuditRule


@dataclass(frozen=True)
class Examination:
    """What became of one scan.

    Attributes:
        scan: The scan on its grid; None if it is left out.
        organs: Its organ map on the same grid; None without one that can be used.
        refusal: Why it is left out; None if it is not.
        mask_refusal: Why its organ map is; None if it is not, or there is none.
    """

    scan: Scan | None
    organs: UInt8[np.ndarray, "D H W"] | None = None
    refusal: Remark | None = None
    mask_refusal: Remark | None = None


def examine(planned: PlannedScan, rules: Rules) -> Examination:
    """Read, judge and resample a scan and its organ map; whatever a file holds, it ends in a verdict.

    Args:
        planned: What the card's tables say of the scan.
        rules: What the card decides.
    """
    try:
        scan = _scan(planned, rules)
        organs, mask_refusal, remarks = _organs(planned, scan, rules)
        verdict = replace(scan.verdict, remarks=(*scan.verdict.remarks, *remarks))
        _check_wanted(verdict.remarks if mask_refusal is None else (mask_refusal, *verdict.remarks), rules.audit)
    except ScanError as error:
        return Examination(None, refusal=Remark(error.kind, str(error)))
    return Examination(replace(scan, verdict=verdict), organs, mask_refusal=mask_refusal)


def guarded(read: Callable[[], Read]) -> Read:
    """Run a reader; what a library throws at a broken file becomes a named reason without its details.

    Raises:
        CTGroundingError: For whatever went wrong.
    """
    try:
        return read()
    except GeometryError as error:
        raise ScanError(str(error), "bad_affine") from error
    except CTGroundingError:
        raise
    except Exception as error:
        raise ScanError(f"It cannot be read ({type(error).__name__}).") from error


def _scan(planned: PlannedScan, rules: Rules) -> Scan:
    if planned.known_bad:
        raise ScanError(f"The card leaves it out: {planned.known_bad}", "left_out")
    source = guarded(lambda: open_source(planned.path, planned.series))
    guarded(lambda: check_affine(source.affine))
    slices = source.shape_ijk[slice_axis(source.affine)]
    if slices < rules.audit.min_slices:
        raise ScanError(
            f"The scan has {slices} axial slices; the card wants at least {rules.audit.min_slices}.", "too_few_slices"
        )
    return guarded(lambda: bring(source, rules.spacing_mm, rules.hu))


def _organs(
    planned: PlannedScan, scan: Scan, rules: Rules
) -> tuple[UInt8[np.ndarray, "D H W"] | None, Remark | None, list[Remark]]:
    """The organ map, or why it cannot be used; and what else it says about the scan."""
    path, grid, classes = planned.organs_path, scan.grid, label_sets.load(rules.class_map)
    if path is None:
        return None, None, []
    try:
        source = guarded(lambda: open_organs(path, classes, planned.organ_names, scan.source))
        organs = guarded(lambda: bring_organs(source, grid, rules.class_map))
    except ScanError as error:
        return None, Remark(_mask_kind(error.kind), str(error)), []
    remark = contradictions(organs, grid, rules.class_map)
    if remark is not None and remark.kind == "mask_version":
        return None, remark, []
    return organs, None, [remark] if remark else []


def _mask_kind(kind: str) -> str:
    if kind == "missing_file":
        return "mask_missing"
    return kind if kind.startswith("mask_") else "mask_unreadable"


def _check_wanted(remarks: tuple[Remark, ...], rule: AuditRule) -> None:
    for remark in remarks:
        if remark.kind in rule.quarantine:
            raise ScanError(remark.reason, remark.kind)
