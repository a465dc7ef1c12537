"""Param groups changed for one step: without what is frozen, or split by learning-rate factors; restored after it.

So a learning-rate scheduler only sees the param groups that it was made for, and sets the rates that the factors
multiply. (Lightning's BackboneFinetuning adds param groups for good, under which OneCycleLR and LambdaLR fail: they hold
one value for each group that they began with.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.snapshots import same
from lightning_freeze.plan.membership import Step

_OF_A_PART = ("params", "param_names", "lr")

ParamGroup = dict[str, Any]
Restore = Callable[[], None]


class _ForOneStep(Hold):
    """Changes the param groups of an optimizer right before its step, until `restore`."""

    def __init__(self) -> None:
        self._changed: dict[int, Restore] = {}

    def step_begins(self, step: Step) -> None:
        self.before_step(step)

    def restore(self, step: Step) -> None:
        if step.index in self._changed:
            self._changed.pop(step.index)()


class ExcludeParams(_ForOneStep):
    """Excludes what is frozen from the param groups of an optimizer that moves what has no gradient."""

    def before_step(self, step: Step) -> None:
        if step.excludes and step.frozen and step.index not in self._changed:
            self._changed[step.index] = exclude(step.optimizer, step.frozen_identities)


class ShortenParams(_ForOneStep):
    """Gives an optimizer lists of what trains alone, where it would pass over many parameters without a gradient."""

    def before_step(self, step: Step) -> None:
        if step.hides and step.index not in self._changed:
            self._changed[step.index] = shorten(step.optimizer, step.shortened)


class LearningRateFactors(_ForOneStep):
    """Multiplies the learning rate of each group by its factor."""

    def before_step(self, step: Step) -> None:
        if step.factors and step.index not in self._changed:  # a step may call its closure more than once
            self._changed[step.index] = split_groups(step.optimizer, step.factors)


def exclude(optimizer: Optimizer, frozen: Collection[int]) -> Restore:
    """Exclude these parameters, by identity, from the param groups; the result restores.

    A param group that becomes empty is excluded as a whole, and its step counter with it.
    """
    groups = optimizer.param_groups
    whole = list(groups)
    lists: list[tuple[list[Any], list[Any]]] = []  # the list itself, and what it held
    for group in whole:
        stays = [id(parameter) not in frozen for parameter in group["params"]]
        if all(stays):
            continue
        for key in ("params", "param_names"):
            held = group.get(key)
            if isinstance(held, list) and len(held) == len(stays):
                lists.append((held, list(held)))
                held[:] = [each for each, stay in zip(held, stays, strict=True) if stay]
    shown = [group for group in whole if group["params"]]
    groups[:] = shown  # in place, here and below: a wrapper around the optimizer may share the list
    return partial(_include, groups, whole, shown, lists)


def _include(
    groups: list[ParamGroup], whole: list[ParamGroup], shown: list[ParamGroup], lists: list[tuple[list[Any], list[Any]]]
) -> None:
    added = [group for group in groups if all(group is not each for each in shown)]
    for now, before in lists:
        now[:] = before
    groups[:] = whole + added


def shorten(optimizer: Optimizer, shortened: Mapping[int, list[Any]]) -> Restore:
    """Put these lists in the place of param groups' own, by number; the result restores."""
    whole = [(group, group["params"]) for group in map(optimizer.param_groups.__getitem__, shortened)]
    for (group, _), held in zip(whole, shortened.values(), strict=True):
        group["params"] = held
    return partial(_lengthen, whole)


def _lengthen(whole: list[tuple[ParamGroup, list[Any]]]) -> None:
    for group, held in whole:
        group["params"] = held


def split_groups(optimizer: Optimizer, factors: Mapping[int, float]) -> Restore:
    """Split param groups by the learning-rate factor of each parameter's identity; the result merges."""
    whole = list(optimizer.param_groups)
    groups: list[ParamGroup] = []
    parts: list[tuple[ParamGroup, ParamGroup, ParamGroup]] = []  # the group, the part, and the part as it was made
    for group in whole:
        indices: dict[float, list[int]] = {}
        for index, parameter in enumerate(group["params"]):
            indices.setdefault(factors.get(id(parameter), 1.0), []).append(index)
        if indices.keys() <= {1.0}:
            groups.append(group)
            continue
        made = [_part(group, factor, of_factor) for factor, of_factor in indices.items()]
        parts += [(group, part, {**part, **_copies(part)}) for part in made]
        groups += made
    optimizer.param_groups[:] = groups
    return partial(_merge, optimizer, whole, parts)


def _merge(
    optimizer: Optimizer, whole: list[ParamGroup], parts: list[tuple[ParamGroup, ParamGroup, ParamGroup]]
) -> None:
    """Restore, and keep what the step changed in the parts, such as step counters.

    Where several parts changed an entry, that of the first part that had a gradient stays.
    """
    optimizer.param_groups[:] = whole
    first_wins = sorted(parts, key=lambda entry: all(p.grad is None for p in entry[1]["params"]))
    for group, part, before in reversed(first_wins):
        for key, value in part.items():
            if key not in _OF_A_PART and not (key in before and same(before[key], value)):
                _write(group, key, value)


def _part(group: ParamGroup, factor: float, indices: list[int]) -> ParamGroup:
    part = {**group, **_copies(group), "params": [group["params"][index] for index in indices]}
    if "param_names" in group:
        part["param_names"] = [group["param_names"][index] for index in indices]
    part["lr"] = group["lr"] * factor
    return part


def _copies(group: ParamGroup) -> ParamGroup:
    """What a step could change in place."""
    return {
        key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in group.items()
        if key not in _OF_A_PART and isinstance(value, (Tensor, list, dict))
    }


def _write(group: ParamGroup, key: str, value: object) -> None:
    old = group.get(key)
    if isinstance(old, Tensor) and isinstance(value, Tensor) and old.shape == value.shape:
        old.copy_(value)  # the tensor that others may hold
    else:
        group[key] = value
