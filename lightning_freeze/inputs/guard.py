"""Stops code, before it runs, that may change something that is not its module's own: it must not be run a second time.

While a copy of a module runs, each Python function is judged by its source before its first line, and each builtin by its
name (the events of `sys.setprofile`, https://docs.python.org/3/library/sys.html#sys.setprofile). In doubt it may write:
what cannot be read, or is not known here to be harmless, ends the replay, and what was found stays a candidate.
"""

from __future__ import annotations

import ast
import builtins
import concurrent.futures.thread
import contextlib
import contextvars
import dataclasses
import enum
import functools
import gc
import inspect
import logging
import re
import sys
import textwrap
import threading
import types
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_CACHED = type(functools.lru_cache(len))

PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, type, enum.Enum, types.BuiltinFunctionType, types.ModuleType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, range, slice, logging.Logger),
    *(types.MethodDescriptorType, types.WrapperDescriptorType, types.GenericAlias, types.UnionType, re.Pattern),
    *(torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops._OpNamespace, types.FunctionType),
    _CACHED,
    contextvars.ContextVar,  # a replay has a context of its own
)
"""What nobody changes, or what may be used freely: a function is judged when it is called."""

LOCKS = (type(threading.Lock()), type(threading.RLock()))

READS = frozenset("get items keys values copy index count get_interface".split())
"""Methods by which a global object is only looked at."""

CHANGES = frozenset("append extend insert add update setdefault pop popitem remove discard clear sort reverse".split())
"""Methods by which a container is changed, by whomever they are handed to."""

LOOKS = frozenset("len iter list dict tuple set sorted enumerate bool isinstance min max sum any all".split())
"""Functions that only look into what they are given."""

TRUSTED = frozenset(
    "torch numpy math cmath functools itertools collections typing typing_extensions types einops contextlib warnings "
    "builtins abc dataclasses enum copy operator re logging numbers inspect random string textwrap json weakref "
    "importlib _frozen_importlib _collections_abc _weakrefset copyreg reprlib codecs packaging ast traceback linecache "
    "tokenize keyword heapq bisect decimal fractions statistics contextvars posixpath genericpath pathlib concurrent queue".split()
)
"""Packages whose Python code is known to write nothing that is not its caller's, but for what `WRITERS` names."""

WRITERS = frozenset(
    "save savez savez_compressed savetxt tofile dump memmap set_default_dtype set_default_device set_default_tensor_type "
    "set_num_threads set_num_interop_threads use_deterministic_algorithms set_printoptions seterr exec eval "
    "setattr delattr basicConfig simplefilter filterwarnings fork_exec".split()
)
"""What of them writes to files, to settings of the process, or wherever it is told to."""

SYSTEM = frozenset("posix nt _io _socket _posixsubprocess _winapi _ctypes _signal _sqlite3 mmap fcntl _thread".split())
"""Modules written in C that lead out of the process, or into its other parts."""

HARMLESS = frozenset(
    "fspath getcwd getpid stat lstat get_ident allocate_lock _get_main_thread_ident getenv current_thread main_thread "
    "get_native_id acquire release locked __enter__ __exit__ text_encoding start_new_thread daemon_threads_allowed _set_sentinel".split()
)
"""What of these, and of ``os`` and ``threading``, only looks; a lock is given back by who takes it."""

_HERE = str(Path(__file__).parent)
_ENVIRONMENT = frozenset("__getitem__ __contains__ __len__ __iter__ get encode decode encodekey decodevalue".split())


class WriteError(BaseException):
    """Code was about to run that may write elsewhere; none that a module would catch."""


class Guard:
    """Within it, in this thread, code that may write elsewhere is stopped before it runs.

    Work handed to an executor's threads is watched there; other threads are not begun, since what waits for them would
    wait for ever where one is stopped.

    Args:
        idents: Gets the ``threading.get_ident`` of each thread that is watched.

    Raises:
        WriteError: From within, where such code is called; `refused` says what it was.

    Example:
        >>> seen = []
        >>> def counts():
        ...     seen.append(1)
        >>> with Guard() as guard:
        ...     try:
        ...         counts()
        ...     except WriteError:
        ...         pass
        >>> guard.refused is not None, seen
        (True, [])
    """

    def __init__(self, idents: set[int] | None = None) -> None:
        self.refused: str | None = None
        self.threads = False  # whether that was for work to be done in another thread
        self._idents = set() if idents is None else idents
        self._watch = self._look
        self._collects = False
        self._nested: set[types.CodeType] = set()  # functions within others that were judged as a part of these

    def __enter__(self) -> Guard:
        if sys.getprofile() is not None:
            raise WriteError("the process is being profiled, which would see what runs again")
        self._idents.add(threading.get_ident())
        self._collects = gc.isenabled()
        gc.disable()  # a collection would run what others have for the end of their objects, which must not be stopped
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(None)
        if self._collects:
            gc.enable()

    def _look(self, frame: types.FrameType, event: str, called: Any) -> None:
        if event == "call":
            starts = frame.f_code is threading.Thread.start.__code__
            dangerous = not self._adopted(_first(frame)) if starts else _dangerous(frame, self._nested)
            name = frame.f_code.co_qualname
        elif event == "c_call":
            dangerous = _leads_out(called)
            name = getattr(called, "__qualname__", repr(called))
        else:
            return
        if dangerous:
            self.refused = name
            self.threads = self.threads or frame.f_globals.get("__name__") == "threading"
            raise WriteError(f"{name} may write to what is not its own")

    def _adopted(self, thread: threading.Thread) -> bool:
        """Watch a thread that is about to begin, if it is an executor's, which hands on what is raised in it."""
        if getattr(thread, "_target", None) is not concurrent.futures.thread._worker:
            return False
        run = thread.run

        def watched() -> None:
            self._idents.add(threading.get_ident())
            sys.setprofile(self._watch)
            try:
                run()
            finally:
                sys.setprofile(None)

        thread.run = watched  # type: ignore[method-assign]
        return True


