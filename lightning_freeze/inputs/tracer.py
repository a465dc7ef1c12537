"""Puts itself into every module call of a process, and follows the call's inputs by labels to where they end.

A dispatch mode carries labels from an operator's operands to its results. When the call ends, they say which inputs are
in its result, were kept, left torch, or reached nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import nn

from .calls import Frame
from .readers import Readers
from .thread import Thread
from .verdicts import Judged

LOCAL = threading.local()
_AS_IT_IS = nullcontext()


class Tracer:
    """Watches the calls of modules while it is installed: one at a time in a process.

    Args:
        locate: A module's FQN, the module whose ``forward`` it runs, and whether it is opaque; None where it is no
            module of the audited tree, or only wraps one.
        ended: Called when a call has ended, before its caller ends; returns the verdicts on its leaves.
        outermost: Called when a thread's outermost call has ended.
        begun: Called before a call begins.
        yields: Whether it is removed when another is installed.

    Raises:
        RuntimeError: On entering, when another audit is running in this process.
    """

    active: Tracer | None = None
    _lock = threading.RLock()  # of what is replaced in torch, which tracers of all threads share

    def __init__(
        self,
        locate: Callable[[nn.Module], tuple[str, nn.Module, bool] | None],
        ended: Callable[[Thread, Frame], list[Judged]],
        outermost: Callable[[Thread], None],
        begun: Callable[[Frame], None],
        yields: bool = False,
    ) -> None:
        self._locate, self._ended, self._outermost = locate, ended, outermost
        self._begun, self._yields = begun, yields
        self._call: Any = None
        self._audited_call: Any = None
        self._installed = True
        self._suspensions = 0
        self._follows_compiler = False
        self.failure: Exception | None = None

    def install(self, *preparations: Callable[[], None]) -> None:
        """Begin to watch, after some preparations; an error in that ends no run and leaves no patch."""
        with self._lock:
            if Tracer.active is not None and Tracer.active._yields:
                Tracer.active.remove()
            if Tracer.active is not None:
                raise RuntimeError(
                    "an input audit is already running in this process: one at a time. Leave its `with` block first."
                )
            self.failure = None
            self._suspensions = 0
            try:
                for prepare in preparations:
                    prepare()
                Tracer.active = self
                self._audited_call = self.replacement(nn.Module.__call__)
                self._install()
            except Exception as error:
                self.remove()
                self.give_up(error)

    def remove(self) -> None:
        """Leave nothing behind."""
        self._follow_compiler(False)
        with self._lock:
            if Tracer.active is self:
                Tracer.active = None
                self._uninstall()

    def give_up(self, error: Exception) -> None:
        """Something in the audit itself went wrong: the run goes on without it."""
        if self.failure is None:
            self.failure = error

    @contextmanager
    def suspended(self, thread: Thread) -> Iterator[None]:
        """What runs within runs as without an audit."""
        depth = torch._C._len_torch_dispatch_stack()
        ours = depth > 0 and torch._C._get_dispatch_stack_at(depth - 1) is thread.mode
        thread.quiet += 1
        if ours:
            thread.mode.__exit__(None, None, None)
        self._suspend()
        try:
            yield
        finally:
            self._resume()
            if ours:
                thread.mode.__enter__()
            thread.quiet -= 1

    def _suspend(self, *_: Any) -> None:
        with self._lock:
            self._suspensions += 1
            if self._suspensions == 1 and Tracer.active is self:
                self._uninstall()

    def _resume(self, *_: Any) -> None:
        with self._lock:
            self._suspensions = max(0, self._suspensions - 1)  # a compilation may have begun before it was followed
            if self._suspensions == 0 and Tracer.active is self:
                self._install()

    def _follow_compiler(self, follow: bool) -> None:
        """Stand aside while a compiler reads code: it would compile again when the audit is over."""
        handler = getattr(sys.modules.get("torch._dynamo.callback"), "callback_handler", None)
        if handler is None or follow == self._follows_compiler:
            return
        self._follows_compiler = follow
        if follow:
            handler.register_start_callback(self._suspend)
            handler.register_end_callback(self._resume)
        else:
            with suppress(ValueError):  # a reset of the compiler has forgotten it already
                handler.remove_start_callback(self._suspend)
            with suppress(ValueError):
                handler.remove_end_callback(self._resume)

    def _install(self) -> None:
        self._installed = True
        READERS.install()
        if nn.Module.__call__ is self._call:  # else ours is still there, below what other code has put over it
            nn.Module.__call__ = self._audited_call  # type: ignore[method-assign]

    def _uninstall(self) -> None:
        self._installed = False
        if nn.Module.__call__ is self._audited_call:
            nn.Module.__call__ = self._call  # type: ignore[method-assign]
        READERS.remove()

    def replacement(self, call: Any) -> Any:
        """A ``__call__`` of modules that watches, and calls another."""
        tracer, self._call = self, call

        def audited_call(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or tracer._call is not call:  # the former for a compiler that reads this
                return call(module, *args, **kwargs)
            begun = tracer._begin(module, args, kwargs)
            return call(module, *args, **kwargs) if begun is None else tracer._run(*begun, call)

        return audited_call

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Thread, Frame] | None:
        """Begin a call in this thread; None where it is not to be followed."""
        if self.failure is not None or not self._installed:
            return None
        thread: Thread | None = getattr(LOCAL, "thread", None)
        try:
            if thread is None or thread.owner is not self:
                thread = LOCAL.thread = Thread(self, self.give_up)
            if thread.quiet or _elsewhere(thread):
                return None
            with torch._C.DisableTorchFunction():
                if (place := self._locate(module)) is not None:
                    frame = Frame(module, *place, args, kwargs)
                    self._begun(frame)
                    if not thread.frames:
                        self._follow_compiler(True)
                    thread.begin(frame)
                    return thread, frame
        except Exception as error:
            self.give_up(error)
        return None

    def _run(self, thread: Thread, frame: Frame, call: Any) -> Any:
        outermost = len(thread.frames) == 1
        watched = outermost and not frame.opaque
        if watched:
            thread.mode.__enter__()
        try:
            with self.suspended(thread) if frame.opaque else _AS_IT_IS:
                result = call(frame.module, *frame.args, **frame.kwargs)
        except BaseException:
            thread.leave(frame)
            raise
        else:
            self._end(thread, frame, result)
            return result
        finally:
            if watched:
                thread.mode.__exit__(None, None, None)
            if outermost:
                self._end_outermost(thread)

    def _end(self, thread: Thread, frame: Frame, result: Any) -> None:
        thread.quiet += 1
        try:
            with torch._C.DisableTorchFunction():
                thread.end(frame, result)
                thread.conclude(frame, self._ended(thread, frame))
        except Exception as error:
            self.give_up(error)
            thread.leave(frame)
        finally:
            thread.quiet -= 1

    def _end_outermost(self, thread: Thread) -> None:
        try:
            with torch._C.DisableTorchFunction():
                self._outermost(thread)
        except Exception as error:
            self.give_up(error)
        LOCAL.thread = None  # it leads to the audited modules


def _current() -> Thread | None:
    """The thread to which reads are reported."""
    thread: Thread | None = getattr(LOCAL, "thread", None)
    if thread is None or not thread.frames or thread.quiet or thread.owner is not Tracer.active:
        return None
    return thread


READERS = Readers(_current)
_TRACING = [getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")]


def _elsewhere(thread: Thread) -> bool:
    """Whether this is no forward of the run: a backward's recomputation, a compilation, a trace."""
    if torch._C._current_graph_task_id() != -1 or torch._C._get_tracing_state() is not None:
        return True
    return not thread.frames and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)
