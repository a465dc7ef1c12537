"""Parameters that stand in for an optimizer's own while it is tried out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer

LARGE = 4096
"""Elements from which a small parameter keeps at least so many: 8-bit optimizers treat smaller ones apart."""

MOST_COPIED = 1 << 20
"""Elements beyond which nothing is copied whole."""

_BESIDE = ("params", "param_names", "lr", "initial_lr")


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

    def moving(self, group: int) -> tuple[nn.Parameter, ...]:
        """What is to train of a param group."""
        frozen = set(map(id, self.frozen))
        return tuple(p for p in self.groups[group] if id(p) not in frozen)

    @property
    def kinds(self) -> tuple[Any, ...]:
        """What they are, in plain values."""
        return tuple((number, *map(_kind, held)) for number, held in self.groups.items())


def small_ones(optimizer: Optimizer) -> StandIns:
    """For each kind of param group, and each kind of parameter in it, two small parameters: one to train, one to freeze.

    Kinds are those that optimizers tell apart: the number of dimensions, dtype, device, and size.

    Raises:
        NoTwinError: No parameter has a shape.
    """
    made: dict[Any, tuple[nn.Parameter, nn.Parameter]] = {}
    groups: dict[int, list[nn.Parameter]] = {}
    likes: dict[nn.Parameter, Tensor] = {}
    of: dict[int, tuple[nn.Parameter, ...]] = {}
    for number, group in enumerate(optimizer.param_groups):
        how = repr(sorted((key, value) for key, value in group.items() if key not in _BESIDE))
        for p in group["params"]:
            if isinstance(p, UninitializedTensorMixin):
                continue
            kind = (how, p.dim(), p.dtype, p.device, p.numel() >= LARGE)
            if kind not in made:
                shape = _small(p)
                made[kind] = (_parameter(shape, p, number), _parameter(shape, p, number + 1))
                groups.setdefault(number, []).extend(made[kind])
                likes |= dict.fromkeys(made[kind], p)
            of[id(p)] = made[kind]
    if not made:
        raise NoTwinError("none of its parameters has a shape yet")
    return StandIns(
        {number: tuple(held) for number, held in groups.items()}, likes, of, tuple(pair[1] for pair in made.values())
    )


def whole_ones(optimizer: Optimizer) -> StandIns:
    """One parameter for each of the optimizer's, as large as it; the first half is to be frozen.

    Raises:
        NoTwinError: They are too large, or too few.
    """
    held = [(number, p) for number, group in enumerate(optimizer.param_groups) for p in group["params"]]
    if any(isinstance(p, UninitializedTensorMixin) for _, p in held):
        raise NoTwinError("some of its parameters have no shape yet")
    if len(held) < 2 or sum(p.numel() for _, p in held) > MOST_COPIED:
        raise NoTwinError(
            "its parameters are too large to be copied" if len(held) > 1 else "it holds one parameter alone"
        )
    made = {id(p): _parameter(tuple(p.shape), p, seed) for seed, (_, p) in enumerate(held)}
    groups: dict[int, list[nn.Parameter]] = {}
    for number, p in held:
        groups.setdefault(number, []).append(made[id(p)])
    return StandIns(
        {number: tuple(group) for number, group in groups.items()},
        {made[id(p)]: p for _, p in held},
        {id(p): (made[id(p)],) for _, p in held},
        tuple(made[id(p)] for _, p in held[: len(held) // 2]),
    )


def is_plain(value: object) -> bool:
    """Whether a value is a number, a word, or a row of such."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype))


def _kind(parameter: Tensor) -> Any:
    return parameter.shape, parameter.dtype, parameter.device


def _parameter(shape: Sequence[int], like: Tensor, seed: int) -> nn.Parameter:
    """Values of many magnitudes, so that a small step shows in low precision, too."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randn(*shape, generator=generator)
    values = size * torch.logspace(0, -3, size.numel()).reshape(size.shape)
    device = torch.device("cpu") if like.device.type == "meta" else like.device
    parameter = nn.Parameter(values.to(device, like.dtype))
    for key, value in getattr(like, "__dict__", {}).items():  # what optimizers are told by
        if is_plain(value):
            parameter.__dict__[key] = value
    return parameter


def _small(like: Tensor) -> tuple[int, ...]:
    """A shape of as many dimensions, and few elements; the longer side stays the longer."""
    shape = [max(1, size) for size in like.shape] if like.numel() else [2] * like.dim()
    most = 2 * LARGE if like.numel() >= LARGE else 64
    while torch.Size(shape).numel() >= most:
        longest = max(range(len(shape)), key=shape.__getitem__)
        shape[longest] = (shape[longest] + 1) // 2
    return tuple(shape)
