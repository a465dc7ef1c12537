"""The probe of what an optimizer does to a parameter whose gradient is None."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lightning_freeze import UnsupportedError, probe_optimizer
from lightning_freeze.gate.refusals import refuse_optimizers
from tests.conftest import Net, batches
from tests.gate.test_optim_db import configurations, same
from tests.test_sabotage import DecaysAll


@pytest.mark.parametrize(("info", "options"), configurations()[::7])
def test_torchs_optimizers_skip_none(info: Any, options: dict[str, Any]) -> None:
    if info.optim_cls is torch.optim.SparseAdam:
        pytest.skip("SparseAdam takes sparse gradients only, which the probe does not make")
    optimizer = info.optim_cls(Net().parameters(), **copy.deepcopy(options))
    assert probe_optimizer(optimizer).skips_none is True


def test_one_that_moves_what_has_no_gradient() -> None:
    traits = probe_optimizer(DecaysAll(Net().parameters(), lr=0.1))
    assert (traits.name, traits.skips_none) == ("DecaysAll", False)


class Choosy(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise LookupError("not without my data")


def test_one_that_cannot_be_probed_says_why() -> None:
    traits = probe_optimizer(Choosy(Net().parameters(), lr=0.1))
    assert traits.skips_none is None
    assert traits.why == "LookupError: not without my data"


def test_it_leaves_optimizer_parameters_and_random_state_alone() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps `step` in one bound to this very optimizer
    model.training_step(next(iter(batches(1))), 0).backward()  # type: ignore[union-attr]
    optimizer.step()
    scheduler.step()
    before = copy.deepcopy((dict(model.state_dict()), optimizer.state_dict()))
    random = torch.get_rng_state()
    assert probe_optimizer(optimizer).skips_none is True
    assert same(dict(model.state_dict()), before[0])
    assert same(optimizer.state_dict(), before[1])
    assert torch.equal(random, torch.get_rng_state())


def test_lbfgs_is_refused_only_where_it_holds_what_is_scheduled() -> None:
    model = Net()
    optimizer = torch.optim.LBFGS(model.layer1.parameters())
    refuse_optimizers([optimizer], [model.layer2.weight])
    with pytest.raises(UnsupportedError, match="optimizer 0 is LBFGS"):
        refuse_optimizers([optimizer], [model.layer1.weight])


class NoHooks(torch.optim.Optimizer):
    def __init__(self, parameters: Any) -> None:
        self.param_groups = [{"params": list(parameters)}]


def test_an_optimizer_without_step_hooks_is_refused() -> None:
    model = Net()
    with pytest.raises(UnsupportedError, match=r"optimizer 0 \(NoHooks\) has no step hooks.*super\(\).__init__"):
        refuse_optimizers([NoHooks(model.parameters())], [model.layer1.weight])
