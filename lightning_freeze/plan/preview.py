"""What a plan will do, before it runs: the same code as the run, over imagined steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from lightning_freeze.plan.schedule import Plan, Position


@dataclass(frozen=True)
class Step:
    """One optimizer step of a preview."""

    epoch: int
    batch: int  # the window that it is in, counted from the beginning of the preview
    optimizer: int  # by index
    trained: frozenset[str]  # the groups it updates; none where all that it holds is frozen
    lr_factors: Mapping[str, float] = field(default_factory=dict)  # group to factor, where that is not 1
    over: bool = False  # whether the schedule has run out
    place: str = ""  # the key of the phase that it is in


def preview(
    plan: Plan,
    batches: int | None,
    batches_per_epoch: int | Callable[[int], int],
    order: Sequence[int] = (0,),
    start: Position | None = None,
    *,
    epoch: int | None = None,
    done: int = 0,
    metrics: Mapping[int, Mapping[str, float]] | None = None,
) -> Iterator[Step]:
    """The optimizer steps that a run would make, if every group had a gradient at each of them.

    A phase that awaits a metric whose values are not given lasts its ``max_epochs``, or for good. Arguments are those of
    `Outlook`, where a batch is an optimizer window; ``batches`` is None for no end.
    """
    if not order:
        raise ValueError("`order` is empty, so no optimizer would ever step. Name at least one: (0,).")
    at = plan.start() if start is None else start.copy()
    logged = metrics or {}
    in_epoch = done
    for batch in count() if batches is None else range(batches):
        plan.begin_window(at, at.epoch if epoch is None else max(epoch, at.epoch))
        for optimizer in order:
            trained = plan.next_update(at, optimizer)
            yield Step(at.epoch, batch, optimizer, trained, plan.lr_factors(at), plan.ran_out(at), plan.place(at))
            plan.update(at, optimizer, trained)
        in_epoch += 1
        if in_epoch >= (batches_per_epoch(at.epoch) if callable(batches_per_epoch) else batches_per_epoch):
            plan.log_metrics(at, logged.get(at.epoch, {}))
            plan.end_epoch(at)
            in_epoch = 0


class Interval(NamedTuple):
    """A group's time between two of its updates, or before its first."""

    group: str
    before: int  # its updates until then
    length: int  # updates of its optimizer in between, in which it was frozen


def longest_interval(
    steps: Iterable[Step], optimizer: int, groups: Collection[str], updates: Mapping[str, int]
) -> Interval | None:
    """The longest time that any of an optimizer's groups is frozen and then trains again, the first of equals.

    ``updates`` are those that groups have had before.
    """
    counts = {group: updates.get(group, 0) for group in groups}
    frozen_for = dict.fromkeys(groups, 0)
    longest = Interval("", 0, 0)
    for step in steps:
        trained = step.trained.intersection(counts)
        if step.optimizer != optimizer or not trained:
            continue
        for group in counts:
            if group in trained:
                if frozen_for[group] > longest.length:
                    longest = Interval(group, counts[group], frozen_for[group])
                frozen_for[group] = 0
                counts[group] += 1
            else:
                frozen_for[group] += 1
    return longest if longest.length else None
