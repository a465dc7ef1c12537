"""What a plan will do, before it runs: the same code as the run, over imagined steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lightning_freeze.plan.schedule import Plan, Position


@dataclass(frozen=True)
class Step:
    """One optimizer step of a preview.

    Args:
        epoch: The epoch it falls in, from 0.
        batch: The window it falls in, counted from the beginning of the preview.
        optimizer: The optimizer that steps.
        trained: The groups it updates; none where all that it holds is frozen.
        rates: Group to the factor on its learning rate, where that is not 1.
        over: Whether the schedule has run out.
    """

    epoch: int
    batch: int
    optimizer: int
    trained: frozenset[str]
    rates: Mapping[str, float] = field(default_factory=dict)
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
    held = plan.layout.optimizers
    logged = metrics or {}
    in_epoch, batch = done, 0
    while batches is None or batch < batches:
        plan.begin_window(at, at.epoch if epoch is None else max(epoch, at.epoch))
        for optimizer in order:
            trained = frozenset(g for g in plan.trains(at, optimizer) if optimizer in held.get(g, frozenset({0})))
            rates = plan.rates(at) if plan.rated else {}
            yield Step(at.epoch, batch, optimizer, trained, rates, plan.ran_out(at))
            plan.update(at, optimizer, trained)
        batch, in_epoch = batch + 1, in_epoch + 1
        if in_epoch >= (batches_per_epoch(at.epoch) if callable(batches_per_epoch) else batches_per_epoch):
            plan.hear(at, logged.get(at.epoch, {}))
            plan.end_epoch(at)
            in_epoch = 0
