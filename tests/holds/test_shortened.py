"""Lists of what trains, which stand in param groups for a step where much is frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_freeze import FreezeController, Phase, Phases, setup
from lightning_freeze.plan.membership import MANY

SIZE = MANY + 6  # parameters of a half


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (nn.ParameterList([torch.randn(3) for _ in range(SIZE)]) for _ in range(2))

    def forward(self) -> Tensor:
        return torch.stack([p.square().sum() * (n + 1) for n, p in enumerate(self.parameters())]).sum()


def mixed(model: Halves) -> list[dict[str, Any]]:
    """One param group with parts of both halves, one of the first half alone, one with few of the second."""
    a, b = [*model.a], [*model.b]
    return [{"params": [*a[:-3], *b[:-2]], "lr": 0.01}, {"params": a[-3:]}, {"params": b[-2:], "lr": 0.02}]


def one(model: Halves) -> list[dict[str, Any]]:
    return [{"params": [*model.parameters()]}]


def extra(model: Halves) -> list[dict[str, Any]]:
    """A tensor that the model does not have among them."""
    return [{"params": [*model.a, torch.ones(2, requires_grad=True), *model.b]}]


class Twice(torch.optim.SGD):
    """Steps its parent's step within its own."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.seen = [len(group["params"]) for group in self.param_groups]
        return super().step(closure)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "foreach": partial(torch.optim.SGD, lr=0.01, momentum=0.9, foreach=True),
    "fused": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01),
}
SHORT = {one: [SIZE], extra: [SIZE + 1], mixed: [SIZE - 3, 3, 2]}
"""What stands in the param groups while the first half trains: few or none that is frozen is left in."""


def turns(lr: Any = None) -> Phases:
    phase = Phase(["a"], updates=2, lr=lr)
    return Phases([phase, Phase(["b"], updates=1)], repeat=True)


def run(
    make: Callable[..., Optimizer], groups: Callable[[Halves], Any], closure: bool, lr: Any = None
) -> tuple[list[Any], list[list[int]]]:
    """The weights, the state and the counts after some steps, and how long the lists were in each."""
    model = Halves()
    optimizer = make(groups(model))
    controller = FreezeController(model, turns(lr))
    lengths: list[list[int]] = []
    full = [len(group["params"]) for group in optimizer.param_groups]
    with controller:
        controller.attach(optimizer)
        controller.begin()
        record_into(optimizer, lengths)
        for _ in range(7):
            controller.begin_step()
            lengths.append([])

            def backward() -> Tensor:
                assert [len(group["params"]) for group in optimizer.param_groups] == full
                optimizer.zero_grad()
                loss = model()
                loss.backward()
                return loss

            if closure:
                optimizer.step(backward)
            else:
                backward()
                controller.before_optimizer_step(optimizer)
                optimizer.step()
            assert [len(group["params"]) for group in optimizer.param_groups] == full
        assert not [each for each in (*controller.end_epoch(), *controller.finish()) if each.severity == "error"]
    states = [optimizer.state.get(p, {}) for p in model.parameters()]
    return [[p.detach() for p in model.parameters()], copy.deepcopy(states), controller.updates], lengths


