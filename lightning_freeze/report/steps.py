"""The optimizer steps of an epoch, folded while they happen, and unfolded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter
from typing import Any, TypeVar

from lightning_freeze.report.repeats import Folding, Runs

_T = TypeVar("_T", bound=Hashable)
_MOST = 2048  # entries, and names that sets differ by, before they are recorded and forgotten
_NOTHING: Mapping[str, float] = {}
_COLUMNS: dict[str, Any] = {"planned": None, "places": "", "lr_factors": _NOTHING, "seconds": 0.0}
"""What a record says of each set, and what those of the first version mean."""


@dataclass(frozen=True)
class StepKind:
    """What an optimizer step did; equal steps in a row are one entry.

    Args:
        optimizer: Its index in the run.
        updated: The groups that were updated.
        planned: The groups that the plan let train.
        place: The phase, as its key in the schedule; empty where the schedule has none.
        lr_factors: Group to the factor on its learning rate when such a step was first made.
        epoch: The epoch it was made in.
    """

    optimizer: int
    updated: frozenset[str]
    planned: frozenset[str]
    place: str = ""
    lr_factors: Mapping[str, float] = field(default_factory=dict, compare=False)
    epoch: int = 0


@dataclass
class _Row:
    """A set of groups that is updated in some phase."""

    groups: frozenset[str]
    planned: frozenset[str] | None  # where it differs
    place: str
    lr_factors: Mapping[str, float]
    seconds: float = 0.0
    count: int = 0  # the steps of all runs but the last


@dataclass
class _Forgotten:
    """What is kept of steps that are recorded already."""

    updates: Counter[str] = field(default_factory=Counter)  # by group
    steps: int = 0
    seconds: float = 0.0
    gradient_bytes: int = 0  # of the step with the most, known to what records them

    def as_dict(self) -> dict[str, Any]:
        """As builtins, for a checkpoint; the time is not known to another run."""
        return {"updates": dict(self.updates), "steps": self.steps, "gradient_bytes": self.gradient_bytes}


class Steps:
    """The optimizer steps of an epoch, folded while they happen, and how long their batches took.

    Args:
        first: The updates before the epoch.
        write: Called where what it holds has become large: it is recorded, and then forgotten.
    """

    def __init__(self, first: int = 0, write: Callable[[Steps], None] | None = None) -> None:
        self.first = first
        self._write = write
        self._groups: frozenset[str] | None = None  # what its steps updated, while the plan stays
        self._planned: Sequence[frozenset[str]] = ()
        self._place, self._lr_factors = "", _NOTHING
        self._since: float | None = None
        self._spent, self._stepped = 0.0, False  # the time of the batches that no step has ended yet
        self.restored = 0  # the steps that a run made before it was interrupted, whose time is not known
        self.forgotten = _Forgotten()
        self._begin_part(first)

    def _begin_part(self, first: int) -> None:
        self._part = first  # the updates before what it holds
        self._before: list[Any] = []  # the runs that a checkpoint had
        self._rows: list[_Row] = []
        self._numbers: dict[tuple[frozenset[str], frozenset[str] | None, str], int] = {}
        self._folding = Folding()  # all runs but the last
        self._run = [-1, -1, 0]
        self._names = 0  # that the sets differ by, each from the one before

    def plan(self, planned: Sequence[frozenset[str]], place: str, lr_factors: Mapping[str, float] = _NOTHING) -> None:
        """From here on the plan lets these groups of each optimizer train, in this phase."""
        self._planned, self._place, self._lr_factors = planned, place, lr_factors
        self._groups = None

    def add(self, optimizer: int, groups: frozenset[str]) -> None:
        """Add a step that updated these groups."""
        if groups is not self._groups or optimizer != self._run[0]:
            self._begin_run(optimizer, groups)
        self._run[2] += 1
        self._stepped = True

    def _begin_run(self, optimizer: int, groups: frozenset[str]) -> None:
        planned = self._planned[optimizer] if self._planned else groups
        key = (groups, None if planned == groups else planned, self._place)
        if optimizer != self._run[0] or self._numbers.get(key) != self._run[1]:
            self._end_run()
            number = self._numbers.setdefault(key, len(self._rows))
            if number == len(self._rows):
                differ = groups ^ self._rows[-1].groups if self._rows else groups
                self._names += 1 + len(differ) + len(key[1] or ()) + len(self._lr_factors)
                self._rows.append(_Row(*key, self._lr_factors))
            self._run = [optimizer, number, 0]
        self._groups = groups

    def _end_run(self) -> None:
        optimizer, number, count = self._run
        if count:
            self._rows[number].count += count
            self._folding.add(((optimizer, number), count))
            self._run = [-1, -1, 0]
            if self._write is not None and len(self._before) + self._folding.size + self._names > _MOST:
                self._write(self)
                self._forget()

    def _forget(self) -> None:
        """Let go of what is recorded."""
        steps = sum(row.count for row in self._rows)
        self.forgotten.steps += steps
        self.forgotten.seconds = self.seconds
        for row in self._rows:
            self.forgotten.updates.update(dict.fromkeys(row.groups, row.count))
        self._begin_part(self._part + steps)

    def begin_batch(self) -> None:
        """A batch begins; the time of those before it counts to the step that they ended in."""
        now = perf_counter()
        if self._since is not None:
            self._spent += now - self._since
        if self._stepped:
            self._rows[self._run[1]].seconds += self._spent
            self._spent, self._stepped = 0.0, False
        self._since = now

    def pause(self) -> None:
        """Batches have ended for now: what follows is not training."""
        self.begin_batch()
        self._since = None

    def follow(self, other: Steps) -> None:
        """Begin where another ends, in the same phase."""
        self.plan(other._planned, other._place, other._lr_factors)

    def counted(self) -> Iterator[tuple[Iterable[str], int]]:
        """Each set of groups that was updated, and in how many steps; of what it has forgotten, each group."""
        yield from (((group,), count) for group, count in self.forgotten.updates.items())
        for number, row in enumerate(self._rows):
            yield row.groups, row.count + (self._run[2] if number == self._run[1] else 0)

    @property
    def number(self) -> int:
        """The steps so far."""
        return self.forgotten.steps + sum(row.count for row in self._rows) + self._run[2]

    @property
    def seconds(self) -> float:
        """The time of the batches so far."""
        return self.forgotten.seconds + sum(row.seconds for row in self._rows)

    def as_dict(self) -> dict[str, Any]:
        """As builtins, for a checkpoint."""
        last = [[*self._run]] if self._run[2] else []
        return {
            "first": self._part,
            "sets": [sorted(row.groups) for row in self._rows],
            "planned": [None if row.planned is None else sorted(row.planned) for row in self._rows],
            "places": [row.place for row in self._rows],
            "lr_factors": [dict(row.lr_factors) for row in self._rows],
            "steps": [*self._before, *_plain(self._folding.entries), *last],
            **({"epoch_first": self.first} if self.first != self._part else {}),
            **({"forgotten": self.forgotten.as_dict()} if self.forgotten.steps else {}),
        }

    def record(self, epoch: int) -> dict[str, Any]:
        """The ``phase`` record of them."""
        seconds = [round(row.seconds, 6) for row in self._rows]
        plain = {key: value for key, value in self.as_dict().items() if key != "forgotten"}
        return {"type": "phase", "epoch": epoch, **plain, "seconds": seconds}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], write: Callable[[Steps], None] | None = None) -> Steps:
        """The steps that `as_dict` wrote, of this version or one before."""
        steps = cls(plain["first"])
        for sets, planned, *more in _rows(plain):
            row = _Row(frozenset(sets), None if planned is None else frozenset(planned), *more)
            steps._numbers[row.groups, row.planned, row.place] = len(steps._rows)
            steps._rows.append(row)
        for (_, number), count in unfolded(plain["steps"], lambda *kind: kind).counts.items():
            steps._rows[number].count += count
        steps._before = [*plain["steps"]]
        if "forgotten" in plain:
            steps.forgotten = _Forgotten(**plain["forgotten"] | {"updates": Counter(plain["forgotten"]["updates"])})
        steps.restored, steps.first, steps._write = steps.number, plain.get("epoch_first", steps.first), write
        return steps


def _plain(entries: Iterable[Any]) -> list[Any]:
    """Folded runs, as they are recorded."""
    return [
        [*what, count] if isinstance(what[0], int) else {"times": count, "steps": _plain(what)}
        for what, count in entries
    ]


def _rows(plain: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Each set of a record with what the record says of it; of the first version, with nothing."""
    sets = plain["sets"]
    return zip(sets, *(plain.get(key) or [default] * len(sets) for key, default in _COLUMNS.items()), strict=True)


