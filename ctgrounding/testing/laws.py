"""The laws of objectives, one function each, which raises when a law is broken."""

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ctgrounding.objectives.base import Objective
from ctgrounding.testing.declared import Declared
from ctgrounding.testing.elsewhere import elsewhere
from ctgrounding.testing.outcome import ContractError, Outcome, check_terms, run_step, same_outcome
from ctgrounding.testing.ranks import ScheduleError
from ctgrounding.testing.scans import QUESTIONS, TinyScan
from ctgrounding.testing.tiny import TinyHeads, tiny_batch, tiny_dims, tiny_encoded, with_fixed_texts
from ctgrounding.types import Batch, Encoded


@dataclass(frozen=True)
class Subject:
    """An objective under examination and how to make another.

    Attributes:
        make: The class, or a partial of it.
        scans: What it is run on.
    """

    make: Callable[..., Objective]
    scans: Sequence[TinyScan]

    def new(self, **changed: object) -> Objective:
        """Another of the kind, told the label counts as a task would."""
        objective = self.make(tiny_dims(), **changed)
        counts = torch.tensor([[40, 10 + number] for number in range(len(QUESTIONS))])
        objective.set_label_counts(counts)
        return objective

    def run(self, *, padded_bins: int = 0) -> Outcome:
        """One process with all scans."""
        return run_step(self.new(), [self.scans], padded_bins=padded_bins)


def it_is_an_objective(subject: Subject) -> None:
    """What is made derives from Objective and says what it reads."""
    objective = subject.make(tiny_dims())
    if not isinstance(objective, Objective):
        raise ContractError("class", f"{type(objective).__name__} is no Objective. Derive it from that class.")
    requires = getattr(objective, "requires", None)
    if not isinstance(requires, frozenset):
        raise ContractError(
            "declared keys",
            f"'requires' is {requires!r}, not a frozenset. Name the batch keys and readouts that it reads there.",
        )


def keys_are_declared(subject: Subject) -> None:
    """Only declared keys and readouts are read, and each of them is."""
    objective = subject.new()
    guard = Declared(objective.requires)
    run_step(objective, [subject.scans], guard=guard.apply)
    unused = sorted(objective.requires - guard.used)
    if unused:
        raise ContractError("declared keys", f"{unused} is declared in 'requires' but never read. Remove it.")


def draws_are_keyed(subject: Subject) -> None:
    """The step's generator decides, nothing else."""
    outcomes = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            outcomes.append(subject.run())
    because = "The same step twice, with another state of torch's global generator, must give the same"
    same_outcome("keyed randomness", outcomes[0], outcomes[1], because)


def inputs_are_kept(subject: Subject) -> None:
    """Other objectives read the same batch and the same global generator afterwards."""
    objective, batch = subject.new(), tiny_batch(subject.scans)
    encoded = tiny_encoded(subject.scans, batch)
    given: dict[str, Any] = {"batch": batch, "encoded": {item.name: getattr(encoded, item.name) for item in _data()}}
    before = tree_map(_copied, given)
    with torch.random.fork_rng(devices=[]):
        torch.rand(1)  # so that no seed leads here
        drawn = torch.get_rng_state()
        objective(with_fixed_texts(encoded, objective, batch), batch)
        if not torch.equal(torch.get_rng_state(), drawn):
            raise ContractError("inputs", "It draws from or seeds torch's global generator. Draw in plan() alone.")
    for owner, values in given.items():
        for name in sorted({*values, *before[owner]}):
            if _differs(values.get(name), before[owner].get(name)):
                raise ContractError(
                    "inputs", f"It changes '{name}' of the {owner}, which others read after it. Work on a copy of it."
                )


def order_does_not_matter(subject: Subject) -> None:
    """Scans in another order give the same."""
    turned = run_step(subject.new(), [[*subject.scans[3:], *reversed(subject.scans[:3])]])
    same_outcome("order", turned, subject.run(), "Scans in another order must give the same")


