"""What a schedule is: a pure function from counts and a small cursor to the set of groups that train now.

A `Schedule` is what a user writes; bound to a `Layout` (which groups there are, and which optimizer holds which) it is a
`Plan`, whose only state is a `Position`. None knows torch or Lightning.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any, ClassVar

from lightning_freeze.errors import ScheduleError, did_you_mean

REST = "rest"  # the reserved group of all parameters that no other group names
ALL = "all"  # in a schedule: every named group
_FIRST = frozenset({0})


@dataclass(frozen=True)
class Layout:
    """What a schedule must know of a model: its groups and the optimizers that hold them."""

    groups: tuple[str, ...]  # the named ones, in order, without `rest`
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optimizers: Mapping[str, frozenset[int]] = field(default_factory=dict)  # by index; of `rest`, too, if it has any
    rest_trains: bool = False  # whether there is a `rest` and it trains always
    moved_by_user: frozenset[str] = frozenset()  # the groups with `by: user`, which no schedule may name

    def expand(self, name: str, key: str) -> tuple[str, ...]:
        """The groups that a name stands for: a group, a family, a glob, or ``all``."""
        if name == REST:
            raise ScheduleError(
                f"`{key}` names {REST!r}, the reserved group of all parameters that no other group names. It is not "
                "scheduled: it trains always (`rest: train`) or never (`rest: freeze`). Give the parameters you mean a "
                "group of their own under `groups:` and name that.",
                key=key,
            )
        if name in self.moved_by_user:
            raise ScheduleError(
                f"`{key}` names {name!r}, which is `by: user` in `groups`: your own code moves it, and no schedule does. "
                f"Take it out of `{key}`, or `by: user` out of the group.",
                key=key,
            )
        found = self._named(name)
        if not found and name != ALL:
            known = [*self.groups, *self.families, ALL]
            hint = did_you_mean(name, known) or f" Known: {', '.join(map(repr, known[:5]))}."
            raise ScheduleError(f"`{key}` names {name!r}, which is not a group.{hint}", key=key)
        return found

    def knows(self, name: str) -> bool:
        """Whether `expand` would find something, the reserved name ``rest`` included."""
        return name in (ALL, REST) or bool(self._named(name))

    def _named(self, name: str) -> tuple[str, ...]:
        if name == ALL:
            return self.groups
        if name in self.groups:
            return (name,)
        globbed = (group for group in self.groups if "*" in name and fnmatchcase(group, name))
        return self.families.get(name) or tuple(globbed)

    @cached_property
    def always(self) -> frozenset[str]:
        """What trains under every schedule: ``rest``, or nothing."""
        return frozenset({REST}) if self.rest_trains else frozenset()

    @property
    def indices(self) -> frozenset[int]:
        """The optimizers by index; the first alone where none is named."""
        return frozenset().union(*self.optimizers.values()) or _FIRST

    def holders(self, group: str) -> frozenset[int]:
        """The optimizers that hold a group; the first where none is named."""
        return self.optimizers.get(group, _FIRST)

    def optimizers_of(self, groups: frozenset[str]) -> frozenset[int]:
        """The optimizers that hold any of these groups; of no groups, those that hold ``rest``."""
        return frozenset().union(*map(self.holders, groups or {REST}))


_fields: Callable[[type], tuple[Field[Any], ...]] = cache(fields)
NO_END = 1 << 62  # a count that no run comes to

_NOT_SAVED = {"window", "made", "why", "due"}
# The fields since phases can end by metrics and have ramps; positions that were saved before have none of them.
SINCE_METRICS = {"begun", "judged", "best", "wait", "heard", "unheard", "thawed"}


@dataclass
class Position:
    """Where a run stands in its plan: update counts and a small cursor. The field names are keys of checkpoints."""

    updates: dict[str, int] = field(default_factory=dict)  # group to its updates so far
    total: int = 0  # optimizer steps so far in which anything was updated
    epoch: int = 0  # the epoch that the run is in
    phase: int = 0  # phases that have ended
    entered: bool = False  # whether a step has begun in the present phase
    done: dict[int, int] = field(default_factory=dict)  # optimizer to its updates in the present phase
    epochs: int = 0  # training epochs that ended in the present phase
    begun: bool = False  # whether the epoch has had a step
    judged: str = ""  # the mode and the name of the metric that `best` is a value of
    best: float | None = None  # the best value so far of the metric that ends the present phase
    wait: int = 0  # values of it since then that were no improvement
    heard: dict[str, float] = field(default_factory=dict)  # metrics that end phases, logged since the last epoch's end
    unheard: str | None = None  # the metric that the last epoch's end still awaits
    thawed: dict[str, int] = field(default_factory=dict)  # group to its updates when it thawed, where a ramp follows
    why: str = ""  # why a metric ended the last phase, until that was said; not saved
    made: dict[int, int] = field(default_factory=dict)  # of `done`, if sets change by batch: in this one; not saved
    window: set[str] = field(default_factory=set)  # groups updated since the batch began; not saved
    due: Any = field(
        default=None, repr=False, compare=False
    )  # what a plan keeps to find groups that are due; not saved

    def as_dict(self) -> dict[str, Any]:
        """The position as builtins alone, fit for JSON and for ``torch.load(weights_only=True)``."""
        plain = {key: value for key, value in asdict(self).items() if key not in _NOT_SAVED}
        plain["done"] = [[index, count] for index, count in sorted(self.done.items())]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Position:
        """The position that `as_dict` wrote, in this version or an earlier one; `checkpoint.read` has checked its keys."""
        values = copy.deepcopy(dict(plain))
        values["done"] = {int(index): int(count) for index, count in plain["done"]}
        return cls(**values)

    def copy(self) -> Position:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)


class Plan(ABC):
    """A schedule bound to a model's groups. Everything it says follows from the `Position` it is given."""

    layout: Layout
    pairs_within_a_window = False  # whether what trains depends on what was updated earlier in the same batch
    by_batch = False  # whether what trains changes only between batches
    rated: frozenset[str] = frozenset()  # the groups whose learning rate some phase changes

    def start(self, epoch: int = 0) -> Position:
        """The position before the first step."""
        groups = (*self.layout.groups, REST) if self.layout.rest_trains else self.layout.groups
        return Position(updates=dict.fromkeys(groups, 0), epoch=epoch)

    def begin_window(self, at: Position, epoch: int) -> bool:
        """A batch or micro-batch begins; ends epochs that were not ended. Whether what trains may have changed."""
        changed = (self.pairs_within_a_window and bool(at.window)) or at.epoch < epoch
        if self.by_batch:
            changed |= self.end_window(at)
        while at.epoch < epoch:
            self.end_epoch(at)
        if not at.begun:
            at.begun = True
            at.heard.clear()  # of the epoch before, when no phase awaited it
        at.window.clear()
        at.entered = True
        at.unheard = None  # what was not logged by now will not be
        return changed

    def end_window(self, at: Position) -> bool:
        """A batch is over. Whether that changed what trains, where it changes between batches alone."""
        return False

    def update(self, at: Position, optimizer: int, groups: frozenset[str]) -> None:
        """An optimizer step truly ran and updated these groups. Without groups it advances nothing."""
        if not groups:
            return
        counts = at.updates
        for group in groups:
            counts[group] = counts.get(group, 0) + 1
        at.total += 1
        at.window |= groups
        self._advance(at, optimizer, groups)

    def end_epoch(self, at: Position) -> None:
        """A training epoch ended."""
        at.epoch += 1
        at.begun = False

    def _advance(self, at: Position, optimizer: int, groups: frozenset[str]) -> None:  # noqa: B027 - counts may be all
        """Move the cursor after an update; the counts are up to date already."""

    def trainable(self, at: Position) -> frozenset[str]:
        """The groups that the coming optimizer steps may train, over all optimizers."""
        return frozenset().union(*(self.next_update(at, optimizer) for optimizer in self.layout.indices))

    def next_update(self, at: Position, optimizer: int) -> frozenset[str]:
        """The groups that the next step of one optimizer updates: of those that may train, the ones it holds."""
        return frozenset(g for g in self.trains(at, optimizer) if optimizer in self.layout.holders(g))

    @abstractmethod
    def trains(self, at: Position, optimizer: int) -> frozenset[str]:
        """The groups that the next step of one optimizer may train (``rest`` among them where it trains)."""

    @abstractmethod
    def pending(self, at: Position) -> frozenset[int]:
        """The optimizers that must still make a step for the schedule to advance."""

    @abstractmethod
    def can_be_fully_frozen(self, optimizer: int) -> str | None:
        """Why this optimizer can come to a step with nothing to train, or None if it never can."""

    @abstractmethod
    def never_freezes(self) -> bool:
        """Whether every named group trains at every step."""

    def sets(self) -> Iterator[frozenset[str]]:
        """The sets of groups that it comes to train, over all optimizers, in order, with repetitions; maybe endless."""
        at = self.start()
        while True:
            self.begin_window(at, at.epoch)
            yield self.trainable(at)
            for optimizer in sorted(self.layout.indices):
                self.update(at, optimizer, self.next_update(at, optimizer))

    def stable_updates(self, at: Position) -> int:
        """How many updates of any groups can follow before what trains may change; never too many."""
        return 0

    def ran_out(self, at: Position) -> bool:
        """Whether the schedule has ended; its last set stays trainable."""
        return False

    def lr_factors(self, at: Position) -> dict[str, float]:
        """Group to the factor on its learning rate at the next update, where that is not 1."""
        return {}

    def place(self, at: Position) -> str:
        """The key of the phase at which a position stands, if the schedule has phases."""
        return ""

    def where(self, at: Position) -> str:
        """The same for messages, as `stage` says it."""
        return ""

    def stage(self, at: Position, ended: bool = False) -> tuple[str, int | None]:
        """The phase for people, "phase 2 of 3", or with ``ended`` that of the last step; and how many have begun."""
        return "", None

    @abstractmethod
    def when(self, group: str) -> str:
        """When a named group trains, in few words."""

    def awaits(self, at: Position) -> str | None:
        """The metric that is to end the present phase."""
        return None

    def log_metrics(self, at: Position, metrics: Mapping[str, float]) -> bool:
        """Metrics were logged, during the epoch or right after its end. Whether they ended a phase that awaited them."""
        return False

    def skip_finished(self, at: Position) -> None:  # noqa: B027 - only phases have a cursor that can lie past an end
        """Move a position that was made under another schedule past phases that have ended."""

    def _rest_in(self, optimizer: int) -> bool:
        return self.layout.rest_trains and optimizer in self.layout.optimizers.get(REST, frozenset())


