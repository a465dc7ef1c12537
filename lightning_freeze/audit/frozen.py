"""The frozen audit: what was planned frozen kept every bit, over every frozen interval."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from itertools import islice
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from lightning_freeze.audit.fingerprint import (
    PLAIN,
    WRITTEN,
    Digest,
    Large,
    Reader,
    described,
    differ,
    digests,
    entries,
    to_builtins,
)
from lightning_freeze.report.findings import OfFrozen

_State = dict[str, Digest | None]  # the digest of each entry of an optimizer's state
_P = ParamSpec("_P")
_T = TypeVar("_T")
HERE = nullcontext()  # the stream of the step itself


def collector_paused(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Python's garbage collector rests in it: it would walk the thousands of small objects that a boundary makes."""

    @wraps(function)
    def paused(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
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


class WatchedSet:
    """What is watched together, and the ways to read it, which may be read again and again.

    Args:
        watched: By a key for each.
        states: Gives the optimizer state for each; nothing, where no optimizer has any.
    """

    def __init__(
        self,
        watched: Mapping[Any, Watched],
        states: Callable[[], Sequence[object]] | None = None,
    ) -> None:
        self.keys, self.watched = tuple(watched), tuple(watched.values())
        self._states = states or (lambda: [each.state() if each.state is not None else {} for each in self.watched])
        self._digest_values, self._digest_leaves = Reader().read, Reader(described).read

    @cached_property
    def numbers(self) -> Mapping[object, int]:
        """The place of each key."""
        return {key: number for number, key in enumerate(self.keys)}

    def read(self, values: Large, states: Large, on_copy_stream: AbstractContextManager[object] = HERE) -> _Bits:
        """The digests of all now; those of large tensors come when ``values`` and ``states`` are finished."""
        found = self._digest_values([each.read() for each in self.watched], values)
        names, leaves = entries(self._states())
        if not leaves:  # as under SGD without momentum
            return _Bits(found, names if None in names else [], [])
        with on_copy_stream:
            return _Bits(found, names, self._digest_leaves(leaves, states))


@dataclass(slots=True)
class _Bits:
    """The digests of a set: of each value, and of the entries of each one's state, by name."""

    values: list[Digest | None]
    names: list[tuple[str, ...] | None]  # None while it is offloaded; nothing, where there is no state
    leaves: list[Digest | None]

    def same(self, now: _Bits) -> bool:
        """Whether all are the same, made on the CPU: the usual case."""
        return (
            _INT.issuperset(map(type, self.values))
            and _INT.issuperset(map(type, self.leaves))
            and _INT.issuperset(map(type, now.values))
            and self.values == now.values
            and self.names == now.names
            and self.leaves == now.leaves
        )

    def each(self) -> Iterator[tuple[Digest | None, _State | None]]:
        """Each value's digest, with those of its state by name."""
        leaves = iter(self.leaves)
        for value, names in zip(self.values, self.names or [()] * len(self.values), strict=True):
            yield value, None if names is None else dict(zip(names, islice(leaves, len(names)), strict=True))

    def singles(self) -> list[_Bits]:
        """Each by itself."""
        return [
            _Bits([value], [None] if state is None else [tuple(state)] if state else [], [*(state or {}).values()])
            for value, state in self.each()
        ]


_INT = {int}


@dataclass(slots=True, eq=False)
class _Interval:
    set: WatchedSet
    since: int
    bits: _Bits
    state_since: int
    gradients: dict[object, int] = field(default_factory=dict)  # key to the first update at which it had one

    def singles(self) -> list[_Interval]:
        """The same as an interval for each."""
        each = zip(self.set.keys, self.set.watched, self.bits.singles(), strict=True)
        return [replace(self, set=WatchedSet({key: watched}), bits=bits) for key, watched, bits in each]


class FrozenAudit:
    """Opens an interval when something freezes, closes it when it thaws, and compares the digests of both ends.

    On an accelerator the digests and their comparison stay there until `collect` reads all at once. Large optimizer state
    on the CPU may be read on a thread beside the step, until `join`: an optimizer's step writes to it, and little else.
    """

    def __init__(self) -> None:
        self.checked = 0  # intervals compared so far, those of buffers included
        self._open: dict[object, _Interval] = {}
        self._beside: list[Large] = []  # what is read beside the step
        # What may have moved: its value, whether it did, its state, and whether the entries of that did.
        self._compared: list[tuple[Change, bool | Tensor, Change, dict[str, bool | Tensor]]] = []

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def isdisjoint(self, keys: Iterable[object]) -> bool:
        """Whether none of these is watched."""
        return self._open.keys().isdisjoint(keys)

    @collector_paused
    def open(self, sets: Iterable[WatchedSet], update: int, beside: bool = False) -> None:
        """These froze after so many updates: remember their bits."""
        values, states = Large(), Large()
        for each in sets:
            interval = _Interval(each, update, each.read(values, states), update)
            self._open.update(dict.fromkeys(each.keys, interval))
        values.finish()
        if beside and states.tensors and states.begin_beside():
            self._beside.append(states)
        else:
            states.finish()

    @collector_paused
    def close(
        self,
        sets: Iterable[Sequence[object]],
        update: int,
        on_copy_stream: AbstractContextManager[object] = HERE,
    ) -> None:
        """These keys thaw after so many updates: compare the bits of those that were frozen.

        Optimizer state is read on the stream on which it comes back; values are not, since they may be written to as soon
        as this returns.
        """
        taken = [interval for keys in sets for interval in self._taken(keys)]
        if not taken:
            return
        self.join()  # what closes may have been opened beside this step
        values, states = Large(), Large()
        closed = [(interval, interval.set.read(values, states, on_copy_stream)) for interval in taken]
        values.finish()
        states.finish()
        for interval, bits in closed:
            self._compare(interval, update, bits, on_copy_stream)

    def join(self) -> None:
        """Finish what is read beside the step: right before something may write to optimizer state."""
        while self._beside:
            self._beside.pop(0).finish()

    @collector_paused
    def check(self, update: int) -> None:
        """Compare everything that is frozen now, and watch it on from here."""
        self.join()
        large = Large()
        read = [(interval, interval.set.read(large, large)) for interval in dict.fromkeys(self._open.values())]
        large.finish()
        for old, bits in read:
            self._compare(old, update, bits)
            parts = zip(old.singles(), bits.singles(), strict=True) if None in bits.names else [(old, bits)]
            for part, now in parts:
                new = _Interval(part.set, update, now, update)
                if None in now.names:  # offloaded: compared with what it was when it comes back
                    now.names, now.leaves, new.state_since = part.bits.names, part.bits.leaves, part.state_since
                self._open.update(dict.fromkeys(part.set.keys, new))

    def replaced(self, key: object, name: str, new: Tensor, update: int) -> None:
        """Something else has a name of what froze: compare the two, without their state."""
        for interval in self._taken([key]):
            (first,) = interval.set.watched
            if first.read() is first.first:  # it is there under another name
                self._open[key] = interval
            other = WatchedSet({key: Watched(name, first.group, lambda: new, first=first.first)})
            before = _Bits(interval.bits.values, [], [])
            self._compare(replace(interval, set=other, bits=before), update, _Bits(digests([new]), [], []))

    def saw_gradient(self, keys: Iterable[object], update: int) -> None:
        """These had a gradient when their optimizer stepped, though frozen."""
        for key in keys:
            if key in self._open:
                self._open[key].gradients.setdefault(key, update)

    def last_digest(self, key: object) -> Digest | None:
        """The digest with which an open interval began."""
        interval = self._open.get(key)
        return interval.bits.values[interval.set.numbers[key]] if interval is not None else None

    def collect(self) -> list[Change]:
        """What moved in the intervals compared since the last call. The one place that waits for a device."""
        self.join()
        compared, self._compared = self._compared, []
        flags = iter(to_builtins([flag for _, moved, _, entries in compared for flag in (moved, *entries.values())]))
        changes = []
        for value, _, state, named in compared:
            if next(flags):
                changes.append(value)
            if moved := tuple(entry for entry in named if next(flags)):
                changes.append(replace(state, entries=moved))
        return changes

    def _taken(self, keys: Sequence[object]) -> list[_Interval]:
        """The intervals of these keys, which end; of a set that does not end as a whole, one for each."""
        found = [self._open.pop(key, None) for key in keys]
        if found and found[0] is not None and found.count(found[0]) == len(found) == len(found[0].set.keys):
            return [found[0]]
        parts: dict[object, _Interval] = {}
        for whole in dict.fromkeys(interval for interval in found if interval is not None):
            parts |= zip(whole.set.keys, whole.singles(), strict=True)
        self._open.update({key: part for key, part in parts.items() if key in self._open})
        return [parts[key] for key in keys if key in parts]

    def _compare(
        self, interval: _Interval, update: int, now: _Bits, on_copy_stream: AbstractContextManager[object] = HERE
    ) -> None:
        self.checked += len(interval.set.keys)
        if interval.bits.same(now):
            return
        ends = zip(interval.bits.each(), now.each(), strict=True)
        for key, watched, ((before, was), (value, state)) in zip(
            interval.set.keys, interval.set.watched, ends, strict=True
        ):
            if isinstance(before, Tensor) and isinstance(value, int):
                value = _digest_on(before.device, watched.read())
            moved, named = differ(before, value), dict[str, bool | Tensor]()
            if was is not None and state is not None:
                with on_copy_stream:
                    named = _moved_entries(was, state)
            if any(flag is not False for flag in (moved, *named.values())):
                kind: OfFrozen = "buffer" if watched.group is None else "value"
                change = Change(watched, kind, (), interval.since, update, interval.gradients.get(key))
                of_state = replace(change, kind="optimizer_state", since=interval.state_since)
                self._compared.append((change, moved, of_state, named))


def _moved_entries(before: _State, now: _State) -> dict[str, bool | Tensor]:
    """Each entry of optimizer state, and whether it moved; what was written to while it was read did."""
    both = before.keys() & now.keys()
    return {
        entry: (before[entry] is WRITTEN or differ(before[entry], now[entry])) if entry in both else True
        for entry in before | now
    }


def _digest_on(device: torch.device, tensor: Tensor | None) -> Digest | None:
    """The digest of a plain CPU tensor, made on another device.

    When a fit ends, weights are moved to the CPU; their digests were made on the accelerator.
    """
    return digests([tensor.detach().to(device)])[0] if tensor is not None and type(tensor) in PLAIN else 0
