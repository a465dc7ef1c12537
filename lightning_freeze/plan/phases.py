"""`Phases`: sets of groups that train one after the other, each for updates or epochs, nested and repeated.

A user writes a tree; a run enters its phases as a list. A `Position` has the place in that list: the plan reads from it
what trains, and advances it where a phase ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, count
from typing import Any, Literal, get_args

from lightning_freeze.errors import ScheduleError, is_list, one_of, whole_number
from lightning_freeze.plan.phase import BoundPhase, Phase, kind_of
from lightning_freeze.plan.schedule import NO_END, REST, Layout, Plan, Position, Schedule

Change = Literal["step", "batch"]  # when what trains may change
_MOST_NUMBERS = 12  # of phases, in the words for when a group trains


class Phases(Schedule):
    """Phases one after the other; an element may itself be phases that repeat.

    Args:
        phases: `Phase` objects and nested `Phases`, in order.
        repeat: How often the sequence is run: ``False`` (once), ``True`` (for ever, outermost only) or a number. When a
            schedule runs out, its last set stays trainable.
        seed: The seed of the draws of every `Pick`, at least 0; of the outermost phases alone. It is not Lightning's
            ``seed_everything``, so that processes with other global seeds draw alike.
        change: When what trains may change; of the outermost phases alone. ``step`` (the default): after any optimizer
            step, also between two of one batch in manual optimization. ``batch``: only between batches, so that a phase
            lasts through the batch of its last update, with further steps in it.

    Raises:
        ScheduleError: No phases, a repeat below 1, an unknown word, an open-ended phase that is not the last or is
            repeated, phases that contain themselves.

    Example:
        >>> Phases([Phase(["head"], epochs=1), Phases([Phase(["head"], updates=1), Phase(["backbone"], updates=4)], 10),
        ...         Phase(["all"])]).describe()["init_args"]["repeat"]
        False
    """

    def __init__(
        self, phases: list[Phase | Phases], repeat: bool | int = False, seed: int = 0, change: Change | None = None
    ) -> None:
        if not is_list(phases):
            raise ScheduleError(
                f"`phases` is {phases!r}, but must be a list: `phases: [{{train: [head], updates: 10}}, …]`.",
                key="phases",
            )
        if not phases:
            raise ScheduleError(
                "`phases` is empty, so nothing would ever be trainable. Give at least one phase, such as "
                "`phases: [{train: [all]}]`.",
                key="phases",
            )
        for index, phase in enumerate(phases):
            _check_element(f"phases[{index}]", phase)
        if not isinstance(repeat, bool):
            repeat = whole_number(repeat, "repeat", "the phases are run that many times (or true: for ever)")
        self.phases: list[Phase | Phases] = list(phases)
        self.repeat: bool | int = repeat
        self.seed: int = whole_number(seed, "seed", "what every draw follows from", 0)
        if change is not None:
            one_of("change", change, get_args(Change))
        self.change = change
        *before, (key, last, sequences) = self._written()
        for place, phase, _ in before:
            _refuse_open_end(place, phase, "is not the last one")
        if any(each._times != 1 for each in sequences):
            _refuse_open_end(key, last, "is inside a `repeat`")

    @property
    def _times(self) -> int | None:
        """How often it is run; None if for ever."""
        return None if self.repeat is True else int(self.repeat) or 1

    def names(self) -> tuple[tuple[str, str], ...]:
        """Each (key, name) that stands for a group."""
        return tuple((f"{key}.train", name) for key, phase, _ in self._written() for name in phase.train)

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Each (key, metric) that ends a phase."""
        ends = ((key, phase.until) for key, phase, _ in self._written())
        return tuple((f"{key}.until.metric", until.metric) for key, until in ends if until is not None)

    def describe(self) -> dict[str, Any]:
        """The schedule as one would write it in YAML."""
        phases = [p.describe() if isinstance(p, Phase) else p.describe()["init_args"] for p in self.phases]
        return {"class_path": "Phases", "init_args": {"phases": phases, "repeat": self.repeat, **self._given()}}

    def _given(self) -> dict[str, Any]:
        """What only outermost phases have, where it is not the default."""
        given = {"seed": self.seed, "change": self.change}
        return {key: value for key, value in given.items() if value not in (0, None, "step")}

    def bind(self, layout: Layout) -> Plan:
        """The plan over a model's groups."""
        return _PhasesPlan(layout, self)

    def __repr__(self) -> str:
        given = "".join(f", {key}={value!r}" for key, value in self._given().items())
        return f"Phases({self.phases!r}, repeat={self.repeat!r}{given})"

    def _written(
        self, prefix: str = "", above: tuple[Phases, ...] = ()
    ) -> Iterator[tuple[str, Phase, tuple[Phases, ...]]]:
        """Each phase as written: its key, the phase, and the sequences that it is in, the innermost last."""
        above = (*above, self)
        for index, child in enumerate(self.phases):
            key = f"{prefix}phases[{index}]"
            if isinstance(child, Phase):
                yield key, child, above
            elif any(child is each for each in above):
                raise ScheduleError(
                    f"`{key}` contains itself, so the schedule would never come to an end. Write the phases out; "
                    "`repeat: 10` repeats them.",
                    key=key,
                )
            else:
                yield from child._written(f"{key}.", above)


