"""The optimizer state of what is frozen, as holds: dropped, or moved to host memory until it trains again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.optimizer_state import FrozenState
from lightning_freeze.plan.membership import ParamSet, Split, Step


class _StateHold(Hold):
    """What both share: what is frozen is frozen again where an optimizer was given another state."""

    def __init__(self, state: FrozenState, optimizers: Sequence[Optimizer]) -> None:
        self._state = state
        self._optimizers = optimizers
        self._frozen = ParamSet()

    def attach(self) -> None:
        self._state.attach(self._optimizers)

    def before_forward(self) -> None:
        if self._state.needs_refreeze:
            self._state.needs_refreeze = False
            self._put_away(self._frozen)

    def freeze(self, params: ParamSet, split: Split) -> None:
        self._frozen = split.frozen
        self._put_away(params)

    def detach(self, bring_back: bool = True) -> None:
        self._state.detach(bring_back)
        self._frozen = ParamSet()

    def _put_away(self, params: ParamSet) -> None:
        self._state.freeze(params.held)


class ResetState(_StateHold):
    """Drops the state of what freezes, so that it begins again when it trains, as in BAdam (arXiv 2404.02827).

    Args:
        optimizers: The run's optimizers.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(FrozenState("reset"), optimizers)


class OffloadState(_StateHold):
    """Moves the state of what freezes to host memory, and back when it thaws.

    Args:
        optimizers: The run's optimizers.
        soon: Gives the groups that train again within a few updates, whose state stays where it is.
        state: What moves it; by default what moves tensors on an accelerator.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        soon: Callable[[], frozenset[str]] = frozenset,
        state: FrozenState | None = None,
    ) -> None:
        super().__init__(state or FrozenState("offload"), optimizers)
        self._soon = soon

    def offloaded(self, parameter: Tensor) -> bool:
        """Whether state of a parameter is in host memory now."""
        return self._state.away(parameter)

    def synchronize(self) -> None:
        """Let the device wait for what comes back."""
        self._state.wait_for_prefetch()

    def copy_stream(self) -> AbstractContextManager[Any]:
        """A context in which the device's work comes after what comes back, beside the step's own."""
        return self._state.on_copy_stream()

    def bring(self, params: ParamSet) -> None:
        """Bring the state of some parameters back for a while."""
        self._state.thaw(params.held)
        self._state.wait_for_prefetch()

    def send(self, params: ParamSet) -> None:
        """Move it to host memory again."""
        self._state.freeze(params.held)

    def thaw(self, params: ParamSet, split: Split) -> None:
        self._state.thaw(params.held)

    def before_clipping(self, step: Step, clipped: bool) -> None:
        self.synchronize()  # what comes next may look at it

    def before_step(self, step: Step) -> None:
        self.synchronize()

    def _put_away(self, params: ParamSet) -> None:
        super()._put_away(params.without(self._soon()))
