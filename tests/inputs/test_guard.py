"""What is stopped before it writes to what is not its own: a row for each way, and for each harmless one."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import gc
import os
import re
import subprocess
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_freeze.inputs.guard import Guard, WriteError


def writes_elsewhere(function: Any, *args: Any) -> bool:
    """Whether a call of a function is stopped."""
    with Guard(set()) as guard, contextlib.suppress(WriteError):
        function(*args)
    return guard.refused is not None


SEEN: list[Any] = []
FOLDER = ""
CACHE: dict[str, Any] = {}
SCALES = {"small": 1.0}
state = SimpleNamespace(calls=0)
table: dict[str, Any] = {}
queue: deque[Any] = deque()
calls = 0


class Counts:
    calls = 0


def appends(x: Any) -> Any:
    SEEN.append(x)


def global_number(x: Any) -> Any:
    global calls
    calls += 1
    return x


def global_dict(x: Any) -> Any:
    table["x"] = x


def global_deque(x: Any) -> Any:
    queue.append(x)


def global_dict_in_capitals(x: Any) -> Any:
    CACHE["x"] = x


def object_of_the_module(x: Any) -> Any:
    state.calls += 1
    return x


def attribute_of_a_class(x: Any) -> Any:
    Counts.calls += 1
    return x


def through_another(x: Any) -> Any:
    return appends(x)


def in_a_nested_one(x: Any) -> Any:
    return [SEEN.append(one) for one in x]


def mutable_default(x: Any, seen: list[Any] = []) -> Any:  # noqa: B006 - that is the point
    seen.append(x)


def closed_over() -> Callable[[Any], Any]:
    kept: list[Any] = []
    return lambda x: kept.append(x)


def closed_number() -> Callable[[Any], Any]:
    count = 0

    def counts(x: Any) -> Any:
        nonlocal count
        count += 1
        return x

    return counts


def pure(x: Any) -> Any:
    made = [x]
    made.append(x)
    return made


def looks_up(x: Any) -> Any:
    return x * SCALES["small"]


def calls_a_pure_one(x: Any) -> Any:
    return pure(x)


def recursive(x: Any) -> Any:
    return recursive(x - 1) if x else x


class Holder:
    """As in transformers: a context variable that compiled code may use."""

    def __init__(self) -> None:
        self.variable: contextvars.ContextVar[Any] = contextvars.ContextVar("held", default=None)

    def set(self, value: Any) -> Any:
        return self.variable.set(value)


WORD = re.compile("[a-z]+")
LOCK = threading.Lock()
COLLECTED: contextvars.ContextVar[Any] = contextvars.ContextVar("collected", default=None)
HOLDER = Holder()
plain_object = SimpleNamespace(set=SEEN.append)


def wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def counting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        SEEN.append(1)
        return function(*args, **kwargs)

    return wrapper


@functools.lru_cache
def cached(x: Any) -> Any:
    return x


@functools.lru_cache
def cached_that_appends(x: Any) -> Any:
    return appends(x)


def calls_a_cached_one(x: Any) -> Any:
    return cached(x)


def calls_a_cached_one_that_appends(x: Any) -> Any:
    return cached_that_appends(x)


def nested_with_annotations(x: Any) -> Any:
    def inner(y: not_defined_here.Kind) -> also_not.Kind:  # type: ignore[name-defined]  # noqa: F821
        z: nor_this.One = y  # type: ignore[name-defined]  # noqa: F821
        return z

    return inner(x)


def names_its_class(x: Any, **kwargs: Any) -> Any:
    kwargs["message"] = f"{x.__class__.__name__}"
    return kwargs


def writes_to_a_class_by_name(x: Any) -> Any:
    kind = type(x)
    kind.calls += 1
    return x


def writes_to_a_class_in_a_walrus(x: Any) -> Any:
    if kind := x.__class__:
        kind.calls = 1
    return x


def asks_the_environment(x: Any) -> Any:
    return x if os.getenv("A") or os.environ.get("B") or "C" in os.environ else os.environ.get("D")


def writes_the_environment(x: Any) -> Any:
    os.environ["A"] = "1"
    return x


def makes_a_folder(x: Any) -> Any:
    os.makedirs(str(x))


def locks(x: Any) -> Any:
    with LOCK:
        return x


def acquires(x: Any) -> Any:
    LOCK.acquire()
    return x


def collects(x: Any) -> Any:
    token = COLLECTED.set([])
    held = HOLDER.set(x)
    COLLECTED.reset(token)
    return held


def sets_an_object(x: Any) -> Any:
    plain_object.set(x)


def finds_words(x: Any) -> Any:
    return WORD.findall(str(x))


class Base(nn.Module):
    calls = 0

    def tick(self) -> None:
        SEEN.append(1)

    @classmethod
    def count(cls) -> None:
        cls.calls += 1

    @property
    def logged(self) -> int:
        SEEN.append(1)
        return 1

    @property
    def rank(self) -> int:
        return 2

    def helper(self, x: Tensor) -> Tensor:
        return x * 2


class Ticks(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.tick()
        return x


class TicksLater(Base):
    """Hands a method on, for another to call."""

    def add(self, x: int, y: int) -> int:
        self.tick()
        return x + y

    def forward(self, x: Tensor) -> Tensor:
        return x * functools.reduce(self.add, [1, 2])


class TicksAbove(Base):
    def tick(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        super().tick()
        return x


class CountsItsClass(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count()
        return x


class Logs(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.logged


class Helps(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return self.helper(x) * self.rank


class Encoder(nn.Module):
    def encode(self, x: Tensor) -> Tensor:
        SEEN.append(1)
        return x


class CallsAChild(Base):
    """By another method than forward."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Encoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.child.encode(x)


