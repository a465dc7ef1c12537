"""Param groups are split by rate, or without what is frozen, for one step, and afterwards those of before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.holds.hold import Holds
from lightning_freeze.holds.param_groups import LearningRateFactors, exclude, split_groups
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.membership import Step
from tests.observer import same


def parameters(count: int) -> list[Parameter]:
    return [Parameter(torch.full((2,), float(index + 1))) for index in range(count)]


def bits(held: list[Parameter]) -> dict[int, torch.Tensor]:
    return {index: parameter.detach().clone() for index, parameter in enumerate(held)}


def fill(held: list[Parameter], seed: int = 0) -> None:
    made = torch.Generator().manual_seed(seed)
    for parameter in held:
        parameter.grad = torch.randn(2, generator=made)


# --- excluding -------------------------------------------------------------------------------------------------------


def test_lists_and_names_are_restored_in_place_and_in_order() -> None:
    a, b, c = parameters(3)
    optimizer = torch.optim.SGD([{"params": [("a", a), ("b", b)]}, {"params": [("c", c)], "lr": 0.2}], lr=0.1)
    groups, lists = optimizer.param_groups, [group["params"] for group in optimizer.param_groups]
    before = copy.copy(groups), [list(each) for each in lists]

    restore = exclude(optimizer, {id(a), id(c)})
    assert optimizer.param_groups is groups
    assert [[id(p) for p in group["params"]] for group in groups] == [[id(b)]]  # the second is excluded as a whole
    assert groups[0]["param_names"] == ["b"]
    restore()

    assert optimizer.param_groups is groups
    assert groups == before[0]
    assert all(group["params"] is each for group, each in zip(groups, lists, strict=True))
    assert [[id(p) for p in each] for each in lists] == [[id(p) for p in each] for each in before[1]]
    assert [group["param_names"] for group in groups] == [["a", "b"], ["c"]]


def test_a_step_without_a_parameter_leaves_it_alone() -> None:
    a, b = parameters(2)
    optimizer = torch.optim.AdamW([a, b], lr=0.1)
    for p in (a, b):
        p.grad = torch.ones(2)
    before = a.detach().clone()
    restore = exclude(optimizer, {id(a)})
    optimizer.step()
    restore()
    assert torch.equal(a, before)
    assert a not in optimizer.state
    assert b in optimizer.state


# --- splitting -------------------------------------------------------------------------------------------------------


def test_parameters_are_split_by_factor_within_their_groups() -> None:
    a, b, c, d, e = parameters(5)
    adam = torch.optim.AdamW(
        [{"params": [a, b, c], "weight_decay": 0.5, "mine": "x"}, {"params": [d, e], "lr": 2.0}], lr=1
    )
    whole = list(adam.param_groups)
    split_groups(adam, {id(a): 0.5, id(c): 0.5, id(b): 0.25})
    found = [(group["params"], group["lr"], group["weight_decay"]) for group in adam.param_groups]
    assert [[id(p) for p in held] for held, _, _ in found] == [[id(a), id(c)], [id(b)], [id(d), id(e)]]
    assert [(lr, decay) for _, lr, decay in found] == [(0.5, 0.5), (0.25, 0.5), (2.0, 0.01)]
    assert adam.param_groups[2] is whole[1]  # untouched where nothing has a factor
    for part in adam.param_groups[:2]:
        assert {k: v for k, v in part.items() if k not in ("params", "lr")} == {
            k: v for k, v in whole[0].items() if k not in ("params", "lr")
        }


def test_names_go_with_their_parameters() -> None:
    held = dict(zip("abc", parameters(3), strict=True))
    sgd = torch.optim.SGD(held.items(), lr=1.0)
    merge = split_groups(sgd, {id(held["a"]): 0.5, id(held["c"]): 0.5})
    assert [group["param_names"] for group in sgd.param_groups] == [["a", "c"], ["b"]]
    merge()
    assert sgd.param_groups[0]["param_names"] == ["a", "b", "c"]


def test_a_rate_may_be_a_tensor() -> None:
    a, b = parameters(2)
    rate = torch.tensor(0.5)
    adam = torch.optim.Adam([a, b], lr=rate, foreach=False)
    merge = split_groups(adam, {id(a): 0.5})
    assert [float(group["lr"]) for group in adam.param_groups] == [0.25, 0.5]
    assert all(isinstance(group["lr"], torch.Tensor) for group in adam.param_groups)
    merge()
    assert adam.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


@pytest.mark.parametrize("factors", [(1, 1, 1), (0.5, 1, 2), (0.5, 0.5, 0.5)])
def test_merging_restores_the_very_same_objects(factors: tuple[float, ...]) -> None:
    """Others hold them: a scheduler, a logger, a wrapper."""
    held = parameters(3)
    adam = torch.optim.Adam([{"params": held[:2]}, {"params": held[2:]}], lr=0.1)
    groups, dicts = adam.param_groups, list(adam.param_groups)
    lists, values = [group["params"] for group in dicts], [dict(group) for group in dicts]
    merge = split_groups(adam, {id(p): factor for p, factor in zip(held, factors, strict=True) if factor != 1})
    fill(held)
    adam.step()
    merge()
    assert adam.param_groups is groups
    assert all(now is then for now, then in zip(adam.param_groups, dicts, strict=True))
    assert all(group["params"] is then for group, then in zip(dicts, lists, strict=True))
    assert [dict(group) for group in dicts] == values


# --- clocks of groups ------------------------------------------------------------------------------------------------


class IntClock(Optimizer):
    """Counts its steps in the group, as about 130 optimizers outside torch do."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "step": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.tick(group)
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-group["lr"] / float(self.time(group)))
        return loss

    def tick(self, group: dict[str, Any]) -> None:
        group["step"] += 1

    def time(self, group: dict[str, Any]) -> Any:
        return group["step"]


