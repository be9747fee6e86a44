"""The audit as one HTML file that needs no network: what was found, and a small picture of every scan concerned."""

from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from ctgrounding import __version__
from ctgrounding.ingest.audit.entries import OUTCOMES, ScanAudit
from ctgrounding.ingest.audit.kinds import KINDS

OUTCOME_WORDS = {
    "quarantined": "left out by ingest",
    "flagged": "go in, but look at them",
    "usable": "nothing to look at",
}


def render(dataset: str, scans: Sequence[ScanAudit], hu_words: Mapping[str, str]) -> str:
    """The page as one string.

    Args:
        dataset: Name of the card.
        scans: The verdicts.
        hu_words: How the ways that values become HU are called.
    """
    counts = Counter(remark.kind for scan in scans for remark in scan.remarks)
    kinds = [kind for kind in KINDS if counts[kind]]
    patients = len({scan.patient_id for scan in scans})
    return Template(_resource("page.html")).substitute(
        title=escape(f"Audit of {dataset}"),
        lead=f"{_count(len(scans), 'scan')} of {_count(patients, 'patient')}",
        version=escape(__version__),
        style=_resource("page.css"),
        cards="".join(_card(outcome, scans) for outcome in OUTCOMES),
        values=_bars({hu_words[hu]: n for hu, n in Counter(scan.hu for scan in scans).most_common()}, len(scans)),
        findings=_findings(kinds, counts) if kinds else "<p>Nothing was found.</p>",
        sections="\n".join(_section(kind, scans) for kind in kinds),
        every=_table(scans, hu_words),
    )


def _card(outcome: str, scans: Sequence[ScanAudit]) -> str:
    count = sum(scan.outcome == outcome for scan in scans)
    share = f"{count / len(scans):.1%}" if scans else ""
    return (
        f'<div class="card {outcome}"><h3>{outcome}</h3><div class="big">{count:,} <span>{share}</span></div>'
        f"<p>{OUTCOME_WORDS[outcome]}</p></div>"
    )


def _bars(counts: Mapping[str, int], total: int) -> str:
    rows = "".join(
        f'<div class="bar-name">{escape(name)}</div><div class="track"><div class="bar" style="width:'
        f'{100 * count / total:.1f}%"></div></div><div class="bar-value">{count:,}</div>'
        for name, count in counts.items()
    )
    return f'<div class="bars">{rows}</div>'


def _findings(kinds: Sequence[str], counts: Mapping[str, int]) -> str:
    rows = "".join(
        f'<tr><td><a href="#{kind}">{escape(KINDS[kind].title)}</a></td><td class="number">{counts[kind]:,}</td>'
        f"<td>{_badge(KINDS[kind].effect)}</td><td>{escape(KINDS[kind].advice)}</td></tr>"
        for kind in kinds
    )
    head = '<tr><th>Finding</th><th class="number">Scans</th><th>Effect</th><th>What to do</th></tr>'
    return f'<div class="scroll"><table class="kinds">{head}{rows}</table></div>'


def _section(kind: str, scans: Sequence[ScanAudit]) -> str:
    """All scans with one kind of finding; what is only noted is folded away."""
    entry = KINDS[kind]
    figures = [_figure(scan, kind) for scan in scans if any(remark.kind == kind for remark in scan.remarks)]
    gallery = f'<div class="gallery">{"".join(figures)}</div>'
    if entry.effect == "note":
        gallery = f"<details><summary>{_count(len(figures), 'scan')}</summary>{gallery}</details>"
    return (
        f'<section id="{kind}"><h2>{escape(entry.title[0].upper() + entry.title[1:])} {_badge(entry.effect)}</h2>'
        f"<p>{escape(entry.advice)}</p>{gallery}</section>"
    )


def _figure(scan: ScanAudit, kind: str) -> str:
    """One scan; its picture stands where its gravest finding is, so that no picture is there twice."""
    (reason,) = (remark.reason for remark in scan.remarks if remark.kind == kind)
    others = [KINDS[remark.kind].title for remark in scan.remarks if remark.kind != kind]
    also = f"<small>also: {escape(', '.join(others))}</small>" if others else ""
    if scan.verdict != kind:
        picture = (
            f'<a class="none" href="#{escape(_anchor(scan))}">picture under {escape(KINDS[scan.verdict].title)}</a>'
        )
    elif scan.picture:
        data = b64encode(scan.picture).decode()
        picture = f'<img loading="lazy" alt="coronal and axial view" src="data:image/png;base64,{data}">'
    else:
        words = "not shown: it may carry names" if kind == "not_ct" else "no picture"
        picture = f'<div class="none">{words}</div>'
    anchor = f' id="{escape(_anchor(scan))}"' if scan.verdict == kind else ""
    return (
        f"<figure{anchor}>{picture}<figcaption><b>{escape(scan.scan_id)}</b> {_badge(scan.outcome)}"
        f"<p>{escape(reason)}</p>{_evidence(scan)}{also}</figcaption></figure>"
    )


def _evidence(scan: ScanAudit) -> str:
    if not scan.evidence:
        return ""
    values, shown = scan.evidence["evidence"], []
    for name, key in (("air", "air_peak_hu"), ("soft tissue", "soft_peak_hu")):
        shown.append(f"{name} at {values[key]:g} HU" if key in values else f"no {name}")
    shape, spacing = scan.evidence["source_shape_ijk"], scan.evidence["source_spacing_ijk_mm"]
    shown.append(" x ".join(map(str, shape)) + " voxels")
    shown.append(" x ".join(f"{step:.3g}" for step in spacing) + " mm")
    shown.append(scan.evidence["orientation"])
    return f"<small>{escape(' · '.join(shown))}</small>"


def _table(scans: Sequence[ScanAudit], hu_words: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td>{escape(scan.scan_id)}</td><td>{escape(scan.split)}</td><td>{_badge(scan.outcome)}</td>"
        f"<td>{escape(hu_words[scan.hu])}</td>"
        f"<td>{escape(', '.join(KINDS[remark.kind].title for remark in scan.remarks))}</td></tr>"
        for scan in scans
    )
    head = "<tr><th>Scan</th><th>Split</th><th>Outcome</th><th>Values</th><th>Findings</th></tr>"
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def _anchor(scan: ScanAudit) -> str:
    return f"scan-{scan.scan_id}"


def _badge(word: str) -> str:
    return f'<span class="badge {word.split()[0]}">{escape(word)}</span>'


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
