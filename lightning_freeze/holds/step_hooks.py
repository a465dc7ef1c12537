"""Turns torch's step hooks into the moments of a step, and counts what truly ran."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from lightning_freeze.holds.hold import Hold, nothing
from lightning_freeze.holds.patch import Patch
from lightning_freeze.plan.membership import Step

_T = TypeVar("_T")


@torch._disable_dynamo  # type: ignore[attr-defined]
def _uncompiled(function: Callable[..., _T], *args: Any) -> _T:
    """Call a hook outside of the graph of a compiled step: what hooks count would need a graph for each step."""
    return function(*args)


def _only_initializes(optimizer: Optimizer) -> bool:
    """Whether a step makes an optimizer's first state and nothing else: no rate, no gradient, no state yet."""
    if optimizer.state or not all("lr" in group and float(group["lr"]) == 0 for group in optimizer.param_groups):
        return False
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return not any(bool((g.to_local() if hasattr(g, "to_local") else g).any()) for g in gradients)


def _let_run_hooks(optimizer: Optimizer, user: StepHooks) -> Callable[[], None]:
    """Let an optimizer whose constructor did not call torch's run step hooks; the result undoes it."""
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        hooks = getattr(optimizer, name, {})
        if type(hooks) is dict:  # none, or one that torch cannot take a hook out of again
            setattr(optimizer, name, OrderedDict(hooks))
    if getattr(type(optimizer).step, "hooked", False):
        return lambda: None
    # On the object: a class that runs hooks breaks those of its objects that have none.
    return Patch.of(optimizer, "step", partial(_running_hooks, optimizer)).add(user)


def _running_hooks(optimizer: Optimizer, inner: Any, users: Callable[[], Iterator[StepHooks]]) -> MethodType:
    hooked = Optimizer.profile_hook_step(lambda _, *args, **kwargs: inner(*args, **kwargs))

    def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        return hooked(self, *args, **kwargs) if any(users()) else inner(*args, **kwargs)

    vars(step).update(getattr(inner, "__dict__", {}))  # a learning-rate scheduler's
    return MethodType(step, optimizer)


class StepHooks:
    """Hooks into the steps of optimizers, and calls holds at their moments.

    The last moment comes right before a step; where the step has a closure, right after that, and the closure finds the
    param groups restored. ``step_begins`` comes first where the optimizer acts before its closure. The last moment is
    ``restore``, ``before_holds``, a note of which groups have a gradient, and ``before_step``. After a step that truly ran come
    ``after_step`` and ``ran``. torch runs no hook after a step that raised, so `restore` is to be called when a batch begins.

    Args:
        steps: The optimizers and what they hold.
        holds: What is called at the moments.
        before_holds: Called with a step at its last moment, before the holds are.
        ran: Called with a step after it ran.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        holds: Hold,
        before_holds: Callable[[Step], None] = lambda step: None,
        ran: Callable[[Step], None] = lambda step: None,
    ) -> None:
        self.steps = tuple(steps)
        self._by_optimizer = {id(step.optimizer): step for step in steps}
        self._holds = holds
        self._restore = None if holds.restore is nothing else holds.restore
        self._before_holds = before_holds
        self._ran = ran
        self._undo: list[Callable[[], None]] = []
        self.last_moment = True
        """Whether holds are called at the last moment; off only to prove that the audit sees."""

    def attach(self) -> None:
        """Hook into every optimizer. Safe to call again."""
        for step in self.steps if not self._undo else ():
            optimizer = step.optimizer
            self._undo.append(_let_run_hooks(optimizer, self))
            self._undo.append(optimizer.register_step_pre_hook(self._before).remove)
            if step.shortens:  # after a step that raised, its state can be saved at once
                self._undo.append(optimizer.register_state_dict_pre_hook(partial(self._saves, step)).remove)
            after = optimizer.register_step_post_hook(self._after)
            # Before hooks that were registered earlier, another run's included: the last to change restores first.
            optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)  # type: ignore[attr-defined]
            self._undo.append(after.remove)

    def detach(self) -> None:
        """Take every hook out again. Safe to call again."""
        while self._undo:
            self._undo.pop()()
        for step in self.steps:
            self.restore(step)

    def restore(self, step: Step) -> None:
        """Outside of any step: its param groups as their owner made them."""
        step.entered, step.depth = False, 0
        self._holds.restore(step)

    def _saves(self, step: Step, _: Optimizer) -> None:
        self.restore(step)

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.compiler.is_dynamo_compiling():
            return _uncompiled(StepHooks._before, self, optimizer, args, kwargs)
        step = self._by_optimizer[id(optimizer)]
        # torch hands its hooks the optimizer itself as the first of the arguments.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        step.initializes = "closure" in kwargs and closure is None and _only_initializes(optimizer)
        if step.initializes:
            return None
        step.entered = True
        if step.excludes:
            step.depth += 1
        if not callable(closure):
            self._last_moment(step)
            return None
        if step.excludes or step.reads_before_closure:  # it may act before it calls its closure, or call none
            step.attempted = True
            step.note()
            self._holds.step_begins(step)

        def held() -> Any:
            if self._restore is not None:
                self._restore(step)  # for whatever the closure does with the optimizer: a checkpoint, a param group
            depth, step.depth = step.depth, 0  # a step within the closure is one of its own
            result = closure()
            step.depth = depth
            self._last_moment(step)
            return result

        if "closure" in kwargs:
            return args, {**kwargs, "closure": held}
        return (args[0], held, *args[2:]), kwargs

    def _last_moment(self, step: Step) -> None:
        if torch.compiler.is_dynamo_compiling():  # where the step's closure is compiled with it
            return _uncompiled(StepHooks._last_moment, self, step)
        step.attempted = True
        if self._restore is not None:
            self._restore(step)  # where the step before failed, or this one is within another
        self._before_holds(step)
        step.note()
        if self.last_moment:
            # A hook of other code would see the lists, and save or change what it sees.
            step.hides = bool(step.shortened) and len(step.optimizer._optimizer_step_pre_hooks) == 1
            self._holds.before_step(step)

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_dynamo_compiling():
            return _uncompiled(StepHooks._after, self, optimizer, args, kwargs)
        step = self._by_optimizer[id(optimizer)]
        if step.initializes:
            return
        if step.depth > 1:  # within the step of a class that calls its parent's
            step.depth -= 1
        else:
            step.entered, step.depth = False, 0
            if self._restore is not None:
                self._restore(step)
        found_inf = getattr(optimizer, "found_inf", None)  # set by a GradScaler on fused optimizers alone
        if found_inf is None or float(found_inf) == 0:  # else the fused kernel has skipped the step by itself
            # A frozen gradient, set to None at the last moment, can only come from a hook that runs after ours or from the
            # step itself. Without such a hook, some parameters are enough to see it; a step that hides them has none.
            look_at_all = not self.last_moment or len(optimizer._optimizer_step_pre_hooks) > 1
            looked_at = () if step.hides else step.frozen if look_at_all else step.samples
            step.leaked, step.hides = (), False
            for parameter in looked_at:
                if parameter.grad is not None:
                    step.leaked = [parameter for parameter in looked_at if parameter.grad is not None]
                    break
            self._holds.after_step(step)
            self._ran(step)
        step.updated = frozenset()
