"""Param groups changed for one step: without what is frozen, or split by factors on learning rates; restored after it.

So a learning-rate scheduler never sees them: it finds the param groups that it was made for, and sets the rates from
which the factors are reckoned. (Lightning's BackboneFinetuning adds param groups for good, under which OneCycleLR and
LambdaLR fail: they hold one value for each group that they began with.)
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_freeze.holds.hold import Hold
from lightning_freeze.holds.snapshots import same
from lightning_freeze.plan.membership import Step

_OF_A_PART = ("params", "param_names", "lr")

ParamGroup = dict[str, Any]


class SplitGroups:
    """An optimizer's param groups, split by factors from here until `merge`.

    Args:
        optimizer: The optimizer.
        factors: Identity of a parameter to the factor on its learning rate, where that is not 1.

    Example:
        >>> import torch
        >>> a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> sgd = torch.optim.SGD([a, b], lr=0.5)
        >>> split = SplitGroups(sgd, {id(a): 0.1})
        >>> [group["lr"] for group in sgd.param_groups]
        [0.05, 0.5]
        >>> split.merge()
        >>> [group["lr"] for group in sgd.param_groups]
        [0.5]
    """

    def __init__(self, optimizer: Optimizer, factors: Mapping[int, float]) -> None:
        self._optimizer = optimizer
        self._whole: list[ParamGroup] = list(optimizer.param_groups)
        self._parts: list[tuple[ParamGroup, list[tuple[ParamGroup, ParamGroup]]]] = []
        groups: list[ParamGroup] = []
        for group in self._whole:
            sides: dict[float, list[int]] = {}
            for index, parameter in enumerate(group["params"]):
                sides.setdefault(factors.get(id(parameter), 1.0), []).append(index)
            if sides.keys() <= {1.0}:
                groups.append(group)
                continue
            parts = [_part(group, factor, indices) for factor, indices in sides.items()]
            self._parts.append((group, [(part, dict(part, **_copies(part))) for part in parts]))
            groups += parts
        optimizer.param_groups[:] = groups  # in place: a wrapper around the optimizer may share the list

    def merge(self) -> None:
        """Put the param groups together again, with what the step has changed in them: clocks, estimates.

        Where parts changed the same thing, the first part that had a gradient is believed: clocks run alike in each.
        """
        self._optimizer.param_groups[:] = self._whole
        for group, parts in self._parts:
            believed = sorted(parts, key=lambda pair: all(p.grad is None for p in pair[0]["params"]))
            for part, before in reversed(believed):  # the most believed has the last word
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
    """What a step could change in place, once for each part."""
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


class LeftOut:
    """An optimizer without some of its parameters, from here until `put_back`.

    Lists are changed in place, since a wrapper and the optimizer in it may share them. A param group of which nothing is
    left is out as a whole, and its clock with it.

    Args:
        optimizer: The optimizer.
        frozen: The identities of the parameters to be left out.

    Example:
        >>> import torch
        >>> a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
        >>> sgd = torch.optim.SGD([a, b], lr=0.5)
        >>> left = LeftOut(sgd, {id(a)})
        >>> [parameter is b for parameter in sgd.param_groups[0]["params"]]
        [True]
        >>> left.put_back()
        >>> len(sgd.param_groups[0]["params"])
        2
    """

    def __init__(self, optimizer: Optimizer, frozen: Collection[int]) -> None:
        self._groups = optimizer.param_groups
        self._whole = list(self._groups)
        self._lists: list[tuple[list[Any], list[Any]]] = []  # the list itself, and what it held
        for group in self._whole:
            stays = [id(parameter) not in frozen for parameter in group["params"]]
            if all(stays):
                continue
            for key in ("params", "param_names"):
                held = group.get(key)
                if isinstance(held, list) and len(held) == len(stays):
                    self._lists.append((held, list(held)))
                    held[:] = [each for each, stay in zip(held, stays, strict=True) if stay]
        self._groups[:] = self._shown = [group for group in self._whole if group["params"]]

    def put_back(self) -> None:
        """The optimizer holds again what it held, and what it was given since."""
        added = [group for group in self._groups if all(group is not shown for shown in self._shown)]
        for now, before in self._lists:
            now[:] = before
        self._groups[:] = self._whole + added


class ExcludeParams(Hold):
    """Excludes what is frozen from the param groups of an optimizer that moves what has no gradient, for each step."""

    def __init__(self) -> None:
        self._out: dict[int, LeftOut] = {}

    def step_begins(self, step: Step) -> None:
        self.before_step(step)

    def before_step(self, step: Step) -> None:
        if step.excludes and step.index not in self._out and step.frozen:
            self._out[step.index] = LeftOut(step.optimizer, step.frozen_identities)

    def restore(self, step: Step) -> None:
        out = self._out.pop(step.index, None)
        if out is not None:
            out.put_back()


class LearningRateFactors(Hold):
    """Gives each group its own learning rate, for each step."""

    def __init__(self) -> None:
        self._split: dict[int, SplitGroups] = {}

    def step_begins(self, step: Step) -> None:
        self.before_step(step)

    def before_step(self, step: Step) -> None:
        if step.factors and step.index not in self._split:  # a step may call its closure more than once
            self._split[step.index] = SplitGroups(step.optimizer, step.factors)

    def restore(self, step: Step) -> None:
        split = self._split.pop(step.index, None)
        if split is not None:
            split.merge()
