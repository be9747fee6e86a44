"""Run an objective on tiny scans as one or several ranks would, and collect all that may depend on it."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ctgrounding.objectives.base import Objective
from ctgrounding.testing.ranks import simulate_ranks
from ctgrounding.testing.scans import TinyScan
from ctgrounding.testing.tiny import TinyHeads, text_vectors, tiny_batch, tiny_encoded
from ctgrounding.types import Batch, Encoded, Term

Guard = Callable[[Encoded, Batch], tuple[Encoded, Batch]]


class ContractError(AssertionError):
    """An objective breaks a law of :class:`ctgrounding.objectives.base.Objective`.

    Attributes:
        law: Name of the law.
    """

    def __init__(self, law: str, message: str) -> None:
        super().__init__(f"Law '{law}' is broken: {message}")
        self.law = law


@dataclass(frozen=True)
class Outcome:
    """What a step gave, summed over ranks.

    Attributes:
        totals: Sum of each term.
        weights: Weight of each term.
        gradients: Gradient of the sum of all terms: of parameters, and of every scan's readouts and every
            text by their own names, so that order and rank do not matter.
        reached: Parameters that had a gradient, on each rank.
        padding: Largest gradient of a bin that is padding.
    """

    totals: dict[str, Tensor]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    reached: tuple[frozenset[str], ...] = ()
    padding: float = 0.0


def run_step(
    objective: Objective,
    scans_of_ranks: Sequence[Sequence[TinyScan]],
    *,
    heads: TinyHeads | None = None,
    padded_bins: int = 0,
    step: int = 0,
    guard: Guard | None = None,
) -> Outcome:
    """One step of an objective, forward and backward, with one part of the scans on each rank.

    Args:
        objective: Copied for each rank, so it stays as it is.
        scans_of_ranks: Scans of each rank; a rank may have none.
        heads: Heads of the model, likewise copied.
        padded_bins: Depth bins beyond the longest scan.
        step: What the step's generator is seeded with.
        guard: Stands between the objective and what it is given.

    Raises:
        ContractError: If the objective returns something that is no term, or that has no graph.
        ScheduleError: If ranks do not make the same collectives.
    """
    heads = heads or TinyHeads()

    def work(rank: int) -> Outcome:
        return run_rank(copy.deepcopy(objective), copy.deepcopy(heads), scans_of_ranks[rank], padded_bins, step, guard)

    return sum_ranks(simulate_ranks(len(scans_of_ranks), work) if len(scans_of_ranks) > 1 else [work(0)])


def run_rank(
    objective: Objective,
    heads: TinyHeads,
    scans: Sequence[TinyScan],
    padded_bins: int = 0,
    step: int = 0,
    guard: Guard | None = None,
) -> Outcome:
    """This rank's part of :func:`run_step`; the objective's and the heads' own gradients are added to."""
    batch = tiny_batch(scans)
    plain = tiny_encoded(scans, batch, heads, padded_bins=padded_bins)
    seen_batch = batch if guard is None else guard(plain, batch)[1]
    planned = objective.plan(seen_batch, torch.Generator().manual_seed(step))
    fixed = objective.fixed_texts()
    strings = [*batch["texts"], *(fixed[index] for index in planned.tolist())]
    text = text_vectors(strings).requires_grad_()
    readouts = {name: rows.clone().requires_grad_() for name, rows in plain.readouts.items()}
    rows = torch.arange(len(batch["texts"]), len(strings))
    encoded = replace(plain, text=text, readouts=readouts, planned=planned, planned_text=rows)
    if guard is not None:
        encoded, seen_batch = guard(encoded, batch)
    terms = objective(encoded, seen_batch)
    check_terms(terms)
    torch.autograd.backward([term.total for term in terms.values()])

    parameters = {
        f"{owner} {name}": parameter
        for owner, module in (("head", heads), ("parameter", objective))
        for name, parameter in _named(module).items()
    }
    reached = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    named, padding = _by_scan(scans, readouts)
    named.update(_by_text(strings, text))
    return Outcome(
        {name: term.total.detach() for name, term in terms.items()},
        {name: term.weight.detach() for name, term in terms.items()},
        {**named, **reached},
        (frozenset(reached),),
        padding,
    )