Planned = Callable[[], tuple[Plan | None, Position]]  # gives a run's plan, where it has one, and its position


@dataclass(frozen=True, repr=False)
class Part:
    """A part of a schedule: described and shown without its defaults.

    A dataclass, as its subclasses are: jsonargparse would ask for their ``class_path`` otherwise.
    """

    _always: ClassVar[tuple[str, ...]]  # the fields that are shown in any case

    def _given(self) -> dict[str, Any]:
        values = [(each, getattr(self, each.name)) for each in _fields(type(self))]
        return {each.name: value for each, value in values if each.name in self._always or value != each.default}

    def describe(self) -> dict[str, Any]:
        """The part as one would write it in YAML."""
        return {name: _plain(value) for name, value in self._given().items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._given().items())})"


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.describe()
    if isinstance(value, Mapping):
        return {key: _plain(below) for key, below in value.items()}
    return list(value) if isinstance(value, list) else value


class Schedule(ABC):
    """What a user writes: the base of `Every` and `Phases`.

    In YAML, write ``class_path: Every`` and ``init_args: {…}``, or ``phases:`` alone, or the
    path of a file that holds either.
    """

    @abstractmethod
    def names(self) -> tuple[tuple[str, str], ...]:
        """Each (key, name) that the schedule uses for a group, in the order written."""

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Each (key, metric) that ends a phase."""
        return ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The schedule as builtins, as one would write it in YAML; schedules are equal if their descriptions are."""

    @abstractmethod
    def bind(self, layout: Layout) -> Plan:
        """The plan of this schedule over a model's groups.

        Raises:
            ScheduleError: The schedule names no group of the model, or leaves nothing trainable.
        """

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.describe()["init_args"].items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(repr(self))
