"""The optimizer state of what is frozen, dropped or offloaded; here the CPU stands in for an accelerator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_freeze.holds.optimizer_state import OffloadState, ResetState
from lightning_freeze.plan.groups import Member
from lightning_freeze.plan.membership import HeldGroup, ParamSet, Split, Step
from tests.observer import same


def stepped(kind: Any = torch.optim.Adam, **options: Any) -> tuple[Any, list[nn.Parameter]]:
    """An optimizer after a step over two parameters."""
    parameters = [nn.Parameter(torch.full((3,), value)) for value in (1.0, 2.0)]
    optimizer = kind(parameters, lr=0.1, **options)
    for parameter in parameters:
        parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer, parameters


def params_of(optimizer: Any, *parameters: nn.Parameter) -> ParamSet:
    members = tuple(Member(str(number), parameter, "group") for number, parameter in enumerate(parameters))
    return ParamSet([HeldGroup("group", (Step(0, optimizer, {"group": parameters}),), members)])


def offload(*optimizers: Any) -> OffloadState:
    return OffloadState(optimizers, moves=lambda tensor: True)


def test_offloaded_state_is_a_copy_elsewhere_and_the_same_when_it_is_back() -> None:
    optimizer, (weight, other) = stepped()
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    held = dict(optimizer.state[weight])
    state = offload()
    state.send(params_of(optimizer, weight))
    assert state.offloaded(weight)
    assert not state.offloaded(other)
    assert all(optimizer.state[weight][key] is not held[key] for key in held)
    state.bring(params_of(optimizer, other, weight))
    assert not state.offloaded(weight)
    assert same(dict(optimizer.state[weight]), before)


def test_what_is_moved_twice_comes_back_once() -> None:
    optimizer, (weight, _) = stepped()
    state = offload()
    state.send(params_of(optimizer, weight))
    host = optimizer.state[weight]["exp_avg"]
    state.send(params_of(optimizer, weight))
    assert optimizer.state[weight]["exp_avg"] is host


def test_nested_state_is_moved_and_what_is_no_tensor_stays() -> None:
    optimizer, (weight, _) = stepped()
    inner = torch.ones(2)
    optimizer.state[weight] = {"pair": [inner, {"deep": inner}], "step": 3, "none": None}
    state = offload()
    state.send(params_of(optimizer, weight))
    found = optimizer.state[weight]
    assert found["pair"][0] is not inner
    assert found["pair"][1]["deep"] is not inner
    assert (found["step"], found["none"]) == (3, None)
    state.detach()
    assert torch.equal(optimizer.state[weight]["pair"][0], inner)
    assert not state.offloaded(weight)


def test_on_the_cpu_nothing_is_moved() -> None:
    optimizer, (weight, _) = stepped()
    state = OffloadState([optimizer])
    held = optimizer.state[weight]["exp_avg"]
    state.send(params_of(optimizer, weight))
    assert not state.offloaded(weight)
    assert optimizer.state[weight]["exp_avg"] is held


def test_a_state_dict_holds_everything_and_what_is_loaded_is_frozen_anew() -> None:
    optimizer, (weight, _) = stepped()
    state = offload(optimizer)
    state.attach()
    saved = optimizer.state_dict()
    state.send(params_of(optimizer, weight))
    assert same(optimizer.state_dict()["state"], saved["state"])
    assert not state.needs_refreeze
    optimizer.load_state_dict(saved)
    assert state.needs_refreeze
    assert not state.offloaded(weight), "what was loaded is where the optimizer put it"
    state.detach()
    optimizer.load_state_dict(saved)


def test_a_state_dict_waits_for_copies_under_way(monkeypatch: Any) -> None:
    optimizer, _ = stepped()
    state, waited = offload(optimizer), []
    monkeypatch.setattr(state, "wait_for_copies", lambda: waited.append(True))
    state.attach()
    optimizer.state_dict()
    assert waited == [True]


def test_what_finds_no_room_stays_in_host_memory(monkeypatch: Any) -> None:
    """A run that ends does not fail by that."""
    optimizer, (weight, _) = stepped()
    state = offload()
    state.send(params_of(optimizer, weight))

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("planned")

    monkeypatch.setattr(state, "_to_device", full)
    host = optimizer.state[weight]["exp_avg"]
    state.detach()
    assert optimizer.state[weight]["exp_avg"] is host
    assert not state.offloaded(weight)


def test_reset_begins_anew() -> None:
    optimizer, (weight, other) = stepped()
    params = params_of(optimizer, weight)
    ResetState([optimizer]).freeze(params, Split(params.groups, (frozenset(),), nn.Module(), set()))
    assert list(optimizer.state) == [other]
    weight.grad = torch.ones(3)
    other.grad = None
    optimizer.step()
    assert float(optimizer.state[weight]["step"]) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_goes_to_pinned_memory_and_back() -> None:
    weight = nn.Parameter(torch.ones(1 << 20, device="cuda"))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    before = optimizer.state[weight]["exp_avg"].clone()
    allocated = torch.cuda.memory_allocated()
    state = OffloadState([optimizer])
    state.send(params_of(optimizer, weight))
    state.wait_for_copies()
    host = optimizer.state[weight]["exp_avg"]
    assert host.is_pinned()
    assert torch.equal(host, before.cpu())
    assert torch.cuda.memory_allocated() <= allocated - 2 * weight.nbytes
    state.bring(params_of(optimizer, weight))
    assert torch.equal(optimizer.state[weight]["exp_avg"], before)


def test_what_is_not_brought_back_stays_whole() -> None:
    optimizer, (weight, _) = stepped()
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    state = offload()
    state.send(params_of(optimizer, weight))
    host = optimizer.state[weight]["exp_avg"]
    state.detach(bring_back=False)
    assert optimizer.state[weight]["exp_avg"] is host
    assert same(dict(optimizer.state[weight]), before)
