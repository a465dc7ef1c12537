"""Keeps torch's flags for "inside a dispatch mode" right where several threads enter modes.

torch keeps them for the whole process: a mode remembers them on entry and restores them on exit
(`torch.utils._python_dispatch`). Where threads enter and leave in turn, the last to leave restores what it found while
others were inside, and torch.compile then recompiles for good.
"""

from __future__ import annotations

import threading
from typing import Any

from torch.utils import _python_dispatch

_NAMES = [
    name
    for name in (
        "_is_in_torch_dispatch_mode",
        "_is_in_non_infra_torch_dispatch_mode",
        "_is_in_any_mode_without_ignore_compile_internals",
    )
    if hasattr(_python_dispatch, name)  # private names, not all of them in every torch
]
_LOCK = threading.Lock()
_INSIDE = 0
_BEFORE: dict[str, Any] = {}


def enter() -> None:
    """Before a thread enters a mode: the first remembers the flags."""
    global _INSIDE
    with _LOCK:
        if _INSIDE == 0:
            _BEFORE.update({name: getattr(_python_dispatch, name) for name in _NAMES})
        _INSIDE += 1


def leave() -> None:
    """After a thread has left it: the last restores them."""
    global _INSIDE
    with _LOCK:
        _INSIDE -= 1
        if _INSIDE == 0:
            vars(_python_dispatch).update(_BEFORE)
