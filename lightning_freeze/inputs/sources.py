"""Reads the source of a function: may it change something that is not its module's own?"""

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
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any

import torch

CACHED = type(functools.lru_cache(len))

CONSTANT = (
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum, types.FunctionType, types.ModuleType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, range, slice, logging.Logger),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, re.Pattern),
)
"""What nobody changes; a function is read when it is called."""

PLAIN = (
    *(*CONSTANT, CACHED, types.BuiltinFunctionType, torch._ops._OpNamespace),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GenericAlias, types.UnionType),
    contextvars.ContextVar,  # a replay has a context of its own
)
"""What a function may use freely."""

LOCKS = (type(threading.Lock()), type(threading.RLock()))

READS = frozenset("get items keys values copy index count get_interface".split())
"""Methods that only read a global object."""

CHANGES = frozenset("append extend insert add update setdefault pop popitem remove discard clear sort reverse".split())
"""Methods that change a container."""

LOOKS = frozenset("len iter list dict tuple set sorted enumerate bool isinstance min max sum any all".split())
"""Functions that only read their arguments."""

TRUSTED = frozenset(
    "torch numpy math cmath functools itertools collections typing typing_extensions types einops contextlib warnings "
    "builtins abc dataclasses enum copy operator re logging numbers inspect random string textwrap json weakref "
    "importlib _frozen_importlib _collections_abc _weakrefset copyreg reprlib codecs packaging ast traceback linecache "
    "tokenize keyword heapq bisect decimal fractions statistics contextvars posixpath genericpath pathlib concurrent queue".split()
)
"""Packages whose Python code writes only to what is its caller's, but for what `WRITERS` names."""


def _harmless(value: Any) -> bool:
    if isinstance(value, types.MethodType):  # read when it is called, but for what it is bound to
        return isinstance(value.__self__, type) or _harmless(value.__self__)
    if isinstance(value, PLAIN) or type(value) is object:
        return True
    return isinstance(value, (tuple, frozenset)) and all(map(_harmless, value))


class Reader:
    """Reads of one function whether it `writes` elsewhere, and the attributes that it may have `changed`."""

    def __init__(self, code: types.CodeType, its_globals: Mapping[str, Any], closure: Mapping[str, Any]) -> None:
        self._around = ChainMap[str, Any](dict(closure), dict(its_globals), vars(builtins))
        self._own = _names(code) - set(code.co_freevars)
        self._parents: dict[ast.AST, ast.AST] = {}
        self.changed: set[str] = set()
        tree = _tree_of(code)
        self.writes = tree is None
        if tree is None:
            return
        defaults = [default for default in (*tree.args.defaults, *tree.args.kw_defaults) if default is not None]
        body: list[ast.AST] = [tree.body] if isinstance(tree, ast.Lambda) else list(tree.body)
        nodes = [node for part in body for node in _run_through(part)]
        self._parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        self.writes = not all(map(self._is_constant, defaults)) or any(map(self._danger, nodes))

    def _is_constant(self, default: ast.expr) -> bool:
        """Whether a default is nothing that calls share and change."""
        if isinstance(default, ast.Name):
            return default.id not in self._around or _harmless(self._around[default.id])
        return not any(isinstance(node, (ast.List, ast.Dict, ast.Set, ast.Call)) for node in ast.walk(default))

    def _danger(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            return True
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            return self._stores_elsewhere(node)
        if isinstance(node, ast.Attribute):
            if not self._only_reads(node):
                self.changed.add(node.attr)
            return False
        return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and self._loads(node)

    def _stores_elsewhere(self, node: ast.expr) -> bool:
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Attribute) and node.attr == "__class__":
                return True
            node = node.value
        return not (isinstance(node, ast.Name) and node.id in self._own - self._classes)

    @functools.cached_property
    def _classes(self) -> set[str]:
        """Names that may be a class, which all instances share: `kind = type(self)`."""
        found = {"cls"}
        for node in {*self._parents, *self._parents.values()}:
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value and _reads_type(node.value):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names = [part for to in targets for part in ast.walk(to) if isinstance(part, ast.Name)]
                found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
        return found - {"self"}

    def _loads(self, node: ast.Name) -> bool:
        """Whether a name from outside the function is something that it may change."""
        if node.id in self._own or node.id not in self._around:  # an unknown name would be an error
            return False
        value, whole = self._looked_up(node)
        if value is vars(builtins).get(node.id):
            if node.id in ("setattr", "delattr"):
                return not self._sets_its_own(node)
            if node.id in ("globals", "vars", "locals"):
                return True
        return not _harmless(value) and not self._reads_global(whole, value)

    def _looked_up(self, node: ast.Name) -> tuple[Any, ast.expr]:
        """A name's value, looked up further where it is a module or class; None for what is harmless."""
        value = self._around[node.id]
        whole: ast.expr = node
        while isinstance(value, (types.ModuleType, type)):
            above = self._parents.get(whole)
            trusted = isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in TRUSTED
            if trusted or not isinstance(above, ast.Attribute) or not hasattr(value, above.attr):
                return None, whole
            value, whole = getattr(value, above.attr), above
        return value, whole

    def _sets_its_own(self, node: ast.Name) -> bool:
        """Whether a `setattr` or `delattr` acts on something of the function's own."""
        call = self._parents.get(node)
        target = call.args[0] if isinstance(call, ast.Call) and call.args else None
        return isinstance(target, ast.Name) and target.id in self._own

    def _call_of(self, node: ast.AST) -> ast.Call | None:
        """The call of a node, if it is called."""
        above = self._parents.get(node)
        return above if isinstance(above, ast.Call) and above.func is node else None

    def _reads_global(self, node: ast.expr, value: Any) -> bool:
        """Whether a global object is only read where its name stands."""
        above = self._parents.get(node)
        attribute = above.attr if isinstance(above, ast.Attribute) else ""
        if isinstance(value, torch.Tensor):
            return not attribute.endswith("_")
        if isinstance(value, torch.Generator):
            return False
        if _registers_classes(value):  # the first call has registered all of them
            return isinstance(above, ast.Compare) or attribute == "add"
        if isinstance(value, LOCKS):
            return isinstance(above, ast.withitem)
        if attribute in ("set", "reset") and _of_context(value):
            return True
        if self._call_of(node):  # a typing construct, a functools.partial of a function
            return isinstance(value, functools.partial)
        return self._only_reads(node)

    def _only_reads(self, node: ast.expr) -> bool:
        """Whether an object is only read where it stands, and what is found there is not changed either."""
        above = self._parents.get(node)
        if isinstance(above, ast.Subscript) and above.value is node:
            return self._leaves_as_is(node)
        if isinstance(above, ast.Attribute):
            if called := self._call_of(above):
                return above.attr in READS and self._leaves_as_is(called)
            return isinstance(above.ctx, ast.Load) and above.attr not in CHANGES
        if isinstance(above, ast.Call):
            return isinstance(above.func, ast.Name) and above.func.id in LOOKS
        if isinstance(above, (ast.If, ast.While, ast.IfExp)):
            return above.test is node
        return isinstance(above, (ast.Compare, ast.For, ast.comprehension, ast.Dict, ast.UnaryOp))

    def _leaves_as_is(self, node: ast.expr) -> bool:
        """Whether what was found in an object is not changed where it stands; `table[key].append(x)` changes it."""
        above = self._parents.get(node)
        if isinstance(above, ast.Subscript) and above.value is node:
            return isinstance(above.ctx, ast.Load) and self._leaves_as_is(above)
        return not isinstance(above, ast.Attribute) or self._only_reads(node)


