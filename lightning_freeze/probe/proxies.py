"""Parameters that stand in for an optimizer's own while it is tried out."""

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

LARGE = 4096
"""Elements from which a small parameter keeps at least so many, for optimizers that treat smaller ones apart (8-bit ones)."""

_BY_SIZE = re.compile(r".*(size|bit|block|numel).*")  # names of options that tell of it

MOST_COPIED = 1 << 20
"""Elements beyond which nothing that an optimizer holds is copied."""

_MOST_WHOLE = 1 << 16  # elements of parameters, beyond which trials would take long

MOST_KINDS = 24
"""Kinds of parameters that are tried; an optimizer whose param groups differ in more ways is tried in the first of them."""

_MARKS = (NoneType, bool, int, float, str)
_BESIDE = ("params", "param_names", "lr", "initial_lr", "name")


class NoTwinError(RuntimeError):
    """Why an optimizer cannot be built once more."""


@dataclass(frozen=True)
class StandIns:
    """Parameters that are nobody's, in the place of an optimizer's.

    Args:
        groups: The number of a param group to what it holds now; param groups that are like another are left out.
        likes: Each stand-in to the parameter that it is like.
        of: The identity of each of the optimizer's parameters to what stands in for it.
        frozen: Those that are to be frozen.
    """

    groups: Mapping[int, tuple[nn.Parameter, ...]]
    likes: Mapping[nn.Parameter, Tensor]
    of: Mapping[int, tuple[nn.Parameter, ...]]
    frozen: tuple[nn.Parameter, ...]

    @property
    def moving(self) -> list[tuple[nn.Parameter, ...]]:
        """What is to train of each param group that has some."""
        frozen = set(map(id, self.frozen))
        moving = [tuple(p for p in held if id(p) not in frozen) for held in self.groups.values()]
        return [held for held in moving if held]

    def of_group(self, group: Mapping[str, Any]) -> list[nn.Parameter]:
        """What stands in for the parameters of a param group; not what is like another's."""
        identities = set(map(id, group["params"]))
        standing = [p for each in group["params"] for p in self.of.get(id(each), ())]
        return list(dict.fromkeys(p for p in standing if id(self.likes[p]) in identities))

    def cover(self, identities: Iterable[int]) -> bool:
        """Whether there are identities, all of the optimizer's parameters."""
        found = set(identities)
        return bool(found) and found <= self.of.keys()


