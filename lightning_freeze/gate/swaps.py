"""Optimizers that exchange weights for averages between training and evaluation, and back: without a trace in what is frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.gate.gate import Lane


class Swaps:
    """Lets the ``eval()`` and ``train()`` of schedule-free optimizers leave what is frozen as it was.

    ``eval()`` sets every weight to an average and ``train()`` reckons back (arXiv 2405.15682), frozen or not; what comes
    back is rounded. So the bits of what is frozen are kept from the one to the other. In between, a frozen weight is the
    average, as such an optimizer's user expects; the audit compares what was kept.

    The methods are replaced on the class, since Lightning's wrapper calls them there, and only for the optimizers given.

    Args:
        lanes: The optimizers and what is frozen of them.
    """

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = [lane for lane in lanes if swaps(lane.optimizer)]
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by lane: a parameter and its bits
        self._replaced: list[tuple[type, str, Any, Any]] = []

    def attach(self) -> None:
        """From here on bits are kept."""
        kinds = {kind: None for lane in self._lanes for kind in type(lane.optimizer).__mro__}
        for kind in kinds:
            for name, around in (("eval", self._eval), ("train", self._train)):
                method = vars(kind).get(name)
                if callable(method) and issubclass(kind, Optimizer):
                    replacement = self._around(method, around)
                    self._replaced.append((kind, name, method, replacement))
                    setattr(kind, name, replacement)

    def detach(self) -> None:
        """Give the classes their own methods back. Safe to call again."""
        while self._replaced:
            kind, name, method, replacement = self._replaced.pop()
            if vars(kind).get(name) is replacement:
                setattr(kind, name, method)
        self._kept.clear()

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """A context in which what is frozen has the bits with which it trains, also between ``eval()`` and ``train()``."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for lane, pairs in self._kept.items():
            now = [(parameter, parameter.detach().clone()) for parameter, _ in pairs]
            for parameter, bits in pairs:
                parameter.copy_(bits)
            self._kept[lane] = now

    def _around(
        self, method: Callable[..., Any], around: Callable[[Lane, Callable[[], Any]], Any]
    ) -> Callable[..., Any]:
        @functools.wraps(method)
        def replacement(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            call = functools.partial(method, optimizer, *args, **kwargs)
            # Lightning's wrapper of an optimizer shares its param groups.
            mine = [lane for lane in self._lanes if lane.optimizer.param_groups is optimizer.param_groups]
            return around(mine[0], call) if mine else call()

        return replacement

    def _eval(self, lane: Lane, call: Callable[[], Any]) -> Any:
        if lane.index not in self._kept:
            self._kept[lane.index] = [(p, p.detach().clone()) for p in lane.frozen]
        return call()

    @torch.no_grad()
    def _train(self, lane: Lane, call: Callable[[], Any]) -> Any:
        result = call()
        for parameter, bits in self._kept.pop(lane.index, ()):
            parameter.copy_(bits)
        return result


def swaps(optimizer: Optimizer) -> bool:
    """Whether an optimizer has a mode for training and one for evaluation."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))
