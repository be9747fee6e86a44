"""What an evaluation of held-out patients needs besides its passes: leaks, a protocol, and where its results go."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from ctgrounding.errors import ConfigError
from ctgrounding.evaluation import protocols, summary
from ctgrounding.evaluation.base import Evaluator
from ctgrounding.evaluation.leaks import Identity, Leaks, find_leaks, patient_of
from ctgrounding.evaluation.page import write_page
from ctgrounding.evaluation.results import RunResults, library_versions, results_folder

log = logging.getLogger(__name__)


@dataclass
class HeldOut:
    """A protocol that ``test`` was asked for, and what became of it.

    Args:
        protocol: Name of a protocol; None evaluates as configured.
        scan_list: File of scan ids, where the protocol needs one.

    Attributes:
        plan: What of the protocol can be evaluated; set by :meth:`evaluators`.
    """

    protocol: str | None = None
    scan_list: Path | None = None
    plan: protocols.Plan | None = field(default=None, init=False)
    _known: dict[str, tuple[Identity, ...]] = field(default_factory=dict, init=False)

    def leaks(self, data: object, stage: str, is_loud: bool = True) -> Leaks | None:
        """What training, or the choice of a model, knows of the patients of a stage.

        Args:
            data: A data module; None is returned for one without ``identities``.
            stage: ``val``, ``test`` or ``predict``.
            is_loud: Whether to warn.
        """
        if not hasattr(data, "identities"):
            return None
        before = ("train",) if stage == "val" else ("train", "val")
        leaks = find_leaks((item for earlier in before for item in self._in(data, earlier)), self._in(data, stage))
        for warning in leaks.warnings() if is_loud and not leaks.is_clean else []:
            rank_zero_warn(f"LEAK: {warning}")
        return leaks

    def can_choose_on_validation(self, data: object) -> bool:
        """Whether there are validation patients and none of them is a test patient; says so where one is."""
        if not hasattr(data, "identities"):
            return False
        patients = [{patient_of(item) for item in self._in(data, stage)} for stage in ("val", "test")]
        both = len(patients[0] & patients[1])
        if both:
            rank_zero_warn(
                f"{both} patients are in the validation and in the test split, so no thresholds are chosen. "
                "Set data.val_split to other patients."
            )
        return bool(patients[0]) and not both

    def _in(self, data: object, stage: str) -> tuple[Identity, ...]:
        if stage not in self._known:
            rows = getattr(data, "identities")(stage)  # noqa: B009 - a data module of any class
            self._known[stage] = tuple(Identity(*row) for row in rows)
        return self._known[stage]

    def evaluators(self, configured: Mapping[str, Evaluator], data: object) -> Mapping[str, Evaluator]:
        """Those of the protocol, with the heads that the configured ones name; the configured ones without a protocol.

        Raises:
            ConfigError: If nothing of the protocol can be evaluated on these data.
        """
        if self.protocol is None:
            return configured
        chosen = protocols.load(self.protocol)
        heads = protocols.Heads.of(configured.values())
        names = getattr(data, "label_names", ())
        datasets = {item.dataset for item in self._in(data, "test")} if hasattr(data, "identities") else ()
        self.plan = protocols.plan(chosen, heads, names, sorted(datasets), self.scan_list)
        for sentence in self.plan.left_out:
            rank_zero_warn(f"Protocol {self.protocol}: {sentence}")
        return self.plan.evaluators

    def check(self, data: object, leaks: Leaks | None) -> None:
        """Refuse, before any scan is encoded, what the protocol could not count.

        Raises:
            ConfigError: If it refuses patients or volumes that training knows and there are some, or chooses
                thresholds on validation patients and there are none.
        """
        if self.plan is None:
            return
        if self.plan.protocol.refuses_leaks and leaks is not None and not leaks.is_clean:
            raise ConfigError(
                f"Protocol {self.protocol} refuses patients and volumes that training knows. {leaks.warnings()[0]} "
                "Split by patient over all datasets, or leave those scans out."
            )
        if self.plan.protocol.wants_validation and not self.can_choose_on_validation(data):
            raise ConfigError(
                f"Protocol {self.protocol} chooses thresholds on validation patients, and data.val_split holds none of "
                "its own. Give it patients that are in no other split."
            )

    def about(self, common: Mapping[str, Any], leaks: Leaks | None) -> dict[str, Any]:
        """What the page says of the evaluation.

        Args:
            common: Title, split, checkpoint, configuration.
            leaks: What was found.
        """
        warnings = [] if leaks is None else leaks.warnings()
        grave = [] if leaks is None or leaks.is_clean else warnings
        about = {**common, "versions": library_versions(), "leaks": grave}
        if self.plan is None:
            return {**about, "warnings": warnings}
        return {**about, **summary.protocol_facts(self.plan), "warnings": [*self.plan.left_out, *warnings]}

    def write(self, results: RunResults, run: Path) -> Path:
        """Write results and page to the run's folder, or below it for another split than ``test`` and for a protocol.

        A protocol's numbers are shown too.
        """
        folder = results_folder(run, str(results.about.get("split", "test")))
        shown = results
        if self.plan is not None:
            folder = folder / "protocols" / self.plan.protocol.name
            warnings = [*results.about.get("warnings", ()), *self.plan.deviations(results.metrics)]
            shown = RunResults(results.metrics, results.sections, {**results.about, "warnings": warnings})
            log.info("%s", summary.text(shown, self.plan.protocol.name))
        shown.write(folder)
        if folder != run:
            log.info("Results are in %s.", folder)
        return write_page(folder)


def leak_numbers(leaks: Leaks | None) -> dict[str, float]:
    """How many evaluated scans are known to training, and how: ``leaks/patients``, ``volumes``, ``reports``."""
    if leaks is None:
        return {}
    kinds = {"patients": leaks.patients, "volumes": leaks.volumes, "reports": leaks.reports}
    return {f"leaks/{name}": float(len(found)) for name, found in kinds.items()}
