"""Scan-to-scan retrieval and retrieval in pools on the result page."""

from collections.abc import Mapping
from html import escape
from typing import Any

from ctgrounding.evaluation.page.words import protocol


def scans(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """A row of numbers for each definition, and the definitions in words."""
    rows, words = [], []
    for name, item in section["definitions"].items():
        stem = f"scan_to_scan/{name}/{item['measure']}_at_"
        depths = sorted(int(key.removeprefix(stem)) for key in metrics if key.removeprefix(stem).isdigit())
        words.append(f"<dt>{escape(name)}</dt><dd>{escape(item['text'])}</dd>")
        rows += [
            f"<tr><td>{escape(name)}</td><td>{item['measure']}@{k}</td><td>{_with_interval(metrics, f'{stem}{k}')}</td>"
            f"<td>{_number(metrics.get(f'{stem}{k}_as_printed'))}</td>"
            f"<td>{metrics[f'scan_to_scan/{name}/queries']:.0f}</td><td>{item['pool']}</td></tr>"
            for k in depths
        ]
    if not rows:
        return "<p>Too few scans to find others among them, or none with a label.</p>" + protocol(section)
    names = ("definition", "number", "value", "as the paper's program prints", "queries", "pool")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
    text = "<p>Three published definitions, which cannot be compared with each other.</p>"
    return f"{text}{table}<dl>{''.join(words)}</dl>{protocol(section)}"


def pools(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Recall by direction, depth and size of the pool."""
    stem = "pooled_retrieval/"
    keys = [key for key in metrics if key.startswith(stem) and "_of_" in key and not key.endswith(("_low", "_high"))]
    if not keys:
        return "<p>Too few scans to fill a pool.</p>" + protocol(section)
    rows = []
    for key in sorted(keys, key=lambda name: (name.split("/")[1], int(name.rsplit("_", 1)[1]), name)):
        direction, measure = key.removeprefix(stem).split("/")
        depth, _, size = measure.removeprefix("r_at_").partition("_of_")
        low, high = metrics[f"{key}_repeats_low"], metrics[f"{key}_repeats_high"]
        rows.append(
            f"<tr><td>{direction.replace('_', ' ')}</td><td>{size}</td><td>R@{depth}</td><td>{metrics[key]:.1%}</td>"
            f"<td>{low:.1%} to {high:.1%}</td><td>{int(depth) / int(size):.1%}</td></tr>"
        )
    head = "<th>Direction</th><th>pool</th><th>number</th><th>value</th><th>over shuffles</th><th>chance</th>"
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>{protocol(section)}'


def _with_interval(metrics: Mapping[str, float], key: str) -> str:
    low, high = metrics[f"{key}_ci_low"], metrics[f"{key}_ci_high"]
    return f"{metrics[key]:.3f}<br><small>{low:.3f} to {high:.3f}</small>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
