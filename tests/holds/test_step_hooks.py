"""The gate's own contract, on bare optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from lightning_freeze.holds.step_hooks import Gate, Lane


def gate_over(*names: str, **options: Any) -> tuple[Gate, dict[str, Parameter], list[Any]]:
    """One optimizer for all names; the updates it counts."""
    parameters = {name: Parameter(torch.ones(2)) for name in names}
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9, **options)
    lane = Lane(0, optimizer, {name: (parameter,) for name, parameter in parameters.items()})
    counted: list[Any] = []
    gate = Gate(
        [lane], lambda lane: None, lambda lane, updated, bypassed: counted.append((set(updated), len(bypassed)))
    )
    gate.attach()
    return gate, parameters, counted


def fill(parameters: dict[str, Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = torch.ones(2)


@pytest.mark.parametrize("closure", [False, True])
def test_only_what_trains_steps_and_counts(closure: bool) -> None:
    gate, parameters, counted = gate_over("a", "b")
    gate.lanes[0].train(frozenset({"b"}))
    if closure:
        gate.lanes[0].optimizer.step(lambda: fill(parameters))  # type: ignore[arg-type,return-value]
    else:
        fill(parameters)
        gate.lanes[0].optimizer.step()
    assert parameters["a"].tolist() == [1, 1]
    assert parameters["b"].tolist() == pytest.approx([0.9, 0.9])
    assert counted == [({"b"}, 0)]


def test_a_step_without_any_gradient_updates_nothing() -> None:
    gate, _, counted = gate_over("a", "b")
    gate.lanes[0].train(frozenset({"a", "b"}))
    gate.lanes[0].optimizer.step()
    assert counted == [(set(), 0)]


def test_one_gradient_in_a_group_is_enough() -> None:
    first, second = Parameter(torch.ones(1)), Parameter(torch.ones(1))
    lane = Lane(0, torch.optim.SGD([first, second], lr=0.1), {"a": (first, second)})
    lane.train(frozenset({"a"}))
    second.grad = torch.ones(1)
    lane.note_gradients()
    assert lane.take_updated() == {"a"}
    assert lane.take_updated() == frozenset()


@pytest.mark.parametrize(("found_inf", "counts"), [(0.0, True), (1.0, False)])
def test_a_fused_step_that_a_scaler_skipped_does_not_count(found_inf: float, counts: bool) -> None:
    gate, parameters, counted = gate_over("a", fused=True)
    gate.lanes[0].train(frozenset({"a"}))
    fill(parameters)
    gate.lanes[0].optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
    gate.lanes[0].optimizer.step()
    assert bool(counted) is counts


@pytest.mark.parametrize("extra_hook", [False, True])
def test_what_fills_gradients_after_us_is_seen(extra_hook: bool) -> None:
    gate, parameters, counted = gate_over("a", "b")
    gate.lanes[0].train(frozenset({"b"}))
    if extra_hook:
        gate.lanes[0].optimizer.register_step_pre_hook(lambda *_: fill(parameters))
    else:
        gate.last_moment = False
    fill(parameters)
    gate.lanes[0].optimizer.step()
    assert counted == [({"b"}, 1)]


def test_detach_takes_every_hook_out() -> None:
    gate, parameters, counted = gate_over("a")
    gate.detach()
    gate.detach()
    fill(parameters)
    gate.lanes[0].optimizer.step()
    assert counted == []
    assert parameters["a"].tolist() != [1, 1]


def test_a_lane_is_found_by_its_optimizer_or_a_wrapper_of_it() -> None:
    gate, _, _ = gate_over("a")
    wrapper = type("Wrapper", (), {"optimizer": gate.lanes[0].optimizer})()
    assert gate.lane(gate.lanes[0].optimizer) is gate.lanes[0]
    assert gate.lane(wrapper) is gate.lanes[0]
    assert gate.lane(object()) is None
