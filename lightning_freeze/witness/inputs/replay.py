"""Confirms by experiment that a module does not use an input: run again with the input poisoned, nothing changes.

What is run is a twin: the same parameters, but buffers, containers and plain objects of its own, so that the run's
module sees nothing of it. Random numbers come from the same states for each run and are put back.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import enum
import functools
import logging
import random
import re
import sys
import threading
import types
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from .elsewhere import writes_elsewhere
from .leaves import Leaf, replaced, tensors_in

OTHERS = 4
"""How many other values there are to try for an input."""

HOOKS = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_pre_hooks_with_kwargs _backward_hooks "
    "_backward_pre_hooks _forward_hooks_always_called _state_dict_hooks _load_state_dict_pre_hooks"
).split()
EVERYWHERE = (
    "_global_forward_hooks _global_forward_pre_hooks _global_backward_hooks _global_backward_pre_hooks "
    "_global_module_registration_hooks _global_parameter_registration_hooks _global_buffer_registration_hooks"
).split()
"""Torch's hooks of all modules: they would be called once more."""

SHARED = (
    *(type, types.BuiltinFunctionType, types.ModuleType, weakref.ref, enum.Enum, logging.Logger, re.Pattern, PurePath),
    *(str, bytes, int, float, complex, bool, type(None), range, slice, type(Ellipsis), type(threading.Lock())),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch._ops.OpOverload),
    *(torch._ops.OpOverloadPacket, types.MethodWrapperType, property, types.MappingProxyType, type(threading.RLock())),
)
"""What nobody changes: a twin may have it in common with the module."""


class NoReplayError(Exception):
    """A module cannot be run again without being seen from outside."""


def unaffected(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    leaves: list[Leaf],
    *,
    apart: bool,
    doubt: bool = True,
    without: frozenset[str] = frozenset(),
) -> bool | None:
    """Whether nothing that a call gives changes when some of its inputs are poisoned together.

    The outputs and the state that it leaves behind are compared bit by bit, for a poisoned value (NaN, flipped) and
    for a scrambled one; a value with which the module cannot run is passed over for the next.

    Args:
        module: The module, in the state and mode that it was called in.
        args: The call's positional arguments.
        kwargs: Its keyword arguments.
        leaves: The inputs to poison.
        apart: Whether the call writes to what it is handed, so that each run needs copies.
        doubt: Whether to make sure, where something changed, that two equal runs do not differ.
        without: Attributes that the twin does without, as the Trainer that a module knows.

    Returns:
        True: nothing changed. False: something did. None: cannot be known, since the module cannot be run again, or two
        equal runs differ.
    """
    watched = any(getattr(nn.modules.module, name) for name in EVERYWHERE)
    watched |= any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    if watched or any(leaf.tensor.numel() == 0 for leaf in leaves):
        return None
    with _disable_current_modes():  # those of the user are not to see what a replay does
        return _unaffected(module, args, kwargs, leaves, apart, doubt, without)


def _unaffected(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    leaves: list[Leaf],
    apart: bool,
    doubt: bool,
    without: frozenset[str],
) -> bool | None:
    try:
        plainly = _run(module, args, kwargs, [(leaf, leaf.tensor.detach().clone()) for leaf in leaves], apart, without)
        ran = 0
        for turn in range(OTHERS):
            new = [(leaf, _other(leaf.tensor, turn)) for leaf in leaves]
            try:
                changed = _run(module, args, kwargs, new, apart, without)
            except NoReplayError:
                raise
            except Exception:  # an index out of range says that the value was looked at, not that it mattered
                continue
            ran += 1
            if not _equal(plainly, changed):
                if not doubt:
                    return False
                clones = [(leaf, leaf.tensor.detach().clone()) for leaf in leaves]
                return False if _equal(plainly, _run(module, args, kwargs, clones, apart, without)) else None
            if ran == 2:
                break
        return True if ran else None
    except Exception:
        return None


def changeable(value: Any) -> bool:
    """Whether an argument is an object that a call may change, as a cache is."""
    if isinstance(value, (*SHARED, Tensor, nn.Module, list, tuple, dict)) or callable(value):
        return False
    return hasattr(value, "__dict__")


def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A call's arguments as they are now: containers and objects anew, the tensors in them as they are."""
    memo: dict[int, Any] = {}
    try:
        return _copy(args, memo, frozenset(), False), _copy(kwargs, memo, frozenset(), False)
    except Exception:  # what cannot be copied cannot be replayed either
        return None


