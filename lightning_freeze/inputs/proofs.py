"""Confirms that an input is not used: by the bytecode of its module, or by a replay of the call."""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .calls import Frame
from .copier import arguments_before, changeable, of_torch
from .leaves import Leaf
from .replay import Replay
from .verdicts import BLAMED, Judged, Verdict
from .wrappers import plain

CHECKED = 3
"""Calls of a module in which a replay checks each finding; later calls take over the answer."""

PEEKS = frozenset({"locals", "vars", "eval", "exec", "_getframe", "currentframe", "f_locals"})
"""Names by which code can reach a variable without loading it."""


def loads(forward: Callable[..., Any], name: str) -> bool | None:
    """Whether a ``forward`` ever loads one of its parameters; None where that cannot be known.

    Example:
        >>> def forward(x, mask=None): return x + 1
        >>> loads(forward, "mask"), loads(forward, "x")
        (False, True)
    """
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return None
    code = function.__code__
    count = code.co_argcount + code.co_kwonlyargcount
    count += bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    if name not in code.co_varnames[:count]:
        return None
    return name in _loaded(code) or (None if PEEKS & set(code.co_names) else False)


def ignores(module: nn.Module, name: str) -> bool:
    """Whether the code of a module's ``forward``, or its scripted graph, cannot use a parameter."""
    if isinstance(module, torch.jit.ScriptModule):
        inputs = {value.debugName().partition(".")[0]: value for value in module.graph.inputs()}
        return name in inputs and not inputs[name].uses()
    return loads(module.forward, name) is False


@functools.lru_cache(maxsize=4096)
def _loaded(code: types.CodeType) -> frozenset[str]:
    loaded = set(code.co_cellvars)
    for instruction in dis.get_instructions(code):
        if "LOAD" in instruction.opname and ("FAST" in instruction.opname or "CLOSURE" in instruction.opname):
            value = instruction.argval
            loaded.update(value if isinstance(value, tuple) else (value,))
    return frozenset(loaded)


class Proofs:
    """Confirms or takes back the verdicts on a call's inputs."""

    def __init__(self, replay: bool, without: frozenset[str]) -> None:
        self._replay, self._without = replay, without
        self._answers: dict[tuple[str, str, Verdict], tuple[Verdict, str | None]] = {}  # of replays
        self._indistinct: set[tuple[type, str]] = set()  # inputs passed twice that a replay could not distinguish
        self._ended: Counter[str] = Counter()  # calls of a module that have ended

    def begun(self, frame: Frame) -> None:
        """Keep arguments that the call may change, as a cache: a replay starts from what they were."""
        if self._replay and self._ended[frame.name] < CHECKED and _changeable(frame):
            frame.before = arguments_before(frame.args, frame.kwargs)

    def judge(self, frame: Frame, verdicts: list[Verdict], excuses: list[str | None]) -> list[Judged]:
        """The verdicts on all leaves of a call that ended, each with its proof."""
        again = self._again(frame) if frame.twice or not BLAMED.isdisjoint(verdicts) else None
        judged = []
        for index, (leaf, verdict, excuse) in enumerate(zip(frame.leaves, verdicts, excuses, strict=True)):
            if verdict in BLAMED:
                judged.append(Judged(verdict, None, excuse) if excuse else self._confirmed(frame, leaf, verdict, again))
            elif index in frame.twice and (proof := self._distinguished(frame, leaf, again)):
                judged.append(Judged("unused", proof))
            else:
                judged.append(Judged(verdict))
        self._ended[frame.name] += 1
        return judged

    def _confirmed(self, frame: Frame, leaf: Leaf, verdict: Verdict, again: Replay | None) -> Judged:
        """A verdict with its proof, or the one that a replay gives instead."""
        if verdict == "unused" and ignores(frame.target, leaf.name):
            return Judged(verdict, "bytecode")
        key = (frame.name, leaf.argument, verdict)
        if again is not None and (self._ended[frame.name] < CHECKED or key not in self._answers):
            self._answers[key] = _replayed(leaf, verdict, again)
        found, proof = self._answers.get(key, (verdict, None))
        return Judged(found, proof, hidden=found == "used")

    def _distinguished(self, frame: Frame, leaf: Leaf, again: Replay | None) -> str | None:
        """What proves that a tensor passed twice is not used under this name, if anything does."""
        key = (type(frame.target), leaf.argument)
        if key in self._indistinct or any(not of_torch(hook) for hook in frame.module._forward_pre_hooks.values()):
            return None  # a hook may read either of them
        if ignores(frame.target, leaf.name):
            return "bytecode"
        if again is None:
            return None
        if again.unaffected(leaf) and again.indifferent(leaf):
            return "replay"
        self._indistinct.add(key)
        return None

    def _again(self, frame: Frame) -> Replay | None:
        """The replay of a call; None where it cannot run unseen."""
        if not self._replay or frame.opaque or frame.wrote_parameter or _is_distributed():
            return None
        if all(plain(leaf.tensor) is not leaf.tensor for leaf in frame.leaves):  # vmap or grad wrap them
            return None
        if frame.before is None and _changeable(frame):
            return None
        args, kwargs = frame.before or (frame.args, frame.kwargs)
        return Replay(frame.module, args, kwargs, writes=frame.wrote, without=self._without)


def _replayed(leaf: Leaf, verdict: Verdict, again: Replay) -> tuple[Verdict, str | None]:
    unaffected = again.unaffected(leaf)
    if not unaffected:
        return ("used" if unaffected is False else verdict), None
    if verdict != "unused":
        return verdict, "replay"
    indifferent = again.indifferent(leaf)
    return ("metadata" if indifferent is False else verdict), None if indifferent is None else "replay"


def _is_distributed() -> bool:
    """Whether there are several ranks, all of which would have to run a call again."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1


def _changeable(frame: Frame) -> bool:
    return any(map(changeable, (*frame.args, *frame.kwargs.values())))