@dataclass(frozen=True)
class Plan:
    """What stands in for an optimizer's parameters, to be made anew for each trial.

    Args:
        models: The parameters that some are to be like, each with the number of its param group and the shapes to be.
        of: The identity of each of the optimizer's parameters to the place of its model in ``models``.
        both: Whether there are two of each, of which one is frozen; else there is one, and the first half is frozen.
        uniform: Whether all numbers of a parameter are the same, and those of its gradients, too; else they are random.
    """

    models: tuple[tuple[int, Tensor, tuple[int, ...]], ...]
    of: Mapping[int, int]
    both: bool
    uniform: bool = False

    @property
    def kinds(self) -> tuple[Any, ...]:
        """What they are, in plain values."""
        return tuple((number, shape, like.dtype, like.device, _told_by(like)) for number, like, shape in self.models)

    def make(self) -> StandIns:
        """New parameters, the same each time."""
        groups: dict[int, list[nn.Parameter]] = {}
        likes: dict[nn.Parameter, Tensor] = {}
        made: list[tuple[nn.Parameter, ...]] = []
        for place, (number, like, shape) in enumerate(self.models):
            new = tuple(self._parameter(shape, like, 2 * place + which) for which in range(2 if self.both else 1))
            made.append(new)
            groups.setdefault(number, []).extend(new)
            likes |= dict.fromkeys(new, like)
        return StandIns(
            {number: tuple(held) for number, held in groups.items()},
            likes,
            {parameter: made[place] for parameter, place in self.of.items()},
            tuple(pair[0] for pair in made) if self.both else tuple(one for (one,) in made[: len(made) // 2]),
        )

    def _parameter(self, shape: Sequence[int], like: Tensor, seed: int) -> nn.Parameter:
        if self.uniform:
            return nn.Parameter(torch.full(tuple(shape), 0.5 + seed / 4, dtype=like.dtype, device=like.device))
        # Values of many magnitudes, so that a small step shows in low precision, too.
        generator = torch.Generator("cpu").manual_seed(seed)
        size = torch.randn(tuple(shape), generator=generator, device="cpu")  # whatever torch's default device is
        values = size * torch.logspace(0, -3, size.numel(), device="cpu").reshape(size.shape)
        device = torch.device("cpu") if like.device.type == "meta" else like.device
        parameter = nn.Parameter(values.to(device, like.dtype))
        parameter.__dict__.update(_told_by(like))
        return parameter


def small_ones(optimizer: Optimizer, others: Sequence[Optimizer] = ()) -> Plan:
    """For each kind of param group, and each kind of parameter in it, two small parameters: one to train, one to freeze.

    Kinds are those that optimizers tell apart: of a parameter the number of dimensions, dtype, device and size; of a param
    group its switches, and which of its numbers are zero. At most `MOST_KINDS` are tried.

    Args:
        optimizer: The optimizer.
        others: Those that it wraps, of which each may hold a part of the parameters.

    Raises:
        NoTwinError: No parameter that trains has a shape.
    """
    held_by = [set(map(id, parameters_of(other))) for other in others]
    switches = [_switches(group) for group in optimizer.param_groups]
    by_size = _tells_by_size(optimizer, *others)
    found: dict[Any, int] = {}
    models: list[tuple[int, Tensor, tuple[int, ...]]] = []
    of: dict[int, int] = {}
    for number, p in _trained(optimizer):
        large = by_size and p.numel() >= LARGE
        holders = tuple(id(p) in held for held in held_by)
        kind = (switches[number], p.dim(), p.dtype, p.device, large, _told_by(p), holders)
        if kind not in found and len(models) < MOST_KINDS:
            found[kind] = len(models)
            models.append((number, p, _small(p, by_size)))
        if kind in found:
            of[id(p)] = found[kind]
    if not models:
        raise NoTwinError("none of its parameters trains and has a shape yet")
    return Plan(tuple(models), of, both=True)


def whole_ones(optimizer: Optimizer, others: Sequence[Optimizer] = ()) -> Plan:
    """One parameter for each of the optimizer's, as large as it; the first half is to be frozen.

    Raises:
        NoTwinError: They are too large, or too few.
    """
    held = list(_trained(optimizer))
    if len(held) < 2 or sum(p.numel() for _, p in held) > _MOST_WHOLE:
        raise NoTwinError(
            "its parameters are too large to be copied" if len(held) > 1 else "it trains one parameter alone"
        )
    models = tuple((number, p, tuple(p.shape)) for number, p in held)
    return Plan(models, {id(p): place for place, (_, p) in enumerate(held)}, both=False)


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """What an optimizer's param groups hold."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _trained(optimizer: Optimizer) -> Iterator[tuple[int, nn.Parameter]]:
    """The parameters that can have a gradient, each with the number of its param group.

    Not those that their owner has frozen, nor those that have no shape yet.
    """
    for number, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            differentiable = p.dtype.is_floating_point or p.dtype.is_complex
            if differentiable and p.requires_grad and not isinstance(p, UninitializedTensorMixin):
                yield number, p


def _switches(group: Mapping[str, Any]) -> tuple[tuple[str, object], ...]:
    return tuple((key, _switch(value)) for key, value in group.items() if key not in _BESIDE)


def _switch(value: object) -> object:
    """What optimizers branch on, of an option's value."""
    if value is None or isinstance(value, (bool, str)):
        return value
    return (type(value).__name__, value != 0) if isinstance(value, (int, float)) else type(value).__name__


def is_plain(value: object) -> bool:
    """Whether a value is a number, a word, or a row of such."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, (*_MARKS, torch.dtype))


def _told_by(parameter: Tensor) -> tuple[tuple[str, Any], ...]:
    """Marks on a parameter by which optimizers may tell it from others."""
    return tuple((key, value) for key, value in getattr(parameter, "__dict__", {}).items() if isinstance(value, _MARKS))


def _tells_by_size(*optimizers: Optimizer) -> bool:
    """Whether options of an optimizer speak of sizes."""
    held = [each for optimizer in optimizers for each in (vars(optimizer), *optimizer.param_groups)]
    held += [
        vars(value) for each in held for value in each.values() if hasattr(value, "__dict__") and not callable(value)
    ]
    return any(isinstance(key, str) and _BY_SIZE.fullmatch(key) for each in held for key in each)


def _small(like: Tensor, by_size: bool) -> tuple[int, ...]:
    """A shape of as many dimensions, and few elements; the longer side stays the longer."""
    shape = [max(1, size) for size in like.shape] if like.numel() else [2] * like.dim()
    most = 2 * LARGE if by_size and like.numel() >= LARGE else 64
    while torch.Size(shape).numel() >= most:
        longest = max(range(len(shape)), key=shape.__getitem__)
        shape[longest] = (shape[longest] + 1) // 2
    return tuple(shape)
