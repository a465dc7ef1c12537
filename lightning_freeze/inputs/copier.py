"""Clones a module for a replay: it shares the parameters, but all that it may change is its own."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import random
import types
import weakref
from collections import deque
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn

from .guard import SYSTEM
from .sources import CONSTANT, LOCKS, TRUSTED

HOOKS = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_pre_hooks_with_kwargs _backward_hooks "
    "_backward_pre_hooks _forward_hooks_always_called _state_dict_hooks _load_state_dict_pre_hooks"
).split()

SHARED = (
    *(*CONSTANT, *LOCKS, weakref.ref, PurePath, type(Ellipsis), property),
    *(types.MethodWrapperType, types.MappingProxyType),
)
"""What nobody changes: a clone may share it with the module."""

_HEAP = 1 << 9
"""The flag of a class that is written in Python (``Py_TPFLAGS_HEAPTYPE`` in CPython's ``object.h``)."""


class NoReplayError(Exception):
    """A module cannot be run again unseen."""


class Copier:
    """Copies a module and what it is passed: new containers and objects, tensors of the same memory."""

    def __init__(self, without: frozenset[str], clone_tensors: bool) -> None:
        self._without = without  # attributes that it excludes
        self._clone_tensors = clone_tensors  # tensors get memory of their own
        self.memo: dict[int, Any] = {}
        self._kept: list[Any] = []  # alive, so that no `id` in the memo is reused

    def __call__(self, value: Any) -> Any:
        """The copy of an argument, or of anything that a module keeps."""
        if id(value) in self.memo:
            return self.memo[id(value)]
        if isinstance(value, types.BuiltinFunctionType):
            if not isinstance(value.__self__, (types.ModuleType, type(None))):
                raise NoReplayError(f"{value.__qualname__} of an object")
            return value
        if isinstance(value, SHARED):
            return value
        if isinstance(value, Tensor):
            return self._tensor(value, clone=self._clone_tensors and type(value) is not nn.Parameter)
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self(value.__self__))
        return self._container(value)

    def context(self) -> contextvars.Context:
        """The current context variables, with copies of what they hold where that can be copied."""
        context = contextvars.copy_context()
        for variable, value in context.items():
            with contextlib.suppress(Exception):
                context.run(variable.set, self(value))
        return context

    def copy_attributes(self, tensor: Tensor, other: Tensor) -> None:
        """Give another tensor copies of a tensor's attributes."""
        for key, value in vars(tensor).items():
            setattr(other, key, self(value))

    def _module(self, module: nn.Module) -> nn.Module:
        kind = type(module)
        if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
            raise NoReplayError(f"{kind.__name__} cannot be copied")
        if "forward" in vars(module) and getattr(module.forward, "__self__", None) is not module:
            raise NoReplayError(f"the forward of a {kind.__name__} was replaced")
        clone = self.memo[id(module)] = object.__new__(kind)
        for key, value in vars(module).items():
            vars(clone)[key] = self._of_module(key, value)
        self._of_class(module, clone)
        return clone

    def _of_module(self, key: str, value: Any) -> Any:
        """The copy of a module's attribute."""
        if key in HOOKS:
            return type(value)((k, hook) for k, hook in value.items() if of_torch(hook))
        if key == "_buffers":
            return type(value)((k, None if b is None else self._tensor(b, clone=True)) for k, b in value.items())
        if key in ("_parameters", "_modules"):
            return type(value)((k, self(held)) for k, held in value.items())
        return None if key in self._without or key == "_compiled_call_impl" else self(value)

    def _of_class(self, value: Any, made: Any) -> None:
        """Copy what a class holds for all of its objects onto the copy of one."""
        for kind in type(value).__mro__:
            if kind.__module__.partition(".")[0] in TRUSTED:
                continue
            for key, held in vars(kind).items():
                if not key.startswith("__") and key not in vars(made) and isinstance(held, (list, dict, set, deque)):
                    object.__setattr__(made, key, self(held))

    def _remember(self, value: Any, made: Any) -> Any:
        self.memo[id(value)] = made
        self._kept.append(value)
        return made

    def _tensor(self, tensor: Tensor, clone: bool) -> Tensor:
        """A tensor of the same memory, or a clone, without gradient and hooks."""
        if id(tensor) not in self.memo:
            made = tensor.detach().clone() if clone else tensor.detach()
            if type(tensor) is nn.Parameter and not clone:
                made = nn.Parameter(made, tensor.requires_grad)
            elif tensor.requires_grad:
                made.requires_grad_()
            self._remember(tensor, made)
            self.copy_attributes(tensor, made)
        return self.memo[id(tensor)]  # type: ignore[no-any-return]

    def _container(self, value: Any) -> Any:
        kind = type(value)
        if kind in (tuple, frozenset):
            return kind(map(self, value))
        if isinstance(value, tuple):
            return tuple.__new__(kind, map(self, value))
        if kind in (list, set, deque):
            made = self._remember(value, deque(maxlen=value.maxlen) if kind is deque else kind())
            (made.update if kind is set else made.extend)(map(self, list(value)))
            return made
        if isinstance(value, dict):
            made = self._remember(value, copy.copy(value))
            for key in list(made):
                dict.__setitem__(made, key, self(made[key]))
            return self._attributes(value, made)
        if kind is functools.partial:
            return functools.partial(self(value.func), *map(self, value.args), **self(value.keywords))
        return self._object(value)

    def _object(self, value: Any) -> Any:
        kind = type(value)
        package = kind.__module__.partition(".")[0]
        if isinstance(value, torch.Generator):
            return self._remember(value, value.clone_state())
        if kind in (bytearray, random.Random) or package == "numpy":
            return self._remember(value, copy.deepcopy(value))
        outside = package in (*SYSTEM, "threading", "queue", "multiprocessing", "asyncio")
        if outside or hasattr(kind, "__del__") or not all(b.__flags__ & _HEAP or b is object for b in kind.__mro__):
            raise NoReplayError(f"a {kind.__name__}, which cannot be copied safely")
        return self._attributes(value, self._remember(value, object.__new__(kind)))

    def _attributes(self, value: Any, made: Any) -> Any:
        """Copy what an object keeps onto its copy."""
        if hasattr(made, "__dict__"):
            self._of_class(value, made)
        for key, item in getattr(value, "__dict__", {}).items():
            object.__setattr__(made, key, self(item))
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                    object.__setattr__(made, slot, self(getattr(value, slot)))
        return made


class _Shallow(Copier):
    """Copies containers and objects, but keeps the tensors, modules and methods in them."""

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (Tensor, nn.Module, types.MethodType, types.BuiltinFunctionType)):
            return value
        return super().__call__(value)


def of_torch(hook: Any) -> bool:
    """Whether a hook is torch's own, which a replay may call."""
    return (getattr(hook, "__module__", None) or type(hook).__module__).startswith("torch.")


def changeable(value: Any) -> bool:
    """Whether an argument is an object that a call may change, as a cache is."""
    if isinstance(value, (*SHARED, types.BuiltinFunctionType, Tensor, nn.Module, list, tuple, dict)) or callable(value):
        return False
    return hasattr(value, "__dict__")


def arguments_before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Copies of a call's arguments before it changes them; None where they cannot be copied."""
    copier = _Shallow(frozenset(), False)
    try:
        return copier(args), copier(kwargs)
    except Exception:  # a replay could not copy them either
        return None
