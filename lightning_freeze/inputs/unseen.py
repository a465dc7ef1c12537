"""Runs code without a trace of what it draws, prints, logs or warns of."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import torch

_LOCK = threading.RLock()


class _Hush:
    """A stream that keeps silent about what some threads write."""

    def __init__(self, stream: Any, idents: set[int]) -> None:
        self._stream, self._idents = stream, idents

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in self._idents else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _hushed(owner: Any, name: str, idents: set[int]) -> Iterator[None]:
    """A function does nothing in some threads."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() in idents else original(*args, **kwargs)

    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def unseen(idents: set[int]) -> Iterator[None]:
    """What these threads draw, print, log or warn of leaves no trace; one caller at a time, who restores what it found."""
    idents.add(threading.get_ident())
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numbers = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            _LOCK,
            torch.random.fork_rng(devices=devices),
            contextlib.redirect_stdout(_Hush(sys.stdout, idents)),
            contextlib.redirect_stderr(_Hush(sys.stderr, idents)),
            _hushed(sys, "unraisablehook", idents),  # of a coroutine that was begun and not awaited
            _hushed(logging.Logger, "handle", idents),
            _hushed(logging.Logger, "_log", idents),
            # not `catch_warnings`, which makes Python forget what it has warned of once
            _hushed(warnings, "_showwarnmsg", idents),
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
