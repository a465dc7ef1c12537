"""Who holds a tensor: references from Python, functions that compute with it later, or a call alone."""

from __future__ import annotations

import functools
import gc
import sys
import types
from typing import Any

import torch
from torch import Tensor

from .calls import Frame
from .leaves import Leaf

_FUNCTIONS = (torch.autograd.function.FunctionCtx, types.GeneratorType)
_CONTAINERS = (dict, list, tuple, types.CellType)

SOLE: dict[tuple[bool, bool], int] = {}
"""References to a tensor that only a call holds, by (it comes by keyword, the call has keywords).

Measured for each audit: after torch has passed a recompile limit, Python counts otherwise.
"""


@functools.cache
def _counts_holders_in_torch() -> bool:
    """Whether holders in C++, as the autograd graph, count as one reference from Python."""
    if not hasattr(Tensor, "_use_count"):
        return False
    tensor = torch.ones(1, requires_grad=True)
    before = sys.getrefcount(tensor)
    with torch.enable_grad():
        held = tensor * 2
    return held is not None and sys.getrefcount(tensor) > before


def references(tensor: Tensor) -> int:
    """How many references from Python a tensor has."""
    return sys.getrefcount(tensor) - int(_counts_holders_in_torch() and tensor._use_count() > 1)  # type: ignore[attr-defined]


def holder(tensor: Tensor, frame: Frame) -> str:
    """Who holds a tensor since the call: a ``function`` (of autograd, or a generator), else ``state``."""
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


def is_sole(frame: Frame, index: int, leaf: Leaf) -> bool:
    """Whether only the call holds one of its inputs, and nothing shares its memory."""
    held = SOLE.get((isinstance(leaf.where, str), bool(frame.kwargs)), 0)
    if leaf.steps or frame.references[index] > held:
        return False
    try:  # two references to the memory: the tensor, and this look at it
        return int(torch._C._storage_Use_Count(leaf.tensor.untyped_storage()._cdata)) <= 2
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
