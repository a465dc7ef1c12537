"""`Every`: a group trains once for every N updates of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any

from lightning_freeze.errors import ScheduleError, whole_number
from lightning_freeze.plan.schedule import ALL, Layout, Plan, Position, Schedule


class Every(Schedule):
    """Each group in ``periods`` is updated with the first of each N updates of another group.

    A group is due when ``updates[of] >= N * updates[group]``, so after S updates of ``of`` it has had ceil(S / N), and
    the first step trains both. That holds whether the two share an optimizer or not, and in whichever order two
    optimizers step: a group goes with the update of ``of`` in the same batch. Periods of several groups are independent
    of each other. Named groups without a period train always.

    Args:
        periods: Group (or family, or glob over groups, or a selector) to N, counted in updates of ``of``.
        of: The group whose updates are counted. Without it, every optimizer step counts in which anything was updated.

    Raises:
        ScheduleError: A period is not a whole number of at least 1, there are none, or ``of`` has a period itself.

    Example:
        >>> Every({"weight1": 5}, of="weight2")
        Every(periods={'weight1': 5}, of='weight2')

    Lightning's ``frequency`` of optimizers, removed in 2.0, did this for whole optimizers in turn.
    """

    def __init__(self, periods: dict[str, int], of: str | None = None) -> None:
        if not isinstance(periods, Mapping) or not periods:
            raise ScheduleError(
                f"`periods` is {periods!r}, but must map groups to periods: `periods: {{weight1: 5}}` updates weight1 once "
                "for every 5 updates of `of`.",
                key="periods",
            )
        meaning = "the group is updated once for that many updates"
        self.periods = {group: whole_number(n, f"periods.{group}", meaning) for group, n in periods.items()}
        self.of = of
        if of is not None and (not isinstance(of, str) or not of):
            raise ScheduleError(f"`of` is {of!r}, but must be the name of one group.", key="of")
        if of in periods:
            raise ScheduleError(
                f"`of` is {of!r}, which has a period itself. Take it out of `periods`, or omit `of` to count every step.",
                key="of",
            )

    def names(self) -> tuple[tuple[str, str], ...]:
        """Each (key, name) that stands for a group."""
        named = tuple(("periods", group) for group in self.periods)
        return named if self.of is None else (*named, ("of", self.of))

    def describe(self) -> dict[str, Any]:
        """The schedule as one would write it in YAML."""
        return {"class_path": "Every", "init_args": {"periods": dict(self.periods), "of": self.of}}

    def bind(self, layout: Layout) -> Plan:
        """The plan over a model's groups."""
        periods: dict[str, int] = {}
        for name, period in self.periods.items():
            for group in layout.expand(name, "periods"):
                if periods.setdefault(group, period) != period:
                    raise ScheduleError(
                        f"`periods` gives {group!r} two periods, {periods[group]} and (as {name!r}) {period}. "
                        "Name each group once.",
                        key="periods",
                    )
        if self.of is None:
            return _EveryPlan(layout, periods, None)
        counted = layout.expand(self.of, "of")
        if len(counted) != 1:
            listed = ", ".join(counted[:5])
            raise ScheduleError(
                f"`of` is {self.of!r}, which stands for {len(counted)} groups ({listed}); it must be one.", key="of"
            )
        if counted[0] in periods:
            raise ScheduleError(
                f"`of` is {counted[0]!r}, which `periods` schedules too. Take it out of there.", key="of"
            )
        return _EveryPlan(layout, periods, counted[0])


class _Queue:
    """Groups by the count at which each comes due, so that no step looks at all of them."""

    def __init__(self, periods: Mapping[str, int], counts: Mapping[str, int]) -> None:
        self.counts = counts
        self._periods = periods
        self._due: set[str] = set()
        self._coming = [(counts[group] * period, group) for group, period in periods.items()]
        heapify(self._coming)

    def due(self, done: int) -> set[str]:
        """The groups that are due after so many updates."""
        while self._coming and self._coming[0][0] <= done:
            count, group = heappop(self._coming)
            if count == self.counts[group] * self._periods[group]:  # else it was updated since, and comes again
                self._due.add(group)
        return self._due

    def next(self, done: int) -> int:
        """The count at which a group comes due, at the earliest."""
        if self.due(done):
            return done
        while (first := self._coming[0])[0] != self.counts[first[1]] * self._periods[first[1]]:
            heappop(self._coming)  # it was updated since, and comes again
        return first[0]

    def updated(self, groups: frozenset[str]) -> None:
        """These have had an update."""
        for group in groups:
            if (period := self._periods.get(group)) is not None:
                self._due.discard(group)
                heappush(self._coming, (self.counts[group] * period, group))


