"""From a protocol to evaluators for a model and its data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation.asked import Judging, Prompts
from ctgrounding.evaluation.base import Evaluator, Resampling
from ctgrounding.evaluation.cohort import Cohort
from ctgrounding.evaluation.depth import SnippetDepth
from ctgrounding.evaluation.findings import ZeroShotFindings
from ctgrounding.evaluation.pooled_retrieval import PooledRetrieval
from ctgrounding.evaluation.prompted_findings import PromptedFindings
from ctgrounding.evaluation.protocols.definition import Part, Protocol, label_set
from ctgrounding.evaluation.retrieval import ReportRetrieval
from ctgrounding.evaluation.scan_retrieval import ScanRetrieval
from ctgrounding.evaluation.selection import Selection, plain, read_list

_OWN_NAMES = ("findings", "scan_to_scan")


@dataclass(frozen=True)
class Heads:
    """Image and text head of each space that a protocol may ask; None where the model has no such space.

    Attributes:
        report: Of the ``global`` readout and reports.
        finding: Of the ``global`` readout and sentences about findings.
        organ: Of the ``organ`` readout and sentences.
        depth: Of the ``depth`` readout and snippets.
    """

    report: tuple[str, str] = ("main", "main")
    finding: tuple[str, str] = ("main", "main")
    organ: tuple[str, str] | None = None
    depth: tuple[str, str] | None = None

    @classmethod
    def of(cls, evaluators: Iterable[Evaluator]) -> "Heads":
        """Those that a run's own evaluators name."""
        heads = cls()
        for item in evaluators:
            if isinstance(item, ReportRetrieval):
                heads = replace(heads, report=(item.image_head, item.text_head))
            elif isinstance(item, ZeroShotFindings):
                pair = (item.organ_image_head, item.organ_text_head)
                heads = replace(heads, finding=(item.image_head, item.text_head), organ=pair)
            elif isinstance(item, SnippetDepth):
                heads = replace(heads, depth=(item.image_head, item.text_head))
        return heads


@dataclass(frozen=True)
class Plan:
    """What of a protocol can be evaluated on these data with this model.

    Attributes:
        protocol: The protocol.
        evaluators: By part, and the cohort.
        left_out: Sentences on parts that cannot be evaluated, and why.
    """

    protocol: Protocol
    evaluators: Mapping[str, Evaluator]
    left_out: tuple[str, ...]

    def deviations(self, metrics: Mapping[str, float]) -> list[str]:
        """Sentences on parts that saw another number of scans than was published.

        Args:
            metrics: The evaluators' numbers.
        """
        found = []
        for name, part in self.protocol.parts.items():
            if name not in self.evaluators:
                continue
            seen = pool_of(metrics, f"{self.protocol.name}/{name}/")
            if seen is not None and part.kind == "scan_retrieval":  # some definitions search only scans with a finding
                seen = max(seen, _queries(metrics, f"{self.protocol.name}/{name}/"))
            if seen == 0:
                found.append(f"{name}: no scan of {' or '.join(part.datasets) or 'the data'} takes part.")
            elif part.published_scans is not None and seen != part.published_scans:
                found.append(
                    f"{name}: {seen} scans take part where {self.protocol.title} has {part.published_scans}, so its "
                    "numbers cannot be compared with published ones."
                )
        return found


def pool_of(metrics: Mapping[str, float], prefix: str) -> int | None:
    """Number of scans behind the numbers that start with a prefix; None where none says so."""
    endings = ("report_to_scan/pool", "/pool", "/scans", "/snippets")
    for ending in endings:
        found = [value for name, value in metrics.items() if name.startswith(prefix) and name.endswith(ending)]
        if found:
            return int(found[0])
    return None


def _queries(metrics: Mapping[str, float], prefix: str) -> int:
    found = (value for name, value in metrics.items() if name.startswith(prefix) and name.endswith("/queries"))
    return int(max(found, default=0.0))


def plan(
    protocol: Protocol,
    heads: Heads,
    label_names: Sequence[str],
    datasets: Iterable[str] = (),
    scan_list: Path | None = None,
) -> Plan:
    """Evaluators of a protocol, with what had to be left out.

    Args:
        protocol: What to reproduce.
        heads: The model's.
        label_names: Label columns of the data.
        datasets: Names of the datasets in the data, as far as known; parts on other datasets are left out.
        scan_list: File of scan ids, where the protocol needs one.

    Raises:
        ConfigError: If a list is missing, the data have some but not all labels of a part, or no part is left.
    """
    if protocol.scan_list and scan_list is None:
        raise ConfigError(f"Protocol {protocol.name} needs a list of scans with --scan_list. {protocol.scan_list}.")
    listed = read_list(scan_list) if scan_list else None
    evaluators: dict[str, Evaluator] = {}
    left_out = []
    for name, part in protocol.parts.items():
        why = _why_not(part, heads, label_names, tuple(datasets))
        if why:
            left_out.append(f"{name} is left out: {why}.")
            continue
        selection = Selection("first" if part.scans == "first" else "all", part.datasets, listed)
        evaluators[name] = _BUILDERS[part.kind](part, heads, selection)
        # A part that is named as its numbers are needs its name once.
        evaluators[name].prefix = f"{protocol.name}/" if name in _OWN_NAMES else f"{protocol.name}/{name}/"
        evaluators[name].use_label_names(label_names)
    if not evaluators:
        raise ConfigError(
            f"Nothing of protocol {protocol.name} can be evaluated. {' '.join(left_out)} Ingest the data that it is "
            "defined on; protocol strict takes any."
        )
    evaluators["patients"] = Cohort()
    evaluators["patients"].prefix = f"{protocol.name}/"
    return Plan(protocol, evaluators, tuple(left_out))


