"""Findings on the result page: areas with intervals, curves, and every number."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ctgrounding.evaluation.page.charts import Axis, Series, intervals, line_chart, scatter_chart
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
            "other": row.get("global_auroc"),
            "shown": f"{row['auroc']:.2f}",
        }
        for row in counted
    ]
    lowest = min([0.4, *(min(row["ci"][0], row["other"] or 1.0) for row in rows)])
    is_two = any(row["other"] is not None for row in rows)
    point = "organ readout where the finding has an organ" if is_two else "each finding"
    beside = '<span><i class="hollow key-dot"></i>global readout</span>' if is_two else ""
    legend = (
        f'<div class="legend"><span><i class="point key-dot"></i>{point}, with 95 % interval</span>{beside}'
        "<span>dashed: chance</span></div>"
    )
    return "".join(
        [
            "<p>Area under the ROC curve. Each finding is asked as pairs of sentences, one affirming and one denying "
            "it; there is no classifier.</p>",
            legend,
            intervals(rows, lowest, 1.0, 0.5),
            f'<div class="charts">{_curves(counted)}{calibration_chart(section.get("calibration"))}</div>',
            _calls(counted, metrics),
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


def calibration_chart(fitted: Mapping[str, Any] | None) -> str:
    """Predicted probability against observed share; nothing where no probability was fitted."""
    if not fitted or not fitted["cases"]:
        return ""
    title = f"Calibration, fitted on {fitted['patients']} validation patients"
    points = Series(f"a tenth of probability (error {fitted['ece']:.3f})", fitted["predicted"], fitted["observed"])
    axes = Axis("predicted probability", 0.0, 1.0), Axis("observed share", 0.0, 1.0)
    return scatter_chart(title, *axes, points, Series("perfect", [0.0, 1.0], [0.0, 1.0], "faint"))


def _calls(counted: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]) -> str:
    """What calls at chosen thresholds are worth; nothing where none were chosen."""
    names = ("f1", "weighted_f1", "balanced_accuracy", "accuracy", "precision", "sensitivity", "specificity")
    shown = [
        f"{name.replace('_', ' ')} {metrics[f'findings/{name}_macro']:.3f}"
        for name in names
        if f"findings/{name}_macro" in metrics
    ]
    if not shown:
        return '<p class="note">No thresholds were chosen, so there is no F1 and no calibration.</p>'
    patients, classes = metrics["findings/threshold_patients"], metrics["findings/threshold_classes"]
    text = f"At thresholds from {patients:.0f} patients, mean of {classes:.0f} findings: {', '.join(shown)}."
    return f"<p>{escape(text)}</p>"


_COLUMNS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "global_auroc": "global AUROC",
    "global_auroc_same_scans": "global, same scans",
    "threshold": "threshold",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ece": "calibration error",
}


def _findings_table(classes: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in _COLUMNS if any(key in row for row in classes)]
    rows = "".join(
        f'<tr class="{"in" if row["counts"] else "out"}"><td>{escape(_name(row))}</td><td>{row["positives"]}</td>'
        f"<td>{row['negatives']}</td><td>{row.get('not_visible', 0)}</td>"
        + "".join(f"<td>{_shown(row.get(key))}</td>" for key in keys)
        + f"<td>{'yes' if row['counts'] else 'no'}</td></tr>"
        for row in classes
    )
    names = ("Finding", "positive", "negative", "organ not visible", *(_COLUMNS[key] for key in keys), "counts")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
