"""Snippet localization on the result page: errors beside the baselines, and pictures."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from ctgrounding.evaluation.examples import unpacked_image
from ctgrounding.evaluation.page.charts import Axis, Series, bars, histogram, scatter_chart
from ctgrounding.evaluation.page.words import protocol
from ctgrounding.evaluation.pictures import depth_picture, png

_ANSWERS = {
    "model": "This model",
    "organ_prior": "Organ prior",
    "zero_shot": "Zero-shot, heads of whole scans",
    "middle": "Middle of the scan",
    "random": "Random depth",
    "untrained": "Untrained model",
}


def localization(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Errors beside the baselines, where they lie, and pictures."""
    errors = section.get("errors_mm")
    if not errors:
        return "<p>No snippet lies in an evaluated scan.</p>" + protocol(section)
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    ordered = sorted(means, key=lambda name: (name != "model", means[name]))
    rows = [
        (_ANSWERS.get(name, name), means[name], f"{means[name]:.1f} mm", "one" if name == "model" else "other")
        for name in ordered
    ]
    prefix = "snippet_localization/"
    facts = (
        f"Median {metrics[prefix + 'median_mm']:.1f} mm; {metrics[prefix + 'within_12_mm']:.0%} within 12 mm, "
        f"{metrics[prefix + 'within_24_mm']:.0%} within 24 mm; mean over scans "
        f"{metrics[prefix + 'per_scan_mae_mm']:.1f} mm; {metrics[prefix + 'outside']:.0f} snippets lie outside "
        "their scans and are left out."
    )
    return "".join(
        [
            "<p>Mean distance between the depth that the model gives a sentence and the slice that the sentence's "
            f"author named, beside answers that need no trained model. {escape(facts)}</p>",
            bars(rows, max(means.values())),
            f'<div class="charts">{_error_charts(errors, section["fraction"])}</div>',
            _strata(section["strata"], ordered),
            _pictures(section.get("examples", ())),
            protocol(section),
        ]
    )


def _error_charts(errors: Mapping[str, Sequence[float]], fraction: Sequence[float]) -> str:
    model = np.asarray(errors["model"])
    top = float(max(24.0, np.ceil(np.quantile(model, 0.99) / 12) * 12))
    rival = "organ_prior" if "organ_prior" in errors else "middle"
    shown = [
        Series(_ANSWERS["model"], list(model), []),
        Series(_ANSWERS[rival], list(errors[rival]), [], "two"),
    ]
    edges = np.arange(0.0, top + 6.0, 12.0).tolist()
    place = np.asarray(fraction)
    centres, medians = [], []
    for low in np.arange(0.0, 1.0, 0.1):
        chosen = (place >= low) & (place < low + 0.1)
        if chosen.sum() >= 5:
            centres.append(float(low + 0.05))
            medians.append(float(np.median(model[chosen])))
    return histogram("How far off", "error (mm), the last bar holds all above", shown, edges) + scatter_chart(
        "Error over depth",
        Axis("place in the scan, 0 = lowest", 0.0, 1.0),
        Axis("error (mm)", 0.0, top),
        Series("a snippet", place.tolist(), model.tolist()),
        Series("median of a tenth", centres, medians, "two"),
    )


def _strata(strata: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(_ANSWERS.get(name, name))}</th>" for name in answers)
    rows = "".join(
        f"<tr><td>{escape(item['name'])}</td><td>{item['snippets']}</td><td>{item['scans']}</td>"
        f"<td>{item['within_12_mm']:.0%}</td><td>{item['within_24_mm']:.0%}</td><td>{item['median_mm']:.1f}</td>"
        + "".join(f"<td>{item['mae_mm'][name]:.1f}</td>" for name in answers)
        + "</tr>"
        for item in strata
    )
    names = ("Errors in mm", "snippets", "scans", "within 12 mm", "within 24 mm", "median")
    first = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="scroll"><table><tr>{first}{head}</tr>{rows}</table></div>'
    note = '<p class="note">The last columns are mean errors of the model and of the baselines.</p>'
    return f"<h3>By lesion size, scan length and organ</h3>{note}{table}"


def _pictures(examples: Sequence[Mapping[str, Any]]) -> str:
    figures = []
    for item in examples:
        if item.get("coronal") is None:
            continue
        low, high = item["true_mm"]
        figure = depth_picture(
            unpacked_image(item["coronal"]),
            np.asarray(item["depth_mm"]),
            np.asarray(item["probability"]),
            item["chosen_mm"],
            (low, high),
        )
        data = base64.b64encode(png(figure)).decode("ascii")
        off = abs(item["chosen_mm"] - (low + high) / 2)
        text = escape(item["text"])
        figures.append(
            f'<figure><img alt="Coronal view with chosen and named slice" src="data:image/png;base64,{data}">'
            f"<figcaption>“{text}”<br>{off:.0f} mm off · {escape(item['scan'])}</figcaption></figure>"
        )
    if not figures:
        return ""
    note = "Scans chosen by a hash of their names, not by success. Patient's right is on the left."
    return f'<h3>Examples</h3><p class="note">{note}</p><div class="gallery">{"".join(figures)}</div>'
