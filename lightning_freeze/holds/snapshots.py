"""Copies of nested values, such as an optimizer's state, and whether two of them are the same bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

_PLAIN = (NoneType, bool, int, float, complex, str, bytes, type)


def snapshot(value: object, depth: int = 8) -> Any:
    """Copy tensors, builtins and what objects hold, down to a depth."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if not depth:
        return None
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        # By identity where keys are tensors, of which an optimizer's state has one for each parameter.
        return {id(k) if isinstance(k, Tensor) else k: snapshot(each, depth - 1) for k, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [snapshot(each, depth - 1) for each in value]
    return _of_object(value, depth)


def _of_object(value: object, depth: int) -> Any:
    if hasattr(value, "tobytes"):  # an array of another library
        return value.tobytes()
    if callable(value) or not hasattr(value, "__dict__"):
        return repr(type(value))
    return [repr(type(value)), snapshot(vars(value), depth - 1)]


def elements(value: object) -> Iterable[Any]:
    """The values of a mapping, or the items of a list, tuple or set; none of anything else."""
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, (list, tuple, set, frozenset)) else ()


def same(before: object, after: object) -> bool:
    """Whether two values are the same, tensors and numbers by their bits: 0.0 is not -0.0, and NaN is itself."""
    for kinds, alike in _ALIKE:
        if isinstance(before, kinds) and isinstance(after, kinds):
            return alike(before, after)
    if type(before) is not type(after):
        return False
    try:
        return before is after or bool(before == after)
    except (RuntimeError, ValueError):  # arrays, whose comparison is no single answer
        return False


# How two values of certain types are compared.
_ALIKE: tuple[tuple[type | tuple[type, ...], Callable[[Any, Any], bool]], ...] = (
    (Tensor, lambda one, other: one is other or _same_bits(one, other)),
    (Mapping, lambda one, other: one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)),
    ((list, tuple), lambda one, other: len(one) == len(other) and all(map(same, one, other))),
    (float, lambda one, other: one.hex() == other.hex()),
)


def changed(before: Mapping[Any, Any], after: Mapping[Any, Any]) -> list[Any]:
    """The keys whose values differ, or are on one side alone and not None."""
    return [key for key in {**before, **after} if not same(before.get(key), after.get(key))]


def _same_bits(before: Tensor, after: Tensor) -> bool:
    if before.shape != after.shape or before.dtype != after.dtype or before.layout != after.layout:
        return False
    if before.layout != torch.strided:
        return bool(torch.equal(before.to_dense(), after.to_dense()))
    one, other = (t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for t in (before, after))
    try:
        return bool(torch.equal(one.view(torch.uint8), other.view(torch.uint8)))
    except RuntimeError:  # a kind of tensor without bytes of its own
        return bool(torch.equal(one, other))
