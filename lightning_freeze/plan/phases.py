"""`Phases`: sets of groups that train one after the other, each for updates or epochs, nested and repeated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_freeze.plan.schedule import REST, Layout, Plan, Position, Schedule, ScheduleError, whole_number

_LONG = 1 << 62
_ENDS = {
    "updates": "the phase ends after that many updates",
    "epochs": "the phase ends with that training epoch's end",
}


@dataclass(frozen=True)
class Phase:
    """One set of groups that train together until the phase ends.

    Args:
        train: Groups, families, globs over groups, selectors, or ``all`` (every named group).
        updates: The phase ends when every optimizer that holds one of its groups has made this many updates in it. An
            optimizer that has made its share waits, frozen, for the others.
        epochs: The phase ends with the nth training epoch's end, the epoch of its first step being the first.

    With neither end the phase stays for good: then it is the last, and nothing repeats.

    Raises:
        ScheduleError: Two ends, an end below 1, or a ``train`` that is no list of names.

    Example:
        >>> Phase(train=["head"], updates=4)
        Phase(train=['head'], updates=4, epochs=None)
    """

    train: list[str]
    updates: int | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.train, str) or not isinstance(self.train, Sequence):
            raise ScheduleError(
                f"`train` is {self.train!r}, but must be a list of groups: `train: [{self.train}]`.",
                key="train",
                value=self.train,
            )
        for name in self.train:
            if not isinstance(name, str) or not name:
                raise ScheduleError(
                    f"`train` holds {name!r}, but must hold names of groups: `train: [head, backbone]`.",
                    key="train",
                    value=name,
                )
        object.__setattr__(self, "train", list(self.train))
        if self.updates is not None and self.epochs is not None:
            raise ScheduleError(
                f"the phase with `train: {self.train}` has two ends, `updates: {self.updates}` and `epochs: "
                f"{self.epochs}`; a phase has at most one. Keep the one you mean.",
                key="epochs",
                value=self.epochs,
            )
        for key, meaning in _ENDS.items():
            if getattr(self, key) is not None:
                object.__setattr__(self, key, whole_number(getattr(self, key), key, meaning))

    def describe(self) -> dict[str, Any]:
        """The phase as one would write it in YAML."""
        ends = {"updates": self.updates, "epochs": self.epochs}
        return {"train": list(self.train), **{key: value for key, value in ends.items() if value is not None}}

    @property
    def open_ended(self) -> bool:
        """Whether the phase has no end of its own."""
        return self.updates is None and self.epochs is None


class Phases(Schedule):
    """Phases one after the other; an element may itself be phases that repeat.

    Args:
        phases: `Phase` objects and nested `Phases`, in order.
        repeat: How often the row is run: ``False`` (once), ``True`` (for ever, outermost only) or a number. When a
            schedule runs out, its last set stays trainable.

    Raises:
        ScheduleError: No phases, a repeat below 1, an open-ended phase that is not the last or is repeated.

    Example:
        >>> Phases([Phase(["head"], epochs=1), Phases([Phase(["head"], updates=1), Phase(["backbone"], updates=4)], 10),
        ...         Phase(["all"])]).describe()["init_args"]["repeat"]
        False
    """

    def __init__(self, phases: list[Phase | Phases], repeat: bool | int = False) -> None:
        if isinstance(phases, (str, Phase, Phases)) or not isinstance(phases, Sequence):
            raise ScheduleError(
                f"`phases` is {phases!r}, but must be a list: `phases: [{{train: [head], updates: 10}}, …]`.",
                key="phases",
                value=phases,
            )
        if not phases:
            raise ScheduleError(
                "`phases` is empty, so nothing would ever be trainable. Give at least one phase, such as "
                "`phases: [{train: [all]}]`.",
                key="phases",
                value=phases,
            )
        for index, phase in enumerate(phases):
            if not isinstance(phase, (Phase, Phases)):
                raise ScheduleError(
                    f"`phases[{index}]` is {phase!r}, which is neither a Phase nor Phases. Write "
                    "`{train: [head], updates: 10}` in YAML, Phase(['head'], updates=10) in Python.",
                    key="phases",
                    value=phase,
                )
            if isinstance(phase, Phases) and phase.repeat is True:
                raise ScheduleError(
                    f"`phases[{index}].repeat` is true, but only the outermost phases may repeat for ever. Give it a "
                    "number: `repeat: 10`.",
                    key=f"phases[{index}].repeat",
                    value=True,
                )
        if not isinstance(repeat, bool):
            repeat = whole_number(repeat, "repeat", "the phases are run that many times (or true: for ever)")
        self.phases: list[Phase | Phases] = list(phases)
        self.repeat: bool | int = repeat
        leaves = list(_leaves(self))
        for number, (key, leaf) in enumerate(leaves):
            if leaf.open_ended and (number < len(leaves) - 1 or self._repeats()):
                why = "is not the last one" if number < len(leaves) - 1 else "is inside a `repeat`"
                raise ScheduleError(
                    f"the phase with `train: {leaf.train}` has no end and {why}, so what comes after it would never "
                    "begin. Give it `updates:` or `epochs:`, or move it to the end.",
                    key=f"{key}.train",
                    value=leaf.train,
                )

    def _repeats(self) -> bool:
        last = self.phases[-1]
        return self.repeat is True or self.repeat > 1 or (isinstance(last, Phases) and last._repeats())

    def names(self) -> tuple[tuple[str, str], ...]:
        """Each (key, name) that stands for a group."""
        return tuple((f"{key}.train", name) for key, leaf in _leaves(self) for name in leaf.train)

    def describe(self) -> dict[str, Any]:
        """The schedule as one would write it in YAML."""
        phases = [p.describe() if isinstance(p, Phase) else p.describe()["init_args"] for p in self.phases]
        return {"class_path": "Phases", "init_args": {"phases": phases, "repeat": self.repeat}}

    def bind(self, layout: Layout) -> Plan:
        """The plan over a model's groups."""
        return _PhasesPlan(layout, self)


