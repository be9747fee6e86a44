"""An inspection as tables for the terminal."""

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from rich.filesize import decimal
from rich.table import Table

from ctgrounding.ingest.inventory import Inspection

HISTOGRAM_BINS = 8
BAR_WIDTH = 24
REASONS_SHOWN = 8
SCANS_NAMED = 3


def tables(inspection: Inspection) -> list[Table]:
    """What :func:`ctgrounding.ingest.inspection.inspect` prints."""
    made = [_counts(inspection), _sizes(inspection)]
    made += [_histogram(title, values) for title, values in _measures(inspection).items() if values]
    if inspection.organs:
        made.append(_shares("organ", inspection.organs, inspection.with_organs))
    if inspection.labels:
        made.append(_label_table(inspection))
    return [*made, _checks(inspection)]


def _measures(inspection: Inspection) -> dict[str, list[float]]:
    return {
        "Slice distance of the sources, mm": list(inspection.source_slice_mm),
        "Coverage along z, mm": [extent[0] for extent in inspection.extents_mm],
        "Coverage in plane (x), mm": [extent[2] for extent in inspection.extents_mm],
    }


def _counts(inspection: Inspection) -> Table:
    table = Table(title="Shards", show_header=False, title_justify="left")
    aside = sum(inspection.put_aside.values())
    rows = {
        "shards": f"{inspection.shards} ({decimal(inspection.bytes_on_disk)}, {_listed(inspection.codecs)})",
        "datasets": _listed(inspection.datasets),
        "patients / studies / scans": f"{inspection.patients} / {inspection.studies} / {inspection.scans}",
        "places left empty": str(aside),
        "splits": _listed(inspection.splits),
        "spacing D, H, W mm": _listed({" x ".join(f"{mm:g}" for mm in k): n for k, n in inspection.spacing_mm.items()}),
        "scans with organ map": str(inspection.with_organs),
        "scans with report": str(inspection.reports),
        "snippets with a depth": f"{inspection.snippets}, in {inspection.cited} scans",
        "organ sentences": f"{inspection.organ_sentences}, {inspection.abnormal_sentences} abnormal",
        "values became HU by": _listed(inspection.hu_rules),
        "audit flags": _listed(inspection.flags) or "none",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for reason, count in sorted(inspection.put_aside.items(), key=lambda pair: -pair[1])[:REASONS_SHOWN]:
        table.add_row(f"left empty {count}", reason)
    return table


def _sizes(inspection: Inspection) -> Table:
    table = Table("", "least", "median", "most", title="Voxels of a scan", title_justify="left")
    for axis, name in enumerate(("D (z)", "H (y)", "W (x)")):
        sizes = [shape[axis] for shape in inspection.shapes]
        if sizes:
            table.add_row(name, str(min(sizes)), f"{median(sizes):g}", str(max(sizes)))
    return table


def _histogram(title: str, values: Sequence[float]) -> Table:
    table = Table("from", "to", "scans", "", title=title, title_justify="left")
    counts, edges = np.histogram(values, bins=1 if np.ptp(values) < 1e-6 else HISTOGRAM_BINS)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        shown = (f"{values[0]:g}",) * 2 if len(counts) == 1 else (f"{low:.4g}", f"{high:.4g}")
        table.add_row(*shown, str(count), "█" * round(BAR_WIDTH * count / counts.max()))
    return table


def _shares(name: str, counts: Mapping[str, int], scans: int) -> Table:
    table = Table(name, "scans", "share", title=f"Visible {name}s, of {scans} scans with a map", title_justify="left")
    for key, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        table.add_row(key, str(count), f"{count / scans:.0%}")
    return table


def _label_table(inspection: Inspection) -> Table:
    table = Table("label", "1", "0", "unknown", "prevalence", title="Labels", title_justify="left")
    for question, (positive, negative, unknown) in inspection.labels.items():
        known = positive + negative
        table.add_row(question, str(positive), str(negative), str(unknown), f"{positive / known:.1%}" if known else "")
    return table


def _checks(inspection: Inspection) -> Table:
    table = Table(title="Checks", show_header=False, title_justify="left")
    done = f"{inspection.verified} scans, all as written" if inspection.verified else "not asked for (--verify)"
    table.add_row("compared with their hashes", done)
    for problem in inspection.problems:
        table.add_row("[bold]not sound[/bold]", problem)
    if not inspection.problems:
        table.add_row("ids, splits, classes, copies", "sound")
    for kind, scans in inspection.suspicious.items():
        named = ", ".join(scans[:SCANS_NAMED]) + (", ..." if len(scans) > SCANS_NAMED else "")
        table.add_row(f"[bold]report text with {kind}[/bold]", f"{len(scans)} scans: {named}")
    if inspection.suspicious:
        table.add_row("", "Reports are stored as given. Remove what identifies a person before you ingest them.")
    return table


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {count}" for key, count in sorted(counts.items(), key=lambda pair: -pair[1]))
