"""What a plan will do, before it runs: the same code as the run, over imagined steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lightning_freeze.plan.schedule import Plan, Position


@dataclass(frozen=True)
class Step:
    """One optimizer step of a preview.

    Args:
        epoch: The epoch it falls in, from 0.
        batch: The batch it falls in, counted over the run from 0.
        optimizer: The optimizer that steps.
        trained: The groups it updates.
    """

    epoch: int
    batch: int
    optimizer: int
    trained: frozenset[str]


def preview(
    plan: Plan, batches: int, batches_per_epoch: int, order: Sequence[int] = (0,), start: Position | None = None
) -> Iterator[Step]:
    """The optimizer steps that a run would make, if every group had a gradient at each of them.

    Args:
        plan: A schedule bound to its groups.
        batches: Optimizer windows to imagine (a window is one batch, or one accumulation of several).
        batches_per_epoch: Windows in an epoch.
        order: The optimizers in the order in which each window steps them.
        start: Where to begin; by default at the plan's start.

    Example:
        >>> from lightning_freeze import Every
        >>> from lightning_freeze.plan.schedule import Layout
        >>> plan = Every({"slow": 3}, of="fast").bind(Layout(("slow", "fast")))
        >>> ["slow" in step.trained for step in preview(plan, batches=4, batches_per_epoch=4)]
        [True, False, False, True]
    """
    at = plan.start() if start is None else start.copy()
    held = plan.layout.optimizers
    for batch in range(batches):
        plan.begin_window(at, at.epoch)
        for optimizer in order:
            trained = frozenset(g for g in plan.trains(at, optimizer) if optimizer in held.get(g, frozenset({0})))
            yield Step(at.epoch, batch, optimizer, trained)
            plan.update(at, optimizer, trained)
        if (batch + 1) % batches_per_epoch == 0:
            plan.end_epoch(at)
