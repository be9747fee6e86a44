"""A run's numbers as a short table, each with its interval, its pool and its protocol."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ctgrounding.evaluation.protocols.build import Plan, pool_of
from ctgrounding.evaluation.results import RunResults

_NO_NUMBERS = (
    *("pool", "queries", "scans", "studies", "patients", "snippets", "small_snippets", "outside"),
    *("classes", "asked", "threshold_patients", "threshold_classes"),
)
_BOUNDS = ("_ci_low", "_ci_high", "_repeats_low", "_repeats_high")


@dataclass(frozen=True)
class Line:
    """One number of the table.

    Attributes:
        name: Without the protocol's.
        value: The number.
        interval: Its bounds, if any.
        pool: Scans that it speaks of or chooses from, None where not known.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    pool: int | None


def lines(metrics: Mapping[str, float], prefix: str = "") -> Iterator[Line]:
    """The numbers under a prefix, without counts and chances, which stand in the pool column or in the files.

    Args:
        metrics: Numbers by full name.
        prefix: Such as ``ct_clip/``.
    """
    for full, value in sorted(metrics.items()):
        name = full.removeprefix(prefix)
        last = name.rpartition("/")[2]
        is_detail = any(mark in last for mark in _BOUNDS) or last in _NO_NUMBERS or last.startswith("chance")
        if full.startswith(prefix) and not is_detail:
            part, _, _ = name.partition("/")
            yield Line(name, value, _interval(metrics, full), pool_of(metrics, f"{prefix}{part}/"))


def _interval(metrics: Mapping[str, float], full: str) -> tuple[float, float] | None:
    bare = full.removesuffix("_macro")
    unit = "_mm" if bare.endswith("_mm") else ""
    stem = bare.removesuffix(unit)
    for kind in ("ci", "repeats"):
        low, high = (metrics.get(f"{stem}_{kind}_{side}{unit}") for side in ("low", "high"))
        if low is not None and high is not None:
            return low, high
    return None


def text(results: RunResults, protocol: str) -> str:
    """The table of a protocol's numbers, and what a reader must know of them.

    Args:
        results: Of the evaluation.
        protocol: Its name.
    """
    rows = [("number", "value", "95 % interval", "scans", "protocol")]
    for line in lines(results.metrics, f"{protocol}/"):
        bounds = "" if line.interval is None else f"{line.interval[0]:.4g} to {line.interval[1]:.4g}"
        rows.append((line.name, f"{line.value:.4g}", bounds, "" if line.pool is None else str(line.pool), protocol))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"note: {sentence}" for sentence in results.about.get("warnings", ())]
    return "\n".join([*table, *notes])


def protocol_facts(plan: Plan) -> dict[str, Any]:
    """What a page says of a protocol."""
    protocol = plan.protocol
    return {
        "protocol": protocol.title,
        "prefix": f"{protocol.name}/",
        "protocol_facts": {
            "protocol": f"{protocol.title} ({protocol.name})",
            "what": protocol.about,
            "source": protocol.source,
            "departures": list(protocol.departures) or ["none"],
            "parts": [f"{name}: {_scans(part.scans, part.published_scans)}" for name, part in protocol.parts.items()],
        },
    }


def _scans(rule: str, published: int | None) -> str:
    return f"{rule} scans" + (f", {published} as published" if published else "")
