"""The protocol of everything that keeps frozen parameters as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from lightning_freeze.plan.membership import Membership, ParamSet, Split, Step


class Hold:
    """One thing that freezing takes; every verb does nothing, and runs down the list of holds, or up where marked (R).

    A constructor takes what a hold must know of the run. Refusals are functions of `probe/refusals.py`, since most concern an
    optimizer under several holds.
    """

    def attach(self) -> None:
        """The run is set up: hook into it."""

    def begin(self) -> None:
        """Training begins, with everything restored; may come twice."""

    def rebind(self, members: Membership) -> None:
        """Optimizers hold other parameters; everything was thawed before, and freezes again after."""

    def detach(self, bring_back: bool = True) -> None:
        """(R) Undo everything; idempotent. Each is tried, whatever another raises.

        Args:
            bring_back: Whether offloaded state comes back: a Trainer moves it to the host anyway as it ends.
        """

    # --- what trains

    def decided(self, split: Split) -> None:
        """What is to train is known: right after the step that ended a set, or when a batch begins."""

    def replaced(self, pairs: Sequence[tuple[str, Parameter, Parameter]]) -> None:
        """Names have other parameters, each with the one before; everything is thawed next, and `rebind` follows."""

    def thaw(self, params: ParamSet, split: Split) -> None:
        """(R) These train from here on; always before `freeze`."""

    def freeze(self, params: ParamSet, split: Split) -> None:
        """These are frozen from here on; also called when nothing freezes."""

    # --- a batch

    def before_forward(self) -> None:
        """Hold again what a pause released, or a load or ``train()`` undid."""

    def before_backward(self, loss: Tensor) -> None:
        """Backward begins from a loss."""

    def after_backward(self, steps: Sequence[Step]) -> None:
        """Backward has ended."""

    def pause(self) -> None:
        """Validation, or an epoch's end: release what would be seen, until `before_forward`."""

    def explain(self, error: BaseException) -> None:
        """Add a note to an error that comes from this hold."""

    # --- a step of one optimizer

    def before_clipping(self, step: Step, clipped: bool) -> None:
        """Gradients are complete, and clipping may follow."""

    def step_begins(self, step: Step) -> None:
        """Before a step whose optimizer acts before it calls its closure."""

    def restore(self, step: Step) -> None:
        """(R) Param groups become those that their owner made; idempotent."""

    def before_step(self, step: Step) -> None:
        """The last moment before the step; ``step.updated`` is known."""

    def after_step(self, step: Step) -> None:
        """(R) The step has run, neither skipped nor raised; gradients are still there."""


_REVERSED = frozenset({"thaw", "restore", "after_step"})  # and `detach`, by `each_tried`
_VERBS = [name for name, value in vars(Hold).items() if callable(value) and not name.startswith("_")]


class Holds(Hold):
    """Holds, in the order in which they freeze, as one: each verb calls those that override it."""

    def __init__(self, holds: Iterable[Hold]) -> None:
        holds = tuple(holds)
        for verb in _VERBS:
            calls = [getattr(hold, verb) for hold in holds if _overrides(hold, verb)]
            if verb in _REVERSED:
                calls.reverse()
            setattr(self, verb, each_tried(calls) if verb == "detach" else _in_turn(calls))


def nothing(*_: object) -> None:
    """What a verb is that no hold overrides."""


def _overrides(hold: Hold, verb: str) -> bool:
    return verb in vars(hold) or getattr(type(hold), verb) is not getattr(Hold, verb)


def _in_turn(calls: list[Callable[..., None]]) -> Callable[..., None]:
    if len(calls) < 2:  # verbs of a step are called often, and most do nothing or one thing
        return calls[0] if calls else nothing

    def run(*arguments: Any) -> None:
        for call in calls:
            call(*arguments)

    return run


def each_tried(calls: Sequence[Callable[..., object]]) -> Callable[..., None]:
    """Calls all, the last first, whatever another raises."""

    def run(*arguments: Any) -> None:
        with ExitStack() as stack:
            for call in calls:
                stack.callback(call, *arguments)

    return run