def writes_elsewhere(function: Any, *args: Any) -> bool:
    """Whether a call of a function is stopped because it, or what it calls, may write elsewhere.

    Args:
        function: The function.
        args: What to call it with.

    Example:
        >>> writes_elsewhere(textwrap.dedent, " a")
        False
    """
    with Guard() as guard, contextlib.suppress(WriteError):
        function(*args)
    return guard.refused is not None


def _leads_out(called: Any) -> bool:
    """Whether a builtin leads out of the process, or into its other parts."""
    name = getattr(called, "__name__", "")
    owner = getattr(called, "__self__", None)
    module = getattr(called, "__module__", None) or ""
    if isinstance(owner, types.ModuleType) or owner is None:
        home = (owner.__name__ if isinstance(owner, types.ModuleType) else module).partition(".")[0]
        if home in SYSTEM or home in ("os", "io"):
            return name not in HARMLESS
        return name in WRITERS and not (home == "builtins" and name in ("setattr", "delattr"))
    if type(owner).__module__ == "_io":
        return name not in ("getvalue", "read", "flush", "isatty", "fileno", "tell", "writable", "readable")
    return name in ("tofile", "dump") or type(owner).__module__ in ("_socket", "mmap", "_sqlite3")


def _dangerous(frame: types.FrameType, nested: set[types.CodeType]) -> bool:
    """Whether a Python function that is about to run may write elsewhere itself."""
    code = frame.f_code
    package, name = str(frame.f_globals.get("__name__")), code.co_name
    if name == "__del__":  # the end of an object cannot be put off
        return False
    top = package.partition(".")[0]
    if top in TRUSTED or package.startswith("namedtuple_") or code.co_filename.startswith(_HERE):
        # what is compiled would be compiled anew
        return name in WRITERS or (name == "compile_wrapper" and package == "torch._dynamo.eval_frame")
    if package == "os":
        return name not in HARMLESS | _ENVIRONMENT
    if package == "threading":
        return name == "_register_atexit"
    if code in nested:
        return False
    if code.co_filename == "<string>" and name.startswith("__") and _is_dataclass(frame):
        return False  # it does no more than fill or compare fields
    reading = _KNOWN.get(code)
    if reading is None:
        held = frame.f_locals if code.co_freevars else {}
        reader = _Reader(code, frame.f_globals, {variable: held.get(variable) for variable in code.co_freevars})
        reading = reader.writes, frozenset(reader.changed)
        if not code.co_freevars:  # what it closes over may be another thing the next time
            _KNOWN[code] = reading
    writes, changed = reading
    nested.update(_within(code))
    return writes or _changes_its_class(frame, changed)


_KNOWN: dict[types.CodeType, tuple[bool, frozenset[str]]] = {}


