"""The moments of a step, on bare optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.holds.hold import Hold, Holds
from lightning_freeze.holds.step_hooks import StepHooks
from lightning_freeze.plan.membership import Step


class Counts(Hold):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def after_step(self, step: Step) -> None:
        self.seen.append((set(step.updated), len(step.leaked)))


def hooked(*names: str, **options: Any) -> tuple[StepHooks, dict[str, Parameter], list[Any]]:
    """One optimizer for all names; the updates that are counted."""
    parameters = {name: Parameter(torch.ones(2)) for name in names}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9, **options)
    step, counts = Step(0, optimizer, {name: (parameter,) for name, parameter in parameters.items()}), Counts()
    hooks = StepHooks([step], Holds([counts, SetGradsToNone()]))
    hooks.attach()
    return hooks, parameters, counts.seen


def fill(parameters: dict[str, Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)


@pytest.mark.parametrize("closure", [False, True])
def test_only_what_trains_steps_and_counts(closure: bool) -> None:
    hooks, parameters, counted = hooked("a", "b")
    hooks.steps[0].train(frozenset({"b"}))
    if closure:
        hooks.steps[0].optimizer.step(lambda: fill(parameters))  # type: ignore[arg-type,return-value]
    else:
        fill(parameters)
        hooks.steps[0].optimizer.step()
    assert parameters["a"].tolist() == [1, 1]
    assert parameters["b"].tolist() == pytest.approx([0.9, 0.9])
    assert counted == [({"b"}, 0)]


def test_a_step_without_any_gradient_updates_nothing() -> None:
    hooks, _, counted = hooked("a", "b")
    hooks.steps[0].train(frozenset({"a", "b"}))
    hooks.steps[0].optimizer.step()
    assert counted == [(set(), 0)]


@pytest.mark.parametrize(("found_inf", "counts"), [(0.0, True), (1.0, False)])
def test_a_fused_step_that_a_scaler_skipped_does_not_count(found_inf: float, counts: bool) -> None:
    hooks, parameters, counted = hooked("a", fused=True)
    hooks.steps[0].train(frozenset({"a"}))
    fill(parameters)
    hooks.steps[0].optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
    hooks.steps[0].optimizer.step()
    assert bool(counted) is counts


@pytest.mark.parametrize("extra_hook", [False, True])
def test_what_fills_gradients_after_us_is_seen(extra_hook: bool) -> None:
    hooks, parameters, counted = hooked("a", "b")
    hooks.steps[0].train(frozenset({"b"}))
    if extra_hook:
        hooks.steps[0].optimizer.register_step_pre_hook(lambda *_: fill(parameters))
    else:
        hooks.last_moment = False
    fill(parameters)
    hooks.steps[0].optimizer.step()
    assert counted == [({"b"}, 1)]


def test_detach_takes_every_hook_out() -> None:
    hooks, parameters, counted = hooked("a")
    hooks.detach()
    hooks.detach()
    fill(parameters)
    hooks.steps[0].optimizer.step()
    assert counted == []
    assert parameters["a"].tolist() != [1, 1]


class Moments(Hold):
    """Writes down each verb of a step."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def step_begins(self, step: Step) -> None:
        self.seen.append("begins")

    def restore(self, step: Step) -> None:
        self.seen.append("restore")

    def before_step(self, step: Step) -> None:
        self.seen.append("before")

    def after_step(self, step: Step) -> None:
        self.seen.append("after")


@pytest.mark.parametrize(
    ("early", "closure", "expected"),
    [
        (False, False, "restore before restore after"),
        (False, True, "restore closure restore before restore after"),
        (True, True, "begins restore closure restore before restore after"),
    ],
)
def test_the_moments_of_a_step_come_in_order(early: bool, closure: bool, expected: str) -> None:
    parameter, moments = Parameter(torch.ones(1)), Moments()
    step = Step(0, torch.optim.SGD([parameter], lr=0.1), {"a": (parameter,)}, reads_before_closure=early)
    hooks = StepHooks([step], moments)
    hooks.attach()
    step.train(frozenset({"a"}))

    def compute() -> float:
        moments.seen.append("closure")
        parameter.grad = torch.ones(1)
        return 1.0

    if closure:
        step.optimizer.step(compute)
    else:
        parameter.grad = torch.ones(1)
        step.optimizer.step()
    assert " ".join(moments.seen) == expected
    hooks.detach()
