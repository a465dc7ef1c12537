"""Gradients of frozen parameters set to None: after backward, before clipping, and right before the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.nn import Parameter

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import Step


def set_to_none(step: Step) -> None:
    """Set the gradients of what an optimizer holds and does not train to None."""
    for parameter in step.frozen:
        parameter.grad = None


def _have_gradients(parameters: Sequence[Parameter]) -> bool:
    for parameter in parameters:  # noqa: SIM110 - a generator takes three times as long
        if parameter.grad is not None:
            return True
    return False


def _before_step(step: Step) -> None:
    if not step.hides or _have_gradients(step.samples):
        return set_to_none(step)
    for parameter in step.exposed:
        parameter.grad = None
    return None


class SetGradsToNone(Hold):
    """Sets frozen gradients to None.

    After backward, so that an infinity in one does not let a GradScaler skip the step of what trains; before clipping,
    so that none counts into the norm; and right before the step.

    Args:
        skipping: Whether backward makes no frozen gradients now. Then, before a step that is not clipped, the samples of
            `Step` show whether something else made them; so they do right before a step that hides what is frozen.
    """

    def __init__(self, skipping: Callable[[], bool] = lambda: False) -> None:
        self._skipping = skipping

    def after_backward(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if step.trainable:  # a scaler fails for an optimizer that has no gradient at all
                set_to_none(step)

    def before_clipping(self, step: Step, clipped: bool) -> None:
        if clipped or not self._skipping() or _have_gradients(step.samples):
            set_to_none(step)

    step_begins = staticmethod(set_to_none)
    before_step = staticmethod(_before_step)
