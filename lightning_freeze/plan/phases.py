"""`Phases`: sets of groups that train one after the other, each for updates or epochs, nested and repeated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from lightning_freeze.errors import ScheduleError, is_list, whole_number
from lightning_freeze.plan.phase import Phase, Rate
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.schedule import REST, Layout, Plan, Position, Schedule

_LONG = 1 << 62


class Phases(Schedule):
    """Phases one after the other; an element may itself be phases that repeat.

    Args:
        phases: `Phase` objects and nested `Phases`, in order.
        repeat: How often the row is run: ``False`` (once), ``True`` (for ever, outermost only) or a number. When a
            schedule runs out, its last set stays trainable.
        seed: What the draws of every `Pick` follow from, of at least 0; of the outermost phases alone. It is not
            Lightning's ``seed_everything``, so that processes with other global seeds draw alike.

    Raises:
        ScheduleError: No phases, a repeat below 1, an open-ended phase that is not the last or is repeated, phases that
            contain themselves.

    Example:
        >>> Phases([Phase(["head"], epochs=1), Phases([Phase(["head"], updates=1), Phase(["backbone"], updates=4)], 10),
        ...         Phase(["all"])]).describe()["init_args"]["repeat"]
        False
    """

    def __init__(self, phases: list[Phase | Phases], repeat: bool | int = False, seed: int = 0) -> None:
        if not is_list(phases):
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
            _check_element(f"phases[{index}]", phase)
        if not isinstance(repeat, bool):
            repeat = whole_number(repeat, "repeat", "the phases are run that many times (or true: for ever)")
        self.phases: list[Phase | Phases] = list(phases)
        self.repeat: bool | int = repeat
        self.seed: int = whole_number(seed, "seed", "what every draw follows from", 0)
        *before, last = _leaves(self)
        for key, leaf in before:
            _refuse_open_end(key, leaf, "is not the last one")
        if self._repeats():
            _refuse_open_end(*last, "is inside a `repeat`")

    def _repeats(self) -> bool:
        last = self.phases[-1]
        return self.repeat is True or self.repeat > 1 or (isinstance(last, Phases) and last._repeats())

    def names(self) -> tuple[tuple[str, str], ...]:
        """Each (key, name) that stands for a group."""
        return tuple((f"{key}.train", name) for key, leaf in _leaves(self) for name in leaf.train)

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Each (key, metric) that a phase's end hangs on."""
        ends = ((key, leaf.until) for key, leaf in _leaves(self))
        return tuple((f"{key}.until.metric", until.metric) for key, until in ends if until is not None)

    def describe(self) -> dict[str, Any]:
        """The schedule as one would write it in YAML."""
        phases = [p.describe() if isinstance(p, Phase) else p.describe()["init_args"] for p in self.phases]
        seed = {"seed": self.seed} if self.seed else {}
        return {"class_path": "Phases", "init_args": {"phases": phases, "repeat": self.repeat, **seed}}

    def bind(self, layout: Layout) -> Plan:
        """The plan over a model's groups."""
        self.names()  # which refuses phases that were put into themselves
        return _PhasesPlan(layout, self)

    def __repr__(self) -> str:
        seed = f", seed={self.seed}" if self.seed else ""
        return f"Phases({self.phases!r}, repeat={self.repeat!r}{seed})"


def _check_element(key: str, phase: object) -> None:
    if isinstance(phase, Phase):
        return
    if not isinstance(phase, Phases):
        raise ScheduleError(
            f"`{key}` is {phase!r}, which is neither a Phase nor Phases. Write `{{train: [head], updates: 10}}` in YAML, "
            "Phase(['head'], updates=10) in Python.",
            key="phases",
            value=phase,
        )
    if phase.repeat is True:
        raise ScheduleError(
            f"`{key}.repeat` is true, but only the outermost phases may repeat for ever. Give it a number: `repeat: 10`.",
            key=f"{key}.repeat",
            value=True,
        )
    if phase.seed != 0:
        raise ScheduleError(
            f"`{key}.seed` is {phase.seed}, but a schedule has one seed, which stands with its outermost "
            "phases. Move it there: draws of different phases are independent of each other already.",
            key=f"{key}.seed",
            value=phase.seed,
        )


