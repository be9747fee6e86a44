"""A statement in the making, and what it settles of the CT-RATE classes."""

from dataclasses import dataclass, field
from typing import NamedTuple

from ctgrounding.reports.clauses import Clause, Said
from ctgrounding.reports.entries import Finding
from ctgrounding.reports.places import Located
from ctgrounding.reports.report import Status


class Fact(NamedTuple):
    """A CT-RATE class that a clause settles."""

    label: str
    present: bool


@dataclass
class Draft:
    """A statement in the making, clauses from token ``start`` to ``end``."""

    start: int
    end: int
    located: list[Located]
    finding: str = ""
    affirmed: bool = False
    denied: bool = False
    is_normal: bool = False
    is_vague: bool = True
    is_measured: bool = False
    hedge: str = ""
    link: str = ""
    is_at_home: bool = False
    said: list[Said] = field(default_factory=list)

    @property
    def speaks(self) -> bool:
        """Whether it says anything."""
        return self.affirmed or self.denied or self.is_normal or self.is_measured

    @property
    def status(self) -> Status:
        """Affirmed findings are abnormal unless a hedge leaves them, or what they are, open."""
        is_open = self.hedge == "hedge" or (self.hedge == "guess" and self.is_vague)
        if self.affirmed:
            return "uncertain" if is_open else "abnormal"
        return "uncertain" if is_open and not (self.denied or self.is_normal) else "normal"

    def add(self, clause: Clause) -> None:
        """Take in what a clause says."""
        self.end = clause.end
        is_device_in_place = clause.is_normal and all(said.entry.device for said in clause.affirmed)
        for said in [] if is_device_in_place else clause.affirmed:
            organ = self.located[0].place.name if self.located else ""
            self.finding = (
                self.finding
                or said.entry.by_organ.get(organ)
                or (said.phrase if said.entry.bundle else said.entry.name)
            )
            self.affirmed = True
            if clause.hedge == "" or not self.finding:
                self.is_vague = self.is_vague and said.entry.vague
        self.said += clause.findings
        self.is_at_home = self.is_at_home or any(said.entry.fixed for said in clause.findings)
        self.denied = self.denied or any(said.denied for said in clause.findings)
        self.is_normal = self.is_normal or clause.is_normal
        self.is_measured = self.is_measured or clause.doubts_size
        if clause.hedge and self.hedge not in ("hedge", "sure"):
            self.hedge = clause.hedge


def labels_of(entry: Finding, names: set[str]) -> list[str]:
    """CT-RATE classes of a finding at places: its own, or those it has there."""
    if not entry.labels_at:
        return entry.label.split("; ") if entry.label else []
    found = [label for name, label in entry.labels_at.items() if name in names or (name == "none" and not names)]
    return list(dict.fromkeys(found))
