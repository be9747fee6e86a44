"""What a card may decide about the audit."""

from dataclasses import dataclass, field


@dataclass
class AuditRule:
    """What leaves a scan out beyond what cannot be stored at all.

    Attributes:
        min_slices: Fewest axial slices of a scan.
        quarantine: Kinds of findings that leave a scan out although it could go in: any that the page on the
            audit calls ``flag``, ``note`` or ``no mask``, and ``duplicate``.
    """

    min_slices: int = 5
    quarantine: list[str] = field(default_factory=lambda: ["duplicate"])
