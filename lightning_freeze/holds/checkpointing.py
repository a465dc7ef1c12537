"""Reentrant checkpointing above a frozen bottom: its segments find no input that requires a gradient, and give none.

``torch.utils.checkpoint(…, use_reentrant=True)`` is one autograd function of its inputs alone. Where none of them requires
a gradient, the parameters within get none either, as the documentation of `torch.utils.checkpoint.checkpoint` says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.patch import Patch


class ReentrantInputs(Hold):
    """While attached, gives a reentrant segment with something to train an input that requires a gradient.

    That is a detached view of the input, so the gradient ends there, as in the frozen layers below. A segment that is
    frozen as a whole is run as it is.

    Args:
        active: Whether anything is held now.
        log: Called once, with what was found.
        logged: The keys of messages that were logged already.
    """

    def __init__(self, active: Callable[[], bool], log: Callable[[str], None], logged: set[str] | None = None) -> None:
        self.active = active
        self._log = log
        self._logged = set() if logged is None else logged
        self._patch = Patch.of(CheckpointFunction, "apply", _giving_inputs)

    def attach(self) -> None:
        self._patch.add(self)

    def detach(self, bring_back: bool = True) -> None:
        self._patch.discard(self)

    def run(self, original: Callable[..., Any], function: Callable[..., Any], preserve: bool, *inputs: Any) -> Any:
        """Run a segment, which ``original`` checkpoints, and none of whose inputs requires a gradient."""
        module = _module_of(function)
        if module is not None and not any(parameter.requires_grad for parameter in module.parameters()):
            return function(*inputs)  # keeps nothing for backward, unless it reaches something outside that does train
        # One input is enough, the largest: a mask that requires a gradient would send attention to other kernels.
        floating = [n for n, each in enumerate(inputs) if isinstance(each, Tensor) and each.is_floating_point()]
        largest = max(floating, key=lambda number: inputs[number].numel(), default=None)
        if "reentrant" not in self._logged:
            self._logged.add("reentrant")
            done = "its input is made to require one. With `use_reentrant=False` there is nothing to fix."
            cannot = (
                "it has no floating-point input to require one: use `use_reentrant=False`, or `skip_backward: false`."
            )
            self._log(
                f"freeze: reentrant checkpointing ({getattr(function, '__qualname__', type(function).__qualname__)}) above "
                f"frozen layers would give what trains there no gradient; {cannot if largest is None else done}"
            )
        if largest is not None:
            inputs = (*inputs[:largest], inputs[largest].detach().requires_grad_(), *inputs[largest + 1 :])
        return original(function, preserve, *inputs)


def _giving_inputs(original: Callable[..., Any], users: Callable[[], Iterator[ReentrantInputs]]) -> Any:
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
        if torch.is_grad_enabled() and not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            for user in users():
                if user.active():
                    return user.run(original, function, preserve_rng_state, *inputs)
        return original(function, preserve_rng_state, *inputs)

    return staticmethod(apply)


def _module_of(function: object) -> nn.Module | None:
    """The module that a checkpointed function is, or whose method it is, where that is all it can reach."""
    if isinstance(function, functools.partial):
        given = (*function.args, *function.keywords.values())
        more = any(isinstance(e, nn.Module) or (isinstance(e, Tensor) and e.requires_grad) for e in given)
        return None if more else _module_of(function.func)
    found = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return found if isinstance(found, nn.Module) else None
