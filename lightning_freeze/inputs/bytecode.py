"""Proves by the bytecode of a ``forward`` that it does not use an input: it never loads the name."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PEEKS = frozenset({"locals", "vars", "eval", "exec", "_getframe", "currentframe", "f_locals"})
"""Names by which code can reach a variable without loading it."""


def never_loads(forward: Callable[..., Any], name: str) -> bool:
    """Whether a ``forward`` never loads one of its parameters; False where that cannot be known.

    Example:
        >>> def forward(x, mask=None): return x + 1
        >>> never_loads(forward, "mask"), never_loads(forward, "x")
        (True, False)
    """
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return False
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return name in code.co_varnames[:count] and name not in _loaded(code)


def ignores(module: nn.Module, name: str) -> bool:
    """Whether the code of a module's ``forward``, or its scripted graph, cannot use a parameter."""
    if isinstance(module, torch.jit.ScriptModule):
        inputs = {value.debugName().partition(".")[0]: value for value in module.graph.inputs()}
        return name in inputs and not inputs[name].uses()
    return never_loads(module.forward, name)


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
