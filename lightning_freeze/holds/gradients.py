"""Gradients of frozen parameters set to None: after backward, before clipping, and right before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import Step


def set_to_none(step: Step) -> None:
    """Set the gradients of what an optimizer holds and does not train to None."""
    for parameter in step.frozen:
        parameter.grad = None


def _set_exposed_to_none(step: Step) -> None:
    """The same of what its step will come to."""
    for parameter in step.exposed:
        parameter.grad = None


class SetGradsToNone(Hold):
    """Sets frozen gradients to None.

    After backward, so that an infinity in one does not let a GradScaler skip the step of what trains; before clipping,
    so that none counts into the norm; and right before the step.

    Args:
        skipping: Whether backward makes no frozen gradients now. Then, before a step that is not clipped, one parameter of
            each group shows whether something else made them.
    """

    def __init__(self, skipping: Callable[[], bool] = lambda: False) -> None:
        self._skipping = skipping

    def after_backward(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.trainable:  # a scaler fails for an optimizer that has no gradient at all
                set_to_none(step)

    def before_clipping(self, step: Step, clipped: bool) -> None:
        if clipped or not self._skipping():
            return set_to_none(step)
        for parameter in step.samples:
            if parameter.grad is not None:
                return set_to_none(step)
        return None

    step_begins = staticmethod(set_to_none)
    before_step = staticmethod(_set_exposed_to_none)
