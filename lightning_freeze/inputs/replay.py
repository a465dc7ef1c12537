"""Confirms by experiment that a module does not use an input: run again with the input poisoned, nothing changes.

What is run is a twin: the same parameters, but buffers, containers and plain objects of its own, so that the run's
module sees nothing of it. Random numbers come from the same states for each run and are put back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
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

OTHERS = 4
"""How many other values there are to try for an input."""

EVERYWHERE = (
    "_global_forward_hooks _global_forward_pre_hooks _global_backward_hooks _global_backward_pre_hooks "
    "_global_module_registration_hooks _global_parameter_registration_hooks _global_buffer_registration_hooks"
).split()
"""Torch's hooks of all modules: they would be called once more."""


class OtherThreadsError(NoReplayError):
    """A module has work done in other threads, of which the tracer saw nothing."""


_ONE = threading.RLock()
"""Random numbers, streams and loggers are the process's: one replay at a time puts them back as they were."""


class Replay:
    """A call of a module, to be run again with other inputs.

    Args:
        module: The module, in the state and mode that it was called in.
        args: The call's positional arguments.
        kwargs: Its keyword arguments.
        apart: Whether the call writes to what it is handed or keeps, so that each run needs copies.
        without: Attributes that the twin does without, as the Trainer that a module knows.
    """

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        apart: bool,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self._module, self._args, self._kwargs = module, args, kwargs
        self._apart, self._without = apart, without
        self._plain: list[_Fact] | None = None
        self._steady: bool | None = None

    def unaffected(self, leaves: Sequence[Leaf]) -> bool | None:
        """Whether nothing that the call gives changes when some of its inputs are poisoned together.

        The outputs and the state that it leaves behind are compared bit by bit, for a poisoned value (NaN, flipped) and
        for a scrambled one; a value with which the module cannot run is passed over for the next.

        Args:
            leaves: The inputs to poison.

        Returns:
            True: nothing changed. False: something did. None: cannot be known, since the module cannot be run again, or
            two equal runs differ.
        """
        if any(leaf.tensor.numel() == 0 for leaf in leaves):
            return None
        return self._alone(lambda: self._unaffected(leaves))

    def indifferent(self, leaf: Leaf) -> bool | None:
        """Whether nothing changes when an input is another tensor altogether: of another shape and data type, without a
        gradient or attributes of its own. If not, its being what it is is used, though its values are not.
        """
        shape, device = (3, *leaf.tensor.shape, 2), leaf.tensor.device

        def ask() -> bool:
            with torch.inference_mode(False), torch.enable_grad():
                leafless = torch.ones(shape, dtype=torch.float64, device=device, requires_grad=True) * 1
            others = (torch.ones(shape, dtype=torch.int16, device=device), leafless)
            return all(self._equals([(leaf, other)]) is True for other in others)

        return self._alone(ask)

    def _alone(self, ask: Callable[[], bool | None]) -> bool | None:
        watched = any(getattr(nn.modules.module, name) for name in EVERYWHERE)
        if watched or any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()):
            return None
        try:
            with _ONE, _disable_current_modes():  # those of the user are not to see what a replay does
                if self._plain is None:
                    self._plain = self._run([])
                return ask()
        except OtherThreadsError:
            return False  # so nothing can be said against an input
        except (Exception, WriteError):
            return None

    def _unaffected(self, leaves: Sequence[Leaf]) -> bool | None:
        plain: list[_Fact] = self._plain or []
        # a copy of it must do as well as the tensor itself: `x is y`, and what the call does to the tensor object
        if not _equal(plain, self._run([(leaf, leaf.tensor.detach().clone()) for leaf in leaves], like=True)):
            return self._known(False)
        ran = 0
        for turn in range(OTHERS):
            equal = self._equals([(leaf, _other(leaf.tensor, turn)) for leaf in leaves], like=True)
            if equal is False:
                return self._known(False)
            ran += equal is not None
            if ran == 2:
                break
        return True if ran else None

    def _equals(self, new: list[tuple[Leaf, Tensor]], like: bool = False) -> bool | None:
        """Whether a run with other inputs gives the same; None where it cannot run with them."""
        try:
            changed = self._run(new, like)
        except NoReplayError:
            raise
        except Exception:  # an index out of range says that the value was looked at, not that it mattered
            return None
        return _equal(self._plain or [], changed)

    def _known(self, answer: bool) -> bool | None:
        """An answer, unless two equal runs differ."""
        if self._steady is None:
            self._steady = _equal(self._plain or [], self._run([]))
        return answer if self._steady else None

    def _run(self, new: list[tuple[Leaf, Tensor]], like: bool = False) -> list[_Fact]:
        """What one run gives: its outputs, and the state that it leaves.

        Args:
            new: Inputs to replace, each with the tensor to stand in its place.
            like: Whether these are to be like those whose place they take in all but their values.
        """
        copier = Copier(self._without, self._apart)
        standing = [(leaf, _as(leaf.tensor, tensor) if like else tensor) for leaf, tensor in new]
        args, kwargs = replaced(self._args, self._kwargs, standing)
        for leaf, tensor in standing:
            copier.memo[id(tensor)] = tensor
            if like:
                copier.dress(leaf.tensor, tensor)
        twin = copier(self._module)
        args, kwargs = copier(args), copier(dict(kwargs))
        context = copier.context()
        objects = list(tensors_in((args, kwargs)))
        before = [_object(tensor) for tensor in objects]
        idents: set[int] = set()
        with unseen(idents):
            result = context.run(_guarded, twin, args, kwargs, idents)
        if [_object(tensor) for tensor in objects] != before:
            raise NoReplayError("the call changes what a tensor is, not only its values")
        seen = [*tensors_in(result), *twin.buffers(), *(objects if self._apart else ())]
        return _facts(result, twin, seen, {id(tensor) for _, tensor in standing})


