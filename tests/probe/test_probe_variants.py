"""The probe on every sort of parameter and gradient: its verdict is what really happens to them, in a loop by hand.

Each variant builds an optimizer over parameters of which the first is frozen, and says what their gradients are like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze import Every, FreezeController, probe_optimizer
from tests.observer import same

Make = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def weights(*dtypes: torch.dtype) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 2, dtype=dtype)) for dtype in dtypes]


@dataclass(frozen=True)
class Variant:
    """Parameters and their optimizer.

    Args:
        make: Makes the optimizer.
        dtypes: Of the parameters.
        sparse: Whether their gradients are.
        holds: Whether a parameter without a gradient is held.
        late: Whether its first update may come after others'.
    """

    make: Make
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float32)
    sparse: bool = False
    holds: bool = True
    late: bool = True


def adamw(**options: Any) -> Make:
    return lambda held: torch.optim.AdamW(held, lr=0.1, **options)


def sgd(**options: Any) -> Make:
    return lambda held: torch.optim.SGD(held, lr=0.1, momentum=0.9, **options)


def several_groups(held: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The decay of the second is large enough to be seen, were it taken for the first's."""
    groups = [
        {"params": held[:1], "lr": 0.01, "weight_decay": 0.0},
        {"params": held[1:], "lr": 0.5, "weight_decay": 0.9, "betas": (0.5, 0.6)},
    ]
    return torch.optim.AdamW(groups)


class Unlike(torch.optim.SGD):
    """Decays what has no gradient, but in param groups that say so alone."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["weight_decay"])
        return super().step(closure)


def unlike(held: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return Unlike([{"params": held[1:]}, {"params": held[:1], "weight_decay": 0.1}], lr=0.1)


class FloatsOnly(torch.optim.SGD):
    """Moves what has no gradient in one dtype alone."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.dtype is torch.bfloat16:
                        p.mul_(0.9)
        return super().step(closure)


SEVERAL = (torch.float64, torch.bfloat16, torch.float32, torch.float16)
COMPLEX = (torch.complex64, torch.complex64)
VARIANTS: dict[str, Variant] = {
    "fused": Variant(adamw(fused=True)),
    "fused SGD": Variant(lambda held: torch.optim.SGD(held, lr=0.1, fused=True)),
    "fused SGD with momentum": Variant(sgd(fused=True), late=False),  # torch's kernel takes all momenta or none
    "foreach": Variant(adamw(foreach=True)),
    "foreach SGD": Variant(sgd(foreach=True)),
    "maximize": Variant(adamw(maximize=True)),
    "maximize SGD": Variant(sgd(maximize=True, weight_decay=0.1)),
    "amsgrad": Variant(adamw(amsgrad=True)),
    "rate as a tensor": Variant(lambda held: torch.optim.AdamW(held, lr=torch.tensor(0.1))),
    "several groups": Variant(several_groups),
    "several dtypes": Variant(sgd(weight_decay=0.1), SEVERAL),
    "several dtypes, foreach": Variant(sgd(foreach=True, weight_decay=0.1), SEVERAL),
    "several dtypes, fused": Variant(adamw(fused=True), SEVERAL),
    "sparse": Variant(lambda held: torch.optim.SparseAdam(held, lr=0.1), sparse=True),
    "sparse SGD": Variant(lambda held: torch.optim.SGD(held, lr=0.1), sparse=True),
    "sparse Adagrad": Variant(lambda held: torch.optim.Adagrad(held, lr=0.1), sparse=True),
    "complex": Variant(adamw(), COMPLEX),
    "complex SGD": Variant(sgd(), COMPLEX),
    "complex RMSprop": Variant(lambda held: torch.optim.RMSprop(held, lr=0.1, momentum=0.9, centered=True), COMPLEX),
    "complex and real": Variant(adamw(), (torch.complex64, torch.float32)),
    "LBFGS": Variant(lambda held: torch.optim.LBFGS(held), holds=False),
    "decays one group": Variant(unlike, holds=False),
    "moves one dtype": Variant(lambda held: FloatsOnly(held, lr=0.1), (torch.bfloat16, torch.float32), holds=False),
}


def loss_of(held: Sequence[nn.Parameter]) -> Tensor:
    return torch.stack([((p - 0.3) * (p - 0.3).conj()).sum().real.double() for p in held]).sum()


