"""At which depth of this scan does the sentence's finding lie? Errors in mm, beside what needs no model."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray

from ctgrounding import label_sets
from ctgrounding.errors import BatchError, ConfigError
from ctgrounding.evaluation.base import Evaluator, Reads, Resampling, bounds
from ctgrounding.evaluation.cases import mean_cases
from ctgrounding.evaluation.depth_groups import (
    ANY_ORGAN,
    depth_prior,
    fraction_of_scan,
    groups,
    over_best_baseline,
    rows_by_scan,
    small_lesions,
    strata,
)
from ctgrounding.evaluation.examples import Examples, coronal_of, packed_image
from ctgrounding.evaluation.rows import Rows, Table
from ctgrounding.evaluation.selection import Selection
from ctgrounding.evaluation.snippets import BatchSnippets, extent_mm
from ctgrounding.functional.bootstrap import weighted_means
from ctgrounding.types import Batch, Encoded

__all__ = ["SnippetDepth", "depth_prior"]


class SnippetDepth(Evaluator):
    """Distance between the depth bin most like a snippet and the slice that the snippet's author named.

    The prediction is the centre of the bin with the highest cosine among the scan's real bins, the lowest
    of equal ones; the truth is the middle of the snippet's depth interval. Snippets outside the scan's
    bins have no right answer: they are left out and counted.

    Four answers that do not read the sentence, or read it without looking, stand beside it: the *middle*
    of the scan; a *random* real bin, whose error is its exact expectation; an *untrained* twin of the model
    where the task feeds one; and the *organ prior*, the training mean of the place of the organ that the
    snippet names, as a fraction of the scan. A fifth, *zero-shot*, is what the model says through heads that
    were trained on whole scans only, as RadFinder scores a model without localization.

    Args:
        image_head: Head of the ``depth`` readout.
        text_head: Head of the snippets.
        temperature: Divides the cosines of a shown probability; the numbers do not depend on it.
        label_set: Organ label set that snippets' organs are numbered by.
        resampling: Of the intervals, by patient.
        examples: Scans that are shown; chosen by name, not by success.
        seed: Of the choice of examples.
        zero_shot_heads: Image and text head of the zero-shot baseline; the image head must take depth rows. None
            leaves it out.
        selection: Which scans take part.

    Raises:
        ConfigError: If the temperature is not a finite number above 0, ``examples`` is below 0, or the label set does
            not exist.

    Examples:
        >>> SnippetDepth(image_head="local", text_head="local").compute()
        {'snippet_localization/snippets': 0.0, 'snippet_localization/outside': 0.0}
    """

    requires: ClassVar[frozenset[str]] = frozenset(
        {
            "snippet_scan",
            "snippet_text",
            "snippet_depth_mm",
            "snippet_organ",
            "snippet_size_mm",
            "valid_box",
            "spacing_mm",
            "origin_mm",
            "patient",
            "study",
            "texts",
            "depth",
        }
    )

    def __init__(
        self,
        image_head: str = "local",
        text_head: str = "local",
        temperature: float = 0.1,
        label_set: str = "total_v2",
        resampling: Resampling | None = None,
        examples: int = 12,
        seed: int = 0,
        zero_shot_heads: tuple[str, str] | None = None,
        selection: Selection | None = None,
    ) -> None:
        super().__init__()
        self.zero_shot_heads, self.selection = zero_shot_heads, selection or Selection()
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature is {temperature}, but must be a finite number above 0, such as 0.1.")
        self.image_head, self.text_head, self.temperature = image_head, text_head, temperature
        self.label_set, self._names = label_set, label_sets.load(label_set)
        self.resampling = resampling or Resampling()
        self._examples = Examples(examples, seed)
        self._untrained = Rows()
        self._prior: dict[int, float] | None = None

    def use_prior(self, prior: Mapping[int, float]) -> None:
        """Take the organ prior of the training data; kept over resets.

        Args:
            prior: As :func:`ctgrounding.evaluation.depth_groups.depth_prior` makes it.
        """
        self._prior = dict(prior)

    def reads(self) -> Reads:
        """The ``depth`` readout and the snippets, through each pair of heads."""
        pairs = [(self.image_head, self.text_head), *([self.zero_shot_heads] if self.zero_shot_heads else [])]
        return Reads(frozenset(("depth", image) for image, _ in pairs), frozenset(text for _, text in pairs))

    def reset(self) -> None:
        """Forget all rows and examples, not the prior."""
        super().reset()
        self._untrained = Rows()
        self._examples.reset()

    def update(self, encoded: Encoded, batch: Batch) -> None:
        """Locate the snippets of a batch.

        Raises:
            ConfigError: If a head or readout does not exist.
            BatchError: If a score is not finite.
        """
        snippets = BatchSnippets(encoded, batch)
        scores = snippets.scores(encoded, self.image_head, self.text_head)
        low, high = extent_mm(batch)
        self.rows.add(
            snippets.keys,
            predicted_mm=torch.from_numpy(snippets.chosen_mm(scores)),
            zero_shot_mm=torch.from_numpy(self._zero_shot_mm(snippets, encoded)),
            target_mm=torch.from_numpy(snippets.target_mm),
            inside=torch.from_numpy(snippets.inside),
            middle_mm=torch.from_numpy(snippets.middle_mm),
            random_error_mm=torch.from_numpy(snippets.random_error_mm()),
            low_mm=torch.from_numpy(low[snippets.scan]),
            high_mm=torch.from_numpy(high[snippets.scan]),
            item=snippets.items,
            organ=batch["snippet_organ"],
            size_mm=batch["snippet_size_mm"],
            patient=batch["patient"].cpu()[torch.from_numpy(snippets.scan)],
            study=batch["study"].cpu()[torch.from_numpy(snippets.scan)],
        )
        for place in np.flatnonzero(snippets.inside):
            self._examples.offer(snippets.keys[place], partial(self._example, snippets, scores, batch, int(place)))

    def _zero_shot_mm(self, snippets: BatchSnippets, encoded: Encoded) -> NDArray[np.float64]:
        if self.zero_shot_heads is None:
            return np.full(len(snippets.keys), np.nan)
        return snippets.chosen_mm(snippets.scores(encoded, *self.zero_shot_heads))

    def update_untrained(self, encoded: Encoded, batch: Batch) -> None:
        """Add what an untrained twin of the model says of the batch that ``update`` got."""
        snippets = BatchSnippets(encoded, batch)
        scores = snippets.scores(encoded, self.image_head, self.text_head)
        study = batch["study"].cpu()[torch.from_numpy(snippets.scan)]
        self._untrained.add(snippets.keys, predicted_mm=torch.from_numpy(snippets.chosen_mm(scores)), study=study)

    def compute(self) -> dict[str, float]:
        """Errors in mm of the model and of the baselines, with intervals."""
        everything = self._rows()
        errors = self._errors(everything)
        inside = everything.array("inside") if len(everything) else np.zeros(0, dtype=bool)
        prefix = "snippet_localization"
        counts = {f"{prefix}/snippets": float(inside.sum()), f"{prefix}/outside": float((~inside).sum())}
        if not inside.any():
            return counts
        patients = everything.array("patient")[inside]
        names = list(errors)
        values = np.stack([errors[name] for name in names], axis=1)
        own = values[:, 0]
        interval = self.resampling.interval(weighted_means(values), patients)
        numbers = counts | {f"{prefix}/scans": float(len(rows_by_scan(everything, inside)))}
        for column, name in enumerate(names):
            stem = f"{prefix}/mae" if name == "model" else f"{prefix}/{name}_mae"
            numbers |= {f"{stem}_mm": float(interval.estimate[column]), **bounds(stem, interval, column, "_mm")}
        shares = np.stack([own <= 12.0, own <= 24.0], axis=1).astype(np.float64)
        within = self.resampling.interval(weighted_means(shares), patients)
        for column, name in enumerate(("within_12_mm", "within_24_mm")):
            numbers |= {
                f"{prefix}/{name}": float(within.estimate[column]),
                **bounds(f"{prefix}/{name}", within, column),
            }
        numbers[f"{prefix}/median_mm"] = float(np.median(own))
        numbers[f"{prefix}/per_scan_mae_mm"] = float(
            np.mean([own[rows].mean() for rows in rows_by_scan(everything, inside)])
        )
        return (
            numbers
            | over_best_baseline(values, names, patients, self.resampling)
            | small_lesions(errors, everything.array("size_mm")[inside])
        )

    def results(self) -> Mapping[str, Any]:
        """Errors by stratum, their histogram and course over depth, and examples with pictures."""
        everything = self._rows()
        errors = self._errors(everything)
        examples = self._examples.gathered()
        shown = {
            "title": "Snippet localization",
            "protocol": {
                "prediction": f"centre of the most similar depth bin (heads {self.image_head}, {self.text_head})",
                "error": "distance in mm to the middle of the named slice's depth interval",
                "random": "exact expectation over the scan's real bins",
                "organ_prior": "training mean of the named organ's depth as a fraction of the scan",
                "scans": self.selection.described(),
                "resampled unit": self.resampling.described(),
                "examples": "chosen by a hash of the scan's name, before any result was known",
            },
        }
        if not len(everything) or not errors:
            return {**shown, "strata": [], "examples": examples}
        table = everything.take(np.flatnonzero(everything.array("inside")))
        return {
            **shown,
            "errors_mm": {name: np.round(values, 2).tolist() for name, values in errors.items()},
            "fraction": np.round(fraction_of_scan(table), 4).tolist(),
            "strata": strata(table, errors, self._names),
            "examples": examples,
            "cases": [self._overall(table, errors["model"]), self._by_group(table, errors["model"])],
        }

    def _overall(self, table: Table, errors: NDArray[np.float64]) -> dict[str, Any]:
        name, items = "snippet_localization/mae_mm", table.array("item")
        return mean_cases(name, table, [""], errors[:, None], lower_is_better=True, items=items)

    def _by_group(self, table: Table, errors: NDArray[np.float64]) -> dict[str, Any]:
        """The model's errors with a column for each group, NaN where a snippet is not in it."""
        chosen = groups(table, self._names)
        values = np.stack([np.where(is_in, errors, np.nan) for is_in in chosen.values()], axis=1)
        name, items = "snippet_localization/mae_mm of", table.array("item")
        return mean_cases(name, table, list(chosen), values, lower_is_better=True, has_mean=False, items=items)

    def _rows(self) -> Table:
        return self.selection.of(self.rows.table())

    def _errors(self, table: Table) -> dict[str, Float64[np.ndarray, "R"]]:
        """Absolute error of each answer for the snippets inside their scans; the model's comes first."""
        twin = self.selection.of(self._untrained.table())
        if not len(table) or not table.array("inside").any():
            return {}
        target, low, high = (table.array(name) for name in ("target_mm", "low_mm", "high_mm"))
        errors = {
            "model": np.abs(table.array("predicted_mm") - target),
            "middle": np.abs(table.array("middle_mm") - target),
            "random": table.array("random_error_mm"),
        }
        if len(twin):
            if twin.keys != table.keys:
                raise BatchError("The untrained twin was fed other snippets than the model. Feed it the same batches.")
            errors["untrained"] = np.abs(twin.array("predicted_mm") - target)
        if self.zero_shot_heads is not None:
            errors["zero_shot"] = np.abs(table.array("zero_shot_mm") - target)
        if self._prior is not None:
            other = self._prior.get(ANY_ORGAN, 0.5)
            fraction = np.array([self._prior.get(organ, other) for organ in table.array("organ").tolist()])
            errors["organ_prior"] = np.abs(low + fraction * (high - low) - target)
        return {name: values[table.array("inside")] for name, values in errors.items()}

    def _example(
        self, snippets: BatchSnippets, scores: list[NDArray[np.float64]], batch: Batch, row: int
    ) -> dict[str, Any]:
        scan = int(snippets.scan[row])
        logits = scores[row] / self.temperature
        weights = np.exp(logits - logits.max())
        low, high = batch["snippet_depth_mm"][row].tolist()
        return {
            "scan": snippets.keys[row],
            "text": batch["texts"][int(batch["snippet_text"][row])],
            "depth_mm": snippets.bins_mm[scan].round(2).tolist(),
            "probability": (weights / weights.sum()).round(5).tolist(),
            "chosen_mm": float(snippets.bins_mm[scan][scores[row].argmax()]),
            "true_mm": [low, high],
            "coronal": packed_image(coronal_of(batch, scan)),
        }
