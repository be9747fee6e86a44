"""What the audit can find, by name, and what each means for the scan."""

from dataclasses import dataclass
from typing import Literal

Effect = Literal["quarantine", "no mask", "no report", "flag", "note"]
"""What a finding does to its scan unless the card says otherwise, gravest first."""

EFFECTS: tuple[Effect, ...] = ("quarantine", "no mask", "no report", "flag", "note")


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        title: A few words for tables.
        effect: ``quarantine`` leaves the scan out, for there is nothing to store or nothing to trust; ``no mask``
            and ``no report`` let it in without; ``flag`` lets it in and asks for a look; ``note`` only tells.
        advice: What to do.
    """

    title: str
    effect: Effect
    advice: str


KINDS: dict[str, Kind] = {
    "left_out": Kind("left out by the card", "quarantine", "Nothing: the card's known_bad names it."),
    "missing_file": Kind("file missing", "quarantine", "Correct the path in the table of scans, or fetch the file."),
    "unreadable": Kind("cannot be read", "quarantine", "Copy or export it again."),
    "worker_killed": Kind("killed its worker", "quarantine", "Give it more memory or leave it out."),
    "no_such_series": Kind("series not found", "quarantine", "Correct the series number in the table of scans."),
    "not_ct": Kind("not CT", "quarantine", "Remove the row, or point it at the CT series."),
    "no_header": Kind("header missing", "quarantine", "Convert the scan from its DICOM files again."),
    "bad_affine": Kind("affine degenerate", "quarantine", "Convert the scan from its DICOM files again."),
    "too_few_slices": Kind("too few slices", "quarantine", "Point the row at the whole series, or lower min_slices."),
    "missing_slices": Kind("slices missing", "quarantine", "Fetch the whole series again."),
    "repeated_slices": Kind("slices repeated", "quarantine", "Keep one copy, or one series a folder or number."),
    "uneven_slices": Kind("slices uneven", "quarantine", "Export the series as it was reconstructed."),
    "not_finite": Kind("values not finite", "quarantine", "Export it again."),
    "blank": Kind("blank", "quarantine", "Export it again."),
    "not_hu": Kind("not HU", "quarantine", "Export CT values, not a windowed or normalised picture."),
    "duplicate": Kind("duplicate", "quarantine", "Keep one row; if patients differ, find out whose scan it is."),
    "two_splits": Kind("patient in two splits", "quarantine", "Give all scans of a patient one split; ingest waits."),
    "mask_missing": Kind("mask missing", "no mask", "Make the mask, or clear its column."),
    "mask_unreadable": Kind("mask cannot be read", "no mask", "Make the mask again."),
    "mask_empty": Kind("mask empty", "no mask", "Make the mask again."),
    "mask_outside": Kind("mask outside the scan", "no mask", "Find the mask that belongs to this scan."),
    "mask_labels": Kind("mask of unknown labels", "no mask", "Check organs.classes of the card."),
    "mask_version": Kind("mask of another version", "no mask", "Set organs.classes to the masks' own version."),
    "no_report": Kind("no report", "no report", "Check reports.key of the card."),
    "intercept_trap": Kind("intercept trap", "flag", "Nothing: it was corrected. Look whether air is black."),
    "no_air": Kind("no air in the field", "flag", "Look whether the brightness is right; air could not tell."),
    "mirrored": Kind("left and right exchanged", "flag", "Compare scan, mask and report; then quarantine it or not."),
    "lost_header": Kind("header looks lost", "flag", "Compare spacing and position with the DICOM files."),
    "two_places": Kind("header says two places", "flag", "Compare place and sides with the DICOM files."),
    "odd_size": Kind("impossible size", "flag", "Compare the spacing with the DICOM files."),
    "copied_slices": Kind("slices copied", "flag", "Look whether the conversion repeated slices."),
    "cut_field": Kind("field of view cut", "flag", "Nothing, unless what lies outside matters to you."),
    "tilt": Kind("gantry tilt", "note", "Nothing: resampling follows the tilt."),
    "padding": Kind("constant padding", "note", "Nothing: padding becomes -1024 HU."),
}
"""Every kind, gravest first."""

FIRM = frozenset(kind for kind, entry in KINDS.items() if entry.effect == "quarantine") - {"duplicate"}
"""Kinds that always leave a scan out (or, for ``two_splits``, stop an ingest). A card decides about the others."""

CHOOSABLE = tuple(kind for kind in KINDS if kind not in FIRM and kind != "no_report")
"""Kinds that a card may name under ``audit.quarantine``."""

RANK = {kind: rank for rank, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Remark:
    """One finding about one scan.

    Attributes:
        kind: A key of :data:`KINDS`.
        reason: What was found, in one or two sentences, without anything that identifies.
    """

    kind: str
    reason: str
