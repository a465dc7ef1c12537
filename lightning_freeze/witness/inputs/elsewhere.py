"""Whether code may change something that is not its module's own, so that it must not be run a second time.

Read off the source, and in doubt yes: a module whose code cannot be read, or does what is not known here to be
harmless, is not replayed, and what is found in it stays a candidate.
"""

from __future__ import annotations

import ast
import builtins
import contextvars
import enum
import functools
import inspect
import logging
import re
import textwrap
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch

PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum, types.BuiltinFunctionType, types.ModuleType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, range, slice, logging.Logger),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GenericAlias, types.UnionType, re.Pattern),
    contextvars.ContextVar,  # a replay has a context of its own
)
"""What nobody changes, or what may be used freely."""

CACHED = type(functools.lru_cache(len))
LOCKS = (type(threading.Lock()), type(threading.RLock()))

READS = frozenset("get items keys values copy index count get_interface".split())
"""Methods by which a global object is only looked at."""

OUTSIDE = frozenset("os io sys shutil subprocess socket tempfile pathlib threading multiprocessing".split())
"""Modules that lead out of the process, or into its other parts."""

DANGERS = frozenset("open exec eval compile input setattr delattr globals vars __import__ breakpoint".split())
TRUSTED = (
    "torch",
    "numpy",
    "math",
    "functools",
    "itertools",
    "collections",
    "typing",
    "einops",
    "contextlib",
    "warnings",
)


def writes_elsewhere(function: Any, kind: type | None = None) -> bool:
    """Whether a function may change something that is not its own: a global, a class, what a closure or a default holds.

    Args:
        function: The function.
        kind: The class that it is a method of, so that what it calls on ``self`` is looked at, too.

    Example:
        >>> writes_elsewhere(textwrap.dedent), writes_elsewhere(lambda x: x)
        (False, False)
    """
    return _writes(function, kind, frozenset())


def _writes(function: Any, kind: type | None, above: frozenset[Any]) -> bool:
    function = getattr(function, "__func__", function)
    if isinstance(function, CACHED):
        function = function.__wrapped__
    if not isinstance(function, types.FunctionType):
        return not isinstance(function, PLAIN)
    if function in above:
        return False
    above = above | {function}
    if _trusted(function):  # but a wrapper, such as `torch.no_grad`, is worth what it wraps
        around = _closure(function).values()
        return any(_writes(value, kind, above) for value in around if isinstance(value, types.FunctionType))
    return _judged(function, kind, above)


def _judged(function: types.FunctionType, kind: type | None, above: frozenset[Any]) -> bool:
    known = _KNOWN.get((function, kind))
    if known is None:
        known = _KNOWN[function, kind] = _Reading(function, kind, above).writes()
    return known


_KNOWN: dict[tuple[types.FunctionType, type | None], bool] = {}


def _trusted(function: types.FunctionType) -> bool:
    # not `__module__`, which a wrapper has from what it wraps
    return str(function.__globals__.get("__name__")).partition(".")[0] in TRUSTED


def _harmless(value: Any) -> bool:
    return isinstance(value, PLAIN) or (isinstance(value, (tuple, frozenset)) and all(map(_harmless, value)))


