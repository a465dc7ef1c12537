"""Reentrant checkpointing above a frozen bottom: its segments find no input that requires a gradient, and give none.

``torch.utils.checkpoint(…, use_reentrant=True)`` is one autograd function of its inputs alone; it does not see the
parameters within. Where none of the inputs requires a gradient, the layers within get none, whatever trains there
(torch's documentation of `torch.utils.checkpoint.checkpoint` names this limitation). With the bottom of a model frozen
by ``requires_grad=False``, that is every segment above it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction


class ReentrantInputs:
    """While attached, gives a reentrant segment with something to train an input that requires a gradient.

    That is a detached copy of the input, without its bytes being copied, so the gradient ends there, as it would have in
    the frozen layers below. A segment that is frozen as a whole, below everything that trains, is run as it is.

    Args:
        active: Whether anything is held now.
        say: Called once, with what was found.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> x = torch.ones(1, 2)  # what a frozen bottom hands up
        >>> mend = ReentrantInputs(lambda: True, print)
        >>> mend.attach()
        >>> y = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)  # doctest: +ELLIPSIS
        freeze: reentrant checkpointing (Linear) above frozen layers ...
        >>> mend.detach()
        >>> y.sum().backward()
        >>> layer.weight.grad is None
        False
    """

    def __init__(self, active: Callable[[], bool], say: Callable[[str], None]) -> None:
        self._active = active
        self._say = say
        self._said = False
        self._mine: object = None

    def attach(self) -> None:
        """From here on, look at each reentrant segment."""
        original: Any = CheckpointFunction.apply

        def apply(function: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
            no_gradient = not any(isinstance(each, Tensor) and each.requires_grad for each in inputs)
            if not no_gradient or not self._active() or not torch.is_grad_enabled():
                return original(function, preserve_rng_state, *inputs)
            modules = list(_modules(function))
            if modules and not any(parameter.requires_grad for module in modules for parameter in module.parameters()):
                with torch.no_grad():
                    return function(*inputs)
            return original(function, preserve_rng_state, *self._mended(function, inputs))

        self._mine = apply
        CheckpointFunction.apply = staticmethod(apply)  # type: ignore[method-assign]

    def detach(self) -> None:
        """As it was, unless somebody else has put something in our place. Safe to call again."""
        if self._mine is not None and vars(CheckpointFunction).get("apply") is not None:
            if CheckpointFunction.apply is self._mine:
                del CheckpointFunction.apply
            self._mine = None

    def _mended(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        floating = [isinstance(each, Tensor) and each.is_floating_point() for each in inputs]
        if not self._said:
            self._said = True
            self._say(
                f"freeze: reentrant checkpointing ({getattr(function, '__qualname__', type(function).__qualname__)}) above "
                "frozen layers would give what trains there no gradient; "
                + (
                    "its inputs are made to require one. With `use_reentrant=False` there is nothing to mend."
                    if any(floating)
                    else "it has no floating-point input that could be made to require one, so use `use_reentrant=False`, "
                    "or `skip_backward: false`."
                )
            )
        return tuple(
            each.detach().requires_grad_() if mendable else each
            for each, mendable in zip(inputs, floating, strict=True)
        )


def _modules(function: object, depth: int = 3) -> Iterator[nn.Module]:
    """The modules that a checkpointed function can reach: itself, its object, what it closes over."""
    if isinstance(function, nn.Module):
        yield function
    elif depth and isinstance(function, functools.partial):
        for each in (function.func, *function.args, *function.keywords.values()):
            yield from _modules(each, depth - 1)
    elif depth and callable(function):
        cells = getattr(function, "__closure__", None) or ()
        held = [cell.cell_contents for cell in cells if _filled(cell)]
        for each in (getattr(function, "__self__", None), *held):
            for one in each if isinstance(each, (list, tuple)) else [each]:
                yield from _modules(one, depth - 1)


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # a name that is not yet bound
        return False
    return True