def _registers_classes(value: Any) -> bool:
    return isinstance(value, set) and bool(value) and all(isinstance(item, type) for item in value)


def _of_context(value: Any) -> bool:
    """Whether an object holds a context variable, as one in transformers."""
    return any(isinstance(held, contextvars.ContextVar) for held in getattr(value, "__dict__", {}).values())


def _run_through(node: ast.AST) -> Iterator[ast.AST]:
    """A part of the code and all within it, but for annotations, which do not run."""
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _run_through(child)


def _reads_type(value: ast.expr) -> bool:
    names = {getattr(node, "id", "") or getattr(node, "attr", "") for node in ast.walk(value)}
    return not names.isdisjoint({"type", "__class__"})


def _names(code: types.CodeType) -> frozenset[str]:
    """The local names of a function and of those within it."""
    within = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return frozenset().union(code.co_varnames, code.co_cellvars, *within)


@functools.lru_cache(maxsize=4096)
def _tree_of(code: types.CodeType) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
    """The source of a function, or None where it cannot be read."""
    try:
        if code.co_name == "<lambda>":
            return _lambda_of(code)
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    named = isinstance(first, (ast.FunctionDef, ast.AsyncFunctionDef)) and first.name == code.co_name
    return first if named else None  # type: ignore[return-value]


def _lambda_of(code: types.CodeType) -> ast.Lambda | None:
    """The innermost lambda of a file that holds every position of its code."""
    places = [place for place in code.co_positions() if None not in place]  # (line, last line, column, last column)
    spans = [(place[0::2], place[1::2]) for place in places if place[0::2] != place[1::2]]
    if not spans:
        return None
    start, end = min(first for first, _ in spans), max(last for _, last in spans)
    found = None
    for node in _lambdas_in("".join(inspect.findsource(code)[0])):
        body = node.body
        if (body.lineno, body.col_offset) <= start and end <= (body.end_lineno, body.end_col_offset):
            found = node
    return found


@functools.lru_cache(maxsize=16)
def _lambdas_in(source: str) -> list[ast.Lambda]:
    """The lambdas of a file, outer ones first."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Lambda)]
