"""A long sequence kept short: equal things in a row as one, and what repeats written once with how often.

An entry is ``(what, count)``: a thing so often in a row or, where ``what`` is a sequence of entries, all of them so often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)
Entry = tuple[Any, int]
COLUMNS = 2000  # bins, where many things are shown


class Folding:
    """Folds a sequence of entries while it grows, in constant time for each."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []  # before what repeats now
        self._seen: dict[tuple[Entry, Entry], int] = {}  # where two entries in a row were last
        self._period = self._alike = 0  # so many entries equal those so many before them
        self._body: tuple[Entry, ...] = ()  # what repeats now, how often it has, and how far the next time has come
        self._times = self._next = 0
        self.size = 0  # the entries that it holds, with those that repeat once

    @property
    def entries(self) -> list[Entry]:
        """All that was added."""
        return [*self._entries, *([(self._body, self._times), *self._body[: self._next]] if self._body else ())]

    def add(self, entry: Entry) -> None:
        """Add an entry."""
        if self._body:
            if entry == self._body[self._next]:
                self._next += 1
                if self._next == len(self._body):
                    self._times, self._next = self._times + 1, 0
                return
            self._close()
            self.add(entry)
        else:
            self._append(entry)

    def _close(self) -> None:
        """What repeated does not go on: it is an entry, and what was made of its next time are others."""
        body, times, begun = self._body, self._times, self._next
        if body:
            self._body = ()
            self._append((body, times))
            for entry in body[:begun]:
                self.add(entry)

    def _append(self, entry: Entry) -> None:
        entries, end = self._entries, len(self._entries)
        entries.append(entry)
        self.size += 1
        pair = entries[end - 1], entry
        if self._period and entries[end - self._period] == entry:
            self._alike += 1
        else:
            last = self._seen.get(pair, end)  # where it may be no more: it was folded
            known = 0 < last < end and entries[last] == entry and entries[last - 1] == pair[0]
            self._period, self._alike = (end - last, 2) if known else (0, 0)
        self._seen[pair] = end
        if 0 < self._period <= self._alike:
            self._fold()

    def _fold(self) -> None:
        """The last entries equal those before them: from here on they repeat."""
        entries, self._times, self._next = self._entries, 2, 0
        self._body = tuple(entries[-self._period :])
        del entries[-2 * self._period :]
        size = _size(self._body)
        self.size -= size
        if entries and entries[-1][0] == self._body:
            self._times += entries.pop()[1]
            self.size -= size + 1
        self._period = self._alike = 0
        if len(self._seen) > 2 * len(entries) + 64:  # most are of what was folded
            self._seen = {pair: number for number, pair in enumerate(pairwise(entries), start=1)}


class Runs(Generic[_T]):
    """A sequence that was folded. Iterating gives it unfolded: each thing, and how often in a row.

    Args:
        entries: The entries; what repeats is itself one of these.
    """

    def __init__(self, entries: Iterable[tuple[_T | Runs[_T], int]] = ()) -> None:
        self.entries = [(what, count) for what, count in entries if count and _length(what)]
        self.length = sum(count * _length(what) for what, count in self.entries)

    def __iter__(self) -> Iterator[tuple[_T, int]]:
        for what, count in self.entries:
            if isinstance(what, Runs):
                for _ in range(count):
                    yield from what
            else:
                yield what, count

    @cached_property
    def number(self) -> int:
        """How many entries it has unfolded."""
        return sum(count * what.number if isinstance(what, Runs) else 1 for what, count in self.entries)

    @cached_property
    def counts(self) -> Counter[_T]:
        """How often each thing is in it, in the order in which they come first."""
        found: Counter[_T] = Counter()
        for what, count in self.entries:
            for each, number in what.counts.items() if isinstance(what, Runs) else ((what, 1),):
                found[each] += number * count
        return found

    def head(self, length: int) -> Runs[_T]:
        """The first so many things."""
        kept: list[tuple[_T | Runs[_T], int]] = []
        for what, count in self.entries:
            whole = min(count, length // _length(what))
            kept.append((what, whole))
            length -= whole * _length(what)
            if whole < count:
                kept += [(what.head(length), 1)] if isinstance(what, Runs) else []
                break
        return Runs(kept)

    def binned(self, width: int) -> Iterator[tuple[int, _T, int]]:
        """Each thing with where it begins and how often it is there: cut into bins, and where anything comes first.

        Within these equal things are one, so there are no more than bins times things, however long the sequence is.
        """
        bins = _Bins[_T](width)
        yield from bins.put(self)
        yield from bins.end()


class _Bins(Generic[_T]):
    """What of a sequence falls into a bin, until it is full."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._begin = self._made = 0
        self._known: set[_T] = set()
        self._here: dict[_T, int] = {}

    def end(self) -> Iterator[tuple[int, _T, int]]:
        for what, count in self._here.items():
            yield self._begin, what, count
            self._begin += count
        self._here = {}

    def put(self, runs: Runs[_T]) -> Iterator[tuple[int, _T, int]]:
        for what, left in runs.entries:
            inside = what.counts if isinstance(what, Runs) else {what: 1}
            while left:
                fit = min(left, (self._width - self._made % self._width) // _length(what))
                new = not self._known.issuperset(inside)
                if isinstance(what, Runs) and (new or not fit):  # or it goes over an end
                    yield from self.put(what)
                    left -= 1
                    continue
                if new or self._made % self._width == 0:
                    yield from self.end()
                    self._known.update(inside)
                for each, count in inside.items():
                    self._here[each] = self._here.get(each, 0) + count * fit
                self._made, left = self._made + fit * _length(what), left - fit


def bin_width(length: int) -> int:
    """How many things a bin has where so many are shown."""
    return max(1, -(-length // COLUMNS))


def _size(body: tuple[Entry, ...]) -> int:
    """The entries of a sequence, with those within."""
    return sum(1 + (_size(what) if isinstance(what[0], tuple) else 0) for what, _ in body)


def _length(what: object) -> int:
    return what.length if isinstance(what, Runs) else 1
