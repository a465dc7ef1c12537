"""The forecast of optimizer state against the oracle: a parameter of true size, stepped, its state counted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from lightning_freeze.probe.state_size import state_bytes
from tests.holds.test_optim_db import configurations
from tests.observer import same

Make = Callable[[Iterable[nn.Parameter]], optim.Optimizer]

# The last two hold dimensions that are smaller than the probe's primes, or are primes of its own.
SHAPES = [(), (1,), (300,), (40, 30), (30, 40), (50, 1), (1, 1), (6, 3, 2, 4), (8, 8, 1, 3), (2, 3), (7, 5)]

MAKERS: dict[str, Make] = {
    "SGD": lambda p: optim.SGD(p, lr=0.1),
    "SGD, momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: optim.Adam(p),
    "Adam, fused": lambda p: optim.Adam(p, fused=True),
    "Adam, lr a tensor": lambda p: optim.Adam(p, lr=torch.tensor(0.1), foreach=False),
    "AdamW, amsgrad": lambda p: optim.AdamW(p, amsgrad=True),
    "RMSprop": lambda p: optim.RMSprop(p),
    "RMSprop, centered": lambda p: optim.RMSprop(p, centered=True, momentum=0.9),
    "Adagrad": lambda p: optim.Adagrad(p),
    "Adafactor": lambda p: optim.Adafactor(p),
    "NAdam": lambda p: optim.NAdam(p),
    "RAdam": lambda p: optim.RAdam(p),
    "Rprop": lambda p: optim.Rprop(p),
    "ASGD": lambda p: optim.ASGD(p),
    "Adadelta": lambda p: optim.Adadelta(p),
    "Adamax": lambda p: optim.Adamax(p),
}


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a parameter's state, by a walk of the test's own."""
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [tensor for each in inside for tensor in tensors_of(each)]


def counted(optimizer: optim.Optimizer, parameter: nn.Parameter) -> int:
    """The oracle: two real steps, and the bytes of what the optimizer then holds."""
    for _ in range(2):
        parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
    return sum(t.untyped_storage().nbytes() for t in tensors_of(optimizer.state[parameter]))


def flat(value: Any) -> Any:
    """Lists and tuples as dicts, whose tensors `same` can compare."""
    if isinstance(value, dict):
        return {key: flat(each) for key, each in value.items()}
    return flat(dict(enumerate(value))) if isinstance(value, list | tuple) else value


