"""Runs code that nobody is to notice: what it draws, prints, logs or warns of leaves no trace."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch


class _Hush:
    """A stream that keeps silent about what some threads write."""

    def __init__(self, stream: Any, idents: set[int]) -> None:
        self._stream, self._idents = stream, idents

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in self._idents else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _hushed(original: Any, idents: set[int]) -> Callable[..., Any]:
    """A function that does nothing in some threads."""

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() in idents else original(*args, **kwargs)

    return function


@contextlib.contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def unseen(idents: set[int]) -> Iterator[None]:
    """Whatever these threads draw, print, log or warn of within leaves no trace."""
    idents.add(threading.get_ident())
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numbers = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            _put(sys, "stdout", _Hush(sys.stdout, idents)),
            _put(sys, "stderr", _Hush(sys.stderr, idents)),
            # of a coroutine that was begun and not awaited
            _put(sys, "unraisablehook", _hushed(sys.unraisablehook, idents)),
            _put(logging.Logger, "handle", _hushed(logging.Logger.handle, idents)),
            _put(logging.Logger, "_log", _hushed(logging.Logger._log, idents)),
            # not `catch_warnings`, which makes Python forget what it has warned of once
            _put(warnings, "_showwarnmsg", _hushed(warnings._showwarnmsg, idents)),  # type: ignore[attr-defined]
            # checkpointing counts what its region saves for backward
            # (detached: a result saved as itself would hold the graph that holds it, for ever)
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor),
            torch._C._EnableTorchFunction(),
        ):
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numbers)
