"""The frozen audit: what was planned frozen kept every bit, over every frozen interval."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_freeze.audit.fingerprint import Digest, differ, digests, digests_of, settled

Kind = Literal["value", "optimizer_state", "buffer"]
_Bits = tuple[Digest | None, list[tuple[str, Digest | None]] | None]  # of a value, and of each entry of its state


@dataclass(frozen=True)
class Watched:
    """A parameter or buffer that an interval watches.

    Args:
        name: Its FQN.
        group: The group that it belongs to, None for a buffer.
        read: Gives the tensor as it is now, None if it is not there any more.
        state: Gives the state that optimizers hold for it now, as nested builtins and tensors; None while it is elsewhere.
    """

    name: str
    group: str | None
    read: Callable[[], Tensor | None]
    state: Callable[[], object] | None = None


@dataclass(frozen=True)
class Shift:
    """Something frozen that is not what it was.

    Args:
        watched: What moved.
        kind: Its value, the optimizer state kept for it, or (a buffer) its value.
        entries: The entries of the optimizer state that moved, such as ``exp_avg``.
        since: The updates that had been made when the interval began.
        until: The updates that had been made when it was compared.
        gradient_at: The first update of the interval at which it had a gradient, if it had.
    """

    watched: Watched
    kind: Kind
    entries: tuple[str, ...]
    since: int
    until: int
    gradient_at: int | None


@dataclass
class _Interval:
    watched: Watched
    since: int
    value: Digest | None
    state: list[tuple[str, Digest | None]] | None
    state_since: int
    gradient_at: int | None = None


@dataclass(frozen=True)
class _Comparison:
    """A comparison whose outcome may still be on the device."""

    interval: _Interval
    until: int
    moved: bool | Tensor
    entries: dict[str, bool | Tensor]


HERE = nullcontext()
"""The context that changes nothing: the stream of the step itself."""


class FrozenAudit:
    """Opens an interval when something freezes, closes it when it thaws, and compares fingerprints of the two ends.

    On an accelerator the fingerprints and their comparison stay there until `collect` reads all at once.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> audit = FrozenAudit()
        >>> audit.open({"weight": Watched("weight", "slow", lambda: weight)}, update=4)
        >>> weight.data.mul_(0.5) is None
        False
        >>> audit.close(["weight"], update=8)
        >>> [(shift.kind, shift.since, shift.until) for shift in audit.collect()]
        [('value', 4, 8)]
    """

    def __init__(self) -> None:
        self._open: dict[object, _Interval] = {}
        self._compared: list[_Comparison] = []
        self.checked = 0
        """Intervals compared so far, those of buffers included."""

    def __contains__(self, key: object) -> bool:
        return key in self._open

    def open(self, watched: Mapping[Any, Watched], update: int) -> None:
        """These froze: remember their bits.

        Args:
            watched: By key; what is watched already begins anew.
            update: The updates made so far.
        """
        self._begin(watched, _read(watched.values()), update)

    def close(self, keys: Sequence[object], update: int, on_copy_stream: AbstractContextManager[object] = HERE) -> None:
        """These thaw: compare their bits.

        Args:
            keys: What thaws.
            update: The updates made so far.
            on_copy_stream: In which optimizer state is looked at: the stream on which it comes back. What trains may be written to
                as soon as this returns, so values are not.
        """
        closed = [self._open.pop(key) for key in keys]
        now = _read([interval.watched for interval in closed], on_copy_stream)
        for interval, bits in zip(closed, now, strict=True):
            self._compare(interval, update, bits, on_copy_stream)

    def check(self, update: int) -> None:
        """Compare everything that is frozen now; what is left frozen is watched on from here."""
        before = dict(self._open)
        now = _read([interval.watched for interval in before.values()])
        for interval, bits in zip(before.values(), now, strict=True):
            self._compare(interval, update, bits)
        self._begin({key: interval.watched for key, interval in before.items()}, now, update)
        for key, interval in before.items():
            again = self._open[key]
            if again.state is None:  # elsewhere: compared with what it was when it comes back
                again.state, again.state_since = interval.state, interval.state_since

    def _begin(self, watched: Mapping[Any, Watched], bits: Iterable[_Bits], update: int) -> None:
        for (key, each), (value, state) in zip(watched.items(), bits, strict=True):
            self._open[key] = _Interval(each, update, value, state, state_since=update)

    def saw_gradient(self, keys: Iterable[object], update: int) -> None:
        """These had a gradient when their optimizer stepped, though frozen."""
        for key in keys:
            interval = self._open.get(key)
            if interval is not None and interval.gradient_at is None:
                interval.gradient_at = update

    def print_of(self, key: object) -> Digest | None:
        """The bits with which an interval that is open began."""
        return self._open[key].value if key in self._open else None

    def collect(self) -> list[Shift]:
        """What moved in the intervals compared since the last call. The one place that waits for a device."""
        compared, self._compared = self._compared, []
        flags = iter(settled([flag for done in compared for flag in (done.moved, *done.entries.values())]))
        shifts = []
        for done in compared:
            watched, since, gradient_at = done.interval.watched, done.interval.since, done.interval.gradient_at
            if next(flags):
                kind: Kind = "buffer" if watched.group is None else "value"
                shifts.append(Shift(watched, kind, (), since, done.until, gradient_at))
            entries = tuple(entry for entry in done.entries if next(flags))
            if entries:
                since = done.interval.state_since
                shifts.append(Shift(watched, "optimizer_state", entries, since, done.until, gradient_at))
        return shifts

    def _compare(
        self, interval: _Interval, update: int, bits: _Bits, on_copy_stream: AbstractContextManager[object] = HERE
    ) -> None:
        self.checked += 1
        value, state = bits
        moved = differ(interval.value, value)
        there = interval.state is not None and state is not None
        before, after = (dict(interval.state or ()), dict(state or ())) if there else ({}, {})
        with on_copy_stream:
            entries = {
                entry: differ(before[entry], after[entry]) if entry in before and entry in after else True
                for entry in {**before, **after}
            }
        if any(flag is not False for flag in (moved, *entries.values())):
            self._compared.append(_Comparison(interval, update, moved, entries))


def _read(watched: Collection[Watched], on_copy_stream: AbstractContextManager[object] = HERE) -> list[_Bits]:
    """What each is now, by its digests; they are taken together, so that large tensors share threads."""
    values = digests([each.read() for each in watched])
    states = [each.state() if each.state is not None else {} for each in watched]
    with on_copy_stream:
        found = iter(digests_of([state for state in states if state is not None]))
    return [(value, None if state is None else next(found)) for value, state in zip(values, states, strict=True)]
