"""Writes a patient's report: findings, normal organs, negations, impression and image references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import yaml

from ctgrounding.phantom.acquisition import Acquisition
from ctgrounding.phantom.findings import Finding, side_of
from ctgrounding.phantom.kinds import KINDS, Plan
from ctgrounding.phantom.references import Pointer, Reference
from ctgrounding.phantom.shapes import Point

Wording = Literal["train", "held_out"]
Places = Mapping[str, tuple[Point, Point]]

SPOKEN: dict[str, str] = {
    "thyroid_gland": "thyroid gland", "trachea": "trachea", "esophagus": "esophagus", "heart": "heart",
    "aorta": "aorta", "superior_vena_cava": "superior vena cava", "sternum": "sternum",
    "lung_upper_lobe_right": "right upper lobe", "lung_middle_lobe_right": "middle lobe of the right lung",
    "lung_lower_lobe_right": "right lower lobe", "lung_upper_lobe_left": "left upper lobe",
    "lung_lower_lobe_left": "left lower lobe", "liver": "liver", "gallbladder": "gallbladder", "spleen": "spleen",
    "pancreas": "pancreas", "adrenal_gland_right": "right adrenal gland", "adrenal_gland_left": "left adrenal gland",
    "kidney_right": "right kidney", "kidney_left": "left kidney", "stomach": "stomach", "duodenum": "duodenum",
    "portal_vein_and_splenic_vein": "portal vein", "inferior_vena_cava": "inferior vena cava",
    "small_bowel": "small bowel", "colon": "colon", "iliopsoas_right": "right psoas muscle",
    "iliopsoas_left": "left psoas muscle", "urinary_bladder": "urinary bladder", "prostate": "prostate",
    "vertebrae_T12": "T12 vertebra", "vertebrae_L1": "L1 vertebra", "vertebrae_L2": "L2 vertebra",
    "vertebrae_L3": "L3 vertebra", "vertebrae_L4": "L4 vertebra", "vertebrae_L5": "L5 vertebra", "sacrum": "sacrum",
    "hip_right": "right hip", "hip_left": "left hip",
}  # fmt: skip
"""Organs that a normal statement may name, from head to foot, as reports call them."""

PAIRS: dict[str, str] = {"kidney": "kidneys", "adrenal_gland": "adrenal glands"}
"""Pairs that one statement may cover."""

COMPACT = (
    "thyroid_gland", "heart", "liver", "gallbladder", "spleen", "pancreas", "adrenal_gland_right", "adrenal_gland_left",
    "kidney_right", "kidney_left", "stomach", "urinary_bladder", "prostate", "vertebrae_L1", "vertebrae_L3", "sacrum",
)  # fmt: skip
"""Organs short enough that an image number says where they are."""

_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_POINTED_ABNORMAL, _POINTED_NORMAL = 0.85, 0.4
_SAID_NORMAL, _SAID_ABSENT = 0.6, 0.22


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes:
        findings: Findings section.
        impression: Impression section.
        references: Image references in it, in order.
        templates: Templates it was written from, slots unfilled.
        wording: Which stock of templates it used.
    """

    findings: str
    impression: str
    references: tuple[Reference, ...]
    templates: tuple[str, ...]
    wording: Wording


def write_report(
    plan: Plan,
    findings: Sequence[Finding],
    organs: Places,
    acquisitions: list[Acquisition],
    wording: Wording,
    rng: np.random.Generator,
) -> Report:
    """Write the report of one study.

    Args:
        plan: What the patient was dealt.
        findings: What is planted, in world coordinates.
        organs: Box of each organ of the patient, in world coordinates.
        acquisitions: The study's reconstructions.
        wording: Stock of templates to use.
        rng: Source of chance.
    """
    writer = _Writer(wording, acquisitions, rng)
    if plan.is_normal:
        stock = _stock()["all_normal"][plan.coverage][wording]
        section, impression = stock[rng.integers(len(stock))]
        return Report(section, impression, (), (section, impression), wording)
    abnormal = {organ for finding in findings for organ in finding.organs}
    visible = _visible(organs, acquisitions[0])
    for organ in _topics(organs):
        for finding in findings:
            if finding.organ == organ:
                writer.abnormal(finding)
        if organ in visible and organ in SPOKEN and organ not in abnormal:
            writer.normal(organ, organs, visible - abnormal)
    for finding in findings:
        if not finding.organ:
            writer.abnormal(finding)
    for name in KINDS:
        if name in plan.stated and name not in plan.sites and rng.uniform() < _SAID_ABSENT:
            writer.say(writer.choose(_stock()["kinds"][name]["absent"]))
    return writer.report([finding for finding in findings if rng.uniform() < 0.9])


