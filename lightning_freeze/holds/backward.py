"""Leaving out the backward work of what is frozen: where that is safe, and doing it.

A parameter with ``requires_grad=False`` gets no gradient, and autograd keeps nothing for it in forward and computes
nothing for it in backward. Unlike a gradient of None that is visible outside: to DistributedDataParallel's reducer, to
compiled code, to checkpointing. Here is what each of them asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class BackwardSkip:
    """Turns ``requires_grad`` off for what is frozen, and on again; the gradients of what freezes are given up.

    Args:
        reducer: A DistributedDataParallel whose reducer must hear of every parameter in each backward that synchronises.
        plain_attention: Whether attention's fast path is off meanwhile. In eval mode `torch.nn.MultiheadAttention` takes it
            where nothing requires a gradient, and it rounds otherwise.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> skip = BackwardSkip()
        >>> skip.freeze([layer.bias])
        >>> layer.weight.requires_grad, layer.bias.requires_grad
        (True, False)
        >>> skip.release()
        >>> layer.bias.requires_grad
        True
    """

    def __init__(self, reducer: DistributedDataParallel | None = None, plain_attention: bool = False) -> None:
        self._reducer: Any = reducer
        self._held: dict[int, nn.Parameter] = {}
        self._plain_attention = plain_attention
        self._fast_attention = True
        self._told = False

    @property
    def holds(self) -> bool:
        """Whether anything is held now."""
        return bool(self._held)

    @property
    def tells(self) -> bool:
        """Whether `tell` has something to do after a backward."""
        return self._reducer is not None

    def insist(self) -> None:
        """Before an optimizer's step: the reducer must have been told.

        Raises:
            RuntimeError: It was not, since the last time.
        """
        if self._held and self._reducer is not None and not self._told:
            raise RuntimeError(
                "`after_backward()` was not called between a backward and this step. Under DDP without "
                "find_unused_parameters, frozen groups are told to the reducer there, without which gradients are not "
                "averaged. Call it after each backward, or set `skip_backward=False`, or build DDP with "
                "find_unused_parameters=True."
            )
        self._told = False

    def freeze(self, parameters: Iterable[nn.Parameter]) -> None:
        """These get no gradients from here on; what is the user's own to freeze is left alone."""
        before = bool(self._held)
        for parameter in parameters:
            if parameter.requires_grad:
                self._held[id(parameter)] = parameter
                parameter.requires_grad = False  # not requires_grad_(), which lazy parameters refuse
                parameter.grad = None
        if self._held and not before and self._plain_attention:
            self._fast_attention = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)

    def thaw(self, parameters: Iterable[nn.Parameter]) -> None:
        """These get their gradients again."""
        for parameter in parameters:
            if self._held.pop(id(parameter), None) is not None:
                parameter.requires_grad = True
                if not self._held and self._plain_attention:
                    torch.backends.mha.set_fastpath_enabled(self._fast_attention)

    def release(self) -> None:
        """Everything gets its gradients again."""
        self.thaw(list(self._held.values()))

    def tell(self) -> None:
        """After a backward: let the reducer hear of the frozen parameters, too, by gradients of zero.

        Without it plain DDP raises in the next forward, which finds parameters that it still waits for, or, where there is
        no next one, leaves the ranks with gradients that were never averaged.
        """
        self._told = True
        # Within an accumulation nothing is averaged, and the reducer does not listen.
        if not self._held or not self._reducer.require_backward_grad_sync:
            return
        frozen = list(self._held.values())
        zeros: list[Tensor] = [parameter.new_zeros(()).expand_as(parameter) for parameter in frozen]
        for parameter in frozen:
            parameter.requires_grad_(True)
        torch.autograd.backward(frozen, zeros)
        for parameter in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