def padding_does_not_matter(subject: Subject) -> None:
    """More padded depth bins give the same and get no gradient."""
    padded = subject.run(padded_bins=3)
    same_outcome("padding", padded, subject.run(), "Depth bins that hold no real voxel must not count")
    if padded.padding > 0:
        raise ContractError(
            "padding", f"A padded depth bin has a gradient of {padded.padding:.2g}; mask with depth_valid."
        )


def nothing_is_legal(subject: Subject) -> None:
    """Batches without anything to learn from are finite, attached and weigh nothing."""
    full = subject.run()
    bare = [scan.bare() for scan in subject.scans]
    for scans, what in ((bare, "scans without reports, organs or labels"), ([], "no scans")):
        found = run_step(subject.new(), [scans])
        if list(found.totals) != list(full.totals):
            raise ContractError("terms", f"With {what} the terms are {list(found.totals)}, else {list(full.totals)}.")
        for name in found.totals:
            if not scans and (float(found.weights[name]) or float(found.totals[name])):
                weight = float(found.weights[name])
                raise ContractError(
                    "zero elements", f"With {what}, term '{name}' weighs {weight}; it must be a sum over none."
                )
        for name, gradient in found.gradients.items():
            if not bool(gradient.isfinite().all()):
                raise ContractError("finite", f"With {what}, the gradient of {name} is not finite.")
        _same_parameters(found, full.reached[0], what)


def ranks_are_one_process(subject: Subject) -> None:
    """Two and three ranks, uneven, empty or bare, give what one process with all scans gives."""
    scans = subject.scans
    bare = [*scans[:4], *(scan.bare() for scan in scans[4:])]
    splits: list[tuple[Sequence[TinyScan], Sequence[Sequence[TinyScan]], str]] = [
        (scans, [scans[:5], scans[5:]], "two uneven ranks"),
        (scans, [[], scans], "two ranks, one without scans"),
        (scans, [scans[:1], scans[1:3], scans[3:]], "three ranks"),
        (bare, [bare[:4], bare[4:]], "two ranks, one whose scans have nothing to learn from"),
    ]
    for standardized in (False, True):
        heads = TinyHeads(standardized=standardized)
        suffix = ", under a text head that standardises over all ranks" if standardized else ""
        for whole, parts, what in splits:
            alone = run_step(subject.new(), [whole], heads=heads)
            try:
                together = run_step(subject.new(), parts, heads=heads)
            except ScheduleError as error:
                raise ContractError("schedule", f"With {what}{suffix}: {error}") from error
            same_outcome("ranks", together, alone, f"{what.capitalize()} must give what one process gives{suffix}")
            for reached in together.reached:
                _same_parameters(replace(together, reached=(reached,)), alone.reached[0], what)


def terms_are_sums(subject: Subject) -> None:
    """Every scan twice gives at least twice the weight and twice the sum; exactly twice where scans do not meet."""
    twins = [*subject.scans, *(replace(scan, name=f"{scan.name}+", study=f"{scan.study}+") for scan in subject.scans)]
    single, double = subject.run(), run_step(subject.new(), [twins])
    for part, once, twice in (
        ("the weight of", single.weights, double.weights),
        ("the total of", single.totals, double.totals),
    ):
        for name, value in once.items():
            if float(single.weights[name]) and float(twice[name] - 2 * value) < -1e-9 * max(1.0, abs(float(value))):
                raise ContractError(
                    "sums",
                    f"Every scan twice must at least double {part} term '{name}', which went from {float(value):.6g} "
                    f"to {float(twice[name]):.6g}. Return sums over valid elements, not means.",
                )


def copies_are_equal(subject: Subject) -> None:
    """Pickles, and a state_dict loaded into a new one, give the same."""
    objective = subject.new()
    wanted = run_step(objective, [subject.scans])
    try:
        pickled = pickle.loads(pickle.dumps(objective))
    except Exception as error:
        raise ContractError("pickle", f"It cannot be pickled: {error}") from error
    same_outcome("pickle", run_step(pickled, [subject.scans]), wanted, "What pickle brings back must give the same")
    loaded = subject.make(tiny_dims())
    try:
        loaded.load_state_dict(copy.deepcopy(objective.state_dict()))
    except RuntimeError as error:
        raise ContractError("state_dict", f"A new one does not take the state_dict: {error}") from error
    same_outcome(
        "state_dict", run_step(loaded, [subject.scans]), wanted, "What loads the state_dict must give the same"
    )


