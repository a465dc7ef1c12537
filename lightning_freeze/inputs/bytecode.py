"""What a ``forward``'s own bytecode proves: a name that it never loads is never used."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PEEKS = frozenset({"locals", "vars", "eval", "exec", "_getframe", "currentframe", "f_locals"})
"""Names by which code can reach a variable without loading it."""


def never_loads(forward: Callable[..., Any], name: str) -> bool:
    """Whether a ``forward`` never loads one of its parameters, so that nothing in it can depend on it.

    False where that cannot be known: for what is not plain Python, is wrapped by a decorator, or looks at its own
    frame.

    Args:
        forward: The method or function.
        name: The parameter.

    Example:
        >>> def forward(x, mask=None): return x + 1
        >>> never_loads(forward, "mask"), never_loads(forward, "x")
        (True, False)
    """
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return False
    return name in _parameters(function.__code__) and name not in _loaded(function.__code__)


def ignores(module: nn.Module, name: str) -> bool:
    """Whether the code of a module's ``forward`` proves that it cannot use one of its parameters.

    Args:
        module: The module; a scripted one is judged by its graph.
        name: The parameter.
    """
    if isinstance(module, torch.jit.ScriptModule):
        inputs = {value.debugName().partition(".")[0]: value for value in module.graph.inputs()}
        return name in inputs and not inputs[name].uses()
    return never_loads(module.forward, name)


def _parameters(code: types.CodeType) -> tuple[str, ...]:
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & 0x04) + bool(code.co_flags & 0x08)
    return code.co_varnames[:count]


@functools.lru_cache(maxsize=4096)
def _loaded(code: types.CodeType) -> frozenset[str]:
    if PEEKS & set(code.co_names):
        return frozenset(code.co_varnames)
    loaded = set(code.co_cellvars)
    for instruction in dis.get_instructions(code):
        if "LOAD" in instruction.opname and ("FAST" in instruction.opname or "CLOSURE" in instruction.opname):
            value = instruction.argval
            loaded.update(value if isinstance(value, tuple) else (value,))
    return frozenset(loaded)