def check_terms(terms: object) -> None:
    """Refuse what is no dict of scalar terms with a graph.

    Raises:
        ContractError: With the term and what is wrong with it.
    """
    if not isinstance(terms, dict) or not terms or not all(isinstance(term, Term) for term in terms.values()):
        raise ContractError("terms", f"forward returned {type(terms).__name__}, not a dict with a Term for each name.")
    for name, term in terms.items():
        weight = term.weight.detach() if isinstance(term.weight, Tensor) else term.weight
        for part, value in (("total", term.total), ("weight", weight)):
            if not isinstance(value, Tensor) or value.shape != ():
                raise ContractError("terms", f"{part} of term '{name}' is no scalar tensor.")
            if not bool(torch.isfinite(value)):
                raise ContractError("finite", f"{part} of term '{name}' is {float(value.detach())}.")
        if not term.total.requires_grad:
            raise ContractError(
                "attached",
                f"total of term '{name}' has no graph, so this rank would not take part in the backward pass. "
                "Run the heads on zero rows instead of leaving early.",
            )
        if float(weight) < 0:
            raise ContractError("terms", f"weight of term '{name}' is {float(weight)}, below zero.")


def _named(module: nn.Module) -> Mapping[str, nn.Parameter]:
    return dict(module.named_parameters())


def _by_scan(scans: Sequence[TinyScan], readouts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Gradients of readouts by scan, real bins only, and the largest of padded bins."""
    gradient = {name: torch.zeros_like(rows) if rows.grad is None else rows.grad for name, rows in readouts.items()}
    named: dict[str, Tensor] = {}
    padding, organ = 0.0, 0
    for number, scan in enumerate(scans):
        length = len(scan.bins)
        named[f"global of {scan.name}"] = gradient["global"][number]
        named[f"depth of {scan.name}"] = gradient["depth"][number, :length]
        beyond = gradient["depth"][number, length:]
        padding = max(padding, float(beyond.abs().max()) if beyond.numel() else 0.0)
        for label in scan.organs:
            named[f"organ {label} of {scan.name}"] = gradient["organ"][organ]
            organ += 1
    return named, padding


def _by_text(strings: Sequence[str], text: Tensor) -> dict[str, Tensor]:
    gradient = torch.zeros_like(text) if text.grad is None else text.grad
    named: dict[str, Tensor] = {}
    for string, row in zip(strings, gradient, strict=True):
        named[f"text '{string}'"] = named.get(f"text '{string}'", 0) + row
    return named


def sum_ranks(ranks: Sequence[Outcome]) -> Outcome:
    """What the ranks gave, together.

    Raises:
        ContractError: If ranks return terms of different names.
    """
    if len({tuple(outcome.totals) for outcome in ranks}) > 1:
        raise ContractError("schedule", "ranks return terms of different names.")
    gradients: dict[str, Tensor] = {}
    for outcome in ranks:
        for name, gradient in outcome.gradients.items():
            gradients[name] = gradients.get(name, 0) + gradient
    return Outcome(
        {name: torch.stack([outcome.totals[name].double() for outcome in ranks]).sum() for name in ranks[0].totals},
        {name: torch.stack([outcome.weights[name].double() for outcome in ranks]).sum() for name in ranks[0].weights},
        gradients,
        tuple(names for outcome in ranks for names in outcome.reached),
        max(outcome.padding for outcome in ranks),
    )


def same_outcome(law: str, found: Outcome, wanted: Outcome, because: str, tolerance: float = 1e-9) -> None:
    """Refuse outcomes that differ in a total, a weight or a gradient, norm-wise per tensor.

    Raises:
        ContractError: With what differs most obviously, and by how much.
    """
    for part, ours, theirs in (
        ("total of term", found.totals, wanted.totals),
        ("weight of term", found.weights, wanted.weights),
        ("gradient of", found.gradients, wanted.gradients),
    ):
        # A gradient that cancels to nothing keeps the rounding of what cancelled, so the largest sets the floor.
        floor = 1e-3 * max([1.0, *(float(value.double().norm()) for value in theirs.values())])
        for name in theirs:
            one, other = ours.get(name), theirs[name].double()
            difference = float((other if one is None else one.double() - other).norm())
            if not difference <= tolerance * max(float(other.norm()), floor):
                raise ContractError(
                    law,
                    f"{because}, but {part} {name} differs by {difference:.2g} where it is {float(other.norm()):.4g}.",
                )
