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

Base: Any = torch._C.TensorBase
"""Where torch's own getters are, whatever is wrapped."""

PROPERTIES = (
    "shape dtype device ndim layout is_cuda is_cpu itemsize nbytes is_sparse requires_grad is_quantized is_nested"
).split()
METHODS = (
    "size dim ndimension numel nelement __len__ stride is_contiguous is_floating_point is_complex is_signed "
    "element_size storage_offset get_device type new_tensor new_zeros new_ones new_empty new_full new"
).split()
FUNCTIONS = "numel is_floating_point is_complex result_type get_device".split()
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
        for name in PROPERTIES:
            self._put(Tensor, name, self._property(getattr(Tensor, name)))
        for name in METHODS:
            self._put(Tensor, name, self._method(getattr(Tensor, name)))
        for name in LIKE:
            self._put(Tensor, name, self._like(getattr(Tensor, name)))
        for name in READERS:
            self._put(Tensor, name, self._reader(getattr(Tensor, name)))
        for name in FUNCTIONS:
            self._put(torch, name, self._function(getattr(torch, name)))
        self._put(Tensor, "data", self._data(Tensor.data))
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

    def _property(self, original: Any) -> property:
        current, get = self._current, original.__get__

        def getter(tensor: Tensor) -> Any:
            watcher = current()
            if watcher is not None and not _by_torch():
                watcher.asked(tensor)
            return get(tensor)

        return property(getter, getattr(original, "__set__", None), getattr(original, "__delete__", None))

    def _method(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            watcher = current()
            if watcher is not None and not _by_torch():
                watcher.asked(tensor)
            return original(tensor, *args, **kwargs)

        return method

    def _like(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            watcher = current()
            other = args[0] if args else kwargs.get("other")
            if watcher is not None and isinstance(other, Tensor) and not _by_torch():
                watcher.asked(other)
            return original(tensor, *args, **kwargs)

        return method

    def _function(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            watcher = current()
            if watcher is not None and not _by_torch():
                for tensor in (*args, *kwargs.values()):
                    if isinstance(tensor, Tensor):
                        watcher.asked(tensor)
            return original(*args, **kwargs)

        return function

    def _reader(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            watcher = current()
            if watcher is not None:
                watcher.left(tensor)
            return original(tensor, *args, **kwargs)

        return method

    def _data(self, original: Any) -> property:
        current, get = self._current, original.__get__

        def getter(tensor: Tensor) -> Any:
            watcher = current()
            alias = get(tensor)
            if watcher is not None:
                watcher.alias(tensor, alias)
            return alias

        return property(getter, original.__set__, original.__delete__)

    def _saving(self, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def save_for_backward(ctx: Any, *tensors: Any) -> None:
            watcher = current()
            if watcher is not None:
                watcher.saved(ctx, tensors)
            original(ctx, *tensors)

        return save_for_backward


def _by_torch() -> bool:
    """Whether it is torch itself that asks, as checkpointing asks every argument for its device."""
    name = sys._getframe(2).f_globals.get("__name__", "")
    return bool(name == "torch" or name.startswith("torch."))
