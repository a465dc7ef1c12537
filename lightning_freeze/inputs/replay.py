"""Confirms by experiment that a module does not use an input: a second run with the input poisoned gives the same.

A clone runs, with the same parameters, but buffers, containers and plain objects of its own. Each run draws the same
random numbers, and the random states are restored.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from .copier import Copier, NoReplayError
from .guard import Guard, WriteError
from .leaves import Leaf, replaced, tensors_in
from .unseen import unseen

_Fact = tuple[Any, ...] | str | None
"""What a run gave: a tensor's kind and bytes, plain values as text, or None for an input that was replaced."""

_LOCK = threading.RLock()
"""Random states, streams and loggers are the process's: one replay at a time restores them."""


class OtherThreadsError(NoReplayError):
    """A module has work done in other threads, of which the tracer saw nothing."""


def _hooked() -> bool:
    """Whether there are hooks of all modules, which a replay would call once more, beside our own for assignments."""
    tables = [held for name, held in vars(nn.modules.module).items() if re.fullmatch("_global_.*_hooks", name)]
    hooks = [hook for held in tables for hook in held.values()]
    return any(not str(getattr(hook, "__module__", "")).startswith("lightning_freeze.") for hook in hooks)


@dataclass(eq=False)
class Replay:
    """A call of a module, to be run again with other inputs, in the state and mode that the module has."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    writes: bool  # the call writes to its inputs or its state, so that each run needs copies
    without: frozenset[str] = frozenset()  # attributes that the clone does without, as the Trainer

    def __post_init__(self) -> None:
        self._plain: list[_Fact] = []  # of a run with the call's own inputs
        self._deterministic: bool | None = None

    def unaffected(self, leaf: Leaf) -> bool | None:
        """Whether outputs and state stay the same bit by bit when an input is poisoned, and when it is scrambled.

        Returns:
            None where it cannot be known: the module cannot be run again, or two equal runs differ.
        """
        return None if leaf.tensor.numel() == 0 else self._alone(lambda: self._unaffected(leaf))

    def indifferent(self, leaf: Leaf) -> bool | None:
        """Whether nothing changes when an input has another shape, data type, gradient and attributes, too."""
        shape, device = (3, *leaf.tensor.shape, 2), leaf.tensor.device

        def ask() -> bool:
            with torch.inference_mode(False), torch.enable_grad():
                computed = torch.ones(shape, dtype=torch.float64, device=device, requires_grad=True) * 1
            others = (torch.ones(shape, dtype=torch.int16, device=device), computed)
            return all(self._equals(leaf, other) is True for other in others)

        return self._alone(ask)

    def _alone(self, ask: Callable[[], bool | None]) -> bool | None:
        if _hooked() or any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()):
            return None
        try:
            with _LOCK, _disable_current_modes():  # the user's modes do not see a replay
                self._plain = self._plain or self._run()
                return ask()
        except OtherThreadsError:
            return False  # nothing can be said against an input
        except (Exception, WriteError):
            return None

    def _unaffected(self, leaf: Leaf) -> bool | None:
        if type(leaf.tensor) not in (Tensor, nn.Parameter):
            return None
        # an equal copy must give the same as well: `x is y`, and what the call does to the tensor object
        if not _equal(self._plain, self._run(leaf, leaf.tensor.detach().clone(), like=True)):
            return self._affected()
        ran = 0
        for other in _others(leaf.tensor):
            equal = self._equals(leaf, other, like=True)
            if equal is False:
                return self._affected()
            ran += equal is not None
            if ran == 2:
                break
        return True if ran else None

    def _equals(self, leaf: Leaf, tensor: Tensor, like: bool = False) -> bool | None:
        """Whether a run with another input gives the same; None where it cannot run with it."""
        try:
            return _equal(self._plain, self._run(leaf, tensor, like))
        except NoReplayError:
            raise
        except Exception:  # an index out of range says that the value was read, not that it mattered
            return None

    def _affected(self) -> bool | None:
        """False; None where two equal runs differ as well."""
        if self._deterministic is None:
            self._deterministic = _equal(self._plain, self._run())
        return False if self._deterministic else None

    def _run(self, leaf: Leaf | None = None, tensor: Tensor | None = None, like: bool = False) -> list[_Fact]:
        """What a run gives, an input replaced by a tensor that is made `like` it in all but its values."""
        copier = Copier(self.without, self.writes)
        args, kwargs = self.args, self.kwargs
        if leaf is not None and tensor is not None:
            args, kwargs = replaced(args, kwargs, [(leaf, tensor)])
            copier.memo[id(tensor)] = tensor
            if like:
                copier.copy_attributes(leaf.tensor, tensor.requires_grad_(leaf.tensor.requires_grad))
        clone = copier(self.module)
        args, kwargs = copier(args), copier(dict(kwargs))
        context = copier.context()
        objects = list(tensors_in((args, kwargs)))
        before = [_object(each) for each in objects]
        idents: set[int] = set()
        with unseen(idents):
            result = context.run(_guarded, clone, args, kwargs, idents)
        if [_object(each) for each in objects] != before:
            raise NoReplayError("the call changes what a tensor is, not only its values")
        values, kept = _kept_by(clone)
        seen = [*tensors_in(result), *clone.buffers(), *kept, *(objects if self.writes else ())]
        return [repr(_structure(result)), *values, *(None if each is tensor else _bits(each) for each in seen)]


def _kept_by(clone: nn.Module) -> tuple[list[_Fact], list[Tensor]]:
    """What modules keep beside parameters, buffers and children: plain values as text, and tensors."""
    values: list[_Fact] = []
    tensors: list[Tensor] = []
    for part in clone.modules():
        own = {key: held for key, held in vars(part).items() if key not in ("_parameters", "_buffers", "_modules")}
        values.append(repr({key: held for key, held in own.items() if isinstance(held, (bool, int, float, str))}))
        tensors += [held for held in tensors_in(own, 4) if not isinstance(held, nn.Parameter)]
    return values, tensors


def _guarded(clone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], idents: set[int]) -> Any:
    result = None
    with Guard(idents) as guard, contextlib.suppress(WriteError):
        result = clone(*args, **kwargs)
    if guard.threads:
        raise OtherThreadsError
    if guard.refused is not None:
        raise NoReplayError(f"{guard.refused} may write to what is not its own")
    return result


def _object(tensor: Tensor) -> tuple[Any, ...]:
    """What a tensor is beside its values."""
    return (tensor.requires_grad, tensor.retains_grad, bool(tensor._backward_hooks), sorted(map(repr, vars(tensor))))


def _structure(value: Any) -> Any:
    """A result's plain values and its shape, without its tensors."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, Mapping):
        return {str(key): _structure(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_structure(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__


def _bits(tensor: Tensor) -> tuple[Any, ...]:
    held = tensor.detach()
    if held.layout is not torch.strided or held.is_quantized:
        return (str(held),)
    memory = held.resolve_conj().resolve_neg().contiguous().clone().reshape(-1)
    return (held.dtype, tuple(held.shape), memory.view(torch.uint8) if memory.numel() else memory)


def _equal(plain: list[_Fact], changed: list[_Fact]) -> bool:
    """Whether two runs gave the same, but for the inputs that were replaced in the second."""
    return len(plain) == len(changed) and all(
        two is None or _same(one, two) for one, two in zip(plain, changed, strict=True)
    )


def _same(one: _Fact, two: _Fact) -> bool:
    if isinstance(one, tuple) and isinstance(two, tuple) and len(one) == len(two) == 3:
        return one[:2] == two[:2] and torch.equal(one[2], two[2])
    return one == two


def _others(tensor: Tensor) -> Iterator[Tensor]:
    """Other tensors of the same kind: first a poisoned one, which spreads, then ordinary ones."""
    value = tensor.detach().clone()
    if value.dtype is torch.bool:
        yield from (~value, torch.ones_like(value), torch.zeros_like(value))
    elif value.is_floating_point() or value.is_complex():
        yield torch.full_like(value, float("nan"))
        for shift in (1, 2, 3):
            yield value.reshape(-1).flip(0).reshape(value.shape) * -2 + shift
    else:
        low, high = int(value.min()), int(value.max())  # an index must stay in its range
        wide = value.to(torch.int64)
        if low == high:
            others = (wide + 1, wide - 1, wide + 2, wide - 2)
        else:
            others = (low + high - wide, low + (wide - low + 1) % (high - low + 1), wide + 1, wide - 1)
        yield from (other.to(value.dtype) for other in others)