def _within(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _within(constant)


def _first(frame: types.FrameType) -> Any:
    """What a function has for its first argument, as a method its object."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _is_dataclass(frame: types.FrameType) -> bool:
    return dataclasses.is_dataclass(_first(frame))


def _changes_its_class(frame: types.FrameType, changed: frozenset[str]) -> bool:
    """Whether a method changes a container that its class holds for all objects, or is cached for all of them."""
    owner = _first(frame)
    kind = owner if isinstance(owner, type) else type(owner)
    if kind.__module__.partition(".")[0] in TRUSTED:
        return False
    if isinstance(inspect.getattr_static(kind, frame.f_code.co_name, None), _CACHED):
        return True
    own = {} if isinstance(owner, type) else getattr(owner, "__dict__", {})
    for name in changed:
        held = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
        if name not in own and isinstance(held, (list, dict, set)) and held is getattr(kind, name, None):
            return True
    return False


def _harmless(value: Any) -> bool:
    if isinstance(value, types.MethodType):  # judged when it is called, but for what it is bound to
        return isinstance(value.__self__, type) or _harmless(value.__self__)
    return (
        isinstance(value, PLAIN)
        or type(value) is object
        or (isinstance(value, (tuple, frozenset)) and all(map(_harmless, value)))
    )


class _Reader:
    """What the source of one function says.

    Args:
        code: The function's.
        space: Its globals.
        around: What it closes over.
    """

    def __init__(self, code: types.CodeType, space: Mapping[str, Any], around: Mapping[str, Any]) -> None:
        self._around = ChainMap[str, Any](dict(around), dict(space), vars(builtins))
        self._own = _names(code) - set(code.co_freevars)
        self._parents: dict[ast.AST, ast.AST] = {}
        self.changed: set[str] = set()  # names of attributes that it does more with than look
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
        parts = [node for node in ast.walk(default) if isinstance(node, (ast.List, ast.Dict, ast.Set, ast.Call))]
        return not parts

    def _danger(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            return True
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, (ast.Store, ast.Del)):
            return self._stores_elsewhere(node)
        if isinstance(node, ast.Attribute):
            if not self._only_looks(node):
                self.changed.add(node.attr)
            return False
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in self._own:
            return self._loads(node)
        return False

    def _stores_elsewhere(self, node: ast.expr) -> bool:
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            if isinstance(node, ast.Attribute) and node.attr == "__class__":
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

    def _loads(self, node: ast.Name) -> bool:
        """A name from outside the function, with what is looked up on it as far as it is a module or a class."""
        if node.id not in self._around:
            return False  # it would be an error
        value = self._around[node.id]
        whole: ast.expr = node
        while isinstance(value, (types.ModuleType, type)):
            above = self._parents.get(whole)
            if not isinstance(above, ast.Attribute) or above.value is not whole or not hasattr(value, above.attr):
                return False
            if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in TRUSTED:
                return False
            value, whole = getattr(value, above.attr), above
        if node.id in ("setattr", "delattr") and value is getattr(builtins, node.id):
            return not self._sets_its_own(node)
        if node.id in ("globals", "vars", "locals") and value is getattr(builtins, node.id):
            return True
        return not _harmless(value) and not self._only_read(whole, value)

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
        if isinstance(value, set) and value and all(isinstance(item, type) for item in value):
            # a register of classes, in which the call that was seen has entered all that it enters
            return isinstance(above, ast.Compare) or (isinstance(above, ast.Attribute) and above.attr == "add")
        if isinstance(value, LOCKS):
            return isinstance(above, ast.withitem)
        if isinstance(above, ast.Attribute) and above.attr in ("set", "reset") and _of_context(value):
            return True
        if isinstance(above, ast.Call) and above.func is node:  # a typing construct, a functools.partial of a function
            return isinstance(value, functools.partial)
        return self._only_looks(node)

    def _only_looks(self, node: ast.expr) -> bool:
        """Whether an object is only looked into where it stands, and what is found there is not changed either."""
        above = self._parents.get(node)
        if isinstance(above, ast.Subscript) and above.value is node:
            return isinstance(above.ctx, ast.Load) and self._taken(above)
        if isinstance(above, ast.Attribute):
            called = self._parents.get(above)
            if not (isinstance(called, ast.Call) and called.func is above):
                return isinstance(above.ctx, ast.Load) and above.attr not in CHANGES
            return above.attr in READS and self._taken(called)
        if isinstance(above, ast.Call):
            return isinstance(above.func, ast.Name) and above.func.id in LOOKS
        if isinstance(above, (ast.If, ast.While, ast.IfExp)):
            return above.test is node
        return isinstance(above, (ast.Compare, ast.For, ast.comprehension, ast.Dict, ast.UnaryOp))

    def _taken(self, node: ast.expr) -> bool:
        """Whether what was found in an object is not changed where it stands, `table[key].append(x)`."""
        above = self._parents.get(node)
        if isinstance(above, ast.Subscript) and above.value is node:
            return isinstance(above.ctx, ast.Load) and self._taken(above)
        if isinstance(above, ast.Attribute):
            return self._only_looks(node)
        return True


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


@functools.lru_cache(maxsize=4096)
def _tree_of(code: types.CodeType) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | None:
    """The source of a function, or None where it is not there."""
    try:
        source = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError):
        return None
    if code.co_name == "<lambda>":
        return _lambda_in(source, code)
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    first = tree.body[0] if tree.body else None
    named = isinstance(first, (ast.FunctionDef, ast.AsyncFunctionDef)) and first.name == code.co_name
    return first if named else None  # type: ignore[return-value]


def _lambda_in(source: str, code: types.CodeType) -> ast.Lambda | None:
    """The lambda in some lines that has this very code; the lines may be no whole statement."""
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
                return found.body
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