def runs_of(records: Iterable[Mapping[str, Any]]) -> Runs[StepKind]:
    """The steps of a run in order, equal ones in a row as one; those that a resumed run repeated, once, as last done."""
    parts: list[tuple[Runs[StepKind], int]] = []  # each with the updates before it
    held: list[frozenset[str]] = []
    for record in records:
        if record["type"] == "run":
            held = [frozenset(each.get("groups") or record["groups"]) for each in record.get("optimizers", ())]
        if record["type"] in ("run", "phase"):
            done = record["updates_before" if record["type"] == "run" else "first"]
            _cut(parts, done)
        if record["type"] == "phase":
            kind_of = cache(partial(_kind, [*_rows(record)], record.get("epoch", 0), held))
            parts.append((unfolded(record["steps"], kind_of), done))
    return Runs((part, 1) for part, _ in parts)


def _cut(parts: list[tuple[Runs[StepKind], int]], done: int) -> None:
    """Take away the steps after so many updates."""
    while parts and parts[-1][1] + parts[-1][0].length > done:
        part, first = parts.pop()
        parts += [(part.head(done - first), first)] if first < done else []


def _kind(rows: Sequence[Any], epoch: int, held: Sequence[frozenset[str]], optimizer: int, number: int) -> StepKind:
    """The kind of a step by its row; a plan may name groups of other optimizers, too."""
    row = rows[number]
    updated = planned = frozenset(row[0])
    if row[1] is not None:
        planned = frozenset(row[1]) & updated.union(*held[optimizer : optimizer + 1] or [row[1]])
    return StepKind(optimizer, updated, planned, row[2], row[3], epoch)


def _whole(count: Any) -> int:
    if type(count) is not int or count < 0:
        raise ValueError(f"{count!r} is no count of steps")
    return count


def unfolded(steps: Iterable[Any], kind_of: Callable[[int, int], _T]) -> Runs[_T]:
    """Recorded runs ``[optimizer, set, count]`` as a sequence; ``{"times": n, "steps": […]}`` is those within, n times."""
    return Runs(
        (unfolded(each["steps"], kind_of), _whole(each["times"]))
        if isinstance(each, Mapping)
        else (kind_of(each[0], each[1]), _whole(each[2]))
        for each in steps
    )


def steps_of(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, frozenset[str]]]:
    """Every update of a run in order, as (optimizer, groups); those that a resumed run repeated, once, as last done."""
    return [(kind.optimizer, kind.updated) for kind, count in runs_of(records) for _ in range(count)]
