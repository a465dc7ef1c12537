"""The types of the callbacks' arguments, as jsonargparse reads them for a LightningCLI.

It answers a wrong word, selector or phase by our message then, in the error of parsing: by itself it names neither the
nearest word nor what is wrong with a selector, and raises what is wrong with a phase later. ``--help`` stays the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning_freeze.checkpoint import OnScheduleChange
from lightning_freeze.errors import ScheduleError, SelectionError, did_you_mean, one_of
from lightning_freeze.holds.optimizer_state import OptimizerState
from lightning_freeze.holds.skip_decision import SKIP_BACKWARD, SkipBackward
from lightning_freeze.plan.groups import Rest
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.selectors import check_selector
from lightning_freeze.plan.until import Until
from lightning_freeze.trainer.seam import when_imported

__all__ = ["FrozenModules", "OnFinding", "OnScheduleChange", "OptimizerState", "Rest", "Selector", "SkipBackward"]

FrozenModules = Literal["train", "eval"]
OnFinding = Literal["raise", "warn"]
Selector = str | list[Any] | dict[str, Any]

_WORDS: dict[str, tuple[Any, ...]] = {
    "rest": get_args(Rest),
    "skip_backward": SKIP_BACKWARD,
    "optimizer_state": get_args(OptimizerState),
    "frozen_modules": get_args(FrozenModules),
    "on_finding": get_args(OnFinding),
    "on_schedule_change": get_args(OnScheduleChange),
}


def check_words(**values: object) -> None:
    """Raise ScheduleError for an argument that is not one of its words."""
    for key, value in values.items():
        one_of(key, value, _WORDS[key])


def _register(argument: Any, read: Callable[[Any], Any], write: Callable[[Any], Any] = lambda value: value) -> Any:
    """Let jsonargparse, once it is imported, read a type by a function, whose errors it shows."""
    how = {"serializer": write, "deserializer": read, "deserializer_exceptions": (), "type_check": isinstance}
    when_imported("jsonargparse.typing", lambda typing: typing.register_type(argument, **how))
    return argument


def _words(name: str, key: str) -> Any:
    def read(word: object) -> object:
        check_words(**{key: word})
        return word

    return _register(Enum(name, {word: word for word in _WORDS[key]}), read)


def _read_selector(selector: object) -> object:
    try:
        check_selector("…", selector)
    except SelectionError as error:
        raise SelectionError(str(error).replace("group '…'", "a group in `groups`")) from error
    return selector


def _read_phase(value: Any) -> Phase:
    given = _arguments(Phase, value)
    for key, kind in (("until", Until), ("pick", Pick)):
        if isinstance(inner := _plain(given.get(key)), Mapping):
            given[key] = kind(**_arguments(kind, inner))
    return Phase(**given)


def _plain(value: Any) -> Any:
    """A namespace of jsonargparse as a mapping; anything else as it is."""
    return value.as_dict() if hasattr(value, "as_dict") else value


def _arguments(kind: type, value: Any) -> dict[str, Any]:
    """The arguments of a class as YAML gives them, with ``class_path`` or without."""
    given = _plain(value)
    if not isinstance(given, Mapping):
        raise ScheduleError(f"a phase is {value!r}, but must be a mapping such as {{train: [head], updates: 10}}.")
    if "class_path" in given:
        path = str(given["class_path"])
        if path.rpartition(".")[2] != kind.__name__:
            raise ScheduleError(f"`class_path` is {path!r}, but must be {kind.__name__!r}.", key="class_path")
        given = given.get("init_args") or {}
    if kind is Phase and "phases" in given:
        raise ScheduleError("this element holds `phases` of its own, so it is not a phase.", key="phases")
    _check_keys(kind, given)
    return dict(given)


def _check_keys(kind: type, given: Mapping[str, Any]) -> None:
    known = inspect.signature(kind).parameters
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known, len(known))
            raise ScheduleError(f"{key!r} is not a key of {kind.__name__}.{hint}", key=key)
    for key, each in known.items():
        if each.default is each.empty and key not in given:
            raise ScheduleError(f"{kind.__name__} has no {key!r}. Add the key.", key=key)


if not TYPE_CHECKING:
    Rest = _words("Rest", "rest")
    OptimizerState = _words("OptimizerState", "optimizer_state")
    FrozenModules = _words("FrozenModules", "frozen_modules")
    OnFinding = _words("OnFinding", "on_finding")
    OnScheduleChange = _words("OnScheduleChange", "on_schedule_change")
    Selector = _register(type("Selector", (), {}), _read_selector)
    _register(Phase, _read_phase, asdict)
