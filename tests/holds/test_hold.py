"""Holds in their order: which verbs run down the list, which up, and what an error in one does to the others."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from lightning_freeze.holds import hold as module
from lightning_freeze.holds.hold import Hold, Holds

UP = {"detach", "thaw", "restore", "after_step"}
VERBS = module._VERBS


def named(name: str, seen: list[str], *verbs: str) -> Hold:
    """A hold that writes down when one of these verbs is called."""
    methods = {verb: lambda self, *arguments: seen.append(name) for verb in verbs}
    return type(name, (Hold,), methods)()


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_runs_down_the_list_or_up(verb: str) -> None:
    seen: list[str] = []
    holds = Holds([named("first", seen, verb), Hold(), named("second", seen, verb)])
    arguments = [None] * (len(inspect.signature(getattr(Hold, verb)).parameters) - 1)
    getattr(holds, verb)(*arguments)
    assert seen == (["second", "first"] if verb in UP else ["first", "second"])


@pytest.mark.parametrize("verb", VERBS)
def test_a_hold_that_does_nothing_is_not_called(verb: str) -> None:
    arguments: list[Any] = [None] * (len(inspect.signature(getattr(Hold, verb)).parameters) - 1)
    getattr(Holds([Hold()]), verb)(*arguments)
    getattr(Hold(), verb)(*arguments)


def test_holds_are_a_hold() -> None:
    seen: list[str] = []
    Holds([Holds([named("inner", seen, "pause")]), named("outer", seen, "pause")]).pause()
    assert seen == ["inner", "outer"]


def test_each_is_detached_whatever_another_raises() -> None:
    seen: list[str] = []

    class Fails(Hold):
        def detach(self, bring_back: bool = True) -> None:
            raise OSError("planned")

    with pytest.raises(OSError, match="planned"):
        Holds([named("first", seen, "detach"), Fails(), named("last", seen, "detach")]).detach(True)
    assert seen == ["last", "first"]
