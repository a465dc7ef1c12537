"""Refusals before training starts, of what nothing could hold still."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.errors import UnsupportedError
from lightning_freeze.holds.optimizer_state import OptimizerState
from lightning_freeze.plan.membership import held_by
from lightning_freeze.probe.clone import family
from lightning_freeze.probe.state_reset import begins_anew


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


def refuse_state(mode: OptimizerState, optimizers: Iterable[Optimizer], scheduled: Iterable[Tensor]) -> None:
    """Refuse what cannot be done with the state of what is frozen.

    Args:
        mode: What is to be done.
        optimizers: The run's optimizers.
        scheduled: The parameters that are frozen at times.

    Raises:
        UnsupportedError: ``reset`` with an optimizer that cannot begin anew for a parameter; ``offload`` of sharded
            parameters; either with an optimizer that wraps another, or runs no hooks of torch's when its state is saved.
    """
    if mode == "keep":
        return
    wanted = {id(parameter): parameter for parameter in scheduled}
    if mode == "offload" and any(hasattr(parameter, "to_local") for parameter in wanted.values()):
        raise UnsupportedError(
            "`optimizer_state` is 'offload', and parameters are sharded over processes (DTensor): their state is not "
            "moved yet. Use `optimizer_state: keep` or `reset`, or FSDP2's own CPUOffloadPolicy."
        )
    for index, optimizer in enumerate(optimizers):
        wraps = len({id(member.state) for member in family(optimizer)}) > 1
        if (wraps or not hasattr(optimizer, "_optimizer_state_dict_pre_hooks")) and not wanted.keys().isdisjoint(
            held_by(optimizer)
        ):
            reason = "wraps another, so that state is in two places" if wraps else "runs no hooks when it is saved"
            raise UnsupportedError(
                f"`optimizer_state` is {mode!r}, and optimizer {index} ({type(optimizer).__qualname__}) {reason}. Use "
                "`optimizer_state: keep`."
            )
        for group in optimizer.param_groups:
            held = [parameter for parameter in group["params"] if id(parameter) in wanted]
            if mode == "reset" and held and (why := begins_anew(optimizer, group)) is not None:
                raise UnsupportedError(
                    f"`optimizer_state` is 'reset', and optimizer {index} ({type(optimizer).__qualname__}) cannot begin anew "
                    f"for a parameter whose state was dropped: {why}. Use `optimizer_state: keep`."
                )
