"""Protocols as data: read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.asked import FindingSet

Kind = Literal["findings", "report_retrieval", "scan_retrieval", "pooled_retrieval", "snippet_depth"]
ScanRule = Literal["all", "first", "listed"]
ALL_LABELS = "all"
_LABELS = "labels.yaml"


@dataclass(frozen=True)
class Part:
    """One evaluation of a protocol.

    Attributes:
        kind: What is evaluated.
        scans: ``all``, the ``first`` reconstruction of each study, or those ``listed`` in a file of the user.
        datasets: Names of the datasets that it is defined on; any if empty.
        published_scans: Number of scans in the publication; None where it is not defined by one.
        labels: Name of a label set, or ``all`` for every column of the data; None where none are read.
        settings: What else the evaluator of this kind takes.
    """

    kind: Kind
    scans: ScanRule
    datasets: tuple[str, ...] = ()
    published_scans: int | None = None
    labels: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A published evaluation.

    Attributes:
        name: By which ``--protocol`` knows it.
        title: Of the system or paper.
        source: Where its facts stand.
        about: In a sentence or two.
        departures: Where this implementation does otherwise than was published, and why.
        parts: Evaluations by name.
        report_sections: Sections that a report's text must be made of; None leaves it to the data.
        scan_list: Where to get the list of scans that the user must supply; None where none is needed.
        refuses_leaks: Whether evaluated patients or volumes that training knows are an error.
    """

    name: str
    title: str
    source: str
    about: str
    departures: tuple[str, ...]
    parts: Mapping[str, Part]
    report_sections: tuple[str, ...] | None = None
    scan_list: str | None = None
    refuses_leaks: bool = False

    @property
    def wants_validation(self) -> bool:
        """Whether thresholds come from validation patients."""
        judged = [part.settings.get("thresholds") or {} for part in self.parts.values()]
        return any(item.get("chosen_on") == "validation" for item in judged)


def names() -> tuple[str, ...]:
    """Names of all protocols."""
    found = (entry.name for entry in files(__package__).iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml") and name != _LABELS))


@cache
def load(name: str) -> Protocol:
    """A protocol by its name.

    Raises:
        ConfigError: If there is none of that name.

    Examples:
        >>> load("ct_clip").parts["findings"].published_scans
        3039
    """
    if name not in names():
        raise ConfigError(f"There is no protocol '{name}'. Use one of {', '.join(names())}.")
    table = _read(f"{name}.yaml")
    parts = {key: _part(dict(value)) for key, value in table.pop("parts").items()}
    sections = table.pop("report_sections", None)
    departures = tuple(table.pop("departures"))
    return Protocol(name, parts=parts, report_sections=sections and tuple(sections), departures=departures, **table)


def _part(table: dict[str, Any]) -> Part:
    kind, scans, datasets = table.pop("kind"), table.pop("scans"), tuple(table.pop("datasets"))
    return Part(kind, scans, datasets, table.pop("published_scans", None), table.pop("labels", None), table)


@cache
def label_set(name: str) -> FindingSet:
    """Findings of a published label set and the columns that answer them.

    Args:
        name: A key of ``labels.yaml``, for example ``ct_rate18`` or ``rad_chestct16_standard``.

    Raises:
        ConfigError: If there is none of that name.

    Examples:
        >>> len(label_set("ct_rate16").columns), label_set("rad_chestct16_standard").columns["Lung nodule"]
        (16, ('nodule', 'nodulegr1cm'))
    """
    if name == ALL_LABELS:
        return FindingSet()
    table = _read(_LABELS)
    if name not in table:
        raise ConfigError(f"There is no label set '{name}'. Use one of {', '.join(table)}.")
    entry = table[name]
    left_out = set(entry.get("without", ()))
    columns = {finding: tuple(items) for finding, items in entry["columns"].items() if finding not in left_out}
    scores = {finding: tuple(items) for finding, items in entry.get("scores", {}).items()}
    return FindingSet(columns, scores)


def _read(file: str) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(files(__package__).joinpath(file).read_text(encoding="utf-8"))
    return table