class WithoutGrad(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.helper(x)


class WithoutGradTicks(Base):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.tick()
        return x


@contextlib.contextmanager
def noted() -> Any:
    SEEN.append(1)
    yield


def within_a_noted_one(x: Any) -> Any:
    with noted():
        return x


class Registry:
    items: list[Any] = []

    def __init__(self) -> None:
        self.own: list[Any] = []

    def enter(self) -> None:
        self.items.append(1)

    def keep(self) -> None:
        self.own.append(1)

    @classmethod
    def register(cls) -> None:
        cls.items.append(1)


class Enters:
    def __init__(self) -> None:
        SEEN.append(1)


class Caches:
    @functools.lru_cache  # noqa: B019 - the point
    def table(self) -> int:
        return 1


def asks_a_cached_method(x: Any) -> Any:
    return Caches().table()


def hands_on_a_method(x: Any) -> Any:
    return list(map(SEEN.append, [x]))


def of_another_module(x: Any) -> Any:
    return further.bump(x)


def by_its_class(x: Any) -> Any:
    Registry.items.append(x)


def makes_one_that_enters(x: Any) -> Any:
    return Enters()


def changes_what_a_class_holds(x: Any) -> Any:
    Registry().enter()


def changes_what_a_class_holds_by_it(x: Any) -> Any:
    Registry.register()


def changes_its_own(x: Any) -> Any:
    Registry().keep()


def caught(x: Any) -> Any:
    """Goes on after anything."""
    with contextlib.suppress(BaseException):
        appends(x)


def writes_a_file(x: Any) -> Any:
    with Path(FOLDER, "file").open("a") as file:
        file.write("called")


def opens_a_file(x: Any) -> Any:
    return open(os.path.join(FOLDER, "file"), "a")


def saves(x: Any) -> Any:
    torch.save(x, os.path.join(FOLDER, "file"))


def saves_numbers(x: Any) -> Any:
    np.ones(2).tofile(os.path.join(FOLDER, "file"))


def begins_a_thread(x: Any) -> Any:
    threading.Thread(target=SEEN.append, args=(1,)).start()


def runs_a_program(x: Any) -> Any:
    subprocess.run(["true"])


def runs_code(x: Any) -> Any:
    exec("SEEN.append(1)")


def sets_threads(x: Any) -> Any:
    torch.set_num_threads(1)


further = types.ModuleType("further")
exec("def bump(x):\n    seen.append(x)", further.__dict__)
further.seen = SEEN  # type: ignore[attr-defined]

WRITE = [
    asks_a_cached_method, hands_on_a_method, of_another_module, by_its_class, makes_one_that_enters, changes_what_a_class_holds,
    changes_what_a_class_holds_by_it, caught, writes_a_file, opens_a_file, saves, saves_numbers, begins_a_thread,
    runs_a_program, runs_code, sets_threads,
    appends, global_number, global_dict, global_deque, global_dict_in_capitals, object_of_the_module,
    attribute_of_a_class, through_another, in_a_nested_one, mutable_default, closed_over(), closed_number(),
    wrapping(appends), counting(pure), torch.no_grad()(appends), torch.no_grad()(wrapping(appends)),
    calls_a_cached_one_that_appends, writes_to_a_class_by_name, writes_to_a_class_in_a_walrus, writes_the_environment,
    makes_a_folder, acquires, sets_an_object, within_a_noted_one,
]  # fmt: skip
HARMLESS = [
    pure, looks_up, calls_a_pure_one, recursive, wrapping(pure), torch.no_grad()(pure), wrapping(torch.no_grad()(pure)),
    changes_its_own, calls_a_cached_one, nested_with_annotations, names_its_class, asks_the_environment, locks, collects, finds_words,
]  # fmt: skip


def names(functions: list[Any]) -> list[str]:
    return [f"{function.__code__.co_name} {function.__qualname__}" for function in functions]


class Thing:
    calls = 0


def before() -> list[Any]:
    return [list(SEEN), list(queue), dict(table), dict(CACHE), calls, state.calls, Counts.calls, Thing.calls,
            list(Registry.items), torch.get_num_threads(), dict(os.environ)]  # fmt: skip


@pytest.mark.parametrize("function", WRITE, ids=names(WRITE))
def test_what_writes_elsewhere_is_stopped_before_it_does(function: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(globals(), "FOLDER", str(tmp_path))
    then = before()
    assert writes_elsewhere(function, Thing()) is True
    assert before() == then
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [appends, global_number, by_its_class, attribute_of_a_class])
def test_the_check_that_nothing_was_written_can_fail(function: Any) -> None:
    then = before()
    function(Thing())
    assert before() != then


@pytest.mark.parametrize("function", HARMLESS, ids=names(HARMLESS))
def test_what_writes_to_its_own_alone_runs(function: Any) -> None:
    assert writes_elsewhere(function, 2) is False


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Ticks, True), (TicksLater, True), (TicksAbove, True), (CountsItsClass, True), (Logs, True),
        (CallsAChild, True), (WithoutGradTicks, True), (Helps, False), (WithoutGrad, False),
    ],
)  # fmt: skip
def test_a_forward_is_stopped_where_it_comes_to_a_write(kind: type[nn.Module], expected: bool) -> None:
    then = before()
    assert writes_elsewhere(kind(), torch.ones(2)) is expected
    assert before() == then


