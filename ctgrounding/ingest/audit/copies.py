"""What only all scans together show: copies of one another, and patients in two splits."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ctgrounding.ingest.audit.kinds import Remark


@dataclass(frozen=True)
class Seen:
    """What tells a scan from others.

    Attributes:
        scan_id: The scan, as ids are written.
        patient_id: Its patient.
        split: Its split.
        voxels: Hash of its voxels on the grid; equal for copies in another file format or orientation.
        series: Identifier of its series, as ids are written; empty where files have none.
    """

    scan_id: str
    patient_id: str
    split: str
    voxels: str
    series: str = ""


def find_copies(scans: Iterable[Seen]) -> dict[str, Remark]:
    """Scans that repeat an earlier one, by voxels or by series; the first of the table is the original.

    Args:
        scans: In the order of the card's table.

    Examples:
        >>> first = Seen("a", "p", "train", "00ff")
        >>> print(find_copies([first, Seen("b", "q", "test", "00ff")])["b"].reason)
        Its voxels are those of scan a (another patient, split train).
    """
    voxels: dict[str, Seen] = {}
    series: dict[str, Seen] = {}
    found = {}
    for scan in scans:
        original = voxels.setdefault(scan.voxels, scan)
        what = "voxels are those"
        if original is scan and scan.series:
            original = series.setdefault(scan.series, scan)
            what = "series UID is that"
        if original is not scan:
            found[scan.scan_id] = Remark("duplicate", f"Its {what} of scan {_where(original, scan)}.")
    return found


def patients_in_two_splits(splits: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    """Patients whose scans are in more than one split, with these splits.

    Args:
        splits: Patient and split of every scan.
    """
    found: dict[str, dict[str, None]] = {}
    for patient, split in splits:
        found.setdefault(patient, {})[split] = None
    return {patient: tuple(names) for patient, names in found.items() if len(names) > 1}


def _where(original: Seen, scan: Seen) -> str:
    patient = "the same patient" if original.patient_id == scan.patient_id else "another patient"
    split = "" if original.split == scan.split else f", split {original.split}"
    return f"{original.scan_id} ({patient}{split})"
