"""Layers of FSDP2 that were frozen as a whole at first get their gradients once they train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from lightning_freeze import FreezeController, Phase, Phases
from lightning_freeze.holds.fsdp2 import Shards


def model_of(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(layers)))


def sharded() -> Any:
    """Two layers under FSDP2, which computes in bfloat16."""
    model = model_of()
    mesh = init_device_mesh("cpu", (1,))
    for layer in (*model.children(), model):
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    return model


def derive(model: nn.Module) -> None:
    model(torch.ones(2, 3)).float().sum().backward()


@pytest.mark.usefixtures("process")
def test_a_layer_that_was_frozen_as_a_whole_at_first_gets_its_gradients_later() -> None:
    model = sharded()
    late = Shards(model)
    model[0].weight.requires_grad = False
    late.prepare()
    derive(model)
    assert model[0].weight.grad is None
    model[0].weight.requires_grad = True
    late.prepare()
    derive(model)
    assert model[0].weight.grad.dtype == torch.float32


@pytest.mark.usefixtures("process")
def test_without_it_torch_refused_them_until_2_14() -> None:
    """What it is for: it can go with the last torch before 2.14."""
    model = sharded()
    model[0].weight.requires_grad = False
    derive(model)
    model[0].weight.requires_grad = True
    if torch.__version__ < (2, 14):
        with pytest.raises(RuntimeError, match="attempting to assign a gradient with dtype"):
            derive(model)
    else:
        derive(model)
        assert model[0].weight.grad.dtype == torch.float32


@pytest.mark.usefixtures("process")
def test_the_controller_sees_to_it() -> None:
    model = sharded()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FreezeController(model, Phases([Phase(["1"], updates=2), Phase(["0"])])) as controller:
        controller.attach(optimizer)
        controller.begin()
        assert controller.backward.skips
        for _ in range(4):
            controller.begin_step()
            optimizer.zero_grad()
            derive(model)
            optimizer.step()
        assert controller.end_epoch() == []
    assert controller.updates == {"1": 2, "0": 2}


@pytest.mark.usefixtures("process")
def test_what_trains_from_the_first_is_not_unsharded_by_hand() -> None:
    model = sharded()
    late = Shards(model)
    late.prepare()
    assert late._late == {}
    assert Shards(model_of())._late == {}
