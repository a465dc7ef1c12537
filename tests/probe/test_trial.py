"""Trials: how a step is made, that two of them draw the same, and what they say of state; each with a case that differs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_freeze.holds.snapshots import changed
from lightning_freeze.probe.clone import clone_by_parts
from lightning_freeze.probe.proxies import Proxies, ProxyPlan, nested_optimizers, small_plan
from lightning_freeze.probe.trial import ALL, FROZEN, MOVING, CloneTrial, StepRecipe, distance, states_of, step


def adamw() -> AdamW:
    return AdamW([nn.Parameter(torch.ones(4, 4))])


def trial_of(optimizer: Optimizer) -> CloneTrial:
    return CloneTrial(optimizer, StepRecipe(small_plan(optimizer), clone_by_parts))


@pytest.mark.parametrize(
    ("closure", "order"),
    [
        ("no", ["backward", "step"]),
        ("yes", ["step", "backward"]),
        ("after backward", ["backward", "step", "backward"]),
        ("pair", ["step", "backward"]),
    ],
)
def test_a_step_is_handed_what_is_asked_for(closure: str, order: list[str]) -> None:
    seen: list[str] = []

    class Seen(SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append("step")
            return closure() if closure else None

    def backward() -> Tensor:
        seen.append("backward")
        return torch.tensor(1.0)

    step(Seen([nn.Parameter(torch.ones(2))]), closure, backward)
    assert seen == order


def test_the_same_update_in_each_trial_and_another_after_others() -> None:
    one, other = trial_of(adamw()), trial_of(adamw())
    assert torch.equal(one.update(FROZEN)[0], other.update(FROZEN)[0])
    one.run(ALL, 3)
    assert not torch.equal(one.update(FROZEN)[0], other.update(FROZEN)[0])


def test_what_was_forgotten_begins_where_it_began() -> None:
    trial = trial_of(adamw())
    begun = trial.values(MOVING, FROZEN)
    trial.run(ALL, 2)
    trial.forget(MOVING)
    assert all(map(torch.equal, begun, trial.values(MOVING, FROZEN)))
    assert trial.states(MOVING) == [[{}]]
    assert trial.states(FROZEN) != [[{}]]


def test_uniform_parameters_are_two_numbers() -> None:
    plan = ProxyPlan(((0, torch.empty(3, 2), (3, 2)),), {}, pairs=True, uniform=True)
    assert [sorted(set(p.flatten().tolist())) for p in Proxies(plan).originals] == [[0.5], [0.75]]
    assert len(set(Proxies(small_plan(adamw())).frozen[0].flatten().tolist())) > 1


def test_an_optimizer_without_a_state_keeps_nothing() -> None:
    class Around:
        def __init__(self, optimizer: Optimizer) -> None:
            self.optimizer = optimizer

    inner = adamw()
    around: Any = Around(inner)
    (weight,) = inner.param_groups[0]["params"]
    assert nested_optimizers(around) == [around, inner]
    assert states_of(around, weight) == [{}, {}]
    weight.grad = torch.ones_like(weight)
    inner.step()
    assert states_of(around, weight)[1].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_distances_and_changed_entries() -> None:
    assert distance(torch.tensor([3.0, 4.0], dtype=torch.bfloat16)) == 5.0
    assert changed({"a": 1, "b": torch.zeros(2)}, {"a": 1, "b": torch.zeros(2), "c": None}) == []
    assert changed({"a": 0.0, "b": torch.zeros(2)}, {"a": -0.0, "b": torch.zeros(2), "c": 1}) == ["a", "c"]