def _refuse_open_end(key: str, phase: Phase, why: str) -> None:
    if phase.open_ended:
        raise ScheduleError(
            f"the phase with `train: {phase.train}` has no end and {why}, so what comes after it would never "
            "begin. Give it `updates:`, `epochs:` or `until:`, or move it to the end.",
            key=f"{key}.train",
            value=phase.train,
        )


def _leaves(schedule: Phases, prefix: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Phase]]:
    """Each phase as written, once, with its key."""
    for index, child in enumerate(schedule.phases):
        key = f"{prefix}phases[{index}]"
        if isinstance(child, Phase):
            yield key, child
        elif id(child) in (*above, id(schedule)):
            raise ScheduleError(
                f"`{key}` contains itself, so the schedule would never come to an end. Write the phases out; `repeat: 10` "
                "repeats them.",
                key=key,
            )
        else:
            yield from _leaves(child, f"{key}.", (*above, id(schedule)))


@dataclass(frozen=True)
class _Now:
    """The phase that a run is in, with its names resolved and its groups drawn.

    Args:
        groups: What it trains.
        lanes: The optimizers that hold a group of it, and must make its updates.
        written: The phase as written.
        lr_factors: Group to the factor on its learning rate, where that is not 1.
    """

    groups: frozenset[str]
    lanes: frozenset[int]
    written: Phase
    lr_factors: Mapping[str, float]


@dataclass(frozen=True)
class _Leaf:
    """A phase over a model's groups.

    Args:
        key: Its place in the schedule.
        always: The groups that it trains whatever is drawn.
        family: The groups that are drawn from.
        least: How many of the family train at the least.
        written: The phase as written.
        lr_factors: Group to factor, where that is not 1.
    """

    key: str
    always: frozenset[str]
    family: tuple[str, ...]
    least: int
    written: Phase
    lr_factors: Mapping[str, float]

    def possible(self) -> frozenset[str]:
        """All that it may train."""
        return self.always.union(self.family)

    def rated(self) -> frozenset[str]:
        """The groups whose learning rate it changes."""
        return self.possible().union(self.lr_factors) if self.written.ramp else frozenset(self.lr_factors)

    def groups(self, visit: int, stage: int, seed: int) -> frozenset[str]:
        """What it trains when it is entered for the ``visit``-th time."""
        pick = self.written.pick
        if pick is None:
            return self.always
        return self.always | pick.draw(self.family, visit, stage, seed=seed, key=self.key)


@dataclass(frozen=True)
class _Row:
    """A row of leaves and rows, run ``repeat`` times; ``once`` is the number of phases that one run enters."""

    children: tuple[_Leaf | _Row, ...]
    repeat: int | None  # None: for ever

    def leaves(self) -> Iterator[_Leaf]:
        """Each phase, once."""
        for child in self.children:
            yield from child.leaves() if isinstance(child, _Row) else (child,)

    @property
    def once(self) -> int:
        return sum(_length(child) for child in self.children)

    def leaf(self, number: int) -> tuple[_Leaf, int, int]:
        """The phase entered as the ``number``-th of an endless repetition of this row.

        Returns:
            The phase, how often it was entered before, and how often of these since the row was begun.
        """
        cycle, number = divmod(number, self.once)
        for child in self.children:
            length = _length(child)
            if number < length:
                if isinstance(child, _Row):
                    return child.leaf(cycle * length + number)
                return child, cycle, cycle if self.repeat is None else cycle % self.repeat
            number -= length
        raise AssertionError("a number below the row's length lies in one of its children")


def _length(child: _Leaf | _Row) -> int:
    """How many phases one run of it enters."""
    return 1 if isinstance(child, _Leaf) else child.once * (child.repeat or 1)


