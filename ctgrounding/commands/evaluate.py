"""``ctgrounding evaluate``: numbers from saved embeddings, by a published protocol, without another pass over scans."""

from pathlib import Path
from typing import Any

from rich.console import Console

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import protocols, summary
from ctgrounding.evaluation.page import write_page
from ctgrounding.evaluation.results import RunResults, evaluated, library_versions, results_folder
from ctgrounding.evaluation.saved import EncodeTexts, SavedEmbeddings
from ctgrounding.model import load


def evaluate(
    embeddings: Path,
    *,
    protocol: str,
    validation: Path | None = None,
    model: Path | None = None,
    scan_list: Path | None = None,
    output: Path | None = None,
) -> RunResults:
    """Evaluate the embeddings that ``ctgrounding predict`` wrote as a published evaluation does.

    Args:
        embeddings: Folder that ``ctgrounding predict`` wrote.
        protocol: Name of a protocol, for example strict, ct_clip or radfinder.
        validation: Embeddings of validation patients, where the protocol chooses thresholds on them.
        model: Run folder or checkpoint that encodes the protocol's sentences; the folder above the embeddings if not
            given.
        scan_list: File with one scan id a line, where the protocol needs one.
        output: Folder for results and page; if not given ``protocols/<name>`` beside the embeddings, or
            ``splits/<split>/protocols/<name>`` for those of another split than test.

    Returns:
        The numbers, with all that the page shows.
    """
    console, saved = Console(highlight=False), SavedEmbeddings(embeddings)
    about, chosen = saved.about, protocols.load(protocol)
    plan = protocols.plan(chosen, _heads(about, embeddings), about["label_names"], saved.datasets, scan_list)
    _check(plan, about, validation)
    encode = _encoder(model or embeddings.parent)
    with console.status(f"{len(saved.scans)} scans"):
        saved.check_made_by(encode)
        if validation is not None:
            chosen_on = SavedEmbeddings(validation)
            _check_alike(chosen_on, about)
            chosen_on.check_made_by(encode)
            chosen_on.feed(plan.evaluators, encode, as_validation=True)
        saved.feed(plan.evaluators, encode)
        results = evaluated(plan.evaluators)
    folder = output or results_folder(embeddings.parent, str(about.get("split", "test"))) / "protocols" / protocol
    notes = [*plan.left_out, *plan.deviations(results.metrics), *about.get("warnings", ())]
    facts = {key: about[key] for key in ("title", "split", "checkpoint", "config") if key in about}
    shown: dict[str, Any] = facts | summary.protocol_facts(plan)
    shown |= {"versions": library_versions(), "warnings": notes}
    results = RunResults(results.metrics, results.sections, shown)
    results.write(folder)
    page = write_page(folder)
    console.print(summary.text(results, protocol), soft_wrap=True)
    console.print(f"wrote {page}")
    return results


def _heads(about: dict[str, Any], embeddings: Path) -> protocols.Heads:
    if "heads" not in about:
        raise ConfigError(
            f"{embeddings} does not say which heads its embeddings are of; another version wrote it. Run 'ctgrounding "
            "predict' again."
        )
    return protocols.Heads(**{space: pair and (pair[0], pair[1]) for space, pair in about["heads"].items()})


def _check(plan: protocols.Plan, about: dict[str, Any], validation: Path | None) -> None:
    if plan.protocol.wants_validation and validation is None:
        raise ConfigError(
            f"Protocol {plan.protocol.name} chooses thresholds on validation patients. Write their embeddings with "
            "'ctgrounding predict --data.predict_split val' to another folder and name it with --validation."
        )
    if plan.protocol.refuses_leaks and about.get("leaks"):
        raise ConfigError(
            f"Protocol {plan.protocol.name} refuses patients and volumes that training knows. {about['leaks'][0]} "
            "Split by patient over all datasets, or leave those scans out."
        )


def _check_alike(validation: SavedEmbeddings, about: dict[str, Any]) -> None:
    mine, others = validation.about.get("label_names"), about["label_names"]
    if mine != others:
        raise ConfigError(
            f"{validation.folder} has the label columns {mine}, but the evaluated embeddings have {others}. Predict "
            "both with the same data.label_names."
        )


def _encoder(run: Path) -> EncodeTexts:
    model = load(run)
    return lambda texts, head: model.encode_text(texts, head)
