"""Abnormal organs, and organs that sentences point to, on the result page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ctgrounding.evaluation.page.charts import bars
from ctgrounding.evaluation.page.words import protocol

_KEYS = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}


def abnormality(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Areas and F1 of each organ and of each finding in it."""
    stem = "organ_abnormality/"
    if not any(row["counts"] for row in section.get("organs", ())):
        return "<p>No organ has enough abnormal and normal cases to count.</p>" + protocol(section)
    shown = [
        f"{title}: AUROC {metrics[f'{stem}{part}auroc_macro']:.3f} over {metrics[f'{stem}{count}']:.0f} {count}"
        + (f", F1 {metrics[f'{stem}{part}f1_macro']:.3f}" if f"{stem}{part}f1_macro" in metrics else "")
        for title, part, count in (("Is the organ abnormal", "", "organs"), ("Of what", "finding_", "findings"))
        if f"{stem}{part}auroc_macro" in metrics
    ]
    tables = _table("Organ", section["organs"]) + (
        f"<details><summary>Findings in organs</summary>{_table('Finding', section['findings'])}</details>"
    )
    if f"{stem}f1_macro" in metrics:
        shown.append("F1 is at thresholds of validation patients")
    return f"<p>{escape('. '.join(shown))}.</p>{tables}{protocol(section)}"


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in (title, "abnormal", "normal", *_KEYS.values(), "counts"))
    body = "".join(
        f'<tr class="{"in" if row["counts"] else "out"}"><td>{escape(row["name"].replace("_", " "))}</td>'
        f"<td>{row['positives']}</td><td>{row['negatives']}</td>"
        + "".join(f"<td>{_number(row[key])}</td>" for key in _KEYS)
        + f"<td>{'yes' if row['counts'] else 'no'}</td></tr>"
        for row in sorted(rows, key=lambda row: (not row["counts"], -(row["auroc"] or 0.0)))
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def pointing(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """How often a statement finds its organ, by organ."""
    stem = "organ_pointing/"
    if f"{stem}top1" not in metrics:
        return "<p>No statement speaks of an organ that its scan shows.</p>" + protocol(section)
    abnormal = f", {metrics[f'{stem}abnormal_top1']:.1%} of abnormal ones" if f"{stem}abnormal_top1" in metrics else ""
    text = (
        f"The organ most like a statement is one that it speaks of for {metrics[f'{stem}top1']:.1%} of "
        f"{metrics[f'{stem}statements']:.0f} statements{abnormal}; chance {metrics[f'{stem}chance_top1']:.1%}, "
        f"{metrics[f'{stem}mean_candidates']:.1f} organs a scan."
    )
    rows = [
        (row["name"], row["top1"], f"{row['top1']:.0%} of {row['statements']}", "one")
        for row in sorted(section["organs"], key=lambda row: -row["top1"])
    ]
    details = f"<details><summary>By organ</summary>{bars(rows, 1.0)}</details>"
    return f"<p>{escape(text)}</p>{details}{protocol(section)}"


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"
