"""Which tensors nothing but a call holds, measured by their references."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .calls import Frame
from .leaves import Leaf
from .thread import Thread
from .tracer import Tracer
from .verdicts import Judged

_SOLE: dict[tuple[bool, bool], int] = {}
"""How often a tensor is held that only a call holds: by whether it comes by keyword, and whether the call has any.

Measured for each audit: after torch has passed a recompile limit, Python counts otherwise.
"""


def is_sole(frame: Frame, index: int, leaf: Leaf) -> bool:
    """Whether nothing but a call holds one of its inputs, nor shares its memory."""
    held = _SOLE.get((isinstance(leaf.where, str), bool(frame.kwargs)), 0)
    return not leaf.steps and frame.references[index] <= held and _alone(leaf.tensor)


def _probe(self: nn.Module, input: Tensor, other: Any = None) -> Tensor:
    return input


def calibrate() -> None:
    """Measure how often a tensor is held that only a call holds."""
    if Tracer.active is not None:
        return
    counts: list[int] = []

    def ended(thread: Thread, frame: Frame) -> list[Judged]:
        counts.append(frame.references[0])
        return [Judged("used") for _ in frame.leaves]

    tracer = Tracer(lambda module: ("", module, False), ended, lambda thread: None, lambda frame: None)
    # installed on the probe alone: other threads may be calling modules
    kind = type("_Probe", (nn.Module,), {"forward": _probe, "__call__": tracer.replacement(lambda *_, **__: None)})
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # nobody is to see this
        probe: Any = kind()
        probe(torch.empty(1))
        probe(input=torch.empty(1))
        probe(torch.empty(1), other=None)
    tracer.remove()
    if len(counts) == 3:
        _SOLE.update({(False, False): counts[0], (True, True): counts[1], (False, True): counts[2]})


def _alone(tensor: Tensor) -> bool:
    """Whether no other tensor shares a tensor's memory."""
    try:
        return int(torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)) <= 2  # the tensor, and this look at it
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
