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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from .guard import SYSTEM, TRUSTED, Guard, WriteError
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
    *(type, types.FunctionType, types.ModuleType, weakref.ref, enum.Enum, logging.Logger, re.Pattern, PurePath),
    *(str, bytes, int, float, complex, bool, type(None), range, slice, type(Ellipsis), type(threading.Lock())),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch._ops.OpOverload),
    *(torch._ops.OpOverloadPacket, types.MethodWrapperType, property, types.MappingProxyType, type(threading.RLock())),
)
"""What nobody changes: a twin may have it in common with the module."""


class NoReplayError(Exception):
    """A module cannot be run again without being seen from outside."""


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
            for other in (torch.ones(shape, dtype=torch.int16, device=device), leafless):
                try:
                    changed = self._run([(leaf, other)])
                except NoReplayError:
                    raise
                except Exception:  # it cannot run with such a one
                    return False
                if not _equal(self._plain or [], changed):
                    return False
            return True

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
            try:
                changed = self._run([(leaf, _other(leaf.tensor, turn)) for leaf in leaves], like=True)
            except NoReplayError:
                raise
            except Exception:  # an index out of range says that the value was looked at, not that it mattered
                continue
            ran += 1
            if not _equal(plain, changed):
                return self._known(False)
            if ran == 2:
                break
        return True if ran else None

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
        copier = _Copier(self._without, self._apart)
        standing = [(leaf, _as(leaf.tensor, tensor) if like else tensor) for leaf, tensor in new]
        args, kwargs = replaced(self._args, self._kwargs, standing)
        for leaf, tensor in standing:
            copier.memo[id(tensor)] = tensor
            if like:
                copier.dress(leaf.tensor, tensor)
        twin = copier.module(self._module)
        args, kwargs = copier(args), copier(dict(kwargs))
        context = copier.context()
        objects = list(tensors_in((args, kwargs)))
        before = [_object(tensor) for tensor in objects]
        idents: set[int] = set()
        with _unseen(idents):
            result = context.run(_guarded, twin, args, kwargs, idents)
        if [_object(tensor) for tensor in objects] != before:
            raise NoReplayError("the call changes what a tensor is, not only its values")
        chosen = {id(tensor) for _, tensor in standing}
        seen = [*tensors_in(result), *twin.buffers(), *(objects if self._apart else ())]
        seen += [t for part in twin.modules() for t in tensors_in(_own_of(part), 4) if not isinstance(t, nn.Parameter)]
        facts: list[_Fact] = [None if id(tensor) in chosen else _bits(tensor) for tensor in seen]
        for part in twin.modules():
            facts.append(repr({k: v for k, v in _own_of(part).items() if isinstance(v, (bool, int, float, str))}))
        facts.append(repr(_plainly(result)))
        return facts


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


def changeable(value: Any) -> bool:
    """Whether an argument is an object that a call may change, as a cache is."""
    if isinstance(value, (*SHARED, types.BuiltinFunctionType, Tensor, nn.Module, list, tuple, dict)) or callable(value):
        return False
    return hasattr(value, "__dict__")


def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A call's arguments as they are now: containers and objects anew, the tensors in them as they are."""
    copier = _Shallow(frozenset(), False)
    try:
        return copier(args), copier(kwargs)
    except Exception:  # what cannot be copied cannot be replayed either
        return None


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
    if len(plain) != len(changed):
        return False
    for one, two in zip(plain, changed, strict=True):
        if two is None:
            continue
        if isinstance(one, tuple) and isinstance(two, tuple):
            if one[:-1] != two[:-1] or type(one[-1]) is not type(two[-1]):
                return False
            if not (torch.equal(one[-1], two[-1]) if isinstance(one[-1], Tensor) else one[-1] == two[-1]):
                return False
        elif one != two:
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