def _facts(result: Any, twin: nn.Module, seen: list[Tensor], chosen: set[int]) -> list[_Fact]:
    """What a run gave and left behind, but for the tensors that were chosen for it."""
    parts = [_own_of(part) for part in twin.modules()]
    seen += [held for own in parts for held in tensors_in(own, 4) if not isinstance(held, nn.Parameter)]
    facts: list[_Fact] = [None if id(tensor) in chosen else _bits(tensor) for tensor in seen]
    facts += [repr({k: v for k, v in own.items() if isinstance(v, (bool, int, float, str))}) for own in parts]
    return [*facts, repr(_plainly(result))]


def _guarded(twin: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], idents: set[int]) -> Any:
    result = None
    with Guard(idents) as guard, contextlib.suppress(WriteError):
        result = twin(*args, **kwargs)
    if guard.threads:
        raise OtherThreadsError
    if guard.refused is not None:
        raise NoReplayError(f"{guard.refused} may write to what is not its own")
    return result


_Fact = tuple[Any, ...] | str | None
"""Something that a run gave: a tensor's kind and bytes, plain values as text, or None for an input that was replaced."""


def _own_of(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside its parameters, buffers and children."""
    return {key: value for key, value in vars(module).items() if key not in ("_parameters", "_buffers", "_modules")}


def _object(tensor: Tensor) -> tuple[Any, ...]:
    """What a tensor is beside its values."""
    return (tensor.requires_grad, tensor.retains_grad, bool(tensor._backward_hooks), sorted(map(repr, vars(tensor))))


def _plainly(value: Any) -> Any:
    """A result's plain values and its shape, without its tensors."""
    if isinstance(value, Tensor):
        return "tensor"
    if isinstance(value, Mapping):
        return {str(key): _plainly(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plainly(item) for item in value]
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
    if not isinstance(one, tuple) or not isinstance(two, tuple):
        return one == two
    if one[:-1] != two[:-1] or type(one[-1]) is not type(two[-1]):
        return False
    return torch.equal(one[-1], two[-1]) if isinstance(one[-1], Tensor) else bool(one[-1] == two[-1])


def _other(tensor: Tensor, turn: int) -> Tensor:
    """Another tensor of the same kind: first a poisoned one, which spreads through arithmetic, then ordinary ones."""
    value = tensor.detach().clone()
    if value.dtype is torch.bool:
        return (~value, torch.ones_like(value), torch.zeros_like(value), ~value)[turn]
    if value.is_floating_point() or value.is_complex():
        if turn == 0:
            return torch.full_like(value, float("nan"))
        return value.reshape(-1).flip(0).reshape(value.shape) * -2 + turn
    low, high = int(value.min()), int(value.max())  # what indexes must stay in its range
    wide = value.to(torch.int64) if value.dtype is not torch.uint64 else value
    if low == high:
        return (wide + (1, -1, 2, -2)[turn]).to(value.dtype)
    if turn == 0:
        return (low + high - wide).to(value.dtype)
    if turn == 1:
        return (low + (wide - low + 1) % (high - low + 1)).to(value.dtype)
    return (wide + (1 if turn == 2 else -1)).to(value.dtype)


def _as(tensor: Tensor, new: Tensor) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter):
        raise NoReplayError(f"an input is a {type(tensor).__name__}")
    differentiable = new.is_floating_point() or new.is_complex()
    return new.requires_grad_(tensor.requires_grad) if differentiable else new