def _run(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    new: list[tuple[Leaf, Tensor]],
    apart: bool,
    without: frozenset[str],
) -> list[Any]:
    """What one run gives: its outputs, and the state that it leaves."""
    args, kwargs = replaced(args, kwargs, [(leaf, _as(leaf.tensor, tensor)) for leaf, tensor in new])
    memo: dict[int, Any] = {id(tensor): tensor for _, tensor in new}
    twin = _twin(module, memo, without, apart)
    args, kwargs = _copy(args, memo, without, apart), _copy(dict(kwargs), memo, without, apart)
    with _unseen():
        result = _context(memo, without, apart).run(twin, *args, **kwargs)
    state = list(twin.buffers())
    handed = tensors_in((args, kwargs)) if apart else ()
    chosen = {id(tensor) for _, tensor in new}
    facts: list[Any] = [_bits(tensor) for tensor in tensors_in(result) if id(tensor) not in chosen]
    facts += [_bits(tensor) for tensor in state]
    facts += [_bits(tensor) for tensor in handed if id(tensor) not in chosen]
    facts += _attributes(twin, chosen)
    facts.append(_plainly(result))
    return facts


def _context(memo: dict[int, Any], without: frozenset[str], apart: bool) -> contextvars.Context:
    """The context variables as they are, with copies of what they hold as far as that can be copied."""
    context = contextvars.copy_context()
    for variable, value in context.items():
        with contextlib.suppress(Exception):
            context.run(variable.set, _copy(value, memo, without, apart))
    return context


def _attributes(twin: nn.Module, chosen: set[int]) -> list[Any]:
    """Tensors and plain values that a module keeps for itself."""
    facts: list[Any] = []
    for part in twin.modules():
        own = {key: value for key, value in vars(part).items() if key not in ("_parameters", "_buffers", "_modules")}
        facts += [_bits(t) for t in tensors_in(own, 4) if not isinstance(t, nn.Parameter) and id(t) not in chosen]
        facts.append({key: value for key, value in own.items() if isinstance(value, (bool, int, float, str))})
    return facts


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


def _equal(one: list[Any], two: list[Any]) -> bool:
    if len(one) != len(two):
        return False
    for a, b in zip(one, two, strict=True):
        if isinstance(a, tuple) and isinstance(b, tuple):
            if a[:-1] != b[:-1] or (isinstance(a[-1], Tensor) and not torch.equal(a[-1], b[-1])):
                return False
            if not isinstance(a[-1], Tensor) and a[-1] != b[-1]:
                return False
        elif repr(a) != repr(b):  # NaN equals itself here
            return False
    return True


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


# ---- the twin


def _twin(module: nn.Module, memo: dict[int, Any], without: frozenset[str], apart: bool) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]  # type: ignore[no-any-return]
    kind = type(module)
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        raise NoReplayError(f"{kind.__name__} cannot be copied")
    if not kind.__module__.startswith("torch.") and writes_elsewhere(kind.forward, kind):
        raise NoReplayError(f"{kind.__name__}.forward may write to what is not its own")
    if "forward" in vars(module) and getattr(module.forward, "__self__", None) is not module:
        raise NoReplayError(f"the forward of a {kind.__name__} was replaced")
    twin = memo[id(module)] = object.__new__(kind)
    state = vars(twin)
    for key, value in vars(module).items():
        if key in HOOKS:
            state[key] = type(value)((k, hook) for k, hook in value.items() if _of_torch(hook))
        elif key == "_parameters":
            state[key] = type(value)((k, None if p is None else _alias(p, memo)) for k, p in value.items())
        elif key == "_buffers":
            state[key] = type(value)((k, None if b is None else _clone(b, memo)) for k, b in value.items())
        elif key == "_modules":
            parts = ((k, None if m is None else _twin(m, memo, without, apart)) for k, m in value.items())
            state[key] = type(value)(parts)
        elif key in without or key == "_compiled_call_impl":
            state[key] = None
        else:
            state[key] = _copy(value, memo, without, apart)
    return twin


