"""Proxy parameters: what a clone of an optimizer holds in place of the optimizer's own parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer

from lightning_freeze.holds.snapshots import elements

LARGE = 4096  # elements; 8-bit optimizers treat smaller parameters differently, so proxies of larger ones keep as many
MOST_COPIED = 1 << 20  # elements; nothing larger that an optimizer holds is copied
MOST_KINDS = 24  # of parameters; an optimizer whose param groups have more is tried on the first of them
_MOST_FULL_SIZE = 1 << 16  # elements of all parameters; trials of more would take long

_SIZE_OPTION = re.compile(r".*(size|bit|block|numel).*")
_MARKS = (NoneType, bool, int, float, str)
_NO_SWITCHES = ("params", "param_names", "lr", "initial_lr", "name")


class CloneError(RuntimeError):
    """Why an optimizer cannot be cloned."""


@dataclass(frozen=True)
class ProxyPlan:
    """Which proxies each trial makes."""

    models: Sequence[tuple[int, Tensor, tuple[int, ...]]]  # number of a param group, parameter of it, the proxy's shape
    of: Mapping[int, int]  # the identity of each of the optimizer's parameters to the index of its model
    pairs: bool  # two proxies for each model, one of them frozen; else one, frozen for the first half of models
    uniform: bool = False  # all elements of a proxy are equal, and those of its gradients; else they are random


class Proxies:
    """New parameters in place of an optimizer's own, with the same values each time that a plan's are made."""

    def __init__(self, plan: ProxyPlan) -> None:
        self.groups: dict[int, list[nn.Parameter]] = {}  # by the number of a param group
        self.originals: dict[nn.Parameter, Tensor] = {}  # each proxy to the parameter that it was made for
        made = []
        for index, (number, like, shape) in enumerate(plan.models):
            seeds = range(2 * index, 2 * index + 1 + plan.pairs)
            made.append(tuple(_proxy(shape, like, seed, plan.uniform) for seed in seeds))
            self.groups.setdefault(number, []).extend(made[-1])
            self.originals |= dict.fromkeys(made[-1], like)
        self.of = {identity: made[index] for identity, index in plan.of.items()}  # by the identity of a parameter
        self.frozen = tuple(proxies[0] for proxies in (made if plan.pairs else made[: len(made) // 2]))

    def of_group(self, group: Mapping[str, Any]) -> list[nn.Parameter]:
        """The proxies that were made for a param group's own parameters."""
        own = set(map(id, group["params"]))
        return [proxy for proxy, original in self.originals.items() if id(original) in own]

    def cover(self, identities: Iterable[int]) -> bool:
        """Whether there are identities, all of the optimizer's parameters."""
        found = set(identities)
        return bool(found) and found <= self.of.keys()


def _proxy(shape: tuple[int, ...], like: Tensor, seed: int, uniform: bool) -> nn.Parameter:
    if uniform:
        return nn.Parameter(torch.full(shape, 0.5 + seed / 4, dtype=like.dtype, device=like.device))
    # Values of many magnitudes, so that a small step shows in low precision, too.
    generator = torch.Generator("cpu").manual_seed(seed)
    size = torch.randn(shape, generator=generator, device="cpu")  # whatever torch's default device is
    values = size * torch.logspace(0, -3, size.numel(), device="cpu").reshape(size.shape)
    device = torch.device("cpu") if like.device.type == "meta" else like.device
    proxy = nn.Parameter(values.to(device, like.dtype))
    proxy.__dict__.update(marks(like))
    return proxy


