"""What a param group's clock, which runs on while a group is frozen, does to the first update after that."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.run_context import plain_optimizer
from lightning_freeze.probe.clone import undisturbed
from lightning_freeze.probe.proxies import parameters_of
from lightning_freeze.probe.trial import ALL, FROZEN, Trial, distance, ways

_MOST_BEFORE = 100  # updates that are run; with more before, an interval matters less
_MOST_FROZEN = 200  # updates that are run; what lies beyond is left to clocks that run evenly


def first_update(
    optimizer: Optimizer,
    before: int,
    length: int,
    *,
    closure: bool | None = None,
    excludes: bool = False,
    early: bool = False,
) -> float | None:
    """How much larger the first update after a frozen interval is than the same update without the interval.

    Twins of the optimizer are run on small parameters (see `probe_optimizer`): one through the interval, one without it; both
    are then given the same gradient.

    Args:
        optimizer: Left as it is, as is every global random state.
        before: Updates of the frozen parameter before the interval; 0 where it is frozen from the first step on.
        length: Updates of others in the interval.
        closure: Whether steps are handed a closure.
        excludes: Whether what is frozen is left out of its param groups.
        early: Whether its gradients are emptied before the step, too.

    Returns:
        The ratio of the two updates' lengths, of the kind of parameter for which it is furthest from 1; None where it cannot
        be told.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(4))
        >>> first_update(torch.optim.AdamW([weight]), before=1, length=50)  # which counts for each parameter
        1.0
    """
    optimizer = plain_optimizer(optimizer)
    with undisturbed(parameters_of(optimizer)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        how = next(ways(optimizer, closure, []), None)
        if how is None:
            return None
        try:
            ran, waited = (Trial(optimizer, replace(how, early=early), excludes) for _ in range(2))
            for trial in (ran, waited):
                torch.default_generator.manual_seed(0)
                trial.run(ALL, min(before, _MOST_BEFORE))
            _wait(waited, length)
            waited.count = ran.count  # so that both are given the same gradient
            sizes = [list(map(distance, trial.update(FROZEN))) for trial in (ran, waited)]
        except Exception:  # third-party code of any kind; the probe has told what there is to tell
            return None
    ratios = [after / plain for plain, after in zip(*sizes, strict=True) if plain > 0 and math.isfinite(after)]
    return max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf, default=None)


def _wait(trial: Trial, length: int) -> None:
    """Let others train for so long; past what is run, whole numbers that rise evenly are moved on."""
    trial.run(ALL - {FROZEN}, min(length, _MOST_FROZEN) - 1)
    before = trial.step_counters()
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
