"""Gradients of zero for DistributedDataParallel's reducer, which waits for every parameter, frozen ones included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.holds.hold import Hold
from lightning_freeze.plan.membership import Step


class ZeroGradsForDDP(Hold):
    """After a backward that synchronises, sends zero gradients for the parameters whose backward was skipped.

    Without them the next forward of plain DDP raises, since the reducer still waits, or, where there is no next one, the
    ranks keep gradients that were never averaged.

    Args:
        reducer: The DistributedDataParallel around the model.
        held: Gives the parameters whose backward is skipped now.
    """

    def __init__(self, reducer: DistributedDataParallel, held: Callable[[], list[nn.Parameter]]) -> None:
        self._reducer: Any = reducer
        self._held = held
        self._sent = False

    def after_backward(self, steps: Sequence[Step]) -> None:
        self._sent = True
        frozen = self._held()
        if not frozen or not self._reducer.require_backward_grad_sync:  # within an accumulation nothing is averaged
            return
        zeros: list[Tensor] = [parameter.new_zeros(()).expand_as(parameter) for parameter in frozen]
        for parameter in frozen:
            parameter.requires_grad_(True)
        torch.autograd.backward(frozen, zeros)
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None

    def before_step(self, step: Step) -> None:
        if not step.has_gradients:
            return
        if self._held() and not self._sent:
            raise RuntimeError(
                "`after_backward()` was not called between a backward and this step. Under DDP without "
                "find_unused_parameters it sends zero gradients for frozen groups, without which none are averaged. Call "
                "it after each backward, or set `skip_backward=False`, or build DDP with find_unused_parameters=True."
            )
        self._sent = False