def _of_torch(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch.")


def _alias(parameter: Tensor, memo: dict[int, Any]) -> Tensor:
    """A parameter of the same memory, without the gradient and the hooks of the run's own."""
    if type(parameter) is not nn.Parameter:
        return parameter
    if id(parameter) not in memo:
        memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return memo[id(parameter)]  # type: ignore[no-any-return]


def _clone(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    return memo[id(tensor)]  # type: ignore[no-any-return]


def _copy(value: Any, memo: dict[int, Any], without: frozenset[str], apart: bool) -> Any:
    """A copy of what a module or a call holds: containers and plain objects anew, tensors and functions as they are."""
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, (types.ModuleType, type(None))):
        raise NoReplayError(f"{value.__qualname__} of an object")
    if isinstance(value, SHARED):
        return value
    if isinstance(value, types.FunctionType):
        if writes_elsewhere(value):
            raise NoReplayError(f"{value.__qualname__} may write to what is not its own")
        return value
    if isinstance(value, nn.Parameter):
        return _alias(value, memo)
    if isinstance(value, Tensor):
        return _clone(value, memo) if apart else value
    if isinstance(value, nn.Module):
        return _twin(value, memo, without, apart)
    if isinstance(value, torch.Generator):
        memo[id(value)] = value.clone_state()
        return memo[id(value)]
    if isinstance(value, types.MethodType):
        if writes_elsewhere(value, type(value.__self__)):
            raise NoReplayError(f"{value.__qualname__} may write to what is not its own")
        return types.MethodType(value.__func__, _copy(value.__self__, memo, without, apart))
    return _container(value, memo, without, apart)


def _container(value: Any, memo: dict[int, Any], without: frozenset[str], apart: bool) -> Any:
    def copied(item: Any) -> Any:
        return _copy(item, memo, without, apart)

    kind = type(value)
    if kind is tuple:
        return tuple(copied(item) for item in value)
    if isinstance(value, tuple):
        return tuple.__new__(kind, [copied(item) for item in value])
    made: Any
    if kind is frozenset:
        return frozenset(copied(item) for item in value)
    if kind in (list, set, deque):
        memo[id(value)] = made = deque(maxlen=value.maxlen) if kind is deque else kind()
        for item in list(value):
            (made.add if kind is set else made.append)(copied(item))
        return made
    if isinstance(value, dict):
        memo[id(value)] = made = value.copy() if kind is dict else copy.copy(value)
        for key in list(made):
            dict.__setitem__(made, key, copied(made[key]))
        _own(value, made, copied)
        return made
    if kind is functools.partial:
        return functools.partial(copied(value.func), *map(copied, value.args), **copied(value.keywords))
    if kind in (bytearray, random.Random) or kind.__module__.partition(".")[0] == "numpy":
        memo[id(value)] = made = copy.deepcopy(value)
        return made
    if hasattr(kind, "__del__") or not all(base.__flags__ & _HEAP or base is object for base in kind.__mro__):
        raise NoReplayError(f"a {kind.__name__}, which cannot be copied safely")
    memo[id(value)] = made = object.__new__(kind)
    _own(value, made, copied)
    return made


_HEAP = 1 << 9
"""The flag of a class that is written in Python."""


def _own(value: Any, made: Any, copied: Callable[[Any], Any]) -> None:
    for key, item in getattr(value, "__dict__", {}).items():
        object.__setattr__(made, key, copied(item))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                object.__setattr__(made, slot, copied(getattr(value, slot)))


# ---- unseen


class _Hush:
    """A stream that keeps silent about what one thread writes."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _hushed(original: Any) -> Callable[..., Any]:
    """A function that does nothing in this thread."""
    thread = threading.get_ident()

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() == thread else original(*args, **kwargs)

    return function


@contextlib.contextmanager
def _put(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def _unseen() -> Iterator[None]:
    """Whatever this thread draws, prints, logs or warns of within leaves no trace."""
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numbers = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            _put(sys, "stdout", _Hush(sys.stdout)),
            _put(sys, "stderr", _Hush(sys.stderr)),
            _put(logging.Logger, "handle", _hushed(logging.Logger.handle)),
            # not `catch_warnings`, which makes Python forget what it has warned of once
            _put(warnings, "_showwarnmsg", _hushed(warnings._showwarnmsg)),  # type: ignore[attr-defined]
            # checkpointing counts what its region saves for backward
            # (detached: a result saved as itself would hold the graph that holds it, for ever)
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor),
            torch._C._EnableTorchFunction(),
        ):
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numbers)