class _Sequence:
    """Bound phases one after the other, run so often; of each element is known how many phases come before it."""

    def __init__(self, phases: Phases, bound: Mapping[str, BoundPhase], prefix: str = "") -> None:
        self._times = phases._times
        self._elements: list[BoundPhase | _Sequence] = []
        for index, child in enumerate(phases.phases):
            key = f"{prefix}phases[{index}]"
            self._elements.append(bound[key] if isinstance(child, Phase) else _Sequence(child, bound, f"{key}."))
        enters = (1 if isinstance(each, BoundPhase) else each.enters for each in self._elements)
        *self._before, self._length = accumulate(enters, initial=0)

    @property
    def enters(self) -> int:
        """How many phases it enters; of an endless one, each time."""
        return self._length * (self._times or 1)

    def entered_as(self, number: int) -> tuple[BoundPhase, int, int]:
        """The phase entered as the ``number``-th of an endless repetition of this sequence.

        Returns:
            The phase, how often it was entered before, and how often of these since the sequence that it is in began.
        """
        run, number = divmod(number, self._length)
        index = bisect_right(self._before, number) - 1
        child = self._elements[index]
        if isinstance(child, BoundPhase):
            return child, run, run if self._times is None else run % self._times
        return child.entered_as(run * child.enters + number - self._before[index])


def _number(key: str) -> int:  # for people, of the outermost phase
    return int(key[len("phases[") : key.index("]")]) + 1


def _check_element(key: str, phase: object) -> None:
    if isinstance(phase, Phase):
        return
    if not isinstance(phase, Phases):
        raise ScheduleError(
            f"`{key}` is {phase!r}, which is neither a Phase nor Phases. Write `{{train: [head], updates: 10}}`, or in "
            "Python Phase(['head'], updates=10).",
            key="phases",
        )
    if phase.repeat is True:
        raise ScheduleError(
            f"`{key}.repeat` is true, but only the outermost phases may repeat for ever. Give it a number: `repeat: 10`.",
            key=f"{key}.repeat",
        )
    for name, value, default in (("seed", phase.seed, 0), ("change", phase.change, None)):
        if value != default:
            raise ScheduleError(
                f"`{key}.{name}` is {value!r}, but a schedule has one `{name}`, that of its outermost phases. Move it there.",
                key=f"{key}.{name}",
            )


def _refuse_open_end(key: str, phase: Phase, why: str) -> None:
    if phase.open_ended:
        raise ScheduleError(
            f"the phase with `train: {phase.train}` has no end and {why}, so what comes after it would never "
            "begin. Give it `updates:`, `epochs:` or `until:`, or move it to the end.",
            key=f"{key}.train",
        )


@dataclass(frozen=True)
class _Current:
    """The phase that a run is in, with its groups drawn."""

    key: str  # in the schedule
    phase: Phase
    groups: frozenset[str]
    trains: frozenset[str]  # the groups, and `rest` where it trains
    optimizers: frozenset[int]  # those that hold a group of it, and must make its updates
    lr_factors: Mapping[str, float]


