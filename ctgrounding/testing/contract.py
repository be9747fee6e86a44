"""The contract suite of objectives: which law does a plug-in break?"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ctgrounding.errors import CTGroundingError, MissingDependencyError
from ctgrounding.objectives.base import Objective
from ctgrounding.testing.laws import LAWS, Subject
from ctgrounding.testing.outcome import ContractError, run_step
from ctgrounding.testing.scans import TinyScan, tiny_scans
from ctgrounding.testing.tiny import tiny_dims


def check_objective(
    make: Callable[..., Objective],
    *,
    alternatives: Mapping[str, object] | None = None,
    scans: Sequence[TinyScan] | None = None,
) -> None:
    """Check that an objective keeps the laws of :class:`ctgrounding.objectives.base.Objective`.

    It is run on a handful of tiny scans in float64, alone and as one of several simulated ranks. A pass says
    that loss and gradients are those of one process on any number of ranks, whatever they hold.

    Args:
        make: The class, or a ``functools.partial`` of it: called with an ``EncoderDims`` first.
        alternatives: For arguments whose type does not tell another value (strings, paths, tables), a value
            that must change the result. An argument that needs others beside it takes a dict of all of them.
        scans: Scans to run on; by default those of :func:`ctgrounding.testing.scans.tiny_scans`.

    Raises:
        ContractError: With the name of the first law that is broken, and how.

    Examples:
        >>> from ctgrounding.objectives import SnippetLocalization
        >>> check_objective(SnippetLocalization)
    """
    subject = Subject(make, tiny_scans(7) if scans is None else scans)
    for law in LAWS:
        try:
            law(subject)
        except (AssertionError, MissingDependencyError):
            raise
        except Exception as error:
            what = law.__name__.replace("_", " ")
            raise ContractError(what, f"it raises {type(error).__name__}: {error}") from error
    arguments_matter(subject, alternatives or {})


def arguments_matter(subject: Subject, alternatives: Mapping[str, object]) -> None:
    """Every argument of the constructor changes something.

    Args:
        subject: The objective.
        alternatives: As for :func:`check_objective`.

    Raises:
        ContractError: With the first argument that changes nothing.
    """
    wanted = _fingerprint(subject.new(), subject)
    for name, parameter in list(inspect.signature(subject.make).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise ContractError("arguments", f"The constructor takes **{name}; name and document every argument.")
        outcomes = [_outcome(subject, changed) for changed in _changes(name, parameter, alternatives)]
        if not any(outcomes):
            raise ContractError(
                "arguments", f"No other value is known for argument '{name}'. Give one in 'alternatives'."
            )
        if all(outcome in (None, wanted) for outcome in outcomes):
            raise ContractError(
                "arguments",
                f"Argument '{name}' changes neither sums, weights, gradients nor texts. Use or remove it, or give a "
                "value that matters in 'alternatives'.",
            )


def _outcome(subject: Subject, changed: Mapping[str, Any]) -> tuple[object, ...] | None:
    """Fingerprint with other arguments; None where the objective refuses them."""
    try:
        objective = subject.new(**changed)
    except CTGroundingError:
        return None
    return _fingerprint(objective, subject)


def _fingerprint(objective: Objective, subject: Subject) -> tuple[object, ...]:
    outcome = run_step(objective, [subject.scans], step=3)
    numbers = [*outcome.totals.values(), *outcome.weights.values(), *outcome.gradients.values()]
    return (tuple(objective.fixed_texts()), tuple(outcome.gradients), tuple(_rounded(number) for number in numbers))


def _rounded(number: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.9g}") for value in number.flatten().tolist())


def _changes(name: str, parameter: inspect.Parameter, alternatives: Mapping[str, object]) -> Iterator[dict[str, Any]]:
    """Values that differ from the default, each with what it needs beside it."""
    if name in alternatives:
        value = alternatives[name]
        yield (
            {str(key): item for key, item in value.items()}
            if isinstance(value, dict) and name in value
            else {name: value}
        )
        return
    default = parameter.default
    values: Sequence[object] = ()
    choices = _choices(parameter.annotation)
    if choices:
        values = [choice for choice in choices if choice != default]
    elif isinstance(default, bool):
        values = [not default]
    elif isinstance(default, float | int):
        values = [type(default)(default * 2 + 1), type(default)(default / 2), type(default)(0.95)]
    elif isinstance(default, str):
        values = [head for head in tiny_dims().image_heads if head != default]
    yield from ({name: value} for value in values)


def _choices(annotation: object) -> tuple[object, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(choice for part in typing.get_args(annotation) for choice in _choices(part))
    return ()
