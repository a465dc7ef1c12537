"""The protocol that everything speaks which keeps frozen parameters as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from lightning_freeze.plan.membership import Membership, ParamSet, Split, Step


class Hold:
    """One thing that freezing takes; every method does nothing.

    A run calls them in a fixed order, down the list of its holds; those marked (R) up the list.
    """

    def attach(self) -> None:
        """The run is set up: hook into it."""

    def begin(self) -> None:
        """Everything is restored; may come twice."""

    def rebind(self, members: Membership) -> None:
        """Optimizers hold other parameters; everything was thawed just before, and freezes again after."""

    def detach(self, bring_back: bool = True) -> None:
        """(R) Undo everything; idempotent. Each is tried, whatever another raises.

        Args:
            bring_back: Whether state that was moved comes back: a Trainer takes it to the host anyway as it ends.
        """

    # --- what trains

    def decided(self, split: Split) -> None:
        """What is to train is known: right after the step that ended a set, or as a batch begins."""

    def thaw(self, params: ParamSet, split: Split) -> None:
        """(R) These train from here on; always before `freeze`."""

    def freeze(self, params: ParamSet, split: Split) -> None:
        """These are frozen from here on; also called when nothing freezes."""

    # --- a batch

    def before_forward(self) -> None:
        """Hold again what a pause has released, and what a load or a call of ``train()`` has undone."""

    def before_backward(self, loss: Tensor) -> None:
        """A loss is about to be derived."""

    def after_backward(self, steps: Sequence[Step]) -> None:
        """A backward has ended."""

    def pause(self) -> None:
        """Validation, or an epoch's end: release what would be seen, until the next `before_forward`."""

    def explain(self, error: BaseException) -> None:
        """Add a note to an error that comes from this hold."""

    # --- a step of one optimizer

    def before_clipping(self, step: Step, clipped: bool) -> None:
        """Gradients are whole, and clipping may follow."""

    def step_begins(self, step: Step) -> None:
        """Before a step whose optimizer acts before it calls its closure."""

    def restore(self, step: Step) -> None:
        """(R) Param groups as their owner made them; idempotent."""

    def before_step(self, step: Step) -> None:
        """The last moment before the step; ``step.updated`` is known."""

    def after_step(self, step: Step) -> None:
        """(R) The step has run, neither skipped nor raised; gradients are still there."""


_REVERSED = frozenset({"detach", "thaw", "restore", "after_step"})
_VERBS = [name for name, value in vars(Hold).items() if callable(value) and not name.startswith("_")]


class Holds(Hold):
    """Holds in their order, as one: each verb calls those that do something.

    Args:
        holds: The holds, in the order in which they freeze.

    Example:
        >>> class Says(Hold):
        ...     def pause(self):
        ...         print("paused")
        >>> Holds([Says(), Hold(), Says()]).pause()
        paused
        paused
    """

    def __init__(self, holds: Iterable[Hold]) -> None:
        self.holds = tuple(holds)
        for verb in _VERBS:
            bound = [getattr(hold, verb) for hold in self.holds if _does_something(hold, verb)]
            if verb in _REVERSED:
                bound.reverse()
            setattr(self, verb, _each_tried(bound) if verb == "detach" else _in_turn(bound))


def _does_something(hold: Hold, verb: str) -> bool:
    return verb in vars(hold) or getattr(type(hold), verb) is not getattr(Hold, verb)


def _nothing(*arguments: Any) -> None:
    pass


def _in_turn(calls: list[Callable[..., None]]) -> Callable[..., None]:
    if not calls:
        return _nothing
    if len(calls) == 1:
        return calls[0]
    if len(calls) == 2:
        return _two(*calls)

    def run(*arguments: Any) -> None:
        for call in calls:
            call(*arguments)

    return run


def _two(first: Callable[..., None], second: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        first(*arguments)
        second(*arguments)

    return run


def _each_tried(calls: list[Callable[..., None]]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        errors = []
        for call in calls:
            try:
                call(*arguments)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    return run