class _Reading:
    """One function's source, read once."""

    def __init__(self, function: types.FunctionType, kind: type | None, above: frozenset[Any]) -> None:
        self._function, self._kind, self._above = function, kind, above
        self._around = {**function.__globals__, **_closure(function)}
        self._own = _names(function.__code__) - set(function.__code__.co_freevars)
        self._parents: dict[ast.AST, ast.AST] = {}

    def writes(self) -> bool:
        defaults = (*(self._function.__defaults__ or ()), *(self._function.__kwdefaults__ or {}).values())
        if not all(map(_harmless, defaults)):
            return True
        body = _body_of(self._function)
        if body is None:
            return True
        nodes = [node for part in body for node in _run_through(part)]
        self._parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        return any(map(self._danger, nodes))

    def _danger(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            return True
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            return self._stores_elsewhere(node)
        if isinstance(node, ast.Attribute):
            return self._looks_up(node)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in self._own:
            return self._loads(node)
        return False

    def _stores_elsewhere(self, node: ast.expr) -> bool:
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Attribute) and node.attr in ("__class__", "__dict__"):
                return True
            node = node.value
        return not (isinstance(node, ast.Name) and node.id in self._own - self._classes)

    @functools.cached_property
    def _classes(self) -> set[str]:
        """Names that may stand for a class, which is no instance's own: `kind = type(self)`."""
        found = {"cls"}
        for node in {*self._parents, *self._parents.values()}:
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value and _asks_type(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [part for to in targets for part in ast.walk(to) if isinstance(part, ast.Name)]
                found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
        return found - {"self"}

    def _looks_up(self, node: ast.Attribute) -> bool:
        """Whether an attribute is code of the module, or of its bases, that writes elsewhere."""
        if node.attr == "backward":
            return True
        whom = node.value
        if isinstance(whom, ast.Name) and whom.id == "self" and self._kind is not None:
            return self._code_of(node.attr, self._kind.__mro__)
        if isinstance(whom, ast.Call) and isinstance(whom.func, ast.Name) and whom.func.id == "super":
            return self._code_of(node.attr, (self._kind or object).__mro__[1:])
        return False

    def _code_of(self, name: str, kinds: tuple[type, ...]) -> bool:
        for kind in kinds:
            if name in vars(kind):
                found = vars(kind)[name]
                found = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
                return isinstance(found, types.FunctionType) and _writes(found, self._kind, self._above)
        return False

    def _loads(self, node: ast.Name) -> bool:
        if node.id not in self._around:
            return not hasattr(builtins, node.id) or (node.id in DANGERS and not self._sets_its_own(node))
        value = self._around[node.id]
        if isinstance(value, types.ModuleType):
            return value.__name__.partition(".")[0] in OUTSIDE and not self._asks_environment(node)
        if isinstance(value, (types.FunctionType, CACHED)):
            return _writes(value, self._kind if node.id in self._function.__code__.co_freevars else None, self._above)
        if _harmless(value):
            return False
        return not self._only_read(node, value)

    def _asks_environment(self, node: ast.Name) -> bool:
        above = self._parents.get(node)
        return isinstance(above, ast.Attribute) and (
            above.attr == "getenv" or (above.attr == "environ" and self._only_read(above, None))
        )

    def _sets_its_own(self, node: ast.Name) -> bool:
        """Whether it is a `setattr` or `delattr` on something of the function's own."""
        call = self._parents.get(node)
        whom = call.args[0] if isinstance(call, ast.Call) and call.args else None
        return node.id in ("setattr", "delattr") and isinstance(whom, ast.Name) and whom.id in self._own

    def _only_read(self, node: ast.expr, value: Any) -> bool:
        """Whether a global object is only looked into where its name stands."""
        above = self._parents.get(node)
        if isinstance(value, torch.Tensor):
            return not (isinstance(above, ast.Attribute) and above.attr.endswith("_"))
        if isinstance(value, torch.Generator):
            return False
        if isinstance(value, LOCKS):
            return isinstance(above, ast.withitem)
        if isinstance(above, ast.Subscript) and above.value is node:
            return isinstance(above.ctx, ast.Load)
        if isinstance(above, ast.Attribute):
            called = self._parents.get(above)
            if above.attr in ("set", "reset") and _of_context(value):
                return True
            return not (isinstance(called, ast.Call) and called.func is above) or above.attr in READS
        if isinstance(above, ast.Call) and above.func is node:  # a typing construct, a functools.partial of a function
            return isinstance(value, functools.partial) and not _writes(value.func, None, self._above)
        return isinstance(above, (ast.Compare, ast.For, ast.comprehension))


def _of_context(value: Any) -> bool:
    """Whether an object is there to hold a context variable, as the one in transformers is, which compiles."""
    return any(isinstance(held, contextvars.ContextVar) for held in getattr(value, "__dict__", {}).values())


def _run_through(node: ast.AST) -> Iterator[ast.AST]:
    """A part of the code and all within it, but for annotations, which nobody runs."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _run_through(child)


def _asks_type(value: ast.expr) -> bool:
    names = {getattr(node, "id", "") or getattr(node, "attr", "") for node in ast.walk(value)}
    return not names.isdisjoint({"type", "__class__"})


def _names(code: types.CodeType) -> frozenset[str]:
    """The names that a function, and those within it, give to things of their own."""
    found = {*code.co_varnames, *code.co_cellvars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return frozenset(found)


def _body_of(function: types.FunctionType) -> list[ast.AST] | None:
    try:
        source = textwrap.dedent(inspect.getsource(function.__code__))  # of the wrapper, not of what it wraps
    except (OSError, TypeError):
        return None
    if function.__code__.co_name == "<lambda>":
        return _lambda_in(source, function.__code__)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    named = isinstance(first, (ast.FunctionDef, ast.AsyncFunctionDef)) and first.name == function.__code__.co_name
    return list(first.body) if named else None  # type: ignore[union-attr]


def _lambda_in(source: str, code: types.CodeType) -> list[ast.AST] | None:
    """The body of the lambda in some lines that has this very code; the lines may be no whole statement."""
    start = source.find("lambda")
    while start >= 0:
        for end in range(len(source), start, -1):
            if source[end - 1] in " \n,":
                continue
            try:
                found = ast.parse(f"({source[start:end]})", mode="eval")
            except (SyntaxError, ValueError):
                continue
            if isinstance(found.body, ast.Lambda) and _alike(compile(found, "", "eval"), code):
                return [found.body.body]
        start = source.find("lambda", start + 1)
    return None


def _alike(compiled: types.CodeType, code: types.CodeType) -> bool:
    """Whether compiling a lambda alone gives the code that is asked for, but for what it closes over."""
    made = next(constant for constant in compiled.co_consts if isinstance(constant, types.CodeType))
    names = {*made.co_names, *made.co_freevars} == {*code.co_names, *code.co_freevars}
    plain = [constant for constant in code.co_consts if not isinstance(constant, types.CodeType)]
    return (
        names
        and made.co_varnames == code.co_varnames
        and plain == [constant for constant in made.co_consts if not isinstance(constant, types.CodeType)]
    )


def _closure(function: types.FunctionType) -> dict[str, Any]:
    """The variables around a function that it holds on to."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # an empty cell
            found[name] = None
    return found