class _Queues:
    """What a plan keeps in a position: the groups that share the optimizer of `of`, and the others."""

    def __init__(self, plan: _EveryPlan, counts: Mapping[str, int]) -> None:
        self.plan, self.counts = plan, counts
        self.same, self.other = (_Queue(each, counts) for each in (plan.same_optimizer, plan.other_optimizer))

    def __deepcopy__(self, memo: object) -> None:
        """A copied position makes its own."""


class _EveryPlan(Plan):
    def __init__(self, layout: Layout, periods: Mapping[str, int], of: str | None) -> None:
        self.layout = layout
        self._of = of
        self._periods = periods
        self._always = frozenset(layout.groups).difference(periods) | layout.always
        held = layout.optimizers
        self._refuse_split(periods, "periods")
        self._refuse_split([of] if of else [], "of")
        if of is None and not self._always and 1 not in periods.values():
            raise ScheduleError(
                "every group has a period above 1 and there is no `of`, so nothing would train after the first step. Give "
                "`of` a group that trains always, or one group the period 1.",
                key="periods",
            )
        # A group that shares the optimizer of `of` trains in the very step that `of` is counted in.
        self.same_optimizer = {g: n for g, n in periods.items() if of is None or held.get(g) == held.get(of)}
        self.other_optimizer = {g: n for g, n in periods.items() if g not in self.same_optimizer}
        self.pairs_within_a_window = bool(self.other_optimizer)

    def _refuse_split(self, groups: Iterable[str], key: str) -> None:
        """Refuse groups of several optimizers, whose updates cannot be counted as one."""
        for group in groups:
            if len(held_by := self.layout.optimizers.get(group, frozenset())) > 1:
                raise ScheduleError(
                    f"group {group!r} is held by {len(held_by)} optimizers ({sorted(held_by)}), so its updates cannot "
                    "be counted as one. Make it one group for each optimizer.",
                    key=key,
                )

    def trainable(self, at: Position) -> frozenset[str]:
        return self.trains(at, 0)

    def trains(self, at: Position, optimizer: int) -> frozenset[str]:
        queues, done = self._queues(at), self._done(at)
        due = queues.same.due(done)
        if self.other_optimizer:
            # The update of `of` that a group goes with: one made earlier in this batch or, if none was, the coming one.
            due = due | queues.other.due(done - 1 if self._of in at.window else done)
        return self._always.union(due) if due else self._always

    def _done(self, at: Position) -> int:
        return at.total if self._of is None else at.updates[self._of]

    def _queues(self, at: Position) -> _Queues:
        found: _Queues | None = at.due
        if found is None or found.plan is not self or found.counts is not at.updates:
            found = at.due = _Queues(self, at.updates)
        return found

    def _advance(self, at: Position, optimizer: int, groups: frozenset[str]) -> None:
        if at.due is not None:
            queues = self._queues(at)
            queues.same.updated(groups)
            queues.other.updated(groups)

    def when(self, group: str) -> str:
        period, of = self._periods.get(group, 1), "" if self._of is None else f" of {self._of}"
        return "always" if period == 1 else f"with 1 of {period} updates{of}"

    def never_freezes(self) -> bool:
        return all(n == 1 for n in self._periods.values())

    def stable_updates(self, at: Position) -> int:
        if self.other_optimizer:
            return 0
        done = self._done(at)
        # A group that is due may be updated by the next step; the others come due one update at a time.
        return max(0, self._queues(at).same.next(done) - done - 1)

    def pending(self, at: Position) -> frozenset[int]:
        held = self.layout.optimizers
        waited = self.trainable(at) if self._of is None else self.trainable(at) - self._always | {self._of}
        return frozenset().union(*(held.get(group, frozenset()) for group in waited))

    def can_be_fully_frozen(self, optimizer: int) -> str | None:
        mine = [g for g in self.layout.groups if optimizer in self.layout.optimizers.get(g, frozenset())]
        always = self._rest_in(optimizer) or self._always.intersection(mine)
        if always or (self._of is None and any(self._periods[g] == 1 for g in mine)):
            return None
        return f"between their turns its groups ({', '.join(mine) or ALL}) are all frozen"