class _PhasesPlan(Plan):
    def __init__(self, layout: Layout, schedule: Phases) -> None:
        self.layout = layout
        self._seed = schedule.seed
        self._row = self._resolve(schedule, "")
        self._length = None if self._row.repeat is None else _length(self._row)
        self._leaves = list(self._row.leaves())
        self.rated = frozenset().union(*(leaf.rated() for leaf in self._leaves))
        self._at: tuple[int, _Now] | None = None

    def _resolve(self, schedule: Phases, prefix: str) -> _Row:
        children: list[_Leaf | _Row] = []
        repeat = None if schedule.repeat is True else int(schedule.repeat) or 1
        for index, child in enumerate(schedule.phases):
            key = f"{prefix}phases[{index}]"
            if isinstance(child, Phases):
                children.append(self._resolve(child, f"{key}."))
            else:
                children.append(self._resolve_phase(child, key, repeat))
        return _Row(tuple(children), repeat)

    def _resolve_phase(self, phase: Phase, key: str, repeat: int | None) -> _Leaf:
        always = frozenset(g for name in phase.train for g in self.layout.expand(name, f"{key}.train"))
        family = self._family(phase.pick, always, f"{key}.pick") if phase.pick is not None else ()
        least = phase.pick.least(len(family), repeat) if phase.pick is not None else 0
        if not always and not least and not self.layout.rest_trains:
            said = f"`{key}.train` is empty"
            if phase.pick is not None:
                said += f" and `{key}.pick` can leave all of {phase.pick.family!r} frozen"
            raise ScheduleError(
                f"{said} and no other parameter trains, so nothing would be trainable in this phase. Name a group, or "
                "set `rest: train` if parameters outside the groups should train.",
                key=f"{key}.train",
                value=phase.train,
            )
        lr_factors = self._lr_factors(phase, always.union(family), key)
        return _Leaf(key, always, family, least, phase, {g: rate for g, rate in lr_factors.items() if rate != 1.0})

    def _family(self, pick: Pick, always: frozenset[str], key: str) -> tuple[str, ...]:
        family = tuple(dict.fromkeys(self.layout.expand(pick.family, f"{key}.family")))
        if pick.family in self.layout.groups:
            families = list(self.layout.families)
            raise ScheduleError(
                f"`{key}.family` is {pick.family!r}, which is one group and no family: there is nothing to draw. "
                + (
                    f"Nearest: {', '.join(map(repr, families[:3]))}."
                    if families
                    else f'A family is made by `each:`, as in `groups: {{{pick.family}: {{each: "model.layers.*"}}}}`.'
                ),
                key=f"{key}.family",
                value=pick.family,
            )
        pick.refuse(family, key)
        if always.issuperset(family):
            raise ScheduleError(
                f"`{key}.family` is {pick.family!r}, all of which the phase trains anyway (`train: {sorted(always)[:4]}`), "
                "so the draw would change nothing. Take it out of `train`.",
                key=f"{key}.family",
                value=pick.family,
            )
        return family

    def _lr_factors(self, phase: Phase, groups: frozenset[str], key: str) -> dict[str, float]:
        factors: dict[str, float] = {}
        for name, rate in (phase.lr or {}).items():
            place = f"{key}.lr.{name}"
            found = self._rated_by(name, rate, phase, groups, place)
            for group, factor in zip(found, _factors(rate, found, place), strict=True):
                if factors.setdefault(group, factor) != factor:
                    raise ScheduleError(
                        f"`{key}.lr` gives {group!r} two factors, {factors[group]:g} and (as {name!r}) {factor:g}. Name "
                        "each group once.",
                        key=place,
                        value=rate,
                    )
        return factors

    def _rated_by(self, name: str, rate: Rate, phase: Phase, trained: frozenset[str], key: str) -> tuple[str, ...]:
        """The groups that a name in ``lr`` stands for."""
        rest = name == REST and self.layout.rest_trains
        found = (REST,) if rest else self.layout.expand(name, key)
        if isinstance(rate, dict) and (rest or name in self.layout.groups):
            raise ScheduleError(
                f"`{key}` has a `decay`, which goes from group to group of a family, but {name!r} is one group. Give it "
                f"a factor: `lr: {{{name}: {rate['decay']:g}}}`.",
                key=key,
                value=rate,
            )
        if not rest and trained.isdisjoint(found):
            raise ScheduleError(
                f"`{key}` sets a rate for {name!r}, which does not train in this phase (`train: {phase.train}`). "
                "Take it out of `lr`, or into `train`.",
                key=key,
                value=rate,
            )
        return found

    def _now(self, at: Position) -> _Now:
        if self._at is None or self._at[0] != at.phase:
            last = at.phase if self._length is None else min(at.phase, self._length - 1)
            leaf, visit, stage = self._row.leaf(last)
            groups = leaf.groups(visit, stage, self._seed)
            self._at = (at.phase, _Now(groups, self._lanes(groups), leaf.written, leaf.lr_factors))
        return self._at[1]

    def _lanes(self, groups: frozenset[str]) -> frozenset[int]:
        return frozenset().union(*map(self.layout.holders, groups or {REST}))

    def trains(self, at: Position, optimizer: int) -> frozenset[str]:
        now = self._now(at)
        waiting = now.written.updates is not None and at.done.get(optimizer, 0) >= now.written.updates
        return self._rest() if waiting else now.groups | self._rest()

    def lr_factors(self, at: Position) -> dict[str, float]:
        if not self.rated:
            return {}
        now = self._now(at)
        lr_factors = {group: rate for group, rate in now.lr_factors.items() if group in now.groups or group == REST}
        ramp = now.written.ramp or 0
        for group, thawed in at.thawed.items():
            made = at.updates.get(group, 0) - thawed
            if made < ramp:
                lr_factors[group] = lr_factors.get(group, 1.0) * (made + 1) / (ramp + 1)
        return lr_factors

    def _advance(self, at: Position, optimizer: int, groups: frozenset[str]) -> None:
        now = self._now(at)
        if optimizer not in now.lanes or (now.groups and not now.groups & groups):
            return
        at.entered = True  # perhaps by another optimizer's step, earlier in this very batch
        if now.written.updates is None or self.ran_out(at):
            return
        at.done[optimizer] = at.done.get(optimizer, 0) + 1
        self.skip_finished(at)

    def skip_finished(self, at: Position) -> None:
        if self._now(at).written.updates is not None and not self.ran_out(at) and not self.pending(at):
            self._next(at)

    def end_epoch(self, at: Position) -> None:
        at.unheard = None
        super().end_epoch(at)
        now = self._now(at)
        if self.ran_out(at) or not at.entered:
            at.heard.clear()
            return
        at.epochs += 1
        if now.written.epochs is not None and at.epochs >= now.written.epochs:
            self._next(at)
        elif now.written.until is not None:
            at.unheard = now.written.until.metric
            most, phase = now.written.until.max_epochs, at.phase
            self._judge(at)
            if at.phase == phase and most is not None and at.epochs >= most:
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
        """Let the metric that has been waited for say whether the phase is over."""
        until = self._now(at).written.until
        if until is None or until.metric not in at.heard:
            return
        at.unheard = None
        judged = f"{until.mode} {until.metric}"
        if at.judged != judged:  # of another schedule, from which this one goes on
            at.judged, at.best, at.wait = judged, None, 0
        found = until.judge(at.best, at.wait, at.heard[until.metric])
        at.best, at.wait = found.best, found.wait
        if found.over and at.epochs >= until.min_epochs:
            self._end(at, found.over)

    def _end(self, at: Position, why: str) -> None:
        trained = ", ".join(sorted(self._now(at).groups)) or REST
        at.why = f"the phase that trains {trained} is over: {why}"
        self._next(at)

    def _next(self, at: Position) -> None:
        before, ramp = self._now(at).groups, self._now(at).written.ramp or 0
        rising = {group: thawed for group, thawed in at.thawed.items() if at.updates.get(group, 0) - thawed < ramp}
        at.phase += 1
        at.entered = False
        at.done.clear()
        at.epochs = 0
        at.judged, at.best, at.wait, at.unheard = "", None, 0, None
        now = self._now(at)
        at.thawed = {}
        if now.written.ramp is not None:  # of what trained before, only what was still rising rises on
            at.thawed = {
                g: rising.get(g, at.updates.get(g, 0)) for g in sorted(now.groups - before | rising.keys() & now.groups)
            }

    def ran_out(self, at: Position) -> bool:
        return self._length is not None and at.phase >= self._length

    def awaits(self, at: Position) -> str | None:
        until = self._now(at).written.until
        return until.metric if until is not None and at.entered and not self.ran_out(at) else None

    def where(self, at: Position) -> str:
        if self.ran_out(at):
            return "after the last phase"
        leaf, visit, _ = self._row.leaf(at.phase)
        return f"`{leaf.key}`" + (f" (visit {visit + 1})" if visit else "")

    def never_freezes(self) -> bool:
        groups = frozenset(self.layout.groups)
        return not any(self._waits(leaf) or self._surely(leaf) != groups for leaf in self._leaves)

    def _surely(self, leaf: _Leaf) -> frozenset[str]:
        """The groups that a phase trains whatever is drawn."""
        return leaf.possible() if leaf.least == len(leaf.family) else leaf.always

    def _waits(self, leaf: _Leaf) -> bool:
        """Whether an optimizer may have to wait in a phase for the updates of another."""
        return leaf.written.updates is not None and len(self._lanes(leaf.possible())) > 1

    def _steps(self, leaf: _Leaf, optimizer: int) -> bool:
        """Whether an optimizer has something to train in a phase, whatever is drawn."""
        if not leaf.family:
            return optimizer in self._lanes(leaf.always)
        others = sum(optimizer not in self.layout.holders(group) for group in leaf.family)
        return leaf.least > others or (bool(leaf.always) and optimizer in self._lanes(leaf.always))

    def sets(self) -> Iterator[frozenset[str]]:
        for number in count() if self._length is None else range(self._length):
            leaf, visit, stage = self._row.leaf(number)
            yield leaf.groups(visit, stage, self._seed) | self._rest()

    def stable_updates(self, at: Position) -> int:
        now = self._now(at)
        if any(at.updates.get(group, 0) - thawed <= (now.written.ramp or 0) for group, thawed in at.thawed.items()):
            return 0
        if now.written.updates is None or self.ran_out(at):
            return _LONG
        return min(now.written.updates - at.done.get(lane, 0) for lane in self.pending(at)) - 1

    def pending(self, at: Position) -> frozenset[int]:
        now = self._now(at)
        updates = now.written.updates
        if updates is None or self.ran_out(at):
            return frozenset()
        return frozenset(lane for lane in now.lanes if at.done.get(lane, 0) < updates)

    def can_be_fully_frozen(self, optimizer: int) -> str | None:
        if self._rest_in(optimizer):
            return None
        for leaf in self._leaves:
            trained = sorted(leaf.always)
            if leaf.written.pick is not None:
                trained.append(f"a draw from {leaf.written.pick.family}")
            if not self._steps(leaf, optimizer):
                return f"in the phase that trains {trained} all its groups {'can be' if leaf.family else 'are'} frozen"
            if self._waits(leaf):
                return f"in the phase that trains {trained} it waits, frozen, for the other optimizer"
        return None


def _factors(rate: Rate, groups: Sequence[str], key: str) -> list[float]:
    """The factor of each group that a name in ``lr`` stands for."""
    if isinstance(rate, dict):
        return [rate["decay"] ** (len(groups) - 1 - number) for number in range(len(groups))]
    if isinstance(rate, list):
        if len(rate) != len(groups):
            raise ScheduleError(
                f"`{key}` has {len(rate)} factor(s) for {len(groups)} group(s) ({', '.join(groups[:4])}"
                f"{', …' if len(groups) > 4 else ''}). Give each one, in that order, or one for all.",
                key=key,
                value=rate,
            )
        return list(rate)
    return [rate] * len(groups)
