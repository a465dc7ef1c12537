"""Refusals before training starts, of what nothing could hold still."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer


class UnsupportedError(RuntimeError):
    """Something under which frozen parameters cannot be held still; refused before training starts."""


def held_by(*optimizers: Optimizer) -> set[int]:
    """The identities of the parameters that these optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def refuse_optimizers(optimizers: Iterable[Optimizer], scheduled: Iterable[Tensor]) -> None:
    """Refuse optimizers of which it is known, without a probe, that they hold nothing still.

    Args:
        optimizers: The run's optimizers.
        scheduled: The parameters that will be frozen at times.

    Raises:
        UnsupportedError: LBFGS, or what is no torch optimizer and has no step hooks, holds a scheduled parameter.
    """
    wanted = {id(parameter) for parameter in scheduled}
    for index, optimizer in enumerate(optimizers):
        if not hasattr(optimizer, "param_groups"):
            raise UnsupportedError(
                f"optimizer {index} ({type(optimizer).__qualname__}) has no `param_groups`, so what it holds is not known. Let "
                "its class inherit from torch.optim.Optimizer, or hand over the optimizer that it wraps."
            )
        if wanted.isdisjoint(held_by(optimizer)):
            continue
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedError(
                f"optimizer {index} is LBFGS, which flattens all its parameters into one vector and steps along it, so "
                "it moves a parameter whose gradient is None. Use another optimizer for the groups that freeze (AdamW, "
                "SGD), or give LBFGS only parameters of `rest` with `rest: train`."
            )
        if not isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise UnsupportedError(
                f"optimizer {index} ({type(optimizer).__qualname__}) has no step hooks, so nothing can be held at the "
                "last moment before its step. Let its class inherit from torch.optim.Optimizer."
            )


def refuse_without_rate(optimizers: Iterable[Optimizer], rated: Iterable[Tensor]) -> None:
    """Refuse factors on learning rates where there is none, or none that could be multiplied for one step.

    Args:
        optimizers: The run's optimizers.
        rated: The parameters whose rate the schedule changes.

    Raises:
        UnsupportedError: A param group has no ``lr``, or none that is a number; LBFGS holds such a parameter.
    """
    wanted = {id(parameter) for parameter in rated}
    for index, optimizer in enumerate(optimizers):
        if wanted.isdisjoint(held_by(optimizer)):
            continue
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedError(
                f"the schedule sets learning rates (`lr` or `ramp`) of what optimizer {index} holds, which is LBFGS: it has "
                "one param group and reads its rate before anything can be changed. Take those groups out of `lr`."
            )
        for group in optimizer.param_groups:
            if not isinstance(group.get("lr"), (int, float, Tensor)):
                raise UnsupportedError(
                    f"the schedule sets learning rates (`lr` or `ramp`), and optimizer {index} "
                    f"({type(optimizer).__qualname__}) has `lr`: {group.get('lr')!r} in a param group, which is no number. "
                    "Give the optimizer a learning rate, or take `lr` and `ramp` out of the schedule."
                )


def refuse_idle(optimizer: Optimizer, index: int, why: str) -> None:
    """Refuse a fused optimizer that the schedule can leave without any gradient under a GradScaler.

    Raises:
        UnsupportedError: It is fused: torch's scaler then fails with "No inf checks were recorded".
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        raise UnsupportedError(
            f"optimizer {index} ({type(optimizer).__qualname__}) is fused and steps under a GradScaler, and {why}; with "
            'no gradient at all, torch\'s scaler fails in the middle of training ("No inf checks were recorded"). '
            "Use `fused=False`, precision 'bf16-mixed' (which needs no scaler), or a schedule in which one of its "
            "groups always trains."
        )


def refuse_strategy(strategy: object) -> None:
    """Refuse Lightning strategies that keep gradients where they cannot be emptied.

    Args:
        strategy: The trainer's strategy, of either Lightning package.

    Raises:
        UnsupportedError: DeepSpeed, or FSDP without original parameters.
    """
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if "DeepSpeedStrategy" in names:
        raise UnsupportedError(
            "the strategy is DeepSpeed, which keeps gradients of its own: neither an emptied gradient nor "
            "requires_grad=False holds a parameter still in ZeRO 1, 2 or 3. Use strategy='ddp', or FSDP2 through "
            "ModelParallelStrategy."
        )
    options = getattr(strategy, "kwargs", None) or getattr(strategy, "_fsdp_kwargs", None) or {}
    if "FSDPStrategy" in names and not options.get("use_orig_params", True):
        raise UnsupportedError(
            "the strategy is FSDP with use_orig_params=False, which shows only flattened parameters, so groups cannot "
            "be told apart. Use FSDPStrategy(use_orig_params=True), or FSDP2 through ModelParallelStrategy."
        )