def small_plan(optimizer: Optimizer) -> ProxyPlan:
    """Plan two small proxies for each kind of parameter: one trains, one is frozen.

    Kinds are what optimizers tell apart: of a parameter the number of dimensions, dtype, device and size; of its param
    group the switches, and which numbers are zero; and which nested optimizers hold it.
    """
    nested = nested_optimizers(optimizer)
    held_by = [set(map(id, parameters_of(inner))) for inner in nested[1:]]
    switches = [_switches(group) for group in optimizer.param_groups]
    by_size = _has_size_options(nested)
    found: dict[Any, int] = {}
    models: list[tuple[int, Tensor, tuple[int, ...]]] = []
    of: dict[int, int] = {}
    for number, p in _trained(optimizer):
        large = by_size and p.numel() >= LARGE
        holders = tuple(id(p) in held for held in held_by)
        kind = (switches[number], p.dim(), p.dtype, p.device, large, marks(p), holders)
        if kind not in found and len(models) < MOST_KINDS:
            found[kind] = len(models)
            models.append((number, p, _small_shape(p, large)))
        if kind in found:
            of[id(p)] = found[kind]
    if not models:
        raise CloneError("none of its parameters trains and has a shape yet")
    return ProxyPlan(models, of, pairs=True)


def full_plan(optimizer: Optimizer) -> ProxyPlan:
    """Plan one proxy of the same shape for each parameter; the first half is frozen."""
    held = list(_trained(optimizer))
    if len(held) < 2:
        raise CloneError("it trains one parameter alone")
    if sum(p.numel() for _, p in held) > _MOST_FULL_SIZE:
        raise CloneError("its parameters are too large to be copied")
    models = [(number, p, tuple(p.shape)) for number, p in held]
    return ProxyPlan(models, {id(p): index for index, (_, p) in enumerate(held)}, pairs=False)


def nested_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer and those that its attributes hold, at any depth; the outermost first."""
    found: list[Optimizer] = [optimizer]
    for each in found:  # which grows meanwhile
        for value in vars(each).values():
            inner = [value, *elements(value)] if value is not getattr(each, "state", None) else []
            found += [one for one in inner if isinstance(one, Optimizer) and all(one is not other for other in found)]
    return found


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters of all param groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def is_plain(value: object) -> bool:
    """Whether a value is a number, a string, a dtype, or a list or tuple of such."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, (*_MARKS, torch.dtype))


def _trained(optimizer: Optimizer) -> Iterator[tuple[int, nn.Parameter]]:
    """The parameters that can have a gradient and have a shape, each with the number of its param group."""
    for number, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            differentiable = p.dtype.is_floating_point or p.dtype.is_complex
            if differentiable and p.requires_grad and not isinstance(p, UninitializedTensorMixin):
                yield number, p


def _switches(group: Mapping[str, Any]) -> tuple[tuple[str, object], ...]:
    return tuple((key, _switch(value)) for key, value in group.items() if key not in _NO_SWITCHES)


def _switch(value: object) -> object:
    """What optimizers branch on, of an option's value."""
    if value is None or isinstance(value, (bool, str)):
        return value
    return (type(value).__name__, value != 0) if isinstance(value, (int, float)) else type(value).__name__


def marks(parameter: Tensor) -> tuple[tuple[str, Any], ...]:
    """Attributes of a parameter by which optimizers may tell it from others."""
    return tuple((key, value) for key, value in getattr(parameter, "__dict__", {}).items() if isinstance(value, _MARKS))


def _has_size_options(optimizers: Sequence[Optimizer]) -> bool:
    held = [each for optimizer in optimizers for each in (vars(optimizer), *optimizer.param_groups)]
    values = [value for each in held for value in each.values()]
    held += [vars(value) for value in values if hasattr(value, "__dict__") and not callable(value)]
    return any(isinstance(key, str) and _SIZE_OPTION.fullmatch(key) for each in held for key in each)


def _small_shape(like: Tensor, large: bool) -> tuple[int, ...]:
    """A shape of as many dimensions and few elements; the longer side stays the longer."""
    shape = [max(1, size) for size in like.shape] if like.numel() else [2] * like.dim()
    most = 2 * LARGE if large else 64
    while torch.Size(shape).numel() >= most:
        longest = max(range(len(shape)), key=shape.__getitem__)
        shape[longest] = (shape[longest] + 1) // 2
    return tuple(shape)