def test_what_has_no_source_is_in_doubt() -> None:
    space: dict[str, Any] = {}
    exec("def made(x):\n    return x", space)
    assert writes_elsewhere(space["made"], 1) is True


def test_it_leaves_nothing_installed() -> None:
    writes_elsewhere(appends, 1)
    assert sys.getprofile() is None
    writes_elsewhere(pure, 1)
    assert sys.getprofile() is None


def test_a_process_that_is_profiled_is_left_alone() -> None:
    def profile(*_: Any) -> None: ...

    sys.setprofile(profile)
    try:
        with pytest.raises(WriteError, match="is being profiled"), Guard(set()):
            pass
        found = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert found is profile


def test_what_others_have_for_the_end_of_their_objects_is_not_stopped() -> None:
    class Ends:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            SEEN.append("end")

    SEEN.clear()
    thresholds = gc.get_threshold()
    gc.collect()
    Ends()
    ended: list[Any] = []
    weakref.finalize(other := Thing(), ended.append, 1)
    other.me = other  # type: ignore[attr-defined]
    del other
    try:
        with Guard(set()):
            gc.set_threshold(1)
            made = list(zip(range(1000), range(1000), strict=True))
            within = SEEN + ended
    finally:
        gc.set_threshold(*thresholds)
    assert (len(made), within) == (1000, [])
    assert gc.isenabled()
    gc.collect()
    assert (SEEN, ended) == (["end"], [1])
    SEEN.clear()
