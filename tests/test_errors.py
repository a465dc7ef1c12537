"""Errors show the beginning and the end of a value of any size."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from lightning_freeze import (
    Every,
    FreezeScheduler,
    Phase,
    Phases,
    Pick,
    ScheduleError,
    SelectionError,
    UnsupportedError,
)
from lightning_freeze.errors import shortened
from lightning_freeze.plan.selectors import check_selector
from lightning_freeze.yaml_file import ConfigError, compose

NAME, TEXT, LIST = "x" * 10**5, "a word " * 10**4, [0] * 10**4


@pytest.mark.parametrize("value", [NAME, TEXT, LIST, {NAME: TEXT}], ids=["name", "text", "list", "mapping"])
@pytest.mark.parametrize(
    "use",
    [
        lambda value: Phase(str(value)),
        lambda value: Phase(["a"], updates=value),
        lambda value: Phase(["a"], lr={"a": [str(value)]}),
        lambda value: Every({str(value): 0}),
        lambda value: Every({"a": 2}, of=[value]),
        lambda value: Phases([value]),
        lambda value: Phases([Phase(["a"])], change=value),
        lambda value: Pick("a", order=value),
        lambda value: FreezeScheduler(value),
        lambda value: FreezeScheduler(Every({"a": 2}), rest=value),
        lambda value: check_selector("a", {"each": [str(value), "b"]}),
        lambda value: compose("a: &a 1\nb: *c", key=str(value)),
    ],
)
def test_a_value_of_any_size_is_cut(use: Callable[[Any], object], value: Any) -> None:
    with pytest.raises((ScheduleError, SelectionError, ConfigError)) as caught:
        use(value)
    assert "…" in str(caught.value)
    assert 50 < len(str(caught.value)) < 4100
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("kind", [ScheduleError, SelectionError, UnsupportedError, ConfigError])
def test_the_beginning_and_the_end_stay(kind: type[Exception]) -> None:
    assert str(kind("`key` is wrong. Write another.")) == "`key` is wrong. Write another."
    error = str(kind(f"`key` is {NAME!r}, but must be short. {TEXT} Write another."))
    assert error.startswith("`key` is 'xxx")
    assert "x', but must be short." in error
    assert error.endswith("a word  Write another.")
    assert shortened(error) == error
