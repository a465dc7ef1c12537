"""What reads a tensor without an operator: torch's own getters and readers, watched while an audit runs.

A `TorchFunctionMode` would see these calls too, but it switches off the fast path of torch's attention and changes
outputs. So `torch.Tensor`'s own methods are wrapped, and restored afterwards.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import handle_torch_function, has_torch_function_unary

Base: Any = torch._C.TensorBase
"""Where torch's own getters are, whatever is wrapped."""

PROPERTIES = (
    "shape dtype device ndim layout is_cuda is_cpu itemsize nbytes is_sparse requires_grad is_quantized is_nested"
).split()
METHODS = (
    "size dim ndimension numel nelement __len__ stride is_contiguous is_floating_point is_complex is_signed "
    "element_size storage_offset get_device type new_tensor new_zeros new_ones new_empty new_full new"
).split()
LIKE = "expand_as view_as reshape_as type_as to".split()
READERS = (
    "tolist numpy data_ptr untyped_storage storage _typed_storage __array__ __dlpack__ __repr__ __str__ __format__ "
    "__reduce_ex__ __deepcopy__ share_memory_"
).split()


class Watcher(Protocol):
    """What hears of reads that no operator tells of."""

    def asked(self, tensor: Tensor) -> None:
        """Metadata of the tensor was asked for."""

    def left(self, tensor: Tensor) -> None:
        """The tensor's values left torch."""

    def alias(self, tensor: Tensor, other: Tensor) -> None:
        """``other`` is the same values under another object."""

    def saved(self, ctx: Any, tensors: tuple[Any, ...]) -> None:
        """A custom autograd function keeps the tensors for its backward."""

    def gave_up(self, error: Exception) -> None:
        """Telling it went wrong."""


_MISSING = object()


class Readers:
    """Wraps the getters and readers of `torch.Tensor` while it is installed.

    Args:
        current: The watcher of the thread that reads, or None where nothing is watched.
    """

    def __init__(self, current: Callable[[], Watcher | None]) -> None:
        self._current = current
        self._before: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        """Put the wrappers in place."""
        if self._before:
            return
        _resolve_names()
        for name in PROPERTIES:
            self._put(Tensor, name, self._property(getattr(Tensor, name), _asks))
        for names, tell in ((METHODS, _asks), (LIKE, _asks_other), (READERS, _leaves)):
            for name in names:
                self._put(Tensor, name, self._method(getattr(Tensor, name), tell))
        self._put(Tensor, "data", self._data(Tensor.data))
        self._put(Tensor, "as_subclass", self._as_subclass(Tensor.as_subclass))
        self._put(Tensor, "_make_subclass", staticmethod(self._make_subclass(Tensor._make_subclass)))
        self._put(FunctionCtx, "save_for_backward", self._saving(FunctionCtx.save_for_backward))

    def remove(self) -> None:
        """Restore what was there."""
        while self._before:
            owner, name, before = self._before.pop()
            if before is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, before)

    def _put(self, owner: Any, name: str, wrapper: Any) -> None:
        self._before.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, wrapper)

    def _property(self, original: Any, tell: Tell) -> property:
        current, get = self._current, original.__get__

        def getter(tensor: Tensor, /) -> Any:
            _tell(current(), tell, tensor, (), {})
            return handle_torch_function(get, (tensor,), tensor) if has_torch_function_unary(tensor) else get(tensor)

        return property(getter, getattr(original, "__set__", None), getattr(original, "__delete__", None))

    def _method(self, original: Any, tell: Tell) -> Any:
        current = self._current

        @functools.wraps(original)
        def method(tensor: Tensor, /, *args: Any, **kwargs: Any) -> Any:
            _tell(current(), tell, tensor, args, kwargs)
            if has_torch_function_unary(tensor):  # whoever handles it is to see torch's own method, and not this one
                return handle_torch_function(original, (tensor,), tensor, *args, **kwargs)
            return original(tensor, *args, **kwargs)

        return method

    def _data(self, original: Any) -> property:
        current, get = self._current, original.__get__

        def getter(tensor: Tensor, /) -> Any:
            alias = get(tensor)
            _tell(current(), _aliases, tensor, (alias,), {})
            return alias

        return property(getter, original.__set__, original.__delete__)

    def _as_subclass(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def as_subclass(tensor: Tensor, /, *args: Any, **kwargs: Any) -> Any:
            if has_torch_function_unary(tensor):
                alias = handle_torch_function(original, (tensor,), tensor, *args, **kwargs)
            else:
                alias = original(tensor, *args, **kwargs)
            _tell(current(), _aliases, tensor, (alias,), {})
            return alias

        return as_subclass

    def _make_subclass(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def make_subclass(*args: Any, **kwargs: Any) -> Any:
            alias = original(*args, **kwargs)
            _tell(current(), _aliases, args[1] if len(args) > 1 else kwargs.get("data"), (alias,), {})
            return alias

        return make_subclass

    def _saving(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def save_for_backward(ctx: Any, /, *tensors: Any) -> None:
            _tell(current(), _saves, ctx, tensors, {})
            original(ctx, *tensors)

        return save_for_backward


Tell = Callable[[Watcher, Any, tuple[Any, ...], dict[str, Any]], None]


def _tell(watcher: Watcher | None, tell: Tell, tensor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell a watcher; an error of its own ends the watching, and not the run."""
    if watcher is None:
        return
    try:
        with torch._C.DisableTorchFunction():
            tell(watcher, tensor, args, kwargs)
    except Exception as error:
        watcher.gave_up(error)


def _aliases(watcher: Watcher, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if isinstance(tensor, Tensor) and isinstance(args[0], Tensor):  # whoever handles it may give anything
        watcher.alias(tensor, args[0])


def _saves(watcher: Watcher, ctx: Any, tensors: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    watcher.saved(ctx, tensors)


def _asks(watcher: Watcher, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not _by_torch():
        watcher.asked(tensor)


def _asks_other(watcher: Watcher, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    other = args[0] if args else kwargs.get("other", kwargs.get("tensor"))
    if isinstance(other, Tensor) and not _by_torch():
        watcher.asked(other)


def _leaves(watcher: Watcher, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    watcher.left(tensor)


def _by_torch() -> bool:
    """Whether it is torch itself that asks, as checkpointing asks every argument for its device."""
    name = sys._getframe(4).f_globals.get("__name__", "")
    return bool(name == "torch" or name.startswith("torch."))


@functools.cache
def _resolve_names() -> None:
    """Torch makes its table of functions once: not of wrappers."""
    torch.overrides.get_overridable_functions()
    torch.overrides.resolve_name(torch.add)
