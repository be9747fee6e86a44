"""A device that is not there, to see on any machine that code keeps its tensors together.

Tensors on it compute on the CPU, and refuse to meet tensors that were left behind, as those of a GPU do.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, SupportsIndex
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("meta")
"""The only device without memory on which autograd runs as it does on the CPU."""

_aten = torch.ops.aten
_FROM_CPU_TOO = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Give a device that every machine has and on which no tensor of the CPU is welcome.

    What a GPU refuses, it refuses: operations on tensors of both devices (but numbers without dimensions, and indices
    on the CPU), a generator of the CPU, ``numpy()`` without ``cpu()``. All else gives the CPU's values and gradients.
    It cannot show what ranks send each other, autocast (which does nothing on it), fused kernels, memory or speed.

    Yields:
        The device, for ``module.to(device)`` and ``tensor.to(device)``; of use inside the context only.

    Examples:
        >>> with elsewhere() as device:
        ...     layer = torch.nn.Linear(3, 2).to(device)
        ...     layer(torch.ones(1, 3, device=device)).sum().backward()
        ...     layer(torch.ones(1, 3))
        Traceback (most recent call last):
        RuntimeError: aten.addmm.default meets a tensor of (1, 3) on the CPU. Bring it to the device of the others.
    """
    asked, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    replaced: dict[str, Any] = {
        "autocast": _Autocast,
        "is_autocast_enabled": lambda *device: asked(*map(_known, device)),
        "get_autocast_dtype": lambda device: dtype(_known(device)),
        "inference_mode": torch.no_grad,  # which wraps no tensors
        "Generator": _Generator,
    }
    with patch.multiple(torch, **replaced), _Computing(), _Making():  # type: ignore[no-untyped-call]
        yield ELSEWHERE


_Operation = Callable[..., Any]
_Arguments = tuple[Any, ...]
_Named = dict[str, Any]


class _Elsewhere(Tensor):
    """A tensor of that device; ``here`` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls: type["_Elsewhere"], here: Tensor) -> "_Elsewhere":
        made: _Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            layout=here.layout,
            device=ELSEWHERE,
            requires_grad=here.requires_grad,
        )
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"{self.here!r} elsewhere"

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        reduced: tuple[Any, ...] = self.here.__reduce_ex__(protocol)  # type: ignore[no-untyped-call]
        return reduced

    def tolist(self) -> list[Any]:
        return self.here.tolist()

    def numpy(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("A tensor that is not on the CPU has no numpy array. Use cpu() first.")

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: _Operation, _: object, args: _Arguments = (), kwargs: _Named | None = None
    ) -> object:
        return _run(func, args, kwargs or {})


class _Computing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation, so that those that make tensors make them where they are asked to."""

    def __torch_dispatch__(
        self, func: _Operation, _: object, args: _Arguments = (), kwargs: _Named | None = None
    ) -> object:
        return _run(func, args, kwargs or {})


class _Making(TorchFunctionMode):
    """What PyTorch puts on a device without an operation: new tensors, lists as indices, numbers that are assigned."""

    def __torch_function__(
        self, func: _Operation, _: object, args: _Arguments = (), kwargs: _Named | None = None
    ) -> object:
        kwargs = dict(kwargs or {})
        _check_generator(func, args, kwargs)
        if func in (torch.tensor, torch.as_tensor) and _is_elsewhere(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": None}).to(ELSEWHERE)
        if not args or not isinstance(args[0], _Elsewhere):
            return func(*args, **kwargs)
        if func is Tensor.new_tensor:
            where = kwargs.pop("device", None) or ELSEWHERE
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(where)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            values = [item if isinstance(item, Tensor) else _moved(item, args[0].dtype) for item in args[2:]]
            return func(args[0], _index(args[1]), *values)
        return func(*args, **kwargs)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - torch.autocast's own
        super().__init__(_known(device_type), *args, **kwargs)


class _Generator(torch.Generator):
    """One of the CPU that says where it was wanted."""

    wanted: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "_Generator":
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.wanted = torch.device(device)
        return made


def _run(func: _Operation, args: _Arguments, kwargs: _Named) -> object:
    """Compute on the CPU what ``func`` asks of tensors of either device."""
    _check(func, args, kwargs)
    given = [item for item in tree_leaves((args, kwargs)) if isinstance(item, _Elsewhere)]
    asked = kwargs.get("device")
    goes = bool(given) if asked is None else _is_elsewhere(asked)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if not goes:
        return found
    whose = {id(item.here): item for item in given}
    found = tree_map(lambda item: whose.get(id(item), item), found)  # what worked in place gives back what it was given
    found = tree_map(lambda item: _Elsewhere(item) if type(item) is Tensor else item, found)
    if asked is not None:
        return found
    return return_and_correct_aliasing(func, args, kwargs, found)  # type: ignore[no-untyped-call]


def _check(func: _Operation, args: _Arguments, kwargs: _Named) -> None:
    leaves = tree_leaves((args, kwargs))
    if func in _FROM_CPU_TOO or not any(isinstance(item, _Elsewhere) for item in leaves):
        return
    met = tree_leaves(((args[0], *args[2:]), kwargs)) if func in _INDEXING else leaves
    left = [item for item in met if isinstance(item, Tensor) and not isinstance(item, _Elsewhere)]
    wrong = [item for item in left if item.dim() > 0 or (func in _INDEXING and item is args[0])]
    if wrong:
        raise RuntimeError(
            f"{func} meets a tensor of {tuple(wrong[0].shape)} on the CPU. Bring it to the device of the others."
        )


def _check_generator(func: _Operation, args: _Arguments, kwargs: _Named) -> None:
    draws = kwargs.get("generator")
    goes = _is_elsewhere(kwargs.get("device")) or any(isinstance(item, _Elsewhere) for item in args)
    if goes and draws is not None and not _is_elsewhere(getattr(draws, "wanted", None)):
        raise RuntimeError(f"{func.__name__} draws elsewhere from a generator of the CPU. Give it one of that device.")


def _here(item: object) -> object:
    return item.here if isinstance(item, _Elsewhere) else item


def _moved(value: object, dtype: torch.dtype | None = None) -> _Elsewhere:
    return _Elsewhere(torch.tensor(value, dtype=dtype))


def _index(index: object) -> object:
    if isinstance(index, tuple):
        return tuple(map(_index, index))
    return _moved(index) if isinstance(index, list) else index


def _is_elsewhere(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == ELSEWHERE.type


def _known(device_type: str) -> str:
    return "cpu" if device_type == ELSEWHERE.type else device_type
