"""Gradients of frozen parameters set to None: before clipping, again at the last moment, and before a GradScaler looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import Step


def set_to_none(step: Step) -> None:
    """Set the gradients of what an optimizer holds and does not train to None."""
    for parameter in step.frozen:
        parameter.grad = None


class SetGradsToNone(Hold):
    """Before clipping, so that frozen gradients are not counted into the norm, and right before the step.

    Args:
        skipping: Whether backward makes no frozen gradients now; then one parameter of each group tells, before a step that
            is not clipped, whether somebody else did.
    """

    def __init__(self, skipping: Callable[[], bool] = lambda: False) -> None:
        self._skipping = skipping

    def before_clipping(self, step: Step, clipped: bool) -> None:
        if clipped or not self._skipping():
            return set_to_none(step)
        for parameter in step.samples:
            if parameter.grad is not None:
                return set_to_none(step)
        return None

    def step_begins(self, step: Step) -> None:
        set_to_none(step)

    def before_step(self, step: Step) -> None:
        set_to_none(step)


class EmptyBeforeScaler(Hold):
    """After each backward: an infinity in a frozen gradient must not skip the step of what trains.

    An optimizer that is frozen as a whole is left its gradients until its step, since a scaler fails that finds none.
    """

    def after_backward(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.trainable:
                set_to_none(step)
