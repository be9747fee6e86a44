"""The result page: one HTML file that needs no network, made from a run's results alone."""

from collections.abc import Callable, Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ctgrounding import __version__
from ctgrounding.evaluation.page.by_organ import abnormality, pointing
from ctgrounding.evaluation.page.cards import cards
from ctgrounding.evaluation.page.findings import findings
from ctgrounding.evaluation.page.likeness import pools, scans
from ctgrounding.evaluation.page.localization import localization
from ctgrounding.evaluation.page.organs import organs
from ctgrounding.evaluation.page.retrieval import retrieval
from ctgrounding.evaluation.page.words import definitions
from ctgrounding.evaluation.results import RunResults

PAGE = "report.html"

_SECTIONS: dict[str, Callable[[Mapping[str, Any], Mapping[str, float]], str]] = {
    "Snippet localization": localization,
    "Findings, zero-shot": findings,
    "Findings, by protocol": findings,
    "Retrieval": retrieval,
    "Retrieval in pools": pools,
    "Scan to scan": scans,
    "Organ abnormality": abnormality,
    "Organ recognition": organs,
    "Text to organ": pointing,
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
    titles = [section.get("title") for section in results.sections.values()]
    for name, section in results.sections.items():
        make = _SECTIONS.get(section.get("title", ""))
        if make is not None:
            prefix = str(section.get("prefix", ""))
            is_one_of_several = titles.count(section["title"]) > 1
            heading = escape(str(section["title"]) + (f": {name.replace('_', ' ')}" if is_one_of_several else ""))
            content = make(section, _under(metrics, prefix))
            body = f'<section id="{escape(name)}"><h2>{heading}</h2>{content}</section>'
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
        cards="".join(_all_cards(results)),
        sections="\n".join(body for *_, body in shown),
        run=_run(about, metrics),
    )


def _under(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The numbers under a prefix, by their names without it."""
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _all_cards(results: RunResults) -> list[str]:
    prefixes = dict.fromkeys(str(section.get("prefix", "")) for section in results.sections.values())
    shown = []
    for prefix in prefixes:
        part = prefix.rstrip("/").partition("/")[2].replace("_", " ")
        shown += cards(_under(results.metrics, prefix), part)
    return shown


def _rank(section: Mapping[str, Any]) -> int:
    return list(_SECTIONS).index(section["title"])


def _lead(about: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    prefix = str(about.get("prefix", ""))
    seen = {name: metrics.get(name, metrics.get(prefix + name)) for name in ("patients", "studies", "scans")}
    counts = [f"{value:,.0f} {name}" for name, value in seen.items() if value is not None]
    split = f"{about['split']} split" if "split" in about else ""
    protocol = f"protocol {about['protocol']}" if "protocol" in about else ""
    return escape(" · ".join(part for part in (split, *counts, protocol) if part))


def _run(about: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    facts = {key: about[key] for key in ("run", "checkpoint", "command", "data", "created") if key in about}
    parts = [definitions(about.get("protocol_facts", {})), definitions(facts), definitions(about.get("versions", {}))]
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