class _Copier:
    """Makes a module's twin and what is handed to it: containers and objects anew, tensors as others of the same memory.

    Args:
        without: Attributes that it leaves out.
        apart: Whether tensors get memory of their own.
    """

    def __init__(self, without: frozenset[str], apart: bool) -> None:
        self._without, self._apart = without, apart
        self.memo: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no `id` in the memo is given anew

    def module(self, module: nn.Module) -> nn.Module:
        """A module's twin."""
        if id(module) in self.memo:
            return self.memo[id(module)]  # type: ignore[no-any-return]
        kind = type(module)
        if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            raise NoReplayError(f"{kind.__name__} cannot be copied")
        if "forward" in vars(module) and getattr(module.forward, "__self__", None) is not module:
            raise NoReplayError(f"the forward of a {kind.__name__} was replaced")
        twin = self.memo[id(module)] = object.__new__(kind)
        state = vars(twin)
        for key, value in vars(module).items():
            if key in HOOKS:
                state[key] = type(value)((k, hook) for k, hook in value.items() if of_torch(hook))
            elif key == "_buffers":
                state[key] = type(value)((k, None if b is None else self._clone(b)) for k, b in value.items())
            elif key in ("_parameters", "_modules"):
                state[key] = type(value)((k, self(held)) for k, held in value.items())
            elif key in self._without or key == "_compiled_call_impl":
                state[key] = None
            else:
                state[key] = self(value)
        self._of_class(module, twin)
        return twin

    def _of_class(self, value: Any, made: Any) -> None:
        """Containers and objects that a class holds for all of its objects become the copy's own."""
        for kind in type(value).__mro__:
            if kind.__module__.partition(".")[0] in TRUSTED:
                continue
            for key, held in vars(kind).items():
                if key.startswith("__") or key in vars(made) or not isinstance(held, (list, dict, set, deque)):
                    continue
                object.__setattr__(made, key, self(held))

    def context(self) -> contextvars.Context:
        """The context variables as they are, with copies of what they hold as far as that can be copied."""
        context = contextvars.copy_context()
        for variable, value in context.items():
            with contextlib.suppress(Exception):
                context.run(variable.set, self(value))
        return context

    def dress(self, tensor: Tensor, twin: Tensor) -> None:
        """Give one tensor the attributes of another."""
        for key, value in vars(tensor).items():
            setattr(twin, key, self(value))

    def __call__(self, value: Any) -> Any:
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, types.BuiltinFunctionType):
            if not isinstance(value.__self__, (types.ModuleType, type(None))):
                raise NoReplayError(f"{value.__qualname__} of an object")
            return value
        if isinstance(value, SHARED):
            return value
        if isinstance(value, Tensor):
            return self._clone(value) if self._apart and type(value) is not nn.Parameter else self._alias(value)
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, torch.Generator):
            return self._remember(value, value.clone_state())
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self(value.__self__))
        return self._container(value)

    def _remember(self, value: Any, made: Any) -> Any:
        self.memo[id(value)] = made
        self._kept.append(value)
        return made

    def _alias(self, tensor: Tensor) -> Tensor:
        """A tensor of the same memory, without the gradient and the hooks of the run's own."""
        if id(tensor) in self.memo:
            return self.memo[id(tensor)]  # type: ignore[no-any-return]
        if type(tensor) is nn.Parameter:
            made: Tensor = nn.Parameter(tensor.detach(), tensor.requires_grad)
        else:
            made = tensor.detach()
            if tensor.requires_grad:
                made.requires_grad_()
        self._remember(tensor, made)
        self.dress(tensor, made)
        return made

    def _clone(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self.memo:
            self._remember(tensor, tensor.detach().clone().requires_grad_(tensor.requires_grad))
            self.dress(tensor, self.memo[id(tensor)])
        return self.memo[id(tensor)]  # type: ignore[no-any-return]

    def _container(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            return tuple(map(self, value))
        if isinstance(value, tuple):
            return tuple.__new__(kind, [self(item) for item in value])
        made: Any
        if kind is frozenset:
            return frozenset(map(self, value))
        if kind in (list, set, deque):
            made = self._remember(value, deque(maxlen=value.maxlen) if kind is deque else kind())
            for item in list(value):
                (made.add if kind is set else made.append)(self(item))
            return made
        if isinstance(value, dict):
            made = self._remember(value, value.copy() if kind is dict else copy.copy(value))
            for key in list(made):
                dict.__setitem__(made, key, self(made[key]))
            self._attributes(value, made)
            return made
        if kind is functools.partial:
            return functools.partial(self(value.func), *map(self, value.args), **self(value.keywords))
        if kind in (bytearray, random.Random) or kind.__module__.partition(".")[0] == "numpy":
            return self._remember(value, copy.deepcopy(value))
        outside = kind.__module__.partition(".")[0] in (*SYSTEM, "threading", "queue", "multiprocessing", "asyncio")
        if outside or hasattr(kind, "__del__") or not all(b.__flags__ & _HEAP or b is object for b in kind.__mro__):
            raise NoReplayError(f"a {kind.__name__}, which cannot be copied safely")
        self._remember(value, object.__new__(kind))
        self._attributes(value, self.memo[id(value)])
        return self.memo[id(value)]

    def _attributes(self, value: Any, made: Any) -> None:
        """What an object keeps, for its copy."""
        if hasattr(made, "__dict__"):
            self._of_class(value, made)
        for key, item in getattr(value, "__dict__", {}).items():
            object.__setattr__(made, key, self(item))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                    object.__setattr__(made, slot, self(getattr(value, slot)))


class _Shallow(_Copier):
    """Copies what is handed over as it is before the call, with the very tensors, modules and methods."""

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (Tensor, nn.Module, types.MethodType, types.BuiltinFunctionType)):
            return value
        return super().__call__(value)


def of_torch(hook: Any) -> bool:
    """Whether a hook is torch's own, which does nothing that a replay must not do."""
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch.")


_HEAP = 1 << 9
"""The flag of a class that is written in Python (``Py_TPFLAGS_HEAPTYPE`` in CPython's ``object.h``)."""


# ---- unseen


class _Hush:
    """A stream that keeps silent about what some threads write."""

    def __init__(self, stream: Any, idents: set[int]) -> None:
        self._stream, self._idents = stream, idents

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() in self._idents else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _hushed(original: Any, idents: set[int]) -> Callable[..., Any]:
    """A function that does nothing in some threads."""

    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() in idents else original(*args, **kwargs)

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
def _unseen(idents: set[int]) -> Iterator[None]:
    """Whatever these threads draw, print, log or warn of within leaves no trace."""
    idents.add(threading.get_ident())
    state = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    numbers = numpy.random.get_state() if numpy is not None else None
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with (
            torch.random.fork_rng(devices=devices),
            _put(sys, "stdout", _Hush(sys.stdout, idents)),
            _put(sys, "stderr", _Hush(sys.stderr, idents)),
            _put(
                sys, "unraisablehook", _hushed(sys.unraisablehook, idents)
            ),  # of a coroutine that was begun and not awaited
            _put(logging.Logger, "handle", _hushed(logging.Logger.handle, idents)),
            _put(logging.Logger, "_log", _hushed(logging.Logger._log, idents)),
            # not `catch_warnings`, which makes Python forget what it has warned of once
            _put(warnings, "_showwarnmsg", _hushed(warnings._showwarnmsg, idents)),  # type: ignore[attr-defined]
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