def record_into(optimizer: Any, lengths: list[list[int]]) -> None:
    """Note how long each param group's list is within the step."""
    inner = optimizer._init_group

    def noting(group: dict[str, Any], *args: Any) -> Any:
        lengths[-1].append(len(group["params"]))
        return inner(group, *args)

    optimizer._init_group = noting


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    ("name", "groups", "closure", "lr"),
    [(name, mixed, False, None) for name in OPTIMIZERS]
    + [
        (name, groups, closure, {"a": 0.5})
        for name in ("momentum", "AdamW")
        for groups, closure in ((mixed, False), (one, True))
    ]
    + [("momentum", one, False, None), ("AdamW", extra, False, None), ("fused", extra, True, None)],
)
def test_a_run_is_the_run_with_whole_lists(
    name: str, groups: Any, closure: bool, lr: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, lengths = run(OPTIMIZERS[name], groups, closure, lr)
    monkeypatch.setattr(setup, "MANY", 1 << 20)
    expected, whole = run(OPTIMIZERS[name], groups, closure, lr)
    assert same(found, expected)
    assert found[2] == {"a": 5, "b": 2}
    if not closure and lr is None:
        assert lengths[0] == SHORT[groups]
        assert lengths[0] != whole[0]


def test_whose_step_is_not_torchs_keeps_its_lists() -> None:
    model = Halves()
    optimizer = Twice(model.parameters(), lr=0.01)
    with FreezeController(model, turns()) as controller:
        controller.attach(optimizer)
        assert not controller._loop.members.steps[0].shortens


def loop(model: nn.Module, optimizer: Optimizer) -> FreezeController:
    controller = FreezeController(model, turns())
    controller.attach(optimizer)
    assert controller._loop.members.steps[0].shortens
    controller.begin()
    controller.begin_step()
    model().backward()
    return controller


def full(optimizer: Optimizer) -> bool:
    return len(optimizer.param_groups[0]["params"]) == 2 * SIZE


def giving(parameters: Any) -> Callable[..., None]:
    def give(*_: Any) -> None:
        for parameter in parameters:
            parameter.grad = torch.ones(3)

    return give


def test_who_hooks_into_the_step_sees_whole_lists() -> None:
    """And may save the optimizer there, names of its parameters included."""
    model = Halves()
    optimizer = torch.optim.SGD(list(model.named_parameters()), lr=0.01, momentum=0.9)
    controller = loop(model, optimizer)
    saved: list[Any] = []
    hook = optimizer.register_step_pre_hook(lambda *_: saved.append((full(optimizer), optimizer.state_dict())))
    optimizer.step()
    assert saved[0][0]
    assert len(saved[0][1]["param_groups"][0]["params"]) == 2 * SIZE
    hook.remove()
    controller.begin_step()
    optimizer.step()
    assert controller.updates == {"a": 2, "b": 0}
    assert [len(group["param_names"]) for group in optimizer.param_groups] == [2 * SIZE]
    assert controller.end_epoch() == []
    controller.detach()


@pytest.mark.parametrize("trains", ["a", "b"])
def test_a_frozen_parameter_that_is_replaced_in_a_long_list_does_not_move(trains: str) -> None:
    """By one with the same bits, in a list of which too little is frozen to be shortened, or enough."""
    model = nn.Module()
    model.a, model.b = (nn.ParameterList([torch.ones(2) for _ in range(size)]) for size in (3 * MANY, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FreezeController(model, Phases([Phase([trains])]), rest="freeze") as controller:
        controller.attach(optimizer)
        controller.begin()
        for number in range(4):
            controller.begin_step()
            if number == 2:
                frozen = model.b if trains == "a" else model.a
                place = 5 if trains == "b" else 3 * MANY + 5
                frozen[5] = optimizer.param_groups[0]["params"][place] = nn.Parameter(torch.ones(2))
            optimizer.zero_grad()
            torch.stack([p.sum() for p in model.parameters()]).sum().backward()
            optimizer.step()
        assert torch.equal(frozen[5], torch.ones(2))
        assert controller.end_epoch() == []


@pytest.mark.parametrize("where", ["the closure", "the step", "a later hook"])
def test_a_step_that_raises_leaves_whole_lists(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls no hook then: they are whole again when a batch begins, and in a checkpoint before it."""
    model = Halves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = loop(model, optimizer)

    def fail(*_: Any, **__: Any) -> Any:
        raise ValueError("no")

    if where == "the step":
        monkeypatch.setattr(torch.optim.SGD, "_init_group", fail)
    hook = optimizer.register_step_pre_hook(fail) if where == "a later hook" else None
    with pytest.raises(ValueError, match="no"):
        optimizer.step(fail if where == "the closure" else None)
    monkeypatch.undo()
    assert len(optimizer.state_dict()["param_groups"][0]["params"]) == 2 * SIZE
    assert full(optimizer)
    if hook is not None:
        hook.remove()
    controller.begin_step()
    assert full(optimizer)
    for _ in range(4):
        controller.begin_step()
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
        assert full(optimizer)
    assert controller.updates == {"a": 3, "b": 1}
    assert controller.end_epoch() == []
    controller.detach()
    assert full(optimizer)


def test_a_step_that_is_tried_again_leaves_whole_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Halves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = loop(model, optimizer)
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.SGD, "_init_group", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    optimizer.step()
    assert full(optimizer)
    assert controller.updates == {"a": 1, "b": 0}
    controller.detach()


def test_a_step_within_a_step() -> None:
    model = Halves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = loop(model, optimizer)
    seen: list[bool] = []

    def closure() -> Tensor:
        seen.append(full(optimizer))
        if len(seen) == 1:
            optimizer.step(closure)
            seen.append(full(optimizer))
        optimizer.zero_grad()
        loss = model()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [True, True, True]
    assert full(optimizer)
    assert controller.updates == {"a": 2, "b": 0}
    assert controller.end_epoch() == []
    controller.detach()


def test_a_param_group_added_in_a_closure_stays(recwarn: Any) -> None:
    model = Halves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = loop(model, optimizer)
    model.more = nn.Parameter(torch.ones(2))

    def closure() -> Tensor:
        optimizer.add_param_group({"params": [model.more]})
        loss = model()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2 * SIZE, 1]
    controller.detach()


def test_a_gradient_that_a_later_hook_gives_is_found() -> None:
    """Beside other hooks, lists stay whole, so what they give a frozen parameter moves it."""
    model = Halves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = loop(model, optimizer)
    optimizer.register_step_pre_hook(giving(model.b))
    optimizer.step()
    found = controller.end_epoch()
    assert {(each.kind, each.cause) for each in found} == {("value", "gradient")}
    assert len(found) == SIZE
    controller.detach()


def test_a_gradient_made_before_the_step_is_none_after_it() -> None:
    """In a loop that calls nothing before the step, and skips no backward."""
    model = Halves()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    controller = loop(model, optimizer)
    giving(model.b)()
    optimizer.step()
    assert [p.grad for p in model.b] == [None] * SIZE
    assert controller.end_epoch() == []
    controller.detach()