class Loop:
    """Steps of a variant by hand."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.held = weights(*variant.dtypes)
        self.optimizer = variant.make(self.held)

    def step(self, frozen: bool) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = loss_of(self.held)
            loss.backward()
            for p in self.held if self.variant.sparse else ():
                p.grad = p.grad.to_sparse(1)  # type: ignore[union-attr]
            if frozen:
                self.held[0].grad = None
            return loss

        self.optimizer.step(closure)

    def first(self) -> tuple[bytes, dict[str, Any]]:
        """The first parameter now, value and state."""
        return _bytes(self.held[0]), {k: copied(v) for k, v in self.optimizer.state.get(self.held[0], {}).items()}


def really_holds(variant: Variant) -> bool:
    """Whether the first parameter, without a gradient for twenty steps after three, keeps its bits, values and state."""
    loop = Loop(variant)
    for _ in range(3):
        loop.step(frozen=False)
    before = loop.first()
    for _ in range(20):
        loop.step(frozen=True)
    after = loop.first()
    return before[0] == after[0] and same(before[1], after[1])


def really_trains_late(variant: Variant) -> bool:
    """Whether the first parameter trains after it had no gradient in the first three steps."""
    loop = Loop(variant)
    for _ in range(3):
        loop.step(frozen=True)
    before = loop.first()
    try:
        loop.step(frozen=False)
    except TypeError:
        return False
    return before[0] != loop.first()[0]


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # torch's Adagrad


@pytest.mark.parametrize("name", VARIANTS)
def test_its_verdict_is_what_happens(name: str) -> None:
    variant = VARIANTS[name]
    assert really_holds(variant) is variant.holds
    assert probe_optimizer(variant.make(weights(*variant.dtypes))).skips_none is variant.holds


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.holds])
def test_what_holds_trains_late_as_it_really_does(name: str) -> None:
    variant = VARIANTS[name]
    traits = probe_optimizer(variant.make(weights(*variant.dtypes)))
    assert (traits.why, list(traits.reasons)) == ("", [] if variant.late else ["late_first_step_ok"])
    assert traits.late_first_step_ok is variant.late is really_trains_late(variant)
    assert (traits.all_none_ok, traits.holds_excluded) == (True, True)
    assert (traits.steps_in_backward, traits.closure_reentrant) == (False, False)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_differentiable_steps_need_parameters_that_are_no_leaves(kind: Any) -> None:
    """Torch refuses them on leaves, which `nn.Parameter` are: there is nothing to learn, and it says why."""
    traits = probe_optimizer(kind(weights(torch.float32), lr=0.1, differentiable=True))
    assert traits.skips_none is None
    assert "leaf" in traits.why


def test_capturable_steps_need_an_accelerator() -> None:
    """Torch refuses them on the CPU, outside of a compiled step."""
    traits = probe_optimizer(adamw(capturable=True)(weights(torch.float32)))
    assert traits.skips_none is None
    assert "capturable=True" in traits.why


def test_a_leak_in_one_param_group_is_not_lost_among_others() -> None:
    traits = probe_optimizer(unlike(weights(torch.float32, torch.float32)))
    assert (traits.skips_none, traits.holds_excluded) == (False, True)
    assert traits.reasons == {"skips_none": "the value of a parameter whose gradient is None moved"}


class Two(nn.Module):
    """A model beside another one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bottom, self.top = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.bottom(x))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.NAdam])
def test_parameters_of_other_modules_train_on(kind: Any) -> None:
    """An optimizer may hold what is not of the model, such as a loss's: nobody scheduled it, so it trains always."""
    model, other = Two(), nn.Linear(2, 1)
    optimizer = kind([*model.parameters(), *other.parameters()], lr=0.1)
    assert probe_optimizer(optimizer).skips_none is True
    controller = FreezeController(model, Every({"bottom": 3}, of="top"))
    controller.attach(optimizer)
    controller.begin()
    moved: dict[str, list[bool]] = {"bottom": [], "top": [], "other": []}
    parts = {"bottom": model.bottom.weight, "top": model.top.weight, "other": other.weight}
    for _ in range(6):
        before = {name: _bytes(p) for name, p in parts.items()}
        controller.begin_step()
        optimizer.zero_grad()
        other(model(torch.ones(2, 3))).square().sum().backward()
        optimizer.step()
        for name, p in parts.items():
            moved[name].append(before[name] != _bytes(p))
    controller.end_epoch()
    assert controller.finish() == []
    controller.detach()
    assert moved == {"bottom": [True, False, False] * 2, "top": [True] * 6, "other": [True] * 6}