def _leaves(schedule: Phases, prefix: str = "") -> Iterator[tuple[str, Phase]]:
    """Each phase as written, once, with its key."""
    for index, child in enumerate(schedule.phases):
        key = f"{prefix}phases[{index}]"
        if isinstance(child, Phase):
            yield key, child
        else:
            yield from _leaves(child, f"{key}.")


@dataclass(frozen=True)
class _Leaf:
    """A phase with its names resolved: its groups and the optimizers that must make its updates."""

    groups: frozenset[str]
    lanes: frozenset[int]
    updates: int | None
    epochs: int | None


@dataclass(frozen=True)
class _Row:
    """A row of leaves and rows; ``length`` is the number of phases that one run of it, repeats included, enters."""

    children: tuple[_Leaf | _Row, ...]
    repeat: int

    @property
    def once(self) -> int:
        return sum(1 if isinstance(child, _Leaf) else child.once * child.repeat for child in self.children)

    def leaf(self, number: int) -> _Leaf:
        """The phase that is entered as the ``number``-th of an endless repetition of this row."""
        number %= self.once
        for child in self.children:
            length = 1 if isinstance(child, _Leaf) else child.once * child.repeat
            if number < length:
                return child if isinstance(child, _Leaf) else child.leaf(number)
            number -= length
        raise AssertionError("a number below the row's length lies in one of its children")


