"""Reentrant checkpointing above a frozen bottom: its segments find no input that requires a gradient, and give none.

``torch.utils.checkpoint(…, use_reentrant=True)`` is one autograd function of its inputs alone; it does not see the
parameters within. Where none of the inputs requires a gradient, the layers within get none, whatever trains there
(torch's documentation of `torch.utils.checkpoint.checkpoint` names this limitation). With the bottom of a model frozen
by ``requires_grad=False``, that is every segment above it.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from lightning_freeze.holds.hold import Hold


class ReentrantInputs(Hold):
    """While attached, gives a reentrant segment with something to train an input that requires a gradient.

    That is a detached copy of the input, without its bytes being copied, so the gradient ends there, as it would have in
    the frozen layers below. A segment that is frozen as a whole, below everything that trains, is run as it is.

    Args:
        active: Whether anything is held now.
        say: Called once, with what was found.
        said: What is said once, and was.

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

    def __init__(self, active: Callable[[], bool], say: Callable[[str], None], said: set[str] | None = None) -> None:
        self._active = active
        self._say = say
        self._said = set() if said is None else said

    @property
    def active(self) -> bool:
        """Whether anything is held now."""
        return self._active()

    def attach(self) -> None:
        """From here on, look at each reentrant segment. Safe to call again."""
        _PATCH.add(self)

    def detach(self, bring_back: bool = True) -> None:
        """Look no longer. Safe to call again."""
        _PATCH.discard(self)

    def run(self, original: Callable[..., Any], function: Callable[..., Any], preserve: bool, *inputs: Any) -> Any:
        """Run a segment of whose inputs none requires a gradient.

        Args:
            original: What checkpoints it.
            function: The segment.
            preserve: Whether the state of the random number generators is kept for backward.
            inputs: The inputs.
        """
        module = _module_of(function)
        if module is not None and not any(parameter.requires_grad for parameter in module.parameters()):
            return function(
                *inputs
            )  # nothing is kept for backward, unless it reaches something outside that does train
        return original(function, preserve, *self._with_a_gradient(function, inputs))

    def _with_a_gradient(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs, of which the largest with fractions requires a gradient: one is enough for those of the parameters.

        Not the others, which may be masks: attention takes other kernels for a mask that requires a gradient.
        """
        floating = [n for n, each in enumerate(inputs) if isinstance(each, Tensor) and each.is_floating_point()]
        largest = max(floating, key=lambda number: inputs[number].numel(), default=None)
        if "reentrant" not in self._said:
            self._said.add("reentrant")
            self._say(
                f"freeze: reentrant checkpointing ({getattr(function, '__qualname__', type(function).__qualname__)}) above "
                "frozen layers would give what trains there no gradient; "
                + (
                    "its input is made to require one. With `use_reentrant=False` there is nothing to mend."
                    if largest is not None
                    else "it has no floating-point input that could be made to require one, so use `use_reentrant=False`, "
                    "or `skip_backward: false`."
                )
            )
        if largest is None:
            return inputs
        return (*inputs[:largest], inputs[largest].detach().requires_grad_(), *inputs[largest + 1 :])


class _Patch:
    """The replacement of ``CheckpointFunction.apply``: one for the process, in place while anybody uses it.

    Users are held weakly, so that one that is never detached ends with its run. Where somebody else has put something over
    ours, that stays; ours then passes calls on, and is removed once it lies on top again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a user may be collected while it is held
        self._users: tuple[weakref.ref[ReentrantInputs], ...] = ()  # the last to come is asked first
        self._layers: list[tuple[Any, Any]] = []  # what was there before, and what was put there

    def add(self, user: ReentrantInputs) -> None:
        with self._lock:
            self._users = (weakref.ref(user, self._forget), *self._others(user))
            if not self._on_top():
                self._install()

    def discard(self, user: ReentrantInputs | None) -> None:
        with self._lock:
            self._users = self._others(user)
            while not self._users and self._on_top():
                before, _ = self._layers.pop()
                if before is _INHERITED:
                    del CheckpointFunction.apply
                else:
                    CheckpointFunction.apply = before  # type: ignore[method-assign]

    def _forget(self, gone: object) -> None:
        self.discard(None)

    def _others(self, user: ReentrantInputs | None) -> tuple[weakref.ref[ReentrantInputs], ...]:
        return tuple(each for each in self._users if each() not in (None, user))

    def _on_top(self) -> bool:
        return bool(self._layers) and CheckpointFunction.apply is self._layers[-1][1]

    def _install(self) -> None:
        original: Any = CheckpointFunction.apply

        def apply(function: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
            if torch.is_grad_enabled() and not any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
                for user in (each() for each in self._users):
                    if user is not None and user.active:
                        return user.run(original, function, preserve_rng_state, *inputs)
            return original(function, preserve_rng_state, *inputs)

        self._layers.append((vars(CheckpointFunction).get("apply", _INHERITED), apply))
        CheckpointFunction.apply = staticmethod(apply)  # type: ignore[method-assign]


_INHERITED: Any = object()
_PATCH = _Patch()


def _module_of(function: object) -> nn.Module | None:
    """The module that a checkpointed function is, or whose method it is, where that says all that it can reach."""
    if isinstance(function, functools.partial):
        given = (*function.args, *function.keywords.values())
        more = any(isinstance(e, nn.Module) or (isinstance(e, Tensor) and e.requires_grad) for e in given)
        return None if more else _module_of(function.func)
    found = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return found if isinstance(found, nn.Module) else None
