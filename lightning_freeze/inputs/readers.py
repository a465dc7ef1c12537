"""What reads a tensor without an operator: torch's own getters and readers, watched while an audit runs.

A `TorchFunctionMode` would see these calls too, but it switches off the fast path of torch's attention and changes
outputs. So `torch.Tensor`'s own methods are wrapped, and restored afterwards.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import handle_torch_function, has_torch_function_unary

from .thread import Thread

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


Notice = Callable[[Thread, Any, tuple[Any, ...], dict[str, Any]], None]
"""What a thread is notified of, by the first operand of a call and the others."""

_MISSING = object()


class Readers:
    """Wraps the getters and readers of `torch.Tensor` while it is installed.

    Where other code has wrapped one of ours, that stays; ours then passes calls on.

    Args:
        current: Gets the thread that is to be notified, or None where nothing is watched.
    """

    def __init__(self, current: Callable[[], Thread | None]) -> None:
        self._current = current
        # By owner and name: what was there before, and what replaced it.
        self._layers: dict[tuple[Any, str], list[tuple[Any, Any]]] = {}

    def install(self) -> None:
        """Put the wrappers in place."""
        _resolve_names()
        for names, notice in ((PROPERTIES + METHODS, _metadata), (LIKE, _metadata_of_other), (READERS, _values)):
            for name in names:
                self._put(Tensor, name, functools.partial(self._noticed, notice))
        for name in ("data", "as_subclass"):
            self._put(Tensor, name, self._aliasing)
        self._put(Tensor, "_make_subclass", lambda original: staticmethod(self._aliasing(original)))
        self._put(FunctionCtx, "save_for_backward", functools.partial(self._noticed, _saves))

    def remove(self) -> None:
        """Restore what was there."""
        for (owner, name), layers in self._layers.items():
            while layers and vars(owner).get(name) is layers[-1][1]:
                before, _ = layers.pop()
                if before is _MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)

    def _put(self, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        layers = self._layers.setdefault((owner, name), [])
        before, original = vars(owner).get(name, _MISSING), getattr(owner, name)
        if layers and before is layers[-1][1]:
            return
        ours = wrap(original.__get__ if hasattr(original, "__set__") else original)
        if hasattr(original, "__set__"):
            ours = property(ours, original.__set__, original.__delete__)
        layers.append((before, ours))
        setattr(owner, name, ours)

    def _noticed(self, notice: Notice, original: Any) -> Any:
        current = self._current

        @functools.wraps(original)
        def method(operand: Any, /, *args: Any, **kwargs: Any) -> Any:
            thread = current()
            if thread is not None:
                try:
                    with torch._C.DisableTorchFunction():
                        notice(thread, operand, args, kwargs)
                except Exception as error:
                    thread.failed(error)
            if has_torch_function_unary(operand):  # what handles it is to see torch's own method, and not this one
                return handle_torch_function(original, (operand,), operand, *args, **kwargs)
            return original(operand, *args, **kwargs)

        return method

    def _aliasing(self, original: Any) -> Any:
        """Wraps what gives a tensor under another object."""
        current = self._current

        @functools.wraps(original)
        def function(*args: Any, **kwargs: Any) -> Any:
            tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if args and args[0] is tensor and has_torch_function_unary(tensor):
                alias = handle_torch_function(original, (tensor,), *args, **kwargs)
            else:
                alias = original(*args, **kwargs)
            thread = current()
            if thread is not None and tensor is not None and isinstance(alias, Tensor):
                try:
                    with torch._C.DisableTorchFunction():
                        thread.aliased(tensor, alias)
                except Exception as error:
                    thread.failed(error)
            return alias

        return function


def _metadata(thread: Thread, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], depth: int = 2) -> None:
    caller = sys._getframe(depth).f_globals.get("__name__", "")
    if not (caller == "torch" or caller.startswith("torch.")):  # as checkpointing reads every argument's device
        thread.metadata_read(tensor)


def _metadata_of_other(thread: Thread, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    other = args[0] if args else kwargs.get("other", kwargs.get("tensor"))
    if isinstance(other, Tensor):
        _metadata(thread, other, args, kwargs, depth=3)


def _values(thread: Thread, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    thread.values_read(tensor)


def _saves(thread: Thread, ctx: Any, tensors: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    thread.saved(ctx, tensors)


@functools.cache
def _resolve_names() -> None:
    """Torch makes its table of functions once: not of wrappers."""
    torch.overrides.get_overridable_functions()
    torch.overrides.resolve_name(torch.add)
