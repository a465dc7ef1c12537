"""A dispatch mode that tells a thread of each operator that it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import mode_flags
from .calls import AUTOCAST, Frame


class Listener(Protocol):
    """The thread that is told of operators."""

    frames: list[Frame]
    quiet: int
    gave_up: Callable[[Exception], None]

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """An operator ran."""


class Mode(TorchDispatchMode):
    """Tells a thread of each operator that it ran."""

    supports_higher_order_operators = True

    def __init__(self, thread: Listener) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._thread = thread

    def __enter__(self) -> Mode:
        mode_flags.enter()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        mode_flags.leave()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What is compiled stays compiled under the audit."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _CASTING and (device := _device_of(args)) in self._thread.frames[-1].autocast:
            with _autocast_within(device):
                result = func(*args, **kwargs)
        else:
            result = func(*args, **kwargs)
        thread = self._thread
        if thread.frames and not thread.quiet:
            try:
                thread.operator(func, args, kwargs, result)
            except Exception as error:
                thread.gave_up(error)
        return result


_CASTING = {
    torch.ops.aten._transformer_encoder_layer_fwd.default,
    torch.ops.aten._native_multi_head_attention.default,
    *(getattr(getattr(torch.ops.aten, name), kind) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")
      for kind in ("input", "data")),
}  # fmt: skip
"""Operators made of others, which autocast casts within them and not before them."""


def _device_of(args: tuple[Any, ...]) -> str:
    return next((value.device.type for value in args if isinstance(value, Tensor)), "cpu")


@contextmanager
def _autocast_within(device: str) -> Iterator[None]:
    """Below a dispatch mode torch leaves autocast out; without one, it would be on within the operator."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    with torch._C._ForceDispatchKeyGuard(include, exclude.remove(AUTOCAST[device])):
        yield
