"""The tensors that a tensor is made of: a DTensor of its local shard, a nested one of its values and offsets."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

PLAIN: frozenset[type] = frozenset((Tensor, nn.Parameter))
"""Classes whose tensors have a memory of their own and are made of nothing else."""

_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_unwrapped = torch._C._functorch.get_unwrapped


def within(tensor: Tensor) -> list[Tensor] | None:
    """Every tensor that a tensor holds, and those that these hold; None for one that shows nothing of what it is made of.

    Nothing of the tensor's own is called where it keeps them as attributes, as all of torch's do.
    """
    kind = type(tensor)
    if kind in PLAIN or kind.__module__.startswith("torch._subclasses"):  # a fake tensor has no values
        return []
    found: dict[int, Tensor] = {}
    waiting = [tensor]
    while waiting:
        for part in _parts(waiting.pop()):
            if part is not tensor and id(part) not in found:
                found[id(part)] = part
                if type(part) not in PLAIN:
                    waiting.append(part)
    # without operators of its own a tensor has a memory of its own
    own_memory = getattr(kind, "__torch_dispatch__", None) is torch._C._disabled_torch_dispatch_impl
    return [*found.values()] if found or own_memory else None


def plain(tensor: Tensor) -> Tensor:
    """The tensor that operators will see: vmap and grad wrap it."""
    while _wrapped(tensor):
        tensor = _unwrapped(tensor)
    return tensor


def _parts(tensor: Tensor) -> list[Tensor]:
    held = [*object.__getattribute__(tensor, "__dict__").values()]
    for slot in _slots(type(tensor)):
        try:
            held.append(slot.__get__(tensor))
        except AttributeError:  # not set
            continue
    found = [part for value in held for part in _tensors(value, depth=3)]
    if found or not hasattr(type(tensor), "__tensor_flatten__"):
        return found
    try:
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # type: ignore[attr-defined]
    except Exception:
        return []


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple, dict)):
        for item in dict.values(value) if isinstance(value, dict) else value:
            yield from _tensors(item, depth - 1)


@functools.lru_cache(maxsize=256)
def _slots(kind: type) -> list[Any]:
    bases = [base for base in kind.__mro__ if base not in PLAIN]
    return [held for base in bases for held in vars(base).values() if isinstance(held, types.MemberDescriptorType)]
