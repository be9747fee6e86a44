"""The result page's first numbers."""

from collections.abc import Mapping
from html import escape


def cards(metrics: Mapping[str, float], part: str = "") -> list[str]:
    """One card for each kind of number that there is.

    Args:
        metrics: Numbers by name.
        part: Of a protocol; stands in the cards' titles.
    """
    made = []
    beside = f" · {part}" if part else ""
    if "snippet_localization/mae_mm" in metrics:
        rivals = {
            "middle of the scan": "middle",
            "random depth": "random",
            "untrained model": "untrained",
            "organ prior": "organ_prior",
            "zero-shot": "zero_shot",
        }
        shown = [
            f"{name} {metrics[key]:.1f}"
            for name, stem in rivals.items()
            if (key := f"snippet_localization/{stem}_mae_mm") in metrics
        ]
        below = f"{metrics['snippet_localization/snippets']:,.0f} snippets. In mm: " + ", ".join(shown)
        made.append(_card(f"Localization error{beside}", "snippet_localization/mae", metrics, "{:.1f}", "mm", below))
    if "report_to_scan/r_at_1" in metrics:
        pool, chance = metrics["report_to_scan/pool"], metrics["report_to_scan/chance_r_at_1"]
        times = metrics["report_to_scan/r_at_1"] / chance
        below = f"{times:.1f} times chance ({100 * chance:.2g} %), pool of {pool:,.0f}"
        made.append(_card(f"Report to scan, R@1{beside}", "report_to_scan/r_at_1", metrics, "{:.0%}", "", below))
    if "findings/auroc_macro" in metrics:
        below = f"mean of {metrics['findings/classes']:.0f} findings, {metrics['findings/scans']:,.0f} scans"
        if "findings/global_auroc_macro" in metrics:
            below += f"; the global readout gives {metrics['findings/global_auroc_macro']:.3f}"
        made.append(_card(f"Findings, AUROC{beside}", "findings/auroc_macro", metrics, "{:.3f}", "", below))
    if "organ_recognition/top1" in metrics:
        count = metrics["organ_recognition/candidates"]
        below = f"one of {count:.0f} names; chance {100 / max(1.0, count):.2g} %"
        made.append(_card(f"Organ recognised{beside}", "organ_recognition/top1", metrics, "{:.1%}", "", below))
    return made


def _card(title: str, stem: str, metrics: Mapping[str, float], form: str, unit: str, below: str) -> str:
    end = f"_{unit}" if unit else ""
    bare = stem.removesuffix("_macro")
    low, high = metrics.get(f"{bare}_ci_low{end}"), metrics.get(f"{bare}_ci_high{end}")
    interval = "" if low is None or high is None else f"<p>95 % interval {form.format(low)} to {form.format(high)}</p>"
    value = form.format(metrics[stem + end])
    return (
        f'<div class="card"><h3>{escape(title)}</h3><div class="big">{value} <span>{unit}</span></div>'
        f"{interval}<p>{escape(below)}</p></div>"
    )