def a_parameter(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, 0.1, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_forecast_is_what_a_true_run_holds(make: Make, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        parameter = a_parameter(shape, dtype)
        optimizer = make([parameter])
        forecast = state_bytes(optimizer, [parameter])
        assert forecast == [counted(optimizer, parameter)], shape
        assert state_bytes(optimizer, [parameter]) == forecast, "there is state now, and the forecast stays"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_muon_which_takes_matrices_only(dtype: torch.dtype) -> None:
    parameter = a_parameter((40, 30), dtype)
    optimizer = optim.Muon([parameter])
    assert state_bytes(optimizer, [parameter]) == [counted(optimizer, parameter)]


@pytest.mark.parametrize(
    ("info", "options"), [c for k in (False, True) for c in configurations(differentiable=k)[:: 1 if k else 3]]
)
def test_every_configuration_of_torchs_own_database(info: Any, options: dict[str, Any]) -> None:
    if info.optim_cls is optim.SparseAdam:
        pytest.skip("SparseAdam takes sparse gradients only, which the probe does not make")
    parameter = a_parameter((12, 9))
    optimizer = info.optim_cls([parameter], **copy.deepcopy(options))
    forecast = state_bytes(optimizer, [parameter])
    for read in (optimizer.defaults, *optimizer.param_groups):  # a leaf cannot be stepped differentiably
        read["differentiable"] = False
    assert forecast == [counted(optimizer, parameter)]


def test_each_parameter_has_the_hyper_parameters_of_its_own_group() -> None:
    plain, rolling, fixed = a_parameter((10,)), a_parameter((10,)), a_parameter((20,), torch.bfloat16)
    optimizer = optim.SGD([{"params": [plain]}, {"params": [rolling, fixed], "momentum": 0.9}], lr=0.1)
    assert state_bytes(optimizer, [fixed, plain, rolling, fixed]) == [40, 0, 40, 40]


def test_nothing_of_the_models_size_is_allocated() -> None:
    huge = nn.Parameter(torch.empty(300_000, 400_000, device="meta"))
    assert state_bytes(optim.AdamW([huge]), [huge]) == [2 * 4 * 300_000 * 400_000 + 4]


def test_it_leaves_optimizer_parameters_and_random_state_alone() -> None:
    weight = a_parameter((4, 3))
    optimizer = Nested([weight])
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1)  # wraps `step` in one bound to this very optimizer
    counted(optimizer, weight)
    scheduler.step()
    before, gradient = copy.deepcopy(optimizer.state_dict()), weight.grad
    value, random = weight.detach().clone(), torch.get_rng_state()
    assert state_bytes(optimizer, [weight]) != [None]
    assert same(flat(optimizer.state_dict()), flat(before))
    assert torch.equal(weight, value)
    assert weight.grad is gradient
    assert torch.equal(random, torch.get_rng_state())


class Nested(optim.SGD):
    """A state of lists in dicts: a square for each dimension (as Shampoo's), the parameter made flat, a constant."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and not self.state[p]:
                    squares = [torch.randn(size, size, dtype=torch.float64) for size in p.shape]
                    self.state[p] = {"of": {"squares": squares}, "flat": (p.detach().flatten().clone(), 3.0)}
                    self.state[p]["codes"] = torch.zeros(256, dtype=torch.uint8)
        return super().step(closure)


@pytest.mark.parametrize("shape", SHAPES)
def test_nested_state_and_state_of_other_shapes(shape: tuple[int, ...]) -> None:
    parameter = a_parameter(shape)
    optimizer = Nested([parameter], lr=0.1)
    assert state_bytes(optimizer, [parameter]) == [counted(optimizer, parameter)]


class SmallerSide(optim.SGD):
    """Keeps what is as long as the smaller side only, as low-rank optimizers do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["side"] = torch.zeros(min(p.shape), 2)
        return super().step(closure)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)])
def test_the_smaller_side_stays_the_smaller_one(shape: tuple[int, ...]) -> None:
    parameter = a_parameter(shape)
    assert state_bytes(SmallerSide([parameter], lr=0.1), [parameter]) == [30 * 2 * 4]


class EveryThird(optim.SGD):
    """Keeps every third element: no product of the parameter's dimensions."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["some"] = p.detach().flatten()[::3].clone()
        return super().step(closure)


class Choosy(optim.SGD):
    def step(self, closure: Any = None) -> Any:
        raise LookupError("not without my data")


class Wrapper(optim.SGD):
    """Steps another optimizer within, which holds the same parameters."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.inner = optim.Adam(self.param_groups[0]["params"])

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


@pytest.mark.parametrize("kind", [optim.LBFGS, optim.SparseAdam, EveryThird, Choosy, Wrapper])
def test_no_forecast_is_better_than_a_wrong_one(kind: Any) -> None:
    parameter = a_parameter((40, 30))
    parameter.grad = torch.ones_like(parameter)
    assert state_bytes(kind([parameter]), [parameter]) == [None]
    assert torch.equal(parameter, a_parameter((40, 30)))


def test_a_parameter_that_the_optimizer_does_not_hold() -> None:
    held, other = a_parameter((2,)), a_parameter((3, 4))
    with pytest.raises(ValueError, match=r"parameter 1, of shape \(3, 4\), is in no param group of this Adam, which"):
        state_bytes(optim.Adam([held]), [held, other])
