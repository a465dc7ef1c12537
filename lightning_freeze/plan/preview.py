"""What a plan will do, before it runs: the same code as the run, over imagined steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from lightning_freeze.plan.schedule import Plan, Position


@dataclass(frozen=True)
class Step:
    """One optimizer step of a preview.

    Args:
        epoch: The epoch it falls in, from 0.
        batch: The window it falls in, counted from the beginning of the preview.
        optimizer: The optimizer that steps.
        trained: The groups it updates; none where all that it holds is frozen.
        lr_factors: Group to the factor on its learning rate, where that is not 1.
        over: Whether the schedule has run out.
    """

    epoch: int
    batch: int
    optimizer: int
    trained: frozenset[str]
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    over: bool = False


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

    A phase that waits for a metric whose values are not given lasts its ``max_epochs``, or for good.

    Args:
        plan: A schedule bound to its groups.
        batches: Optimizer windows to imagine (a window is one batch, or one accumulation of several); None for no end.
        batches_per_epoch: Windows in an epoch, or a function from an epoch to that.
        order: The optimizers in the order in which each window steps them.
        start: Where to begin; by default at the plan's start.
        epoch: The epoch to begin in; by default that of ``start``.
        done: Windows that the first epoch has had already.
        metrics: Epoch to the metrics logged in it, by name.

    Raises:
        ValueError: No optimizer steps.

    Example:
        >>> from lightning_freeze import Every
        >>> from lightning_freeze.plan.schedule import Layout
        >>> plan = Every({"slow": 3}, of="fast").bind(Layout(("slow", "fast")))
        >>> ["slow" in step.trained for step in preview(plan, batches=4, batches_per_epoch=4)]
        [True, False, False, True]
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
            yield Step(at.epoch, batch, optimizer, trained, plan.lr_factors(at), plan.ran_out(at))
            plan.update(at, optimizer, trained)
        in_epoch += 1
        if in_epoch >= (batches_per_epoch(at.epoch) if callable(batches_per_epoch) else batches_per_epoch):
            plan.log_metrics(at, logged.get(at.epoch, {}))
            plan.end_epoch(at)
            in_epoch = 0


class Interval(NamedTuple):
    """A group's time between two of its updates, or before its first.

    Args:
        group: The group.
        before: Its updates until then.
        length: Updates of its optimizer in between, in which it was frozen.
    """

    group: str
    before: int
    length: int


def longest_interval(
    steps: Iterable[Step], optimizer: int, groups: Collection[str], updates: Mapping[str, int]
) -> Interval | None:
    """The longest time that any of an optimizer's groups is frozen and then trains again.

    Args:
        steps: Optimizer steps to come.
        optimizer: The optimizer.
        groups: Its groups.
        updates: The updates that groups have had before.

    Returns:
        The first of the longest; None where none is frozen and trains again.

    Example:
        >>> steps = [Step(0, n, 0, frozenset({"slow", "fast"} if n % 5 == 0 else {"fast"})) for n in range(11)]
        >>> longest_interval(steps, 0, ["slow", "fast"], {})
        Interval(group='slow', before=1, length=4)
    """
    counts = {group: updates.get(group, 0) for group in groups}
    idle = dict.fromkeys(groups, 0)
    longest = Interval("", 0, 0)
    for step in steps:
        trained = step.trained.intersection(counts)
        if step.optimizer != optimizer or not trained:
            continue
        for group in counts:
            if group not in trained:
                idle[group] += 1
                continue
            if idle[group] > longest.length:
                longest = Interval(group, counts[group], idle[group])
            idle[group] = 0
            counts[group] += 1
    return longest if longest.length else None