def _why_not(part: Part, heads: Heads, label_names: Sequence[str], datasets: tuple[str, ...]) -> str:
    """Why a part cannot be evaluated; empty where it can."""
    known = {plain(name) for name in datasets}
    if part.datasets and known and not known & {plain(name) for name in part.datasets}:
        return f"it is defined on {part.datasets[0]} and the data are {', '.join(sorted(datasets))}"
    if part.kind == "snippet_depth" and heads.depth is None:
        return "the run has no SnippetDepth evaluator that names heads for it"
    if part.settings.get("readout") == "organ" and heads.organ is None:
        return "the run has no ZeroShotFindings evaluator that names heads of the organ readout"
    if part.labels is None:
        return ""
    wanted = _columns(part, datasets)
    missing = [column for column in wanted if column not in label_names]
    if (wanted and len(missing) == len(wanted)) or not label_names:
        return f"the data have none of its {len(wanted)} label columns" if wanted else "the data have no labels"
    if missing:
        raise ConfigError(
            f"The data lack {len(missing)} of the {len(wanted)} label columns that the protocol reads: "
            f"{', '.join(missing[:5])}. A mean over the others would be another protocol; set data.label_names."
        )
    return ""


def _columns(part: Part, datasets: tuple[str, ...]) -> list[str]:
    """Label columns that a part reads, or must at least find in these datasets."""
    chosen = [part.labels or ""]
    if part.labels == "all":
        known = {plain(name) for name in datasets}
        chosen = [labels for name, labels in part.settings.get("at_least", {}).items() if plain(name) in known]
    tables = [label_set(name).columns or {} for name in chosen]
    return list(dict.fromkeys(column for table in tables for columns in table.values() for column in columns))


def _findings(part: Part, heads: Heads, selection: Selection) -> Evaluator:
    settings = part.settings
    organs = {finding: tuple(items) for finding, items in settings.get("organs", {}).items()} or None
    asked = replace(label_set(part.labels or ""), organs=organs)
    words = {finding: (here, not_here) for finding, (here, not_here) in settings["prompts"].get("words", {}).items()}
    prompts = Prompts(tuple(settings["prompts"]["positive"]), tuple(settings["prompts"]["negative"]), words)
    chosen = settings["thresholds"]
    judging = Judging(chosen["rule"], chosen["chosen_on"], tuple(settings["numbers"])) if chosen else None
    image, text = heads.finding if organs is None else heads.organ or heads.finding
    return PromptedFindings(
        asked, prompts, image, text, selection=selection, judging=judging, resampling=_resampling(part)
    )


def _report_retrieval(part: Part, heads: Heads, selection: Selection) -> Evaluator:
    return ReportRetrieval(
        *heads.report,
        k=tuple(part.settings["k"]),
        duplicates=part.settings["duplicates"],
        resampling=_resampling(part),
        selection=selection,
    )


def _scan_retrieval(part: Part, heads: Heads, selection: Selection) -> Evaluator:
    labels = label_set(part.labels or "").columns
    return ScanRetrieval(
        tuple(part.settings["definitions"]),
        heads.report[0],
        None if labels is None else tuple(labels),
        selection,
        _resampling(part),
    )


def _pooled_retrieval(part: Part, heads: Heads, selection: Selection) -> Evaluator:
    sizes, depths = tuple(part.settings["pools"]), tuple(part.settings["k"])
    return PooledRetrieval(*heads.report, pools=sizes, k=depths, distinct_reports=False, selection=selection)


def _snippet_depth(part: Part, heads: Heads, selection: Selection) -> Evaluator:
    return SnippetDepth(*(heads.depth or ("", "")), resampling=_resampling(part), selection=selection)


def _resampling(part: Part) -> Resampling:
    return Resampling(method=part.settings.get("interval", "percentile"))


_BUILDERS: Mapping[str, Callable[[Part, Heads, Selection], Evaluator]] = {
    "findings": _findings,
    "report_retrieval": _report_retrieval,
    "scan_retrieval": _scan_retrieval,
    "pooled_retrieval": _pooled_retrieval,
    "snippet_depth": _snippet_depth,
}
