"""Optimizers that exchange weights for averages in evaluation, without a trace in what is frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.patch import Patch
from lightning_freeze.plan.membership import Step


class ScheduleFreeGuard(Hold):
    """Lets the ``eval()`` and ``train()`` of schedule-free optimizers leave what is frozen as it was.

    ``eval()`` sets every weight to an average, frozen or not, and ``train()`` computes it back (arXiv 2405.15682), rounded.
    So the bits of what is frozen are kept from the one to the other. In between, a frozen weight is the average, as the
    optimizer's user expects; the audit compares what was kept.

    The methods are replaced on the class, where Lightning's wrapper calls them, and act for the given optimizers alone.

    Args:
        steps: The optimizers.
        frozen: Gives the identities of what is frozen now, by the last step's set or by the coming one's.
    """

    def __init__(self, steps: Sequence[Step], frozen: Callable[[], Collection[int]]) -> None:
        self._frozen = frozen
        self.steps = [s for s in steps if all(callable(getattr(s.optimizer, name, None)) for name in _METHODS)]
        """Those of the optimizers that exchange weights."""
        self._undo: list[Callable[[], None]] = []
        # By step: what was frozen at `eval()`, and each parameter with its bits.
        self._kept: dict[int, tuple[frozenset[int], list[tuple[Tensor, Tensor]]]] = {}

    def attach(self) -> None:
        for kind in {kind: None for step in self.steps for kind in type(step.optimizer).__mro__}:
            for name in _METHODS:
                if issubclass(kind, Optimizer) and callable(vars(kind).get(name)):
                    self._undo.append(Patch.of(kind, name, functools.partial(_guarded, name)).add(self))

    def detach(self, bring_back: bool = True) -> None:
        self._kept.clear()
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def training_weights(self) -> Iterator[None]:
        """A context in which what is frozen has its training weights, also between ``eval()`` and ``train()``."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for index, (frozen, pairs) in self._kept.items():
            now = [(parameter, parameter.detach().clone()) for parameter, _ in pairs]
            for parameter, bits in pairs:
                parameter.copy_(bits)
            self._kept[index] = frozen, now

    def eval(self, step: Step, call: Callable[[], Any]) -> Any:
        """Exchange weights for averages, and keep the bits of all, since more may freeze until `train`."""
        if step.index not in self._kept:
            held = [p for parameters in step.members.values() for p in parameters]
            self._kept[step.index] = frozenset(self._frozen()), [(p, p.detach().clone()) for p in held]
        return call()

    @torch.no_grad()
    def train(self, step: Step, call: Callable[[], Any]) -> Any:
        """Exchange averages for weights, and restore the bits of what is frozen, or was at `eval`."""
        result = call()
        frozen, pairs = self._kept.pop(step.index, (frozenset(), []))
        frozen = frozen.union(self._frozen())
        for parameter, bits in pairs:
            if id(parameter) in frozen:
                parameter.copy_(bits)
        return result


_METHODS = ("eval", "train")


def _guarded(
    name: str, method: Callable[..., Any], users: Callable[[], Iterator[ScheduleFreeGuard]]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def replacement(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(method, optimizer, *args, **kwargs)
        for guard in users():
            for step in guard.steps:
                if step.optimizer.param_groups is optimizer.param_groups:  # which Lightning's wrapper shares
                    return getattr(guard, name)(step, call)
        return call()

    return replacement
