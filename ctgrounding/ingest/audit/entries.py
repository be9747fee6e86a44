"""One entry a scan of the audit's account."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctgrounding.ingest.audit.copies import Seen
from ctgrounding.ingest.audit.kinds import KINDS, RANK, Remark
from ctgrounding.ingest.audit.picture import refused_picture, scan_picture
from ctgrounding.ingest.catalog import PlannedScan
from ctgrounding.ingest.examination import Rules, examine
from ctgrounding.ingest.identity import Identity

OUTCOMES = ("quarantined", "flagged", "usable")


@dataclass(frozen=True)
class ScanAudit:
    """The verdict on one scan and what speaks for it.

    Attributes:
        scan_id: The scan, like all ids here as it is written.
        study_id: Its study.
        patient_id: Its patient.
        split: Its split.
        hu: How values become HU: ``already_hu``, ``slope_and_intercept``, ``intercept_trap``, ``trusted`` where the
            card decided, or ``unknown`` where nothing could be read.
        left_out: Whether ingest leaves it out.
        remarks: What was found, gravest first.
        evidence: Peaks, shares, sizes and orientation, as they go into the shard.
        voxels: Hash of its voxels on the grid; empty if it has none.
        series: Identifier of its series, as ids are written.
        picture: PNG of a scan with remarks; empty if there is none.
    """

    scan_id: str
    study_id: str
    patient_id: str
    split: str
    hu: str = "unknown"
    left_out: bool = False
    remarks: tuple[Remark, ...] = ()
    evidence: dict[str, Any] = field(default_factory=dict)
    voxels: str = ""
    series: str = ""
    picture: bytes = field(default=b"", repr=False)

    @property
    def verdict(self) -> str:
        """The gravest finding, or how values become HU where there is none."""
        return self.remarks[0].kind if self.remarks else self.hu

    @property
    def outcome(self) -> str:
        """``quarantined``, ``flagged`` (it goes in, but look) or ``usable``."""
        if self.left_out:
            return "quarantined"
        return "usable" if all(KINDS[remark.kind].effect == "note" for remark in self.remarks) else "flagged"

    @property
    def seen(self) -> Seen:
        """What tells it from other scans."""
        return Seen(self.scan_id, self.patient_id, self.split, self.voxels, self.series)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the picture."""
        return {
            "scan_id": self.scan_id,
            "study_id": self.study_id,
            "patient_id": self.patient_id,
            "split": self.split,
            "outcome": self.outcome,
            "verdict": self.verdict,
            "hu": self.hu,
            "findings": [vars(remark) for remark in self.remarks],
            "evidence": self.evidence,
            "voxels_sha256": self.voxels,
        }


def audit_scan(planned: PlannedScan, rules: Rules, identity: Identity) -> ScanAudit:
    """Examine one scan as ingest would.

    Args:
        planned: What the card's tables say of it.
        rules: What the card decides.
        identity: How ids are written.
    """
    found = examine(planned, rules)
    remarks = [found.refusal] if found.refusal else []
    remarks += [found.mask_refusal] if found.mask_refusal else []
    scan, verdict = found.scan, found.scan.verdict if found.scan else None
    if verdict:
        remarks += verdict.remarks
    picture = b""
    if scan:
        picture = scan_picture(scan)
    elif found.refusal:
        picture = refused_picture(planned.path, planned.series, found.refusal.kind)
    return ScanAudit(
        scan_id=identity.write("scan", planned.scan_id),
        study_id=identity.write("study", planned.study_id),
        patient_id=identity.write("patient", planned.patient_id),
        split=planned.split,
        hu=verdict.rule.verdict if verdict else "unknown",
        left_out=scan is None,
        remarks=in_order(remarks),
        evidence={key: value for key, value in verdict.to_json().items() if key not in ("flags", "reasons")}
        if verdict
        else {},
        voxels=hashlib.sha256(np.ascontiguousarray(scan.image_hu).data).hexdigest() if scan else "",
        series=identity.write("series", scan.source.uid) if scan else "",
        picture=picture,
    )


def in_order(remarks: list[Remark]) -> tuple[Remark, ...]:
    """Remarks, gravest first."""
    return tuple(sorted(remarks, key=lambda remark: RANK[remark.kind]))