def narrow_floats_are_summed_wide(subject: Subject) -> None:
    """Encoders in bfloat16 give sums in float32 or wider, near to those of float64."""
    objective, batch = subject.new(), tiny_batch(subject.scans)
    exact = subject.run()
    heads = TinyHeads().to(torch.bfloat16)
    for group in (heads.scales, heads.biases):
        group.float()
    encoded = tiny_encoded(subject.scans, batch, heads)
    readouts = {name: rows.bfloat16().requires_grad_() for name, rows in encoded.readouts.items()}
    narrow = replace(encoded, readouts=readouts, text=encoded.text.bfloat16())
    terms = objective(with_fixed_texts(narrow, objective, batch), batch)
    check_terms(terms)
    for name, term in terms.items():
        if term.total.dtype in (torch.bfloat16, torch.float16):
            raise ContractError("precision", f"Term '{name}' is summed in {term.total.dtype}; sum in float32.")
        wanted = float(exact.totals[name])
        if abs(float(term.total.detach()) - wanted) > 0.1 * abs(wanted) + 0.05:
            raise ContractError(
                "precision",
                f"With encoders in bfloat16, term '{name}' is {float(term.total.detach()):.4g}, not {wanted:.4g}.",
            )


def devices_do_not_mix(subject: Subject) -> None:
    """With batch, encoders and heads on another device, all is computed there, to the same sums and weights."""
    wanted = subject.run()
    with elsewhere() as device:
        objective, heads = subject.new().to(device), TinyHeads().to(device)
        batch = cast("Batch", _moved(tiny_batch(subject.scans), device))
        left = with_fixed_texts(tiny_encoded(subject.scans, batch), objective, batch)
        values = {item.name: getattr(left, item.name) for item in fields(left)}
        encoded = Encoded(**_moved(values | {"heads": heads, "readouts": _moved(left.readouts, device)}, device))
        try:
            terms = objective(encoded, batch)
        except RuntimeError as error:
            raise ContractError("device", f"On another device than the CPU it fails: {error}") from error
        for name, term in terms.items():
            for part, value, single in (("total", term.total, wanted.totals), ("weight", term.weight, wanted.weights)):
                if value.device != device:
                    raise ContractError("device", f"The {part} of term '{name}' is on the CPU, unlike the batch.")
                if not torch.allclose(value.detach().cpu().double(), single[name].double(), rtol=1e-6):
                    raise ContractError("device", f"On another device, the {part} of term '{name}' is another.")
        torch.autograd.backward([term.total for term in terms.values()])


LAWS: tuple[Callable[[Subject], None], ...] = (
    it_is_an_objective,
    keys_are_declared,
    draws_are_keyed,
    inputs_are_kept,
    order_does_not_matter,
    padding_does_not_matter,
    nothing_is_legal,
    ranks_are_one_process,
    terms_are_sums,
    copies_are_equal,
    narrow_floats_are_summed_wide,
    devices_do_not_mix,
)


def _data() -> list[Any]:
    return [item for item in fields(Encoded) if item.name != "heads"]


def _copied(value: object) -> object:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _differs(now: object, before: object) -> bool:
    one, other = tree_leaves(now), tree_leaves(before)
    return len(one) != len(other) or not all(map(_equal, one, other))


def _equal(one: object, other: object) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one == other
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _moved(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}


def _same_parameters(found: Outcome, wanted: frozenset[str], what: str) -> None:
    """Gradients of zero are fine, missing ones are not: other ranks would wait for them."""
    missing = sorted(wanted - found.reached[0])
    if missing:
        raise ContractError(
            "attached",
            f"With {what}, {missing[0]} gets no gradient, not even zero, so ranks would wait for each other. "
            "Always run the heads, on zero rows if need be.",
        )
