"""What an optimizer does to a parameter whose gradient is None: the probe, and refusals of what cannot hold."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class UnsupportedError(RuntimeError):
    """Something under which frozen parameters cannot be held still; refused before training starts."""


@dataclass(frozen=True)
class OptimizerTraits:
    """What `probe_optimizer` learnt.

    Args:
        name: The optimizer's class.
        skips_none: Whether a parameter whose gradient is None keeps its value and its state through a step that updates
            another; None where the optimizer could not be built anew on the probe's parameters.
        why: Where it could not be probed: the reason.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> probe_optimizer(torch.optim.AdamW([weight])).skips_none
        True
    """

    name: str
    skips_none: bool | None
    why: str = ""


def probe_optimizer(optimizer: Optimizer) -> OptimizerTraits:
    """Run the optimizer's class, with its hyper-parameters, on two small parameters, of which one is then frozen.

    The optimizer itself, its parameters and the global random state are left as they are.

    Args:
        optimizer: Any `torch.optim.Optimizer`.

    Example:
        >>> lbfgs = probe_optimizer(torch.optim.LBFGS([torch.nn.Parameter(torch.ones(2))]))
        >>> lbfgs.skips_none, lbfgs.why  # its step asks for a closure, which the probe does not have
        (None, "TypeError: LBFGS.step() missing 1 required positional argument: 'closure'")
    """
    name = type(optimizer).__qualname__
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            return OptimizerTraits(name, all(_skips(optimizer, group) for group in optimizer.param_groups))
        except Exception as error:  # third-party code of any kind; what it raises is the answer
            return OptimizerTraits(name, None, f"{type(error).__name__}: {error}")


def _skips(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    moving, frozen = _two_like(group)
    twin = twin_of(optimizer, group, [moving, frozen])
    _step(twin, [moving, frozen])
    before = (frozen.detach().clone(), copy.deepcopy(twin.state.get(frozen)))
    frozen.grad = None
    _step(twin, [moving])
    return bool(torch.equal(before[0], frozen.detach())) and _same(before[1], twin.state.get(frozen))


def _two_like(group: Mapping[str, Any], dtype: torch.dtype | None = None) -> list[torch.nn.Parameter]:
    """Two small parameters with the number of dimensions, and by default the dtype, of a group's first."""
    like: Tensor = group["params"][0]
    shape = (2,) * min(like.dim(), 4)
    return [torch.nn.Parameter(torch.full(shape, value, dtype=dtype or like.dtype)) for value in (0.5, 0.75)]


def _step(twin: Optimizer, parameters: Sequence[torch.nn.Parameter], times: int = 3) -> None:
    """Steps in which these have a gradient."""
    for _ in range(times):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.25)
        twin.step()


def begins_anew(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Why an optimizer cannot begin anew for a parameter whose state was dropped, or None where it can, or cannot be asked.

    Its first update after that must be the one that a new optimizer makes: one whose clock is the param group's (as some
    130 of 177 third-party optimizers have it) takes the parameter for an old one. Asked of optimizers made by the class's
    own constructor, since some make their state there.

    Args:
        optimizer: Left as it is, as is the global random state.
        group: One of its parameter groups.
    """
    kind: Any = type(optimizer)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            options = {name: value for name, value in _options(group).items() if name in signature(kind).parameters}
            if isinstance(options.get("lr"), (int, float)):
                options["lr"] = 0.01  # a warm-up may begin at 0, at which nothing could be seen
            (one, other), (new, like) = _two_like(group, torch.float32), _two_like(group, torch.float32)
            twin, fresh = kind([one, other], **options), kind([new, like], **options)
            _step(twin, [one, other])
        except Exception:  # third-party code of any kind; where it cannot be run, nothing is known
            return None
        twin.state.pop(other, None)
        with torch.no_grad():
            one.copy_(new)
            other.copy_(like)
        try:
            for optimizer_, parameters in ((twin, (one, other)), (fresh, (new, like))):
                torch.default_generator.manual_seed(0)  # for one that draws: both draw the same
                _step(optimizer_, parameters, 1)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    begun = _two_like(group, torch.float32)[1]
    if torch.allclose(other - begun, like - begun, rtol=0.01, atol=0.0):
        return None
    return (
        "its first update is not that of a new optimizer, so it keeps a clock or an average for the whole param group"
    )


def twin_of(optimizer: Optimizer, group: Mapping[str, Any], parameters: Sequence[torch.nn.Parameter]) -> Optimizer:
    """The optimizer's class once more, with a group's hyper-parameters, over parameters of the caller's own.

    Args:
        optimizer: Left as it is.
        group: One of its parameter groups.
        parameters: What the twin holds instead of the group's parameters.
    """
    twin = type(optimizer).__new__(type(optimizer))
    Optimizer.__init__(twin, [{**_options(group), "params": list(parameters)}], dict(optimizer.defaults))
    for key, value in vars(optimizer).items():
        # Not callables: a learning-rate scheduler wraps `step` in one that steps the user's own optimizer.
        if key not in vars(twin) and not callable(value) and not isinstance(value, Tensor):
            setattr(twin, key, copy.copy(value))
    return twin


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.copy(value) for key, value in group.items() if key not in ("params", "param_names")}


def _same(before: object, after: object) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return bool(torch.equal(before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(before[key], after[key]) for key in before)
    if isinstance(before, float) and isinstance(after, float) and math.isnan(before):
        return math.isnan(after)
    return bool(before == after)


def held_by(*optimizers: Optimizer) -> set[int]:
    """The identities of the parameters that these optimizers hold."""
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}


def refuse_optimizers(optimizers: Iterable[Optimizer], scheduled: Iterable[Tensor]) -> None:
    """Refuse optimizers that move a parameter whatever its gradient.

    Args:
        optimizers: The run's optimizers.
        scheduled: The parameters that will be frozen at times.

    Raises:
        UnsupportedError: LBFGS, or an optimizer without step hooks, holds a scheduled parameter.
    """
    wanted = {id(parameter) for parameter in scheduled}
    for index, optimizer in enumerate(optimizers):
        if wanted.isdisjoint(held_by(optimizer)):
            continue
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedError(
                f"optimizer {index} is LBFGS, which flattens all its parameters into one vector and steps along it, so "
                "it moves a parameter whose gradient is None. Use another optimizer for the groups that freeze (AdamW, "
                "SGD), or give LBFGS only parameters of `rest` with `rest: train`."
            )
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise UnsupportedError(
                f"optimizer {index} ({type(optimizer).__qualname__}) has no step hooks, so nothing can be held at the "
                "last moment before its step. Call `super().__init__(params, defaults)` in its constructor, as "
                "torch.optim.Optimizer asks for."
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
