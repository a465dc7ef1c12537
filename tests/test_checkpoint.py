"""A saved state is read whole or refused: whatever was altered in it is an error that names key, value and what is valid."""

from __future__ import annotations

import base64
import copy
import io
import json
import lzma
import signal
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy
import pytest
import torch
from torch import Tensor, nn

from lightning_freeze import Every, FreezeController, Phase, Phases, Pick, Schedule, ScheduleError
from lightning_freeze.checkpoint import packed, unpacked
from lightning_freeze.plan.schedule import Layout

SCHEDULES: dict[str, Schedule] = {
    "every": Every({"0": 2}, of="1"),
    "phases": Phases([Phase(["0"], updates=2), Phase(["1"], updates=3, ramp=2)], repeat=True),
}
VALUES: tuple[Any, ...] = (
    None,
    "x",
    -1,
    10**12,
    1.5,
    True,
    [],
    {},
    [[0, 7, 1]],
    [["x"]],
    {"a": "b"},
    {"0": -1},
    {"2": 1},
    [{"times": 2, "steps": [[0, 0, 1]]}],
    [{"times": 0, "steps": [[0, 0, 1]]}],
    [{"times": 2, "steps": []}],
)


class Run:
    """A small run in a plain loop."""

    def __init__(self, schedule: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.controller = FreezeController(self.model, SCHEDULES[schedule])
        self.controller.attach(self.optimizer)

    def steps(self, count: int) -> list[Tensor]:
        for _ in range(count):
            self.controller.begin_step()
            self.optimizer.zero_grad()
            self.model(torch.ones(3, 2)).sum().backward()
            self.optimizer.step()
        return [p.detach().clone() for p in self.model.parameters()]


def saved(schedule: str) -> dict[str, Any]:
    run = Run(schedule)
    run.controller.begin()
    run.steps(3)
    state: dict[str, Any] = json.loads(json.dumps(run.controller.state_dict()))
    run.controller.detach()
    return state


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below, but for what the schedule says of itself."""
    if path:
        yield path
    if isinstance(value, dict) and path != ("schedule",):
        for key, below in value.items():
            yield from paths(below, (*path, key))


def changed(state: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A state with another value at a path, or without it where the value is KeyError."""
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    if value is KeyError:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return state


@pytest.fixture
def _limit() -> Iterator[None]:
    """Fails a run that never ends."""

    def late(*_: Any) -> None:
        raise TimeoutError("a state was read without end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.usefixtures("_limit")
def test_an_altered_state_is_refused_before_anything_changes_or_can_be_trained_from(schedule: str) -> None:
    run, state = Run(schedule), saved(schedule)
    fresh, refused = run.controller.state_dict(), 0
    for path in paths(state):
        for value in (KeyError, *VALUES):
            try:
                run.controller.load_state_dict(changed(state, path, value))
            except ScheduleError:
                assert run.controller.state_dict() == fresh, (path, value)
                refused += 1
            else:
                run.steps(6)
                assert run.controller.end_epoch() == [], (path, value)
                run.controller.detach()
                run = Run(schedule)
    assert refused >= 200
    run.controller.detach()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_saved_state_is_gone_on_from(schedule: str) -> None:
    run, straight = Run(schedule), Run(schedule)
    straight.controller.begin()
    expected = straight.steps(9)
    run.controller.begin()
    run.steps(3)
    state = json.loads(json.dumps(run.controller.state_dict()))
    run.controller.attach(run.optimizer)
    run.controller.begin(state=state)
    for ours, theirs in zip(run.steps(6), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert run.controller.updates == straight.controller.updates
    run.controller.detach()
    straight.controller.detach()


def test_names_that_are_numpys_strings_are_saved_as_text() -> None:
    slow, fast = numpy.array(["0", "1"])
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller = FreezeController(model, Every({slow: 2}, of=fast), {slow: "0", fast: "1"})
    controller.attach(optimizer)
    file = io.BytesIO()
    torch.save(controller.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == controller.state_dict()
    controller.detach()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rest", KeyError, "`rest`: 'missing', but it must be there"),
        ("rest", "fry", "`rest`: 'fry', but it must be train, freeze or error"),
        ("position", None, "`position`: None, but it must be a mapping"),
        ("position.phase", "x", "`position.phase`: 'x', but it must be a whole number of at least 0"),
        ("position.epoch", -(10**12), "`position.epoch`: -1000000000000, but it must be a whole number of at least 0"),
        ("position.zeal", 1, "`position.zeal`: 'an unknown key', but it must be one of updates, total"),
        ("position.updates", {"a": 1}, r"`position.updates`: \{'a': 1\}, but it must be a count for each of 0, 1"),
        ("position.total", 1, "`position.total`: 1, but it must be at least 3, the updates of a group"),
        (
            "position.done",
            [[7, 1]],
            r"`position.done`: \[7, 1\], but it must be \[optimizer, updates\], with an optimizer",
        ),
        ("epoch_updates", {"a": "b"}, r"`epoch_updates`: \{'a': 'b'\}, but it must be counts of at least 0 by group"),
        ("steps.first", 9, "`steps.first`: 9, but it must be at most 3, the total"),
        (
            "steps.steps",
            [[0, 7, 1]],
            r"`steps.steps`: \[0, 7, 1\], but it must be \[optimizer below 1, set below 2, count\]",
        ),
    ],
)
def test_what_is_wrong_is_named(path: str, value: Any, message: str) -> None:
    run = Run("every")
    with pytest.raises(ScheduleError, match=f"the checkpoint's freeze state has {message}.*begin a new run"):
        run.controller.begin(state=changed(saved("every"), tuple(path.split(".")), value))
    run.controller.detach()


# --- how large a state is --------------------------------------------------------------------------------------------

OWN = 20_000  # bytes of a checkpoint beside the schedule's text
SLOW = ("periods", "draws of many")


def text_of(schedule: Schedule) -> int:
    """The bytes of a schedule's own text, compressed."""
    return len(base64.b85encode(lzma.compress(json.dumps(schedule.describe()).encode())))


def file_of(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


class Layer(nn.Module):
    """Ten parameters, named as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("query", "key", "value", "out", "up"):
            self.add_module(name, nn.Linear(1, 1, device="meta"))


def many_layers(schedule: Schedule) -> FreezeController:
    """1,000 groups of 10,000 parameters, never trained; its plan and its counts are the run's."""
    model = nn.Sequential(nn.Sequential(*(Layer() for _ in range(1000))))
    controller = FreezeController(model, schedule, {"layers": {"each": "0.*"}})
    place = controller._place
    layout = Layout(tuple(controller.groups.members), controller.groups.families)
    place.plan, place.held_groups = schedule.bind(layout), [[*layout.groups]]
    place.at = place.plan.start()
    return controller


def go_on(controller: FreezeController, updates: int) -> None:
    """The updates of an epoch, as they are counted."""
    (plan, at), steps = controller._place.planned(), controller.audit.steps
    assert plan is not None
    for _ in range(updates):
        plan.begin_window(at, 0)
        trained = plan.next_update(at, 0)
        steps.plan([trained], plan.place(at), plan.lr_factors(at))
        steps.add(0, trained)
        plan.update(at, 0, trained)


LARGE: dict[str, tuple[Schedule, int]] = {
    "draws of many": (Phases([Phase([], pick=Pick("layers", 400), updates=1, ramp=9)], repeat=True), 60),
    "draws of few": (Phases([Phase([], pick=Pick("layers", 2), updates=3)], repeat=True), 1500),
    "periods": (Every({f"layers/{n}": 2 + n for n in range(999)}, of="layers/999"), 700),
    "phases": (Phases([Phase([f"layers/{n * n % 997}"], updates=1 + n % 7) for n in range(10_000)], repeat=True), 3000),
}


@pytest.mark.parametrize(
    ("schedule", "updates"),
    [pytest.param(*LARGE[name], id=name, marks=pytest.mark.slow if name in SLOW else ()) for name in LARGE],
)
def test_a_checkpoint_is_small_whatever_the_schedule_and_however_long_the_epoch(
    schedule: Schedule, updates: int
) -> None:
    controller, text = many_layers(schedule), text_of(schedule)
    for _ in range(2):
        go_on(controller, updates // 2)
        state = controller.state_dict()
        assert len(file_of(state).getvalue()) - text < OWN
        assert torch.load(file_of(state), weights_only=True) == state
    whole = unpacked(state)
    assert whole["schedule"] == schedule.describe()
    assert len(whole["groups"]) == 1000
    assert whole["position"]["total"] == updates


def test_many_phases_are_in_a_checkpoint_once_and_gone_on_from() -> None:
    schedule = Phases([Phase([str(n % 2)], updates=1 + n % 7) for n in range(400)], repeat=True)
    with patch.dict(SCHEDULES, long=schedule):
        run, straight = Run("long"), Run("long")
        straight.controller.begin()
        expected = straight.steps(40)
        run.controller.begin()
        run.steps(30)
        state = torch.load(file_of(run.controller.state_dict()), weights_only=True)
        assert len(file_of(state).getvalue()) < 5000
        assert "schedule" not in state
        run.controller.attach(run.optimizer)
        run.controller.begin(state=state)
        assert all(map(torch.equal, run.steps(10), expected))
        other = {**unpacked(state), "schedule": schedule.describe() | {"class_path": "Other"}}
        with pytest.raises(ScheduleError, match=r"another schedule:(.|\n)*-class_path: Other\n\+class_path: Phases"):
            run.controller.load_state_dict(packed(other))
    for each in (run, straight):
        each.controller.detach()


@pytest.mark.parametrize("value", [None, 3, "", "no text", "{}", base64.b85encode(b"nothing").decode()])
@pytest.mark.parametrize("key", ["identity", "progress"])
def test_compressed_text_that_is_damaged_is_named(key: str, value: Any) -> None:
    run, state = Run("every"), saved("every")
    with pytest.raises(ScheduleError, match=f"the checkpoint's freeze state has `{key}`: .*compressed text, as it was"):
        run.controller.begin(state={**state, key: value})
    run.controller.detach()


def test_compressed_text_is_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An altered one of a few bytes could fill the memory."""
    state = packed({**saved("every"), "schedule": {"long": "x" * 10_000}})
    assert "schedule" in unpacked(state)
    monkeypatch.setattr("lightning_freeze.checkpoint._LONGEST", 1000)
    with pytest.raises(ScheduleError, match="`identity`: .*compressed text, as it was"):
        unpacked(state)


def test_a_short_state_can_be_read_by_people_and_the_first_versions_is_read() -> None:
    state = saved("phases")
    assert state["version"] == 2
    assert state["schedule"]["init_args"]["phases"][1] == {"train": ["1"], "updates": 3, "ramp": 2}
    assert packed(unpacked(state)) == state
    run = Run("phases")
    run.controller.begin(state=state | {"version": 1})
    assert run.controller.total == 3
    with pytest.raises(ScheduleError, match="has version 3; this release reads up to 2"):
        run.controller.load_state_dict(state | {"version": 3})
    run.controller.detach()


def test_compressed_text_of_other_parts_or_too_deep_is_refused() -> None:
    def text(made: str) -> str:
        return base64.b85encode(lzma.compress(made.encode(), lzma.FORMAT_ALONE)).decode()

    for made in ('{"version":2}', '{"rest":"train"}', "[]", '[["schedule",1]]', "[" * 5000 + "]" * 5000):
        with pytest.raises(ScheduleError, match="`identity`: .*compressed text, as it was"):
            unpacked({"version": 2, "rest": "train", "identity": text(made)})
    with pytest.raises(ScheduleError, match="has version 3; this release reads up to 2"):
        unpacked({"version": 3, "identity": "of a later release"})


def test_a_python_without_lzma_saves_long_states_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {**saved("every"), "schedule": {"long": "x" * 10_000}}
    short = packed(state)
    monkeypatch.setattr("lightning_freeze.checkpoint.lzma", None)
    assert packed(state) == unpacked(state) == state
    with pytest.raises(ScheduleError, match=r"is compressed \(`identity`\), and this Python has no module `lzma`"):
        unpacked(short)


def test_steps_within_each_other_without_end_are_refused() -> None:
    run, deep = Run("every"), [[0, 0, 1]]
    for _ in range(3000):
        deep = [{"times": 2, "steps": deep}]  # type: ignore[list-item]
    state = saved("every")
    state["steps"]["steps"] = deep
    with pytest.raises(
        ScheduleError, match="`steps.steps`: values within each other, too deep to show, but it must be"
    ):
        run.controller.begin(state=state)
    run.controller.detach()