class _PhasesPlan(Plan):
    def __init__(self, layout: Layout, schedule: Phases) -> None:
        self.layout = layout
        self._schedule = schedule
        self._kinds: dict[object, BoundPhase] = {}  # phases that differ in no more than keys and ends, as one
        bound: dict[str, BoundPhase] = {}
        self._numbers: dict[BoundPhase, set[int]] = {}  # of the outermost phases, by kind
        for key, phase, above in schedule._written():  # which refuses phases that were put into themselves
            kind = kind_of(phase), above[-1]._times
            if kind not in self._kinds:
                self._kinds[kind] = BoundPhase(phase, layout, key, above[-1]._times)
            bound[key] = self._kinds[kind].at(phase, key)
            self._numbers.setdefault(self._kinds[kind], set()).add(_number(key))
        self._sequence = _Sequence(schedule, bound)
        self._length = None if schedule._times is None else self._sequence.enters
        self.by_batch = schedule.change == "batch"
        self.rated = frozenset().union(*(kind.rated for kind in self._kinds.values()))
        self._last: tuple[int, _Current] | None = None

    # --- what is read from a position

    def _entered(self, number: int) -> tuple[BoundPhase, frozenset[str]]:
        """The phase entered as the ``number``-th, and the groups that it trains."""
        bound, visit, stage = self._sequence.entered_as(number)
        return bound, bound.groups(visit, stage, self._schedule.seed)

    def _current(self, at: Position) -> _Current:
        if self._last is None or self._last[0] != at.phase:
            number = at.phase if self._length is None else min(at.phase, self._length - 1)
            bound, groups = self._entered(number)
            optimizers = self.layout.optimizers_of(groups)
            now = _Current(bound.key, bound.phase, groups, groups | self.layout.always, optimizers, bound.lr_factors)
            self._last = (at.phase, now)
        return self._last[1]

    def trains(self, at: Position, optimizer: int) -> frozenset[str]:
        now = self._current(at)
        made = at.done.get(optimizer, 0) - at.made.get(optimizer, 0)
        waiting = now.phase.updates is not None and made >= now.phase.updates
        return self.layout.always if waiting else now.trains

    def lr_factors(self, at: Position) -> dict[str, float]:
        if not self.rated:
            return {}
        now = self._current(at)
        lr_factors = {group: factor for group, factor in now.lr_factors.items() if group in now.groups or group == REST}
        ramp = now.phase.ramp or 0
        for group, thawed in at.thawed.items():
            made = at.updates.get(group, 0) - thawed
            if made < ramp:
                lr_factors[group] = lr_factors.get(group, 1.0) * (made + 1) / (ramp + 1)
        return lr_factors

    def pending(self, at: Position) -> frozenset[int]:
        now = self._current(at)
        updates = now.phase.updates
        if updates is None or self.ran_out(at):
            return frozenset()
        return frozenset(optimizer for optimizer in now.optimizers if at.done.get(optimizer, 0) < updates)

    def stable_updates(self, at: Position) -> int:
        now = self._current(at)
        if any(at.updates.get(group, 0) - thawed <= (now.phase.ramp or 0) for group, thawed in at.thawed.items()):
            return 0
        if now.phase.updates is None or self.by_batch or self.ran_out(at):
            return NO_END
        return min(now.phase.updates - at.done.get(optimizer, 0) for optimizer in self.pending(at)) - 1

    def ran_out(self, at: Position) -> bool:
        return self._length is not None and at.phase >= self._length

    def awaits(self, at: Position) -> str | None:
        until = self._current(at).phase.until
        return until.metric if until is not None and at.entered and not self.ran_out(at) else None

    def place(self, at: Position) -> str:
        return "after the last phase" if self.ran_out(at) else self._current(at).key

    def where(self, at: Position) -> str:
        return self.stage(at)[0] + ("" if self.ran_out(at) else f", `{self.place(at)}`")

    def stage(self, at: Position, ended: bool = False) -> tuple[str, int | None]:
        number = at.phase - (ended and not at.entered and at.phase > 0)
        if self._length is not None and number >= self._length:
            return "after the last phase", self._length
        bound, visit, _ = self._sequence.entered_as(number)
        visits = f", visit {visit + 1}" if visit else ""
        return f"phase {_number(bound.key)} of {len(self._schedule.phases)}{visits}", number + 1

    def when(self, group: str) -> str:
        kinds = [kind for kind in self._kinds.values() if group in kind.possible]
        drawn = any(group not in kind.at_every_visit for kind in kinds)
        every = len(kinds) == len(self._kinds)
        numbers = [] if every else sorted(set().union(*(self._numbers[kind] for kind in kinds)))
        more = f" and {len(numbers) - _MOST_NUMBERS} more" if len(numbers) > _MOST_NUMBERS else ""
        phases = f"phase {', '.join(map(str, numbers[:_MOST_NUMBERS]))}{more}" if numbers else ""
        return ", ".join(filter(None, (phases, "as drawn" * drawn))) or "always" if kinds else "never"

    # --- what holds at every position

    def sets(self) -> Iterator[frozenset[str]]:
        for number in count() if self._length is None else range(self._length):
            _, groups = self._entered(number)
            yield groups | self.layout.always

    def never_freezes(self) -> bool:
        groups = frozenset(self.layout.groups)
        return not any(bound.waits or bound.at_every_visit != groups for bound in self._kinds.values())

    def can_be_fully_frozen(self, optimizer: int) -> str | None:
        if self._rest_in(optimizer):
            return None
        for bound in self._kinds.values():
            trained = sorted(bound.always)
            if bound.phase.pick is not None:
                trained.append(f"a draw from {bound.phase.pick.family}")
            if not bound.always_trains(optimizer):
                return f"in the phase that trains {trained} all its groups {'can be' if bound.family else 'are'} frozen"
            if bound.waits:
                return f"in the phase that trains {trained} it waits, frozen, for the other optimizer"
        return None

    # --- what advances a position

    def _advance(self, at: Position, optimizer: int, groups: frozenset[str]) -> None:
        now = self._current(at)
        if optimizer not in now.optimizers or (now.groups and not now.groups & groups):
            return
        at.entered = True  # perhaps by another optimizer's step, earlier in this very batch
        if now.phase.updates is None or self.ran_out(at):
            return
        at.done[optimizer] = at.done.get(optimizer, 0) + 1
        if self.by_batch:
            at.made[optimizer] = at.made.get(optimizer, 0) + 1
        else:
            self.skip_finished(at)

    def end_window(self, at: Position) -> bool:
        at.made.clear()
        updates = self._current(at).phase.updates
        if updates is None or max(at.done.values(), default=0) < updates:
            return False
        self.skip_finished(at)
        return True

    def skip_finished(self, at: Position) -> None:
        if self._current(at).phase.updates is not None and not self.ran_out(at) and not self.pending(at):
            self._next(at)

    def end_epoch(self, at: Position) -> None:
        at.unheard = None
        self.end_window(at)
        super().end_epoch(at)
        if at.entered and not self.ran_out(at):
            at.epochs += 1
            phase, number = self._current(at).phase, at.phase
            if phase.epochs is not None and at.epochs >= phase.epochs:
                self._next(at)
            elif phase.until is not None:
                at.unheard = phase.until.metric
                self._judge(at)
                most = phase.until.max_epochs
                if at.phase == number and most is not None and at.epochs >= most:
                    self._end(at, f"it has had {at.epochs} epoch{'s' * (at.epochs > 1)}")
        at.heard.clear()

    def log_metrics(self, at: Position, metrics: Mapping[str, float]) -> bool:
        at.heard.update(metrics)
        phase = at.phase
        if at.unheard is not None:
            self._judge(at)
            at.heard.clear()
        return at.phase != phase

    def _judge(self, at: Position) -> None:
        """End the phase if its metric was logged and has stopped improving."""
        until = self._current(at).phase.until
        if until is None or until.metric not in at.heard:
            return
        at.unheard = None
        judged = f"{until.mode} {until.metric}"
        if at.judged != judged:  # of another schedule, from which this one goes on
            at.judged, at.best, at.wait = judged, None, 0
        at.best, at.wait, over = until.judge(at.best, at.wait, at.heard[until.metric])
        if over and at.epochs >= until.min_epochs:
            self._end(at, over)

    def _end(self, at: Position, why: str) -> None:
        trained = ", ".join(sorted(self._current(at).groups)) or REST
        at.why = f"the phase that trains {trained} is over: {why}"
        self._next(at)

    def _next(self, at: Position) -> None:
        before = self._current(at)
        ramp = before.phase.ramp or 0
        rising = {group: thawed for group, thawed in at.thawed.items() if at.updates.get(group, 0) - thawed < ramp}
        at.phase += 1
        at.entered = False
        at.done.clear()
        at.epochs = 0
        at.judged, at.best, at.wait, at.unheard = "", None, 0, None
        at.thawed = {}
        now = self._current(at)
        if now.phase.ramp is not None:  # of what trained before, only what was still rising rises on
            thawed = (now.groups - before.groups) | (now.groups & rising.keys())
            at.thawed = {group: rising.get(group, at.updates.get(group, 0)) for group in sorted(thawed)}
