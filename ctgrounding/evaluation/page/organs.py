"""Organ recognition on the result page: what was taken for what."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ctgrounding import label_sets
from ctgrounding.evaluation.page.charts import confusion
from ctgrounding.evaluation.page.words import protocol

_MOST_ORGANS = 60


def organs(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Which organ's embedding is nearest to which name."""
    classes = section.get("classes", [])
    if not classes:
        return "<p>No evaluated scan has an organ map.</p>" + protocol(section)
    prefix = "organ_recognition/"
    text = (
        f"The own name comes first for {metrics[prefix + 'top1']:.1%} of {metrics[prefix + 'organs']:.0f} organs "
        f"({metrics[prefix + 'macro_top1']:.1%} as a mean over organ classes) and is among the first five for "
        f"{metrics[prefix + 'top5']:.1%}, out of {metrics[prefix + 'candidates']:.0f} names."
    )
    worst = sorted(classes, key=lambda row: row["top1"])[:_MOST_ORGANS]
    kept = {row["name"] for row in worst}
    shown = [row for row in classes if row["name"] in kept]
    names = [row["name"] for row in shown]
    shares = [[row["taken_for"].get(name, 0) / row["organs"] for name in names] for row in shown]
    note = "" if len(shown) == len(classes) else f'<p class="note">The {len(shown)} least recognised organs.</p>'
    legend = '<p class="note">Rows: what it is. Columns, in the same order: what it was taken for.</p>'
    matrix = confusion([label_sets.spoken(name) for name in names], shares)
    return f"<p>{escape(text)}</p>{note}{legend}{matrix}{_mistakes(classes)}{protocol(section)}"


def _mistakes(classes: Sequence[Mapping[str, Any]]) -> str:
    found = [
        (count / row["organs"], row["name"], other)
        for row in classes
        for other, count in row["taken_for"].items()
        if other != row["name"]
    ]
    if not found:
        return "<p>No organ was taken for another.</p>"
    rows = "".join(
        f"<tr><td>{_spoken(name)}</td><td>{_spoken(other)}</td><td>{share:.0%}</td></tr>"
        for share, name, other in sorted(found, reverse=True)[:8]
    )
    return (
        f"<h3>Most frequent mistakes</h3><table><tr><th>It is</th><th>taken for</th><th>share</th></tr>{rows}</table>"
    )


def _spoken(name: str) -> str:
    return escape(label_sets.spoken(name))
