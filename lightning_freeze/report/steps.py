"""The optimizer steps of an epoch, run-length encoded while they happen, and decoded again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from time import perf_counter
from typing import Any

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


class Steps:
    """The optimizer steps of an epoch, run-length encoded while they happen, and how long their batches took."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._rows: list[_Row] = []
        self._numbers: dict[tuple[frozenset[str], frozenset[str] | None, str], int] = {}
        self._runs: list[list[int]] = []
        self._run = [-1, -1, 0]  # the last of them
        self._groups: frozenset[str] | None = None  # what its steps updated, while the plan stays
        self._planned: Sequence[frozenset[str]] = ()
        self._place, self._lr_factors = "", _NOTHING
        self._since: float | None = None
        self.restored = 0  # the steps that a run made before it was interrupted, whose time is not known
        self._spent, self._stepped = 0.0, False  # the time of the batches that no step has ended yet

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
        number = self._numbers.setdefault(key, len(self._rows))
        if number == len(self._rows):
            self._rows.append(_Row(*key, self._lr_factors))
        if optimizer != self._run[0] or number != self._run[1]:
            self._run = [optimizer, number, 0]
            self._runs.append(self._run)
        self._groups = groups

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

    def counted(self) -> Iterator[tuple[frozenset[str], int]]:
        """Each set of groups that was updated, and in how many steps."""
        for _, number, count in self._runs:
            yield self._rows[number].groups, count

    @property
    def seconds(self) -> float:
        """The time of the batches so far."""
        return sum(row.seconds for row in self._rows)

    def as_dict(self) -> dict[str, Any]:
        """As builtins, for a checkpoint."""
        return {
            "first": self.first,
            "sets": [sorted(row.groups) for row in self._rows],
            "planned": [None if row.planned is None else sorted(row.planned) for row in self._rows],
            "places": [row.place for row in self._rows],
            "lr_factors": [dict(row.lr_factors) for row in self._rows],
            "steps": [list(run) for run in self._runs],
        }

    def record(self, epoch: int) -> dict[str, Any]:
        """The ``phase`` record of them."""
        seconds = [round(row.seconds, 6) for row in self._rows]
        return {"type": "phase", "epoch": epoch, **self.as_dict(), "seconds": seconds}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Steps:
        """The steps that `as_dict` wrote, of this version or one before."""
        steps = cls(plain["first"])
        steps._rows = [
            _Row(frozenset(row[0]), None if row[1] is None else frozenset(row[1]), *row[2:]) for row in _rows(plain)
        ]
        steps._numbers = {(row.groups, row.planned, row.place): number for number, row in enumerate(steps._rows)}
        steps._runs = [list(run) for run in plain["steps"]]
        steps._run = steps._runs[-1] if steps._runs else steps._run
        steps.restored = sum(count for *_, count in steps._runs)
        return steps


def _rows(plain: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Each set of a record with what the record says of it; of the first version, with nothing."""
    sets = plain["sets"]
    return zip(sets, *(plain.get(key) or [default] * len(sets) for key, default in _COLUMNS.items()), strict=True)


def runs_of(records: Iterable[Mapping[str, Any]]) -> list[tuple[StepKind, int]]:
    """The steps of a run in order, equal ones in a row as one; those that a resumed run repeated, once, as last done."""
    runs: list[tuple[StepKind, int, int]] = []  # each with the updates before it and after it
    held: list[frozenset[str]] = []
    for record in records:
        if record["type"] == "run":
            held = [frozenset(each.get("groups") or record["groups"]) for each in record.get("optimizers", ())]
        if record["type"] in ("run", "phase"):
            done = record["updates_before" if record["type"] == "run" else "first"]
            _cut(runs, done)
        if record["type"] == "phase":
            kind_of = cache(partial(_kind, [*_rows(record)], record.get("epoch", 0), held))
            for optimizer, number, count in flat(record["steps"]):
                runs.append((kind_of(optimizer, number), done, done + count))
                done += count
    return [(kind, end - begin) for kind, begin, end in runs]


def _kind(rows: Sequence[Any], epoch: int, held: Sequence[frozenset[str]], optimizer: int, number: int) -> StepKind:
    """The kind of a step by its row; a plan may name groups of other optimizers, too."""
    row = rows[number]
    updated = planned = frozenset(row[0])
    if row[1] is not None:
        planned = frozenset(row[1]) & updated.union(*held[optimizer : optimizer + 1] or [row[1]])
    return StepKind(optimizer, updated, planned, row[2], row[3], epoch)


def _cut(runs: list[tuple[StepKind, int, int]], done: int) -> None:
    """Take away the steps after so many updates."""
    while runs and runs[-1][2] > done:
        kind, begin, _ = runs.pop()
        runs += [(kind, begin, done)] if begin < done else []


def flat(steps: Iterable[Any]) -> Iterator[Sequence[int]]:
    """The entries ``[optimizer, set, count]`` of a record; ``{"times": n, "steps": […]}`` is those within, n times over."""
    for entry in steps:
        if isinstance(entry, Mapping):
            within = [*flat(entry["steps"])]
            for _ in range(entry["times"]):
                yield from within
        else:
            yield entry


def steps_of(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, frozenset[str]]]:
    """Every update of a run in order, as (optimizer, groups); those that a resumed run repeated, once, as last done."""
    return [(kind.optimizer, kind.updated) for kind, count in runs_of(records) for _ in range(count)]
