"""A run's numbers as files: ``metrics.json``, flat, and ``results.json``, all that the page shows."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.base import Evaluator

METRICS = "metrics.json"
RESULTS = "results.json"
_TESTED = "test"
_SPLITS = "splits"
_LIBRARIES = ("ctgrounding", "torch", "lightning", "monai", "open_clip_torch", "transformers", "numpy")


@dataclass(frozen=True)
class RunResults:
    """What a run's folder knows of its evaluation.

    Attributes:
        metrics: Numbers by full name.
        sections: Each evaluator's results by its name in the config.
        about: What was evaluated: ``title``, ``split``, ``checkpoint``, ``command``, ``config`` (YAML text),
            ``versions`` (library to version), ``warnings`` (sentences), ``protocol`` (name, source, departures); all
            optional.
    """

    metrics: dict[str, float]
    sections: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Write both files; a reader never sees half of one. Numbers that are not finite become null."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        _write(place / METRICS, dict(sorted(self.metrics.items())))
        _write(place / RESULTS, {"about": self.about, "metrics": self.metrics, "sections": self.sections})

    @classmethod
    def read(cls, folder: str | Path) -> "RunResults":
        """Read what :meth:`write` wrote.

        Raises:
            ConfigError: If the folder has no results or they are damaged.
        """
        path = Path(folder) / RESULTS
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            metrics = {name: math.nan if value is None else float(value) for name, value in values["metrics"].items()}
            return cls(metrics, values["sections"], values["about"])
        except FileNotFoundError as error:
            others = sorted(str(found.parent) for found in Path(folder).glob(f"{_SPLITS}/*/{RESULTS}"))
            there = f" Results of other splits lie in {', '.join(others)}." if others else ""
            raise ConfigError(f"{path} does not exist. Run 'ctgrounding test' for this run first.{there}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged ({error}). Run 'ctgrounding test' for this run again.") from error


def results_folder(run: Path, split: str) -> Path:
    """Where results of a split lie: those of ``test`` in the run's folder, others below it.

    Examples:
        >>> results_folder(Path("runs/a"), "val").as_posix()
        'runs/a/splits/val'
    """
    return run if split == _TESTED else run / _SPLITS / split


def evaluated(evaluators: Mapping[str, Evaluator], about: Mapping[str, Any] | None = None) -> RunResults:
    """Ask all evaluators; a collective, so every rank calls it, with the evaluators in one order.

    Args:
        evaluators: By name in the config.
        about: See :class:`RunResults`.

    Raises:
        ConfigError: If two evaluators give a number of one name.
    """
    metrics: dict[str, float] = {}
    sections = {}
    for name, evaluator in evaluators.items():
        numbers = {evaluator.prefix + key: value for key, value in evaluator.compute().items()}
        if both := sorted(set(numbers) & set(metrics)):
            raise ConfigError(f"Two evaluators give '{both[0]}'; the second is '{name}'. Keep one of them.")
        metrics |= numbers
        sections[name] = _named(dict(evaluator.results()), evaluator.prefix)
    return RunResults(metrics, sections, dict(about or {}))


def _named(section: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A section whose cases bear the protocol's name too, so that runs of two protocols are never paired."""
    cases = [{**item, "name": prefix + item["name"]} for item in section.get("cases", ())]
    return {**section, "prefix": prefix, "cases": cases} if prefix else section


def library_versions() -> dict[str, str]:
    """Versions of the libraries that the numbers depend on, as far as they are installed."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(
        json.dumps(_plain(values), indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    beside.replace(path)


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON values have no common type
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