class _PhasesPlan(Plan):
    def __init__(self, layout: Layout, schedule: Phases) -> None:
        self.layout = layout
        self._row = self._resolve(schedule, "")
        self._length = None if schedule.repeat is True else self._row.once * self._row.repeat
        self._at: tuple[int, _Leaf] = (0, self._row.leaf(0))

    def _resolve(self, schedule: Phases, prefix: str) -> _Row:
        children: list[_Leaf | _Row] = []
        for index, child in enumerate(schedule.phases):
            key = f"{prefix}phases[{index}]"
            if isinstance(child, Phases):
                children.append(self._resolve(child, f"{key}."))
                continue
            groups = frozenset(g for name in child.train for g in self.layout.expand(name, f"{key}.train"))
            if not groups and not self.layout.rest_trains:
                raise ScheduleError(
                    f"`{key}.train` is empty and no other parameter trains, so nothing would be trainable in this "
                    "phase. Name a group, or set `rest: train` if parameters outside the groups should train.",
                    key="train",
                    value=child.train,
                )
            counted: Iterable[str] = groups or {REST}
            lanes = frozenset().union(*(self.layout.optimizers.get(g, frozenset({0})) for g in counted))
            children.append(_Leaf(groups, lanes, child.updates, child.epochs))
        return _Row(tuple(children), int(schedule.repeat) or 1)

    def _leaf(self, at: Position) -> _Leaf:
        number, leaf = self._at
        if number != at.phase:
            last = at.phase if self._length is None else min(at.phase, self._length - 1)
            leaf = self._row.leaf(last)
            self._at = (at.phase, leaf)
        return leaf

    def trains(self, at: Position, optimizer: int) -> frozenset[str]:
        leaf = self._leaf(at)
        waiting = leaf.updates is not None and at.done.get(optimizer, 0) >= leaf.updates
        return self._rest() if waiting else leaf.groups | self._rest()

    def _advance(self, at: Position, optimizer: int, groups: frozenset[str]) -> None:
        leaf = self._leaf(at)
        if optimizer not in leaf.lanes or (leaf.groups and not leaf.groups & groups):
            return
        at.entered = True  # perhaps by another optimizer's step, earlier in this very batch
        if leaf.updates is None or self.ran_out(at):
            return
        at.done[optimizer] = at.done.get(optimizer, 0) + 1
        if all(at.done.get(lane, 0) >= leaf.updates for lane in leaf.lanes):
            self._next(at)

    def end_epoch(self, at: Position) -> None:
        super().end_epoch(at)
        leaf = self._leaf(at)
        if leaf.epochs is None or not at.entered or self.ran_out(at):
            return
        at.epochs += 1
        if at.epochs >= leaf.epochs:
            self._next(at)

    @staticmethod
    def _next(at: Position) -> None:
        at.phase += 1
        at.entered = False
        at.done.clear()
        at.epochs = 0

    def ran_out(self, at: Position) -> bool:
        return self._length is not None and at.phase >= self._length

    def never_freezes(self) -> bool:
        named = frozenset(self.layout.groups)
        waits = any(leaf.updates is not None and len(leaf.lanes) > 1 for leaf in _flatten(self._row))
        return not waits and all(leaf.groups == named for leaf in _flatten(self._row))

    def steady_for(self, at: Position) -> int:
        leaf = self._leaf(at)
        if leaf.updates is None or self.ran_out(at):
            return _LONG
        return min(leaf.updates - at.done.get(lane, 0) for lane in self.waits_for(at)) - 1

    def waits_for(self, at: Position) -> frozenset[int]:
        leaf = self._leaf(at)
        if leaf.updates is None or self.ran_out(at):
            return frozenset()
        return frozenset(lane for lane in leaf.lanes if at.done.get(lane, 0) < leaf.updates)

    def may_idle(self, optimizer: int) -> str | None:
        if self._rest_in(optimizer):
            return None
        for leaf in _flatten(self._row):
            if optimizer not in leaf.lanes:
                return f"in the phase that trains {sorted(leaf.groups)} all its groups are frozen"
            if leaf.updates is not None and len(leaf.lanes) > 1:
                return f"in the phase that trains {sorted(leaf.groups)} it waits, frozen, for the other optimizer"
        return None


def _flatten(row: _Row) -> Iterator[_Leaf]:
    for child in row.children:
        if isinstance(child, _Leaf):
            yield child
        else:
            yield from _flatten(child)
