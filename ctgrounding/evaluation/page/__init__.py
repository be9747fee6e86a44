"""The result page: one HTML file that needs no network, made from a run's results alone."""

from collections.abc import Callable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ctgrounding import __version__
from ctgrounding.evaluation.page.findings import findings
from ctgrounding.evaluation.page.localization import localization
from ctgrounding.evaluation.page.organs import organs
from ctgrounding.evaluation.page.retrieval import retrieval
from ctgrounding.evaluation.page.words import definitions
from ctgrounding.evaluation.results import RunResults

PAGE = "report.html"

_SECTIONS: dict[str, Callable[[Mapping[str, Any], Mapping[str, float]], str]] = {
    "Snippet localization": localization,
    "Findings, zero-shot": findings,
    "Retrieval": retrieval,
    "Organ recognition": organs,
}


def write_page(folder: str | Path) -> Path:
    """Write ``report.html`` beside a run's results.

    Args:
        folder: Where ``results.json`` lies.

    Returns:
        Path of the page.

    Raises:
        ConfigError: If there are no results or they are damaged.
    """
    path = Path(folder) / PAGE
    path.write_text(render(RunResults.read(folder)), encoding="utf-8")
    return path


def render(results: RunResults) -> str:
    """The page as one string; text from reports is escaped, figures are inline."""
    about, metrics = results.about, results.metrics
    shown = []
    for name, section in results.sections.items():
        make = _SECTIONS.get(section.get("title", ""))
        if make is not None:
            heading = escape(str(section["title"]))
            body = f'<section id="{escape(name)}"><h2>{heading}</h2>{make(section, metrics)}</section>'
            shown.append((_rank(section), name, heading, body))
    shown.sort()
    links = [f'<a href="#{escape(name)}">{heading}</a>' for _, name, heading, _ in shown]
    return _template().substitute(
        title=escape(str(about.get("title", "Evaluation"))),
        lead=_lead(about, metrics),
        version=escape(__version__),
        style=_resource("page.css"),
        navigation="".join([*links, '<a href="#run">Configuration</a>']),
        warnings="".join(f'<p class="warning">{escape(str(line))}</p>' for line in about.get("warnings", ())),
        cards="".join(_cards(metrics)),
        sections="\n".join(body for *_, body in shown),
        run=_run(about, metrics),
    )


def _rank(section: Mapping[str, Any]) -> int:
    return list(_SECTIONS).index(section["title"])


def _lead(about: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    counts = [f"{metrics[name]:,.0f} {name}" for name in ("patients", "studies", "scans") if name in metrics]
    split = f"{about['split']} split" if "split" in about else ""
    protocol = f"protocol {about['protocol']}" if "protocol" in about else ""
    return escape(" · ".join(part for part in (split, *counts, protocol) if part))


def _cards(metrics: Mapping[str, float]) -> list[str]:
    cards = []
    if "snippet_localization/mae_mm" in metrics:
        rivals = {
            "middle of the scan": "middle",
            "random depth": "random",
            "untrained model": "untrained",
            "organ prior": "organ_prior",
        }
        shown = [
            f"{name} {metrics[key]:.1f}"
            for name, stem in rivals.items()
            if (key := f"snippet_localization/{stem}_mae_mm") in metrics
        ]
        below = f"{metrics['snippet_localization/snippets']:,.0f} snippets. In mm: " + ", ".join(shown)
        cards.append(_card("Localization error", "snippet_localization/mae", metrics, "{:.1f}", "mm", below))
    if "report_to_scan/r_at_1" in metrics:
        pool, chance = metrics["report_to_scan/pool"], metrics["report_to_scan/chance_r_at_1"]
        times = metrics["report_to_scan/r_at_1"] / chance
        below = f"{times:.1f} times chance ({100 * chance:.2g} %), pool of {pool:,.0f}"
        cards.append(_card("Report to scan, R@1", "report_to_scan/r_at_1", metrics, "{:.0%}", "", below))
    if "findings/auroc_macro" in metrics:
        below = (
            f"mean of {metrics['findings/classes']:.0f} findings; the global readout gives "
            f"{metrics['findings/global_auroc_macro']:.3f}"
        )
        cards.append(_card("Findings, AUROC", "findings/auroc_macro", metrics, "{:.3f}", "", below))
    if "organ_recognition/top1" in metrics:
        count = metrics["organ_recognition/candidates"]
        below = f"one of {count:.0f} names; chance {100 / max(1.0, count):.2g} %"
        cards.append(_card("Organ recognised", "organ_recognition/top1", metrics, "{:.1%}", "", below))
    return cards


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


def _run(about: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    facts = {key: about[key] for key in ("run", "checkpoint", "command", "data", "created") if key in about}
    parts = [definitions(facts), definitions(about.get("versions", {}))]
    if "config" in about:
        parts.append(
            f"<details><summary>Run configuration</summary><pre>{escape(str(about['config']))}</pre></details>"
        )
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{value:.6g}</td></tr>" for name, value in sorted(metrics.items()))
    table = f'<div class="scroll"><table><tr><th>name</th><th>value</th></tr>{rows}</table></div>'
    return "".join([*parts, f"<details><summary>All {len(metrics)} numbers</summary>{table}</details>"])


def _template() -> Template:
    return Template(_resource("page.html"))


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
