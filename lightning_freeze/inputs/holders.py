"""Who holds a tensor: by references of Python, and by what computes with it later."""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

import torch
from torch import Tensor

from .calls import Frame


def _counts_holders() -> bool:
    """Whether torch counts a tensor's holders in C++, as the autograd graph, as one reference to its Python object."""
    if not hasattr(Tensor, "_use_count"):  # an older torch, which does not
        return False
    tensor = torch.ones(1, requires_grad=True)
    before = sys.getrefcount(tensor)
    with torch.enable_grad():
        held = tensor * 2
    return held is not None and sys.getrefcount(tensor) > before


_FUNCTIONS = (torch.autograd.function.FunctionCtx, types.GeneratorType)
_CONTAINERS = (dict, list, tuple, types.CellType)
_COUNTED: list[bool] = []


def references(tensor: Tensor) -> int:
    """How many references from Python a tensor has."""
    if not _COUNTED:
        _COUNTED.append(_counts_holders())
    return sys.getrefcount(tensor) - int(_COUNTED[0] and tensor._use_count() > 1)  # type: ignore[attr-defined]


def holder(tensor: Tensor, frame: Frame) -> str:
    """Who holds a tensor more than before the call: ``state``, or a ``function`` that computes with it later.

    The function is a custom one of autograd, or a generator that the call returned.
    """
    seen = {id(frame.leaves), id(frame.args), id(frame.kwargs), *map(id, frame.leaves)}
    level: list[Any] = [tensor]
    found: list[Any] = []
    for _ in range(3):
        own = (id(level), id(found))
        found = [held for held in gc.get_referrers(*level) if not isinstance(held, types.FrameType)]
        found = [held for held in found if id(held) not in seen and id(held) not in own]
        if any(isinstance(held, _FUNCTIONS) for held in found):
            return "function"
        seen.update(map(id, found))
        level = [held for held in found if isinstance(held, _CONTAINERS)]
    return "state"
