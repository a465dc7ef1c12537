"""Copies of nested values, such as an optimizer's state, and whether two of them are the same bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_DEEPEST = 8


def snapshot(value: object, depth: int = _DEEPEST) -> Any:
    """A copy of tensors, builtins and of what objects hold, which later changes do not reach.

    Args:
        value: Anything; what lies deeper than ``depth`` is not looked at.
        depth: How many levels.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type)) or not depth:
        return value if depth else None
    if isinstance(value, Mapping):
        # By identity where keys are tensors, of which an optimizer's state has one for each parameter.
        return {id(k) if isinstance(k, Tensor) else k: snapshot(each, depth - 1) for k, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [snapshot(each, depth - 1) for each in value]
    if hasattr(value, "tobytes"):  # an array of another library
        return value.tobytes()
    if callable(value) or not hasattr(value, "__dict__"):
        return repr(type(value))
    return [repr(type(value)), snapshot(vars(value), depth - 1)]


def same(before: object, after: object) -> bool:
    """Whether two values are the same, tensors and numbers by their bits: 0.0 is not -0.0, and NaN is itself."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before is after or _same_bits(before, after)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, (list, tuple)) and isinstance(after, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    if isinstance(before, float) and isinstance(after, float):
        return before.hex() == after.hex()
    if type(before) is not type(after):
        return False
    try:
        return before is after or bool(before == after)
    except (RuntimeError, ValueError):  # arrays, whose comparison is no single answer
        return False


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
