"""Which tensors only a call holds, measured by their references."""

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
"""References to a tensor that only a call holds, by (it comes by keyword, the call has keywords).

Measured for each audit: after torch has passed a recompile limit, Python counts otherwise.
"""


def is_sole(frame: Frame, index: int, leaf: Leaf) -> bool:
    """Whether only the call holds one of its inputs, and nothing shares its memory."""
    held = _SOLE.get((isinstance(leaf.where, str), bool(frame.kwargs)), 0)
    if leaf.steps or frame.references[index] > held:
        return False
    try:  # two references to the memory: the tensor, and this look at it
        return int(torch._C._storage_Use_Count(leaf.tensor.untyped_storage()._cdata)) <= 2
    except (RuntimeError, NotImplementedError, AttributeError):
        return False


def _forward(self: nn.Module, input: Tensor, other: Any = None) -> Tensor:
    return input


def calibrate() -> None:
    """Measure how many references a tensor has that only a call holds."""
    if Tracer.active is not None:
        return
    counts: list[int] = []

    def ended(thread: Thread, frame: Frame) -> list[Judged]:
        counts.append(frame.references[0])
        return [Judged("used") for _ in frame.leaves]

    tracer = Tracer(lambda module: ("", module, False), ended, lambda thread: None, lambda frame: None)
    # on a class of its own: other threads may be calling modules
    kind = type("_Probe", (nn.Module,), {"forward": _forward, "__call__": tracer.replacement(lambda *_, **__: None)})
    with torch._C.DisableTorchFunction(), _disable_current_modes():  # no mode of the user sees this
        probe: Any = kind()
        probe(torch.empty(1))
        probe(input=torch.empty(1))
        probe(torch.empty(1), other=None)
    tracer.forget()
    if len(counts) == 3:
        _SOLE.update({(False, False): counts[0], (True, True): counts[1], (False, True): counts[2]})
