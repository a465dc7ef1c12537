"""Optimizer state is digested on a thread beside forward and backward: what is found, and what is not, stays the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_freeze import Every, FreezeController
from lightning_freeze.audit import fingerprint
from lightning_freeze.audit.frozen import FrozenAudit, Watched, WatchedSet
from tests.conftest import Net, batches
from tests.pages import PAGES

EVERY, STEPS = 4, 8  # layer1 trains at batches 0 and 4
BOUNDARIES = (1, 4, 5)
FREEZES = (1, 5)
POINTS = ("before the batch", "in forward", "before backward", "in backward", "before clipping", "before the step")
POINTS += ("after the step", "between batches")
BESIDE = POINTS[1:6]  # while state may be read
PIECE, SAMPLE = 64, 16  # bytes; state of layer1 has 128

Mode = Literal["now", "early", "late", "thread"]


@pytest.fixture(params=["now", "early", "late", "thread"])
def mode(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mode]:
    """How state is read: at once; by a thread that is as early, or as late, as can be; by a real one."""
    pools = {
        "early": lambda work: work() or SimpleNamespace(cancel=lambda: False, result=lambda: None),
        "late": lambda work: SimpleNamespace(cancel=lambda: True),
    }
    if request.param in pools:
        monkeypatch.setattr(fingerprint, "_pool", lambda _: SimpleNamespace(submit=pools[request.param]))
    if request.param != "now":
        monkeypatch.setattr(fingerprint, "_SHARED", PIECE)
        monkeypatch.setattr(fingerprint, "_PIECE", PIECE)
        monkeypatch.setattr(fingerprint, "_SAMPLE", SAMPLE)
    yield request.param
    fingerprint._pool.cache_clear() if request.param == "thread" else None


class Case(NamedTuple):
    target: Callable[[Any, Any], Tensor]
    write: Callable[[Tensor], None]
    batch: int
    point: str


class Model(Net):
    """Calls what it is given within its forward, and has a buffer beside the weight that freezes."""

    def __init__(self) -> None:
        super().__init__()
        self.at: Callable[[str], None] = lambda point: None
        self.layer1.register_buffer("scale", torch.linspace(1, 2, 32).view(8, 4).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        self.at("in forward")
        found = super().forward(x)
        found.register_hook(lambda _: self.at("in backward"))
        return found


def run(cases: Iterable[Case]) -> Iterator[set[tuple[str, str | None]]]:
    """An epoch for each case, in which something is written once; kind and parameter of each error."""
    model = Model()
    optimizer: Any = model.configure_optimizers()
    with FreezeController(model, Every({"layer1": EVERY}, of="layer2"), frozen_modules="eval") as controller:
        controller.attach(optimizer)
        controller.begin()
        data, now, number = list(batches(STEPS)), Case(of_weight, flip_one_bit, -1, ""), 0

        def at(point: str) -> None:
            if now[2:] == (number, point):
                now.write(now.target(model, optimizer))

        model.at = at
        optimizer.register_step_pre_hook(lambda *_: at("before the step"))
        for case in cases:
            now = case
            for number, batch in enumerate(data):
                at("before the batch")
                controller.begin_step()
                loss = model.training_step(batch, number)
                assert loss is not None
                at("before backward")
                optimizer.zero_grad()
                loss.backward()
                at("before clipping")
                controller.before_optimizer_step(optimizer)
                optimizer.step()
                at("after the step")
                at("between batches")
            yield {(found.kind, found.parameter) for found in controller.end_epoch() if found.severity == "error"}


def of_weight(model: Model, optimizer: Any) -> Tensor:
    return model.layer1.weight


def of_state(model: Model, optimizer: Any) -> Tensor:
    return optimizer.state[model.layer1.weight]["exp_avg"]  # type: ignore[no-any-return]


def of_buffer(model: Model, optimizer: Any) -> Tensor:
    return model.layer1.scale  # type: ignore[return-value]


TARGETS = {
    of_weight: ("value", "layer1.weight"),
    of_state: ("optimizer_state", "layer1.weight"),
    of_buffer: ("buffer", "layer1.scale"),
}


def flip_one_bit(tensor: Tensor) -> None:
    tensor.data.view(torch.int32).view(-1)[21] ^= 1


def swap_two_elements(tensor: Tensor) -> None:
    flat = tensor.data.view(-1)
    flat[[20, 31]] = flat[[31, 20]]


def data_write(tensor: Tensor) -> None:
    tensor.data = -tensor.data


def untracked(tensor: Tensor) -> None:
    tensor.data.neg_()


@torch.no_grad()
def in_place(tensor: Tensor) -> None:
    tensor.neg_()


@torch.no_grad()
def one_element(tensor: Tensor) -> None:
    tensor.view(-1)[21] += 1


WRITES = (flip_one_bit, swap_two_elements, data_write, untracked, in_place, one_element)
HIDDEN = (flip_one_bit, swap_two_elements)  # neither torch's count nor a sample shows them


def is_frozen(batch: int, point: str) -> bool:
    """Whether layer1 is frozen there: from the beginning of a batch that freezes it to that of one that trains it."""
    return (batch - (point == "before the batch")) % EVERY != 0


def cases(near: int | None = None, others: int | None = None) -> list[Case]:
    """Every write at every point of every batch, or so many of those around a boundary and of the others."""
    made = [Case(t, w, b, p) for t in TARGETS for w in WRITES for b in range(1, STEPS) for p in POINTS]
    kinds = [[case for case in made if (case.batch in BOUNDARIES) is at] for at in (True, False)]
    return [
        case
        for found, count in zip(kinds, (near, others), strict=True)
        for case in random.Random(0).sample(found, len(found) if count is None else count)
    ]


def check(made: list[Case], mode: Mode) -> None:
    wrong = []
    for case, found in zip(made, run(made), strict=True):
        beside = case.target is of_state and case.batch in FREEZES and case.point in BESIDE
        if beside and case.write in HIDDEN and mode in ("late", "thread"):
            continue  # the guide says so
        if found != ({TARGETS[case.target]} if is_frozen(case.batch, case.point) else set()):
            wrong.append((case, found))
    assert wrong == []


def test_a_write_at_any_point_is_found_as_before(mode: Mode) -> None:
    check(cases(80, 20), mode)


@pytest.mark.slow
def test_every_write_at_every_point_is_found_as_before(mode: Mode) -> None:
    check(cases(), mode)


@pytest.mark.parametrize("mode", ["late"], indirect=True)
@pytest.mark.parametrize("write", HIDDEN)
def test_what_may_hide_is_in_the_guide(mode: Mode, write: Any) -> None:
    assert [*run([Case(of_state, write, 1, "in forward")])] == [set()]
    missing = PAGES["examples/guide/audit.md"].read_text(encoding="utf-8").partition("## What is not seen")[2]
    assert "by `.data` to a part of large optimizer state" in missing


# --- without a run


def opened(beside: bool) -> tuple[FrozenAudit, list[Tensor]]:
    """An interval over a weight with large state, and that state."""
    audit, state, weight = FrozenAudit(), [torch.arange(64.0), torch.arange(64.0)], torch.zeros(2)
    one = Watched("w", "g", lambda: weight, lambda: {"exp_avg": state[0], "exp_avg_sq": state[1]})
    audit.open([WatchedSet({1: one})], 0, beside)
    return audit, state


@pytest.mark.parametrize("mode", ["early", "late", "thread"], indirect=True)
@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda state: None, []),
        (lambda state: state[0].add_(1), ["exp_avg"]),
        (lambda state: state[1].data.add_(1), ["exp_avg_sq"]),
        (lambda state: state.__setitem__(0, state[0] + 1), ["exp_avg"]),
    ],
    ids=["none", "in place", "data", "another tensor"],
)
def test_a_write_while_state_is_read(mode: Mode, write: Any, expected: list[str]) -> None:
    audit, state = opened(beside=True)
    write(state)
    audit.close([[1]], 1)
    assert [entry for change in audit.collect() for entry in change.entries] == expected


@pytest.mark.parametrize("mode", ["early", "late", "thread"], indirect=True)
def test_memory_that_is_read_cannot_be_given_back(mode: Mode) -> None:
    audit, state = opened(beside=True)
    with pytest.raises(RuntimeError, match="not resizable"):
        state[0].untyped_storage().resize_(0)
    audit.join()


# --- joined in time


class Stop(Exception): ...


def steps(controller: FreezeController, model: Any, optimizer: Any) -> None:
    controller.before_optimizer_step(optimizer)
    optimizer.step()


def raises(controller: FreezeController, model: Any, optimizer: Any) -> None:
    with pytest.raises(Stop), controller:
        raise Stop


JOINS: dict[str, Any] = {
    "a step": steps,
    "a pause": lambda controller, *_: controller.pause(),
    "an epoch's end": lambda controller, *_: controller.end_epoch(),
    "a checkpoint": lambda controller, *_: controller.audit.check(),
    "the end": lambda controller, *_: controller.finish(),
    "detach": lambda controller, *_: controller.detach(),
    "an exception": raises,
    "an early step": lambda controller, _, optimizer: controller.holds.step_begins(
        controller._place.loop.members.steps[0]  # type: ignore[union-attr]
    ),
}


@pytest.mark.parametrize("mode", ["late", "thread"], indirect=True)
@pytest.mark.parametrize("joins", JOINS)
def test_reading_ends_before(joins: str, mode: Mode) -> None:
    model, data = Model(), [*batches(2)]
    optimizer: Any = model.configure_optimizers()
    controller = FreezeController(model, Every({"layer1": EVERY}, of="layer2"))
    controller.attach(optimizer)
    controller.begin()
    for number, batch in enumerate(data):
        controller.begin_step()
        model.training_step(batch, number).backward()
        if number == 0:
            optimizer.step()
    assert controller.audit.weights is not None
    beside = controller.audit.weights.frozen._beside
    assert len(beside) == 1
    JOINS[joins](controller, model, optimizer)
    assert beside == []
    controller.detach()


@pytest.mark.parametrize("state", ["keep", "reset", "offload"])
@pytest.mark.parametrize("mode", ["late"], indirect=True)
def test_state_that_is_loaded_dropped_or_moved_meanwhile(state: Any, mode: Mode) -> None:
    """What is read is what was there when it froze; state that is offloaded is read at once."""
    model, found = Model(), []
    optimizer: Any = model.configure_optimizers()
    with FreezeController(model, Every({"layer1": EVERY}, of="layer2"), optimizer_state=state) as controller:
        controller.attach(optimizer)
        controller.begin()
        for factor in (1, 2):
            for number, batch in enumerate(batches(STEPS)):
                controller.begin_step()
                assert controller.audit.weights is not None
                assert bool(controller.audit.weights.frozen._beside) == (state == "keep" and number % EVERY == 1)
                if number == 1:
                    saved = optimizer.state_dict()
                    for entry in saved["state"].values():
                        entry["exp_avg"] = entry["exp_avg"] * factor
                    optimizer.load_state_dict(saved)
                optimizer.zero_grad()
                model.training_step(batch, number).backward()
                optimizer.step()
            found.append([finding.kind for finding in controller.end_epoch() if finding.severity == "error"])
    assert found == [[], [] if state == "reset" else ["optimizer_state"]]


def test_small_state_is_read_at_once(mode: Mode) -> None:
    """Waking a thread costs more."""
    audit, _ = opened(beside=True)
    weight = torch.zeros(2)
    audit.open([WatchedSet({2: Watched("v", "g", lambda: weight, lambda: {"step": torch.ones(4)})})], 0, beside=True)
    assert len(audit._beside) == (mode != "now")
    audit.join()
