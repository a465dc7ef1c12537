"""How much state an optimizer will hold for a parameter, learnt from tiny parameters of the same kind."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze.holds.snapshots import elements
from lightning_freeze.probe.clone import options, undisturbed
from lightning_freeze.probe.proxies import Proxies, ProxyPlan
from lightning_freeze.probe.trial import ALL, MOVING, CloneTrial, StepRecipe

_PRIMES = (5, 7, 11, 13, 17, 19, 23)
_STEPS = 3
_IMPLEMENTATIONS = ("capturable", "differentiable", "foreach")  # they need an accelerator or a graph; state is the same

Shape = tuple[int, ...]
_Term = tuple[int, Shape]  # bytes, times the sizes of these dimensions of the parameter (one may be there twice)


def state_bytes(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> list[int | None]:
    """The bytes of optimizer state that each parameter will hold once it has been updated.

    The optimizer's class is run on parameters whose dimensions are primes, so that the state's dimensions tell where they
    come from; what is learnt from one must predict another. The optimizer itself is left as it is.

    Returns:
        Bytes of tensors, of a sharded parameter for the whole of it; None where the class cannot be run (LBFGS, SparseAdam,
        one that wraps another or keeps tensors outside its state) or where the state does not follow the shape.

    Raises:
        ValueError: The optimizer does not hold one of the parameters.
    """
    held = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    kinds = [_kind(group) for group in optimizer.param_groups]
    learnt: dict[tuple[str, Shape, torch.dtype], list[_Term] | None] = {}
    found: list[int | None] = []
    for index, parameter in enumerate(parameters):
        number = held.get(id(parameter))
        if number is None:
            raise ValueError(
                f"parameter {index}, of shape {tuple(parameter.shape)}, is in no param group of this "
                f"{type(optimizer).__qualname__}, which will hold no state for it. Ask the optimizer that holds it."
            )
        shape = tuple(parameter.shape)
        key = (kinds[number], _ranks(shape), parameter.dtype)
        if key not in learnt:
            learnt[key] = _learn(optimizer, optimizer.param_groups[number], key[1], parameter.dtype)
        terms = learnt[key]
        found.append(None if terms is None else _bytes(terms, shape))
    return found


def _kind(group: Mapping[str, Any]) -> str:
    """The hyper-parameters of a param group on which the size of state may depend: all but the learning rate."""
    return repr(sorted((name, value) for name, value in options(group).items() if "lr" not in name))


@cache
def _ranks(shape: Shape) -> Shape:
    """For each dimension: 0 where its size is 1, else its place by size, from 1; the smaller side stays the smaller."""
    order = sorted((d for d, size in enumerate(shape) if size != 1), key=lambda d: shape[d])
    return tuple(order.index(d) + 1 if d in order else 0 for d in range(len(shape)))


def _learn(optimizer: Optimizer, group: Mapping[str, Any], ranks: Shape, dtype: torch.dtype) -> list[_Term] | None:
    if max(ranks, default=0) >= len(_PRIMES) or _holds_tensors_elsewhere(optimizer):
        return None
    first, second = (tuple((1, *primes)[rank] for rank in ranks) for primes in (_PRIMES, _PRIMES[1:]))
    with undisturbed():
        try:
            terms = [_term(tensor, first) for tensor in _run(optimizer, group, first, dtype)]
            control = sum(t.numel() * t.element_size() for t in _run(optimizer, group, second, dtype))
        except Exception:  # third-party code of any kind: then there is no forecast
            return None
    return terms if _bytes(terms, second) == control else None


def _holds_tensors_elsewhere(optimizer: Optimizer) -> bool:
    """Whether a clone could reach what is the user's: a nested optimizer, or tensors outside the state (LBFGS)."""
    own = [value for key, value in vars(optimizer).items() if key not in ("state", "param_groups", "defaults")]
    containers = [value for value in own if not isinstance(value, Tensor)]
    return any(isinstance(value, Optimizer) or next(_tensors(value), None) is not None for value in containers)


def _run(optimizer: Optimizer, group: Mapping[str, Any], shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """The tensors of state after a few steps with a parameter of this shape."""
    plain = {name: False for name in _IMPLEMENTATIONS if name in group}

    def build(_: Optimizer, proxies: Proxies) -> Optimizer:
        clone = type(optimizer).__new__(type(optimizer))
        held = {**options(group), **plain, "params": [*proxies.originals]}
        Optimizer.__init__(clone, [held], {**optimizer.defaults, **plain})  # torch's `step` looks into both
        for key, value in vars(optimizer).items():
            # Not callables: a learning-rate scheduler wraps `step` in one that steps the user's own optimizer.
            if key not in vars(clone) and not callable(value) and not isinstance(value, Tensor):
                setattr(clone, key, copy.copy(value))
        return clone

    plan = ProxyPlan([(0, torch.empty(shape, dtype=dtype, device="cpu"), shape)], {}, pairs=False, uniform=True)
    trial = CloneTrial(optimizer, StepRecipe(plan, build))
    trial.run(ALL, _STEPS)
    (parameter,) = trial.members[MOVING]
    return list(_tensors(trial.optimizer.state.get(parameter)))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for each in elements(value):
        yield from _tensors(each)


def _term(tensor: Tensor, tiny: Shape) -> _Term:
    """A tensor's bytes, as a constant times dimensions of the parameter."""
    constant, dimensions = tensor.element_size(), []
    for size in tensor.shape:
        parts = [d for d, prime in enumerate(tiny) if prime > 1 and size % prime == 0]
        if math.prod(tiny[d] for d in parts) == size:  # one dimension, or several made flat
            dimensions += parts
        else:
            constant *= size
    return constant, tuple(dimensions)


def _bytes(terms: Sequence[_Term], shape: Shape) -> int:
    return sum(constant * math.prod(shape[d] for d in dimensions) for constant, dimensions in terms)
