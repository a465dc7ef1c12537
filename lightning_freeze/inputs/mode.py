"""A dispatch mode that reports each operator to a thread.

A mode remembers torch's flags for "inside a dispatch mode" on entry and restores them on exit, but torch keeps them for
the whole process. Where threads enter and leave in turn, the last would restore what it found while others were inside,
and torch.compile recompile for good: so the first thread to enter remembers them, and the last to leave restores them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from .calls import AUTOCAST

_FLAGS = [name for name in vars(_python_dispatch) if name.startswith("_is_in_")]  # not the same ones in every torch
_LOCK = threading.Lock()
_INSIDE = 0
_BEFORE: dict[str, Any] = {}


def remember_flags() -> None:
    """Remember torch's flags, if no thread is inside a mode yet."""
    global _INSIDE
    with _LOCK:
        if _INSIDE == 0:
            _BEFORE.update({name: getattr(_python_dispatch, name) for name in _FLAGS})
        _INSIDE += 1


def restore_flags() -> None:
    """Restore torch's flags, if no other thread is inside a mode."""
    global _INSIDE
    with _LOCK:
        _INSIDE -= 1
        if _INSIDE == 0:
            vars(_python_dispatch).update(_BEFORE)


class Mode(TorchDispatchMode):
    """Reports each operator that ran to a thread."""

    supports_higher_order_operators = True

    def __init__(self, thread: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._thread = thread

    def __enter__(self) -> Mode:
        remember_flags()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        restore_flags()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled stays compiled under the audit."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        thread = self._thread
        frames = thread.frames
        if frames and frames[-1].autocast and func in _CASTING:
            with _autocast_within(args, frames[-1].autocast):
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        if frames and not thread.quiet:
            try:
                thread.operator(func, args, kwargs, result)
            except Exception as error:
                thread.failed(error)
        return result


_CASTING = {
    torch.ops.aten._transformer_encoder_layer_fwd.default,
    torch.ops.aten._native_multi_head_attention.default,
    *(getattr(getattr(torch.ops.aten, name), kind) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
      for kind in ("input", "data")),
}  # fmt: skip
"""Operators made of others, which autocast casts within them and not before them."""


@contextmanager
def _autocast_within(args: tuple[Any, ...], devices: list[str]) -> Iterator[None]:
    """Below a dispatch mode torch leaves autocast out; without one, it would be on within the operator."""
    device = next((value.device.type for value in args if isinstance(value, Tensor)), "cpu")
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    if device in devices:
        exclude = exclude.remove(AUTOCAST[device])
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        yield