@cache
def _stock() -> dict[str, Any]:
    stock: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("wording.yaml").read_text(encoding="utf-8"))
    return stock


def _topics(organs: Places) -> list[str]:
    """Organs from head to foot: those with a name in reports, then the rest."""
    return [organ for organ in SPOKEN if organ in organs] + [organ for organ in organs if organ not in SPOKEN]


def _visible(organs: Places, acquisition: Acquisition) -> set[str]:
    z = acquisition.slice_z_mm
    return {organ for organ, (low, high) in organs.items() if z.min() <= low[2] and high[2] <= z.max()}


def _slots(finding: Finding, rng: np.random.Generator) -> dict[str, str]:
    size = round(finding.size_mm) if finding.size_mm else 0
    written = f"{size} mm" if size < 25 or rng.uniform() < 0.6 else f"{size / 10:.1f} cm"
    if finding.size_mm and rng.uniform() < 0.15:
        written = f"{size} x {round(0.9 * size)} mm"
    return {
        "side": side_of(finding.organ),
        "lobe": SPOKEN.get(finding.organ, ""),
        "place": finding.place,
        "size": written,
        "count": _COUNTS[finding.count] if finding.count < len(_COUNTS) else str(finding.count),
    }


class _Writer:
    """Collects sentences, their references and the templates they came from."""

    def __init__(self, wording: Wording, acquisitions: list[Acquisition], rng: np.random.Generator) -> None:
        self._wording = wording
        self._rng = rng
        self._pointer = Pointer(acquisitions, rng)
        self._sentences: list[str] = []
        self._references: list[Reference] = []
        self._templates: list[str] = []
        self._said: set[str] = set()

    def choose(self, stock: Mapping[Wording, Sequence[str]]) -> str:
        """One template of this report's stock."""
        templates = stock[self._wording]
        template: str = templates[int(self._rng.integers(len(templates)))]
        self._templates.append(template)
        return template

    def say(self, sentence: str) -> None:
        """Add a sentence without a reference."""
        self._sentences.append(_capital(sentence) + ".")

    def abnormal(self, finding: Finding) -> None:
        """Say a finding, mostly with the image that shows it."""
        text = self.choose(_stock()["kinds"][finding.kind]["findings"]).format(**_slots(finding, self._rng))
        if self._rng.uniform() < _POINTED_ABNORMAL:
            extent = (finding.low_mm, finding.high_mm) if finding.size_mm else None
            self._point(text, finding.centre_mm, finding.organ, finding.kind, extent)
        else:
            self.say(text)

    def normal(self, organ: str, organs: Places, unremarkable: set[str]) -> None:
        """Say that an organ is normal, together with the other one of its pair where that is normal too."""
        if organ in self._said or self._rng.uniform() > _SAID_NORMAL:
            return
        stem = organ.removesuffix("_right").removesuffix("_left")
        both = {f"{stem}_right", f"{stem}_left"}
        if stem in PAIRS and both <= unremarkable and self._rng.uniform() < 0.5:
            self._said |= both
            self.say(self.choose(_stock()["normal"]["many"]).format(organ=PAIRS[stem]))
            return
        text = self.choose(_stock()["normal"]["one"]).format(organ=SPOKEN[organ])
        if organ in COMPACT and self._rng.uniform() < _POINTED_NORMAL:
            x, y, z = ((a + b) / 2 for a, b in zip(*organs[organ], strict=True))
            self._point(text, (x, y, z), organ, "", None)
        else:
            self.say(text)

    def report(self, summarised: Sequence[Finding]) -> Report:
        """Finish with an impression of some findings."""
        lines = [
            self.choose(_stock()["kinds"][f.kind]["impression"]).format(**_slots(f, self._rng)) for f in summarised
        ] or [self.choose(_stock()["clean_impression"])]
        lines = [_capital(line) + "." for line in lines]
        if len(lines) > 1 and self._rng.uniform() < 0.5:
            impression = "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))
        else:
            impression = " ".join(lines)
        section = " ".join(self._sentences)
        return Report(section, impression, tuple(self._references), tuple(self._templates), self._wording)

    def _point(self, text: str, centre_mm: Point, organ: str, kind: str, extent_mm: tuple[Point, Point] | None) -> None:
        written, series, images = self._pointer.point(centre_mm, extent_mm)
        sentence = _capital(text) + written + "."
        self._sentences.append(sentence)
        self._references.append(Reference(written, sentence, series, images, centre_mm[2], organ, kind))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
