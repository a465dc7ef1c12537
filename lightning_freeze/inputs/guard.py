"""Stops code of a replay, before it runs, that may change what is not its module's own.

Each Python function is judged by its source, each builtin by its name (the events of `sys.setprofile`,
https://docs.python.org/3/library/sys.html#sys.setprofile). What is not known to be harmless ends the replay.
"""

from __future__ import annotations

import concurrent.futures.thread
import dataclasses
import gc
import inspect
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .sources import CACHED, TRUSTED, Reader

WRITERS = frozenset(
    "save savez savez_compressed savetxt tofile dump memmap set_default_dtype set_default_device set_default_tensor_type "
    "set_num_threads set_num_interop_threads use_deterministic_algorithms set_printoptions seterr exec eval "
    "setattr delattr basicConfig simplefilter filterwarnings fork_exec".split()
)
"""Functions that write to files, to settings of the process, or to any place that they are given."""

SYSTEM = frozenset("posix nt _io _socket _posixsubprocess _winapi _ctypes _signal _sqlite3 mmap fcntl _thread".split())
"""Modules written in C that lead out of the process, or into its other parts."""

HARMLESS = frozenset(
    "fspath getcwd getpid stat lstat get_ident allocate_lock _get_main_thread_ident getenv current_thread main_thread "
    "get_native_id acquire release locked __enter__ __exit__ text_encoding start_new_thread daemon_threads_allowed _set_sentinel".split()
)
"""Functions of these, of ``os`` and of ``threading`` that change nothing; what takes a lock also releases it."""

_HERE = str(Path(__file__).parent)
_OUTSIDE = SYSTEM | {"os", "io"}
_ENVIRONMENT = frozenset("__getitem__ __contains__ __len__ __iter__ get encode decode encodekey decodevalue".split())


class WriteError(BaseException):
    """Code was about to run that may write elsewhere; none that a module would catch."""


class Guard:
    """Within it, in this thread, code that may write elsewhere is stopped before it runs, by a `WriteError`.

    An executor's threads are watched as well. Other threads are not begun: what waits for one that is stopped would wait
    for ever. ``idents`` gets the ``threading.get_ident`` of each thread that is watched.
    """

    def __init__(self, idents: set[int]) -> None:
        self.refused: str | None = None
        self.threads = False  # whether that was for work to be done in another thread
        self._idents = idents
        self._collects = False
        self._nested: set[types.CodeType] = set()  # functions within others that were judged as a part of these

    def __enter__(self) -> Guard:
        if sys.getprofile() is not None:
            raise WriteError("the process is being profiled, which would see what runs again")
        self._idents.add(threading.get_ident())
        self._collects = gc.isenabled()
        gc.disable()  # a collection would run what others have for the end of their objects, which must not be stopped
        sys.setprofile(self._look)
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
        """Watch a thread that is about to begin, if it is an executor's, which raises its errors in the caller."""
        if getattr(thread, "_target", None) is not concurrent.futures.thread._worker:
            return False
        run = thread.run

        def watched() -> None:
            self._idents.add(threading.get_ident())
            sys.setprofile(self._look)
            try:
                run()
            finally:
                sys.setprofile(None)

        thread.run = watched  # type: ignore[method-assign]
        return True


def _leads_out(called: Any) -> bool:
    """Whether a builtin leads out of the process, or into its other parts."""
    name = getattr(called, "__name__", "")
    owner = getattr(called, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        home = (getattr(owner, "__name__", None) or getattr(called, "__module__", None) or "").partition(".")[0]
        if home in _OUTSIDE:
            return name not in HARMLESS
        return name in WRITERS and called not in (setattr, delattr)  # these are judged where they are named
    if type(owner).__module__ == "_io":
        return name not in ("getvalue", "read", "flush", "isatty", "fileno", "tell", "writable", "readable")
    return name in ("tofile", "dump") or type(owner).__module__ in ("_socket", "mmap", "_sqlite3")


def _dangerous(frame: types.FrameType, nested: set[types.CodeType]) -> bool:
    """Whether a Python function that is about to run may write elsewhere itself."""
    code = frame.f_code
    by_name = _dangerous_by_name(code, str(frame.f_globals.get("__name__")))
    if by_name is not None:
        return by_name
    if code in nested:
        return False
    if code.co_filename == "<string>" and code.co_name.startswith("__") and dataclasses.is_dataclass(_first(frame)):
        return False  # it does no more than fill or compare fields
    writes, changed = _reading_of(frame)
    nested.update(_within(code))
    return writes or _changes_its_class(frame, changed)


def _dangerous_by_name(code: types.CodeType, package: str) -> bool | None:
    """Whether a function may write elsewhere, by its name and package; None where they do not say."""
    name = code.co_name
    if name == "__del__":  # the end of an object cannot be put off
        return False
    if package.partition(".")[0] in TRUSTED or package.startswith("namedtuple_") or code.co_filename.startswith(_HERE):
        # a replay would compile again what is compiled
        return name in WRITERS or (name == "compile_wrapper" and package == "torch._dynamo.eval_frame")
    if package == "os":
        return name not in HARMLESS | _ENVIRONMENT
    return name == "_register_atexit" if package == "threading" else None


_KNOWN: dict[types.CodeType, tuple[bool, frozenset[str]]] = {}


def _reading_of(frame: types.FrameType) -> tuple[bool, frozenset[str]]:
    """Whether a function's source writes elsewhere, and the attributes that it does more with than look."""
    code = frame.f_code
    if code in _KNOWN:
        return _KNOWN[code]
    held = frame.f_locals if code.co_freevars else {}
    reader = Reader(code, frame.f_globals, {variable: held.get(variable) for variable in code.co_freevars})
    reading = reader.writes, frozenset(reader.changed)
    if not code.co_freevars:  # what it closes over may be another thing the next time
        _KNOWN[code] = reading
    return reading


def _within(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _within(constant)


def _first(frame: types.FrameType) -> Any:
    """What a function has for its first argument, as a method its object."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _changes_its_class(frame: types.FrameType, changed: frozenset[str]) -> bool:
    """Whether a method changes a container that its class holds for all objects, or is cached for all of them."""
    owner = _first(frame)
    kind = owner if isinstance(owner, type) else type(owner)
    if kind.__module__.partition(".")[0] in TRUSTED:
        return False
    if isinstance(inspect.getattr_static(kind, frame.f_code.co_name, None), CACHED):
        return True
    own = {} if isinstance(owner, type) else getattr(owner, "__dict__", {})
    for name in changed:
        held = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
        if name not in own and isinstance(held, (list, dict, set)) and held is getattr(kind, name, None):
            return True
    return False
