"""Findings on the result page: areas with intervals, curves, and every number."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ctgrounding.evaluation.page.charts import Axis, Series, intervals, line_chart
from ctgrounding.evaluation.page.words import protocol


def findings(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Areas a finding with intervals, the global readout beside them, curves and the full table."""
    classes = section.get("classes", [])
    counted = sorted((row for row in classes if row["counts"]), key=lambda row: -row["auroc"])
    if not counted:
        return (
            "<p>No finding has enough positives and negatives to count.</p>"
            + _findings_table(classes)
            + protocol(section)
        )
    rows = [
        {
            "name": row["name"].replace("_", " "),
            "note": f"{row['positives']} of {row['positives'] + row['negatives']}, {row['readout']}",
            "value": row["auroc"],
            "ci": [row["auroc"] if bound is None else bound for bound in row["auroc_ci"]],
            "other": row["global_auroc"],
            "shown": f"{row['auroc']:.2f}",
        }
        for row in counted
    ]
    lowest = min([0.4, *(min(row["ci"][0], row["other"] or 1.0) for row in rows)])
    legend = (
        '<div class="legend"><span><i class="point key-dot"></i>organ readout where the finding has an organ, with '
        '95 % interval</span><span><i class="hollow key-dot"></i>global readout</span><span>dashed: chance</span></div>'
    )
    return "".join(
        [
            "<p>Area under the ROC curve. Each finding is asked as pairs of sentences, one affirming and one denying "
            "it; there is no classifier.</p>",
            legend,
            intervals(rows, lowest, 1.0, 0.5),
            f'<div class="charts">{_curves(counted)}</div>',
            "<details><summary>All findings, in numbers</summary>" + _findings_table(classes) + "</details>",
            protocol(section),
        ]
    )


def _curves(counted: Sequence[Mapping[str, Any]]) -> str:
    def chart(title: str, key: str, x: str, y: str) -> str:
        def series(name: str, row: Mapping[str, Any], style: str) -> Series:
            return Series(name, row[key][0], row[key][1], style)

        lines = [series("", row, "ghost") for row in counted[1:-1]]
        if len(counted) > 1:
            lines.append(series(f"worst: {_name(counted[-1])}", counted[-1], "two"))
        lines.append(series(f"best: {_name(counted[0])}", counted[0], "one"))
        return line_chart(title, Axis(x, 0.0, 1.0), Axis(y, 0.0, 1.0), lines)

    return chart("ROC curves", "roc", "false positive rate", "true positive rate") + chart(
        "Precision and recall", "precision_recall", "recall", "precision"
    )


def _name(row: Mapping[str, Any]) -> str:
    return str(row["name"]).replace("_", " ")


def _findings_table(classes: Sequence[Mapping[str, Any]]) -> str:
    keys = ("auroc", "auprc", "global_auroc", "global_auroc_same_scans")
    rows = "".join(
        f'<tr class="{"in" if row["counts"] else "out"}"><td>{escape(_name(row))}</td><td>{row["positives"]}</td>'
        f"<td>{row['negatives']}</td><td>{row['not_visible']}</td>"
        + "".join(f"<td>{_shown(row[key])}</td>" for key in keys)
        + f"<td>{'yes' if row['counts'] else 'no'}</td></tr>"
        for row in classes
    )
    head = "".join(
        f"<th>{name}</th>"
        for name in (
            "Finding",
            "positive",
            "negative",
            "organ not visible",
            "AUROC",
            "AUPRC",
            "global AUROC",
            "global, same scans",
            "counts",
        )
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