class TensorClock(IntClock):
    """Its clock is a tensor, moved in place."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        Optimizer.__init__(self, params, {"lr": lr})
        for group in self.param_groups:
            group["step"] = torch.zeros(())

    def tick(self, group: dict[str, Any]) -> None:
        group["step"].add_(1)


class LateClock(IntClock):
    """Its clock comes with the first step."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        Optimizer.__init__(self, params, {"lr": lr})

    def tick(self, group: dict[str, Any]) -> None:
        group["step"] = group.get("step", 0) + 1


class NestedClock(LateClock):
    """Its clock lies in a dict, and in a list, of the group."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        Optimizer.__init__(self, params, {"lr": lr})
        for group in self.param_groups:
            group["state"], group["log"] = {"step": 0}, []

    def tick(self, group: dict[str, Any]) -> None:
        group["state"]["step"] += 1
        group["log"].append(group["state"]["step"])

    def time(self, group: dict[str, Any]) -> Any:
        return group["state"]["step"]


class RebornClock(TensorClock):
    """Its clock is another tensor after every step."""

    def tick(self, group: dict[str, Any]) -> None:
        group["step"] = group["step"] + 1


class ClockOfWork(IntClock):
    """Its clock stands where a group had no gradient."""

    def tick(self, group: dict[str, Any]) -> None:
        group["step"] += any(p.grad is not None for p in group["params"]) or group["step"] == 0


CLOCKS = [IntClock, TensorClock, LateClock, NestedClock, RebornClock]
OPTIONS: list[tuple[Any, dict[str, Any]]] = [
    *((kind, {}) for kind in CLOCKS),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"foreach": True}),
    (torch.optim.AdamW, {"fused": True}),
    (torch.optim.Adam, {"maximize": True, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    (torch.optim.Adagrad, {"lr_decay": 0.1}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adafactor, {}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_split_step_is_a_step_of_groups_made_by_hand(kind: Any, options: dict[str, Any]) -> None:
    """Values, state and clocks; also where one part has no gradient, and where it changes which one that is."""
    mine, theirs = parameters(4), parameters(4)
    ours = kind([{"params": mine[:3]}, {"params": mine[3:], "lr": 0.05}], lr=0.1, **options)
    hand = kind([*({"params": [p]} for p in theirs[:3]), {"params": theirs[3:], "lr": 0.05}], lr=0.1, **options)
    rates = [0.1 * 0.5, 0.1 * 1.0, 0.1 * 0.5, 0.05 * 3.0]
    for group, rate in zip(hand.param_groups, rates, strict=True):
        group["lr"] = rate
    for step in range(6):
        for held in (mine, theirs):
            fill(held, step)
            if 1 < step < 5:
                held[0].grad = held[2].grad = None  # the part of the factor .5 sits this one out
        merge = split_groups(ours, {id(mine[0]): 0.5, id(mine[2]): 0.5, id(mine[3]): 3.0})
        ours.step()
        merge()
        hand.step()
        assert same(bits(mine), bits(theirs)), step
        assert [group["lr"] for group in ours.param_groups] == [0.1, 0.05]
    ours_state, hand_state = (o.state_dict()["state"] for o in (ours, hand))
    assert same(ours_state, hand_state)
    step_counters = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in ours.param_groups]
    longest = [{k: v for k, v in hand.param_groups[i].items() if k not in ("params", "lr")} for i in (1, 3)]
    assert same(dict(enumerate(step_counters)), dict(enumerate(longest)))


@pytest.mark.parametrize("kind", [*CLOCKS, ClockOfWork])
@pytest.mark.parametrize("without", [(), (0,), (1,), (0, 1)])
def test_a_clock_ends_as_that_of_a_group_that_was_never_split(kind: Any, without: tuple[int, ...]) -> None:
    """Whichever parts have no gradient, the clock is the whole group's."""
    mine, theirs = parameters(2), parameters(2)
    ours, hand = kind(mine), kind(theirs)
    for step in range(5):
        for held in (mine, theirs):
            fill(held, step)
            for index in without if step in (2, 3) else ():
                held[index].grad = None
        merge = split_groups(ours, {id(mine[0]): 0.5})
        ours.step()
        merge()
        hand.step()
    plain = [{k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (ours, hand)]
    assert plain[0] == plain[1]


class Estimates(LateClock):
    """Keeps in the group what it reckons from its gradients: 0 where there are none."""

    def tick(self, group: dict[str, Any]) -> None:
        super().tick(group)
        group["size"] = sum(float(p.grad.abs().sum()) for p in group["params"] if p.grad is not None)


@pytest.mark.parametrize(("without", "believed"), [((), 0), ((0,), 1), ((1,), 0), ((0, 1), 2)])
def test_of_parts_that_disagree_the_first_that_had_a_gradient_is_believed(
    without: tuple[int, ...], believed: int
) -> None:
    held = parameters(3)
    ours = Estimates(held)
    fill(held)
    sizes = [float(p.grad.abs().sum()) for p in held if p.grad is not None]
    for index in without:
        held[index].grad = None
    merge = split_groups(ours, {id(held[0]): 0.5, id(held[1]): 2.0})
    ours.step()
    merge()
    assert ours.param_groups[0]["size"] == sizes[believed]


@pytest.mark.parametrize("kind", [TensorClock, RebornClock])
def test_a_clock_that_is_a_tensor_stays_the_tensor_that_it_was(kind: Any) -> None:
    held = parameters(2)
    ours = kind(held)
    clock = ours.param_groups[0]["step"]
    for step in range(3):
        fill(held, step)
        merge = split_groups(ours, {id(held[0]): 0.5})
        ours.step()
        merge()
    assert ours.param_groups[0]["step"] is clock
    assert float(clock) == 3


def test_state_is_saved_and_loaded_between_split_steps() -> None:
    held = parameters(2)

    def steps(first: int, last: int, ours: Optimizer) -> None:
        for step in range(first, last):
            fill(held, step)
            merge = split_groups(ours, {id(held[0]): 0.5})
            ours.step()
            merge()

    ours = torch.optim.Adam(held, lr=0.1)
    steps(0, 2, ours)
    kept, state = bits(held), copy.deepcopy(ours.state_dict())
    steps(2, 4, ours)
    straight = bits(held)
    with torch.no_grad():
        for p, value in zip(held, kept.values(), strict=True):
            p.copy_(value)
    again = torch.optim.Adam(held, lr=0.1)
    again.load_state_dict(state)
    steps(2, 4, again)
    assert same(bits(held), straight)


# --- through the hooks ------------------------------------------------------------------------------------------------


def hooked(optimizer: Optimizer, **members: Parameter) -> StepHooks:
    step = Step(0, optimizer, {name: (parameter,) for name, parameter in members.items()})
    hooks = StepHooks([step], Holds([SetGradsToNone(), LearningRateFactors()]))
    hooks.attach()
    step.train(frozenset(members))
    return hooks


@pytest.mark.parametrize("closure", [False, True])
def test_a_step_has_the_factors_and_nothing_after_it(closure: bool) -> None:
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([a, b], lr=0.5)
    groups = sgd.param_groups
    hooks = hooked(sgd, a=a, b=b)
    hooks.steps[0].factors = {id(a): 0.1}

    def ones() -> float:
        assert sgd.param_groups is groups  # the user's own code never sees the parts
        for parameter in (a, b):
            parameter.grad = torch.ones(2)
        return 1.0

    if closure:
        assert sgd.step(ones) == 1.0
    else:
        ones()
        sgd.step()
    assert (a.tolist(), b.tolist()) == (pytest.approx([-0.05] * 2), pytest.approx([-0.5] * 2))
    assert sgd.param_groups is groups
    hooks.steps[0].factors = {}
    ones()
    sgd.step()
    assert (a.tolist(), b.tolist()) == (pytest.approx([-0.55] * 2), pytest.approx([-1.0] * 2))


class Twice(torch.optim.SGD):
    """Calls its closure twice and steps after each."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for _ in range(2):
            with torch.enable_grad():
                loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss


def test_a_closure_may_be_called_twice_in_a_step() -> None:
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    optimizer = Twice([a, b], lr=0.5)
    groups = optimizer.param_groups
    hooks = hooked(optimizer, a=a, b=b)
    hooks.steps[0].factors = {id(a): 0.1}

    def closure() -> float:
        a.grad, b.grad = torch.ones(2), torch.ones(2)
        return 1.0

    optimizer.step(closure)
    assert (a.tolist(), b.tolist()) == (pytest.approx([-0.1] * 2), pytest.approx([-1.0] * 2))
    assert optimizer.param_groups is groups
    assert len(groups) == 1


class Fails(torch.optim.SGD):
    broken = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.broken:
            assert len(self.param_groups) == 2
            raise RuntimeError("planned")
        return super().step(closure)


def test_a_step_that_fails_is_cleared_up_by_detaching() -> None:
    a, b = parameters(2)
    optimizer = Fails([a, b], lr=0.5)
    groups, only = optimizer.param_groups, optimizer.param_groups[0]
    hooks = hooked(optimizer, a=a, b=b)
    hooks.steps[0].factors = {id(a): 0.1}
    fill([a, b])
    with pytest.raises(RuntimeError, match="planned"):
        optimizer.step()
    hooks.detach()
    assert optimizer.param_groups is groups
    assert groups == [only]
    assert only["lr"] == 0.5


def test_a_step_that_fails_is_cleared_up_by_the_next_one() -> None:
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    optimizer = Fails([a, b], lr=0.5)
    groups = optimizer.param_groups
    hooks = hooked(optimizer, a=a, b=b)
    hooks.steps[0].factors = {id(a): 0.1}
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    with pytest.raises(RuntimeError, match="planned"):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    assert (a.tolist(), b.tolist()) == (pytest.approx([-0.05] * 2), pytest.approx([-0.5] * 2))
    assert optimizer.param_groups is groups


def test_a_frozen_group_with_a_factor_stands_still() -> None:
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([a, b], lr=0.5, momentum=0.9)
    hooks = hooked(optimizer, a=a, b=b)
    hooks.steps[0].train(frozenset({"b"}))
    hooks.steps[0].factors = {id(a): 0.1}
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    assert a.tolist() == [0, 0]
    assert b.tolist() == [-0.5, -0.5]


class Lookahead(torch.optim.Optimizer):
    """A wrapper that shares its base's param groups, as many do."""

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base.param_groups, base.defaults)
        self.base, self.param_groups = base, base.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.base.step(closure)


def test_a_wrapper_that_shares_param_groups() -> None:
    a, b = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    a.grad, b.grad = torch.ones(1), torch.ones(1)
    o = Lookahead(torch.optim.SGD([a, b], lr=1.0))
    merge = split_groups(o, {id(a): 0.5})
    o.step()
    merge()
    assert (a.item(), b.item()) == (-0.5, -1.0)


@pytest.mark.parametrize("value", [numpy.array([0.9, 0.99]), [torch.zeros(2)], {"m": torch.zeros(2)}])
def test_odd_values_in_groups(value: Any) -> None:
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    o = torch.optim.SGD([a, b], lr=1.0)
    o.param_groups[0]["odd"] = value
    merge = split_groups(o, {id(a): 0.5})
    for group in o.param_groups:
        odd = group["odd"]
        if isinstance(odd, list):
            group["odd"] = [t + 1 for t in odd]
        elif isinstance(odd, dict):
            odd["m"].add_(1)
    merge()
    odd = o.param_groups[0]["odd"]
    if not isinstance(odd, numpy.ndarray):
        assert next(iter(odd.values()) if isinstance(odd, dict) else iter(odd)).tolist() == [1, 1]
