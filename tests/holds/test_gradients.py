"""Gradients of frozen parameters are set to None: before clipping, at the last moment, and before a scaler looks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from lightning_freeze.holds.gradients import SetGradsToNone
from lightning_freeze.plan.membership import Step


def step_with_gradients(*trains: str) -> tuple[Step, dict[str, Parameter]]:
    parameters = {name: Parameter(torch.ones(2)) for name in ("a", "b", "b2")}
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)
    members = {"a": (parameters["a"],), "b": (parameters["b"], parameters["b2"])}
    step = Step(0, torch.optim.SGD(parameters.values(), lr=0.1), members)
    step.train(frozenset(trains))
    return step, parameters


def without(parameters: dict[str, Parameter]) -> set[str]:
    return {name for name, parameter in parameters.items() if parameter.grad is None}


@pytest.mark.parametrize("verb", ["before_step", "step_begins"])
def test_what_is_frozen_has_none_at_the_last_moment(verb: str) -> None:
    step, parameters = step_with_gradients("a")
    getattr(SetGradsToNone(), verb)(step)
    assert without(parameters) == {"b", "b2"}


@pytest.mark.parametrize(
    ("clipped", "skipping", "sample", "expected"),
    [
        (True, True, False, {"b", "b2"}),
        (False, False, False, {"b", "b2"}),
        (False, True, True, {"b", "b2"}),
        (False, True, False, {"b"}),  # one of a group tells, and it has none
    ],
)
def test_before_clipping(clipped: bool, skipping: bool, sample: bool, expected: set[str]) -> None:
    step, parameters = step_with_gradients("a")
    if not sample:
        parameters["b"].grad = None
    SetGradsToNone(lambda: skipping).before_clipping(step, clipped)
    assert without(parameters) == expected


@pytest.mark.parametrize(("trains", "expected"), [("a", {"b", "b2"}), ("b", {"a"}), ("", set())])
def test_a_scaler_finds_gradients_of_an_optimizer_that_is_frozen_as_a_whole(trains: str, expected: set[str]) -> None:
    step, parameters = step_with_gradients(*trains)
    SetGradsToNone().after_backward([step])
    assert without(parameters) == expected
