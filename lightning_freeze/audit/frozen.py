"""The frozen audit: what was planned frozen kept every bit, over every frozen interval."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_freeze.audit.fingerprint import PLAIN, Digest, differ, digests, digests_of, to_builtins
from lightning_freeze.report.findings import OfFrozen

_State = dict[str, Digest | None]  # the digest of each entry of an optimizer's state
_Bits = tuple[Digest | None, _State | None]  # of a value and of its state, None while that is offloaded
_T = TypeVar("_T")
HERE = nullcontext()  # the stream of the step itself


def collector_paused(function: Callable[..., _T]) -> Callable[..., _T]:
    """Python's garbage collector rests in it: it would walk the thousands of small objects that a boundary makes."""

    @wraps(function)
    def paused(*args: Any) -> _T:
        if not gc.isenabled():
            return function(*args)
        gc.disable()
        try:
            return function(*args)
        finally:
            gc.enable()

    return paused


@dataclass(frozen=True, slots=True)
class Watched:
    """A parameter or buffer that an interval watches."""

    name: str
    group: str | None  # None for a buffer
    read: Callable[[], Tensor | None]  # gives the tensor as it is now, None if it is gone
    state: Callable[[], object] | None = None  # gives the optimizer state for it now, None while that is offloaded
    first: Tensor | None = None  # the parameter that the interval began with, where another may take its place


@dataclass(frozen=True, slots=True)
class Change:
    """Something frozen that is not what it was."""

    watched: Watched
    kind: OfFrozen
    entries: tuple[str, ...]  # of the optimizer state that moved, such as ``exp_avg``
    since: int  # the updates that had been made when the interval began
    until: int  # the updates that had been made when it was compared
    gradient_at: int | None  # the first update of the interval at which it had a gradient


@dataclass(slots=True)
class _Interval:
    watched: Watched
    since: int
    value: Digest | None
    state: _State | None
    state_since: int
    gradient_at: int | None = None


class FrozenAudit:
    """Opens an interval when something freezes, closes it when it thaws, and compares the digests of both ends.

    On an accelerator the digests and their comparison stay there until `collect` reads all at once.
    """

    def __init__(self) -> None:
        self.checked = 0  # intervals compared so far, those of buffers included
        self._open: dict[object, _Interval] = {}
        # Each with the updates at its end, and whether its value and the entries of its state moved.
        self._compared: list[tuple[_Interval, int, bool | Tensor, dict[str, bool | Tensor]]] = []

    def __contains__(self, key: object) -> bool:
        return key in self._open

    @collector_paused
    def open(self, watched: Mapping[Any, Watched], update: int) -> None:
        """These froze after so many updates: remember their bits."""
        for (key, each), (value, state) in zip(watched.items(), _read(watched.values()), strict=True):
            self._open[key] = _Interval(each, update, value, state, update)

    @collector_paused
    def close(self, keys: Iterable[object], update: int, on_copy_stream: AbstractContextManager[object] = HERE) -> None:
        """These thaw after so many updates: compare the bits of those that were frozen.

        Optimizer state is read on the stream on which it comes back; values are not, since they may be written to as soon
        as this returns.
        """
        closed = [self._open.pop(key) for key in keys if key in self._open]
        now = _read([interval.watched for interval in closed], on_copy_stream)
        for interval, bits in zip(closed, now, strict=True):
            self._compare(interval, update, bits, on_copy_stream)

    @collector_paused
    def check(self, update: int) -> None:
        """Compare everything that is frozen now, and watch it on from here."""
        now = _read([interval.watched for interval in self._open.values()])
        for (key, old), bits in zip(list(self._open.items()), now, strict=True):
            self._compare(old, update, bits)
            new = self._open[key] = _Interval(old.watched, update, bits[0], bits[1], update)
            if new.state is None:  # offloaded: compared with what it was when it comes back
                new.state, new.state_since = old.state, old.state_since

    def replaced(self, key: object, name: str, new: Tensor, update: int) -> None:
        """Something else has a name of what froze: compare the two, without their state."""
        if (interval := self._open.get(key)) is None:
            return
        first = interval.watched
        watched = Watched(name, first.group, lambda: new, first=first.first)
        self._compare(replace(interval, watched=watched, state=None), update, (digests([new])[0], None))
        if first.read() is not first.first:  # else it is there under another name
            del self._open[key]

    def saw_gradient(self, keys: Iterable[object], update: int) -> None:
        """These had a gradient when their optimizer stepped, though frozen."""
        for key in keys:
            interval = self._open.get(key)
            if interval is not None and interval.gradient_at is None:
                interval.gradient_at = update

    def last_digest(self, key: object) -> Digest | None:
        """The digest with which an open interval began."""
        return self._open[key].value if key in self._open else None

    def collect(self) -> list[Change]:
        """What moved in the intervals compared since the last call. The one place that waits for a device."""
        compared, self._compared = self._compared, []
        flags = iter(to_builtins([flag for _, _, moved, entries in compared for flag in (moved, *entries.values())]))
        changes = []
        for interval, until, _, entries in compared:
            watched, gradient_at = interval.watched, interval.gradient_at
            if next(flags):
                kind: OfFrozen = "buffer" if watched.group is None else "value"
                changes.append(Change(watched, kind, (), interval.since, until, gradient_at))
            if moved := tuple(entry for entry in entries if next(flags)):
                changes.append(Change(watched, "optimizer_state", moved, interval.state_since, until, gradient_at))
        return changes

    def _compare(
        self, interval: _Interval, update: int, bits: _Bits, on_copy_stream: AbstractContextManager[object] = HERE
    ) -> None:
        self.checked += 1
        (value, state), before = bits, interval.state
        if isinstance(interval.value, Tensor) and isinstance(value, int):
            value = _digest_on(interval.value.device, interval.watched.read())
        if type(value) is int and value == interval.value and _equal(before, state):
            return
        moved = differ(interval.value, value)
        entries: dict[str, bool | Tensor] = {}
        if before is not None and state is not None:
            with on_copy_stream:
                entries = _moved_entries(before, state)
        if any(flag is not False for flag in (moved, *entries.values())):
            self._compared.append((interval, update, moved, entries))


def _moved_entries(before: _State, now: _State) -> dict[str, bool | Tensor]:
    """Each entry of optimizer state, and whether it moved."""
    both = before.keys() & now.keys()
    return {entry: differ(before[entry], now[entry]) if entry in both else True for entry in before | now}


def _equal(before: _State | None, state: _State | None) -> bool:
    """Whether digests of state, made on the CPU, are the same: the usual case. One that is offloaded says nothing."""
    if before is None or state is None:
        return True
    return len(before) == len(state) and all(
        type(digest) is int and digest == state.get(entry) for entry, digest in before.items()
    )


def _digest_on(device: torch.device, tensor: Tensor | None) -> Digest | None:
    """The digest of a plain CPU tensor, made on another device.

    When a fit ends, weights are moved to the CPU; their digests were made on the accelerator.
    """
    return digests([tensor.detach().to(device)])[0] if tensor is not None and type(tensor) in PLAIN else 0


def _read(watched: Collection[Watched], on_copy_stream: AbstractContextManager[object] = HERE) -> list[_Bits]:
    """The digests of each value and state now; they are taken together, so that large tensors share threads."""
    values = digests([each.read() for each in watched])
    states = [each.state() if each.state is not None else {} for each in watched]
    with on_copy_stream:
        found = iter(digests_of([state for state in states if state is not None]))
    return [(value, None if state is None else next(found)) for value, state in zip(values, states, strict=True)]
