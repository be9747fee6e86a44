"""Retrieval on the result page: recall by depth, and examples with text."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ctgrounding.evaluation.page.charts import Axis, Series, line_chart
from ctgrounding.evaluation.page.words import protocol, shortened


def retrieval(section: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """Recall by depth against chance, and examples with text."""
    directions = section.get("directions", {})
    if not directions:
        return "<p>No evaluated scan has a report.</p>" + protocol(section)
    rows, charts = [], []
    for name, item in directions.items():
        recall, pool = item["recall"], item["pool"]
        chance = [min(1.0, k / pool) for k in recall["k"]]
        series = [Series("this model", recall["k"], recall["share"]), Series("chance", recall["k"], chance, "faint")]
        title = f"{item['title']}, pool of {pool}"
        horizontal = Axis("first k answers", 1.0, float(max(2, pool)), is_log=True)
        charts.append(line_chart(title, horizontal, Axis("found", 0.0, 1.0), series))
        rows.append(_recall_row(name, item["title"], metrics))
    depths = sorted(
        {int(key.rsplit("_", 1)[1]) for key in metrics if key.startswith("report_to_scan/r_at_") and "ci" not in key}
    )
    head = "".join(f"<th>R@{k}</th>" for k in depths)
    table = (
        f'<div class="scroll"><table><tr><th>Direction</th><th>queries</th><th>pool</th>{head}<th>median rank</th>'
        f"<th>mean rank</th></tr>{''.join(rows)}</table></div>"
    )
    return (
        table
        + f'<div class="charts">{"".join(charts)}</div>'
        + _queries(section.get("examples", ()))
        + protocol(section)
    )


def _recall_row(name: str, title: str, metrics: Mapping[str, float]) -> str:
    depths = sorted(
        int(key.rsplit("_", 1)[1]) for key in metrics if key.startswith(f"{name}/r_at_") and "ci" not in key
    )
    cells = "".join(
        f"<td>{metrics[f'{name}/r_at_{k}']:.1%}<br><small>{metrics[f'{name}/r_at_{k}_ci_low']:.1%} to "
        f"{metrics[f'{name}/r_at_{k}_ci_high']:.1%}</small></td>"
        for k in depths
    )
    return (
        f"<tr><td>{escape(title)}</td><td>{metrics[f'{name}/queries']:.0f}</td><td>{metrics[f'{name}/pool']:.0f}</td>"
        f"{cells}<td>{metrics[f'{name}/median_rank']:.1f}</td><td>{metrics[f'{name}/mean_rank']:.1f}</td></tr>"
    )


def _queries(examples: Sequence[Mapping[str, Any]]) -> str:
    blocks = []
    for item in examples:
        answers = "".join(
            f"<li{' class=own' if answer['own'] else ''}>{escape(answer['scan'])} · {answer['score']:.3f}"
            f"{' · its own' if answer['own'] else ''}<br><small>{escape(shortened(answer['report'], 180))}</small></li>"
            for answer in item["answers"]
        )
        rank = "" if item["rank"] is None else f"own scan at rank {item['rank']:g}"
        blocks.append(
            f'<div class="query"><small>Report of {escape(item["scan"])} · {rank}</small>'
            f"<blockquote>{escape(shortened(item['report'], 600))}</blockquote><ol>{answers}</ol></div>"
        )
    if not blocks:
        return ""
    note = "Reports evenly taken from the list of scans, with the three scans that score highest."
    return f'<details><summary>Examples with text</summary><p class="note">{note}</p>{"".join(blocks)}</details>'
