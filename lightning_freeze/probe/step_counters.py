"""How large a first update is after a frozen interval, or once state was dropped, under step counters of param groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.run_context import plain_optimizer
from lightning_freeze.probe.clone import options, undisturbed
from lightning_freeze.probe.proxies import Proxies, ProxyPlan, parameters_of
from lightning_freeze.probe.trial import ALL, FROZEN, MOVING, CloneTrial, StepRecipe, distance, step_recipes

_MOST_BEFORE = 100  # updates that are run; with more before, an interval matters less
_MOST_FROZEN = 200  # updates that are run; counters that rise evenly are moved on for the rest


def first_update(
    optimizer: Optimizer,
    before: int,  # updates of the frozen parameter before the interval; 0 where it is frozen from the first step on
    length: int,  # updates of others in the interval
    *,
    closure: bool | None = None,  # whether steps are given one
    excludes: bool = False,  # whether what is frozen is excluded from its param groups
    reads_before_closure: bool = False,  # whether its gradients are set to None before the step, too
) -> float | None:
    """How many times larger the first update after a frozen interval is than without the interval.

    One clone is run through the interval, another without it; both are then given the same gradient. The optimizer is
    left as it is, as is every global random state.

    Returns:
        The ratio of the kind of parameter for which it is furthest from 1; None where it is not known.
    """
    optimizer = plain_optimizer(optimizer)
    with undisturbed(parameters_of(optimizer)):
        recipe = next(step_recipes(optimizer, closure, []), None)
        if recipe is None:
            return None
        recipe = replace(recipe, reads_before_closure=reads_before_closure)
        try:
            ran, waited = (CloneTrial(optimizer, recipe, excludes) for _ in range(2))
            for trial in (ran, waited):
                torch.default_generator.manual_seed(0)
                trial.run(ALL, min(before, _MOST_BEFORE))
            _wait(waited, length)
            waited.count = ran.count  # so that both are given the same gradient
            sizes = [list(map(distance, trial.update(FROZEN))) for trial in (ran, waited)]
        except Exception:  # third-party code of any kind; the probe says what is known
            return None
    ratios = [after / plain for plain, after in zip(*sizes, strict=True) if plain > 0 and math.isfinite(after)]
    return max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf, default=None)


def _wait(trial: CloneTrial, length: int) -> None:
    """Train others for an interval; past what is run, move counters on."""
    trial.run(ALL - {FROZEN}, min(length, _MOST_FROZEN) - 1)
    before = trial.group_entries()
    trial.run(ALL - {FROZEN})
    rest = length - _MOST_FROZEN
    if rest <= 0:
        return
    for old, group in zip(before, trial.optimizer.param_groups, strict=True):
        for key, value in group.items():
            _move_on(group, key, old.get(key), value, rest)


def _move_on(group: dict[str, Any], key: str, old: object, now: object, times: int) -> None:
    if isinstance(now, bool) or isinstance(old, Mapping):
        return
    if isinstance(now, int) and isinstance(old, int):
        group[key] = now + (now - old) * times
    elif isinstance(now, Tensor) and isinstance(old, Tensor) and now.numel() == 1 and float(now) - float(old) == 1:
        now.add_(times)


def supports_state_reset(optimizer: Optimizer, group: Mapping[str, Any]) -> str | None:
    """Why an optimizer cannot drop the state of a group's parameter; None where it can, or cannot be run.

    The first update after that must be the one of a new optimizer: a step counter of the param group (as some 130 of 177
    third-party optimizers have) takes the parameter for an old one. Clones are made by the class's constructor, since some
    make their state there.
    """
    kind: Any = type(optimizer)

    def build(_: Optimizer, proxies: Proxies) -> Optimizer:
        given = {name: value for name, value in options(group).items() if name in signature(kind).parameters}
        if isinstance(given.get("lr"), (int, float)):
            given["lr"] = 0.01  # a warm-up may begin at 0, at which nothing could be seen
        clone: Optimizer = kind([*proxies.originals], **given)
        return clone

    shape = (2,) * min(group["params"][0].dim(), 4)
    plan = ProxyPlan([(0, torch.empty(shape, dtype=torch.float32, device="cpu"), shape)], {}, pairs=True, uniform=True)
    with undisturbed():
        try:
            old, new = (CloneTrial(optimizer, StepRecipe(plan, build)) for _ in range(2))
            old.run(ALL, 3)
        except Exception:  # third-party code of any kind; where it cannot be run, nothing is known
            return None
        old.forget(MOVING)
        new.count = old.count  # so that both are given the same gradient
        try:
            updates = zip(old.update(MOVING), new.update(MOVING), strict=True)
            if all(torch.allclose(update, fresh, rtol=0.01, atol=0.0) for update, fresh in updates):
                return None
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "its first update is not that of a new optimizer: it keeps a step counter or an average for the whole param group"
