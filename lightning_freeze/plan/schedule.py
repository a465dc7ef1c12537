"""What a schedule is: a pure function from counts and a small cursor to the set of groups that train now.

Knows neither torch nor Lightning. A `Schedule` is what a user writes; bound to a `Layout` (which groups there are, and
which optimizer holds which) it becomes a `Plan`; the plan's only state is a `Position`, plain and serialisable.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from lightning_freeze.errors import ScheduleError, nearest

REST = "rest"
"""The reserved group of all parameters that no other group names."""

ALL = "all"
"""In a phase: every named group."""

_FIRST = frozenset({0})


@dataclass(frozen=True)
class Layout:
    """What a schedule must know of a model: its groups and the optimizers that hold them.

    Args:
        groups: The named groups, in order, without ``rest``.
        families: Family name to its groups, in order.
        optimizers: Group (``rest`` too, where it has parameters) to the indices of the optimizers that hold it.
        rest_trains: Whether there is a ``rest`` and it trains always.

    Example:
        >>> Layout(("slow", "fast"), optimizers={"slow": frozenset({0}), "fast": frozenset({0})}).expand("all", "train")
        ('slow', 'fast')
    """

    groups: tuple[str, ...]
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optimizers: Mapping[str, frozenset[int]] = field(default_factory=dict)
    rest_trains: bool = False

    def expand(self, name: str, key: str) -> tuple[str, ...]:
        """The groups that one name in a schedule stands for: a group, a family, a glob over groups, or ``all``.

        Raises:
            ScheduleError: The name stands for nothing; the message offers the nearest names.
        """
        if name == REST:
            raise ScheduleError(
                f"`{key}` names {REST!r}, the reserved group of all parameters that no other group names. It is not "
                f"scheduled: it trains always (`rest: train`) or never (`rest: freeze`). Give the parameters you mean "
                f"a group of their own under `groups:` and name that.",
                key=key,
                value=name,
            )
        found = self._named(name)
        if not found and name != ALL:
            known = [*self.groups, *self.families, ALL]
            close = nearest(name, known) or known[:5]
            raise ScheduleError(
                f"`{key}` names {name!r}, which is no group. Nearest: {', '.join(map(repr, close))}.",
                key=key,
                value=name,
            )
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

    @property
    def indices(self) -> frozenset[int]:
        """The optimizers by index; the first alone where none is named."""
        return frozenset().union(*self.optimizers.values()) or _FIRST

    def holders(self, group: str) -> frozenset[int]:
        """The optimizers that hold a group; the first where none is named."""
        return self.optimizers.get(group, _FIRST)


_PASSING = {"window", "why"}
# What a position has had since phases can end by metrics and rise; states that were saved before have none of it.
_SINCE_METRICS = {"begun", "judged", "best", "wait", "heard", "unheard", "thawed"}


@dataclass
class Position:
    """Where a run stands in its plan: update counts and a small cursor. All of a schedule's state.

    Args:
        updates: Group to its updates so far.
        total: Optimizer steps so far in which anything was updated.
        epoch: The epoch that the run is in, from 0.
        phase: How many phases have ended.
        entered: Whether a step has begun in the present phase.
        done: Optimizer index to its updates in the present phase.
        epochs: Training epochs that ended in the present phase.
        begun: Whether the epoch has had a step.
        judged: The mode and the name of the metric of which ``best`` is.
        best: The best value so far of the metric that ends the present phase.
        wait: The values of it since then that were no improvement.
        heard: Metrics logged since the last epoch's end, by name, of those that end phases.
        unheard: The metric for which the last epoch's end still waits.
        thawed: Group to its updates when it thawed with the present phase, where its rate then rises.
        why: Why a metric ended the last phase; not saved, it is said and forgotten.
        window: The groups updated since the present batch began; not saved, a resumed run begins a batch.
    """

    updates: dict[str, int] = field(default_factory=dict)
    total: int = 0
    epoch: int = 0
    phase: int = 0
    entered: bool = False
    done: dict[int, int] = field(default_factory=dict)
    epochs: int = 0
    begun: bool = False
    judged: str = ""
    best: float | None = None
    wait: int = 0
    heard: dict[str, float] = field(default_factory=dict)
    unheard: str | None = None
    thawed: dict[str, int] = field(default_factory=dict)
    why: str = ""
    window: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        """The position as builtins alone, fit for JSON and for ``torch.load(weights_only=True)``."""
        plain = {key: value for key, value in asdict(self).items() if key not in _PASSING}
        plain["done"] = [[index, count] for index, count in sorted(self.done.items())]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Position:
        """The position that `as_dict` wrote.

        Raises:
            ScheduleError: A key is missing or unknown.
        """
        known = {f.name for f in fields(cls)} - _PASSING
        if plain.keys() - known or known - plain.keys() - _SINCE_METRICS:
            odd = sorted(plain.keys() ^ known)
            raise ScheduleError(f"a saved position has other keys than this version writes: {', '.join(odd)}")
        values = copy.deepcopy(dict(plain))
        values["done"] = {int(index): int(count) for index, count in plain["done"]}
        return cls(**values)

    def copy(self) -> Position:
        """A copy that shares nothing with this one."""
        return copy.deepcopy(self)


class Plan(ABC):
    """A schedule bound to a model's groups. Everything it says follows from the `Position` handed to it."""

    layout: Layout
    pairs_within_a_window = False
    """Whether what trains depends on what was updated earlier in the same batch."""
    rated: frozenset[str] = frozenset()
    """The groups whose learning rate some phase changes."""

    def start(self, epoch: int = 0) -> Position:
        """The position before the first step."""
        groups = (*self.layout.groups, REST) if self.layout.rest_trains else self.layout.groups
        return Position(updates=dict.fromkeys(groups, 0), epoch=epoch)

    def begin_window(self, at: Position, epoch: int) -> bool:
        """A batch begins (with accumulation: any of its micro-batches). Ends epochs whose end was not heard of.

        Returns:
            Whether what trains may have changed by that.
        """
        changed = (self.pairs_within_a_window and bool(at.window)) or at.epoch < epoch
        while at.epoch < epoch:
            self.end_epoch(at)
        if not at.begun:
            at.begun = True
            at.heard.clear()  # of the epoch before, when no phase waited for it
        at.window.clear()
        at.entered = True
        at.unheard = None  # what was not logged by now will not be
        return changed

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
        """The optimizers that must still make a step for the schedule to go on."""

    @abstractmethod
    def can_be_fully_frozen(self, optimizer: int) -> str | None:
        """Why this optimizer can come to a step with nothing to train, or None if it never can."""

    @abstractmethod
    def never_freezes(self) -> bool:
        """Whether every named group trains at every step, so that the schedule holds nothing still."""

    def sets(self) -> Iterator[frozenset[str]]:
        """The sets of groups that it comes to train, in order, some of them more than once; it may have no end.

        Of several optimizers the sets are taken together, and not apart where one waits for another.
        """
        at = self.start()
        while True:
            self.begin_window(at, at.epoch)
            yield self.trainable(at)
            for optimizer in sorted(self.layout.indices):
                self.update(at, optimizer, self.next_update(at, optimizer))

    def stable_updates(self, at: Position) -> int:
        """How many updates can follow, of whichever groups, in which what trains stays as it is; never too many."""
        return 0

    def ran_out(self, at: Position) -> bool:
        """Whether the schedule has ended; its last set stays trainable."""
        return False

    def lr_factors(self, at: Position) -> dict[str, float]:
        """Group to the factor on its learning rate at the next update, where that is not 1."""
        return {}

    def where(self, at: Position) -> str:
        """The place in the schedule where a position stands, where it has places."""
        return ""

    def awaits(self, at: Position) -> str | None:
        """The metric that is to end the present phase."""
        return None

    def log_metrics(self, at: Position, metrics: Mapping[str, float]) -> bool:
        """Metrics were logged, during the epoch or right after its end.

        Returns:
            Whether they ended a phase that had waited for them.
        """
        return False

    def skip_finished(self, at: Position) -> None:  # noqa: B027 - only phases have a cursor that can lie past an end
        """Move a position that was made under another schedule on to where something is left to do."""

    def _rest(self) -> frozenset[str]:
        return frozenset({REST}) if self.layout.rest_trains else frozenset()

    def _rest_in(self, optimizer: int) -> bool:
        return self.layout.rest_trains and optimizer in self.layout.optimizers.get(REST, frozenset())


@dataclass(frozen=True, repr=False)
class Part:
    """A part of a schedule: described and shown without its defaults.

    It is a dataclass as those that inherit from it are: else jsonargparse asks for their ``class_path``.
    """

    _always: ClassVar[tuple[str, ...]]
    """The fields that are shown in any case."""

    def _given(self) -> dict[str, Any]:
        values = [(field, getattr(self, field.name)) for field in fields(self)]
        return {f.name: value for f, value in values if f.name in self._always or value != f.default}

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

    In YAML either the class is named (``class_path: Every``, ``init_args: {…}``), or ``phases:`` stands alone, or the
    path of a file that holds either.
    """

    @abstractmethod
    def names(self) -> tuple[tuple[str, str], ...]:
        """Each (key, name) that the schedule uses for a group, in the order written."""

    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Each (key, metric) that the schedule waits for."""
        return ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """The schedule as builtins, as one would write it in YAML; two that describe alike are the same."""

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
