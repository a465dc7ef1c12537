"""Every optimizer of torch's own database, in every CPU configuration: frozen means not one bit, planned means moved."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_freeze import AlternatingFreeze, Every, FreezeController, UnsupportedError
from tests.conftest import Net, batches
from tests.loop import fit
from tests.observer import Snapshots

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

EVERY = 3
STEPS = 8
PLANNED = [step % EVERY == 0 for step in range(STEPS)]


def configurations(*, differentiable: bool = False) -> list[Any]:
    """(optimizer, keyword arguments) for each input that torch lists for the CPU, times the implementations it has."""
    found = []
    for info in optim_db:
        if info.optim_cls is torch.optim.LBFGS:
            continue
        flags = {flag: False for flag in info.supported_impls if flag != "fused" or "cpu" in info.supports_fused_on}
        for number, given in enumerate(info.optim_inputs_func(device="cpu")):
            for flag in ("plain", *flags):
                if (flag == "differentiable") != differentiable:
                    continue
                options = {**given.kwargs, **flags, **({} if flag == "plain" else {flag: True})}
                name = f"{info.optim_cls.__name__}-{number}-{given.desc}-{flag}"
                found.append(pytest.param(info, options, id=name.replace(" ", "_")))
    return found


class SparseNet(Net):
    """Two embeddings with sparse gradients, as SparseAdam asks for."""

    def __init__(self, make: Any) -> None:
        super().__init__(make)
        self.layer1 = nn.Embedding(6, 3, sparse=True)
        self.layer2 = nn.Embedding(6, 3, sparse=True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        rows = torch.arange(6)
        return (self.layer1(rows) * self.layer2(rows) - 1).square().mean()


@pytest.mark.parametrize(("info", "options"), configurations())
def test_slow_moves_in_exactly_the_planned_updates(info: OptimizerInfo, options: dict[str, Any]) -> None:
    kind = SparseNet if info.optim_cls is torch.optim.SparseAdam else Net
    model = kind(lambda m: info.optim_cls(m.parameters(), **copy.deepcopy(options)))
    optimizer = model.configure_optimizers()
    slow, fast = Snapshots("layer1"), Snapshots("layer2")

    def take() -> None:
        slow.take(model, optimizer)
        fast.take(model, optimizer)

    with FreezeController(model, Every({"layer1": EVERY}, of="layer2")) as controller:
        controller.attach(optimizer, closures=True)
        controller.begin()
        take()
        assert fit(model, optimizer, controller, batches(STEPS), take) == []
        assert controller.finish() == []
    assert slow.moved() == PLANNED
    assert fast.moved() == [True] * STEPS
    unplanned = [moved for moved, planned in zip(slow.states_moved(), PLANNED, strict=True) if not planned]
    assert unplanned == [False] * (STEPS - sum(PLANNED))
    assert not slow.states[-1] or slow.states_moved()[0]
    assert controller.updates == {"layer1": sum(PLANNED), "layer2": STEPS}


@pytest.mark.parametrize(("info", "options"), configurations(differentiable=True))
def test_differentiable_optimizers_cannot_step_a_leaf_anyway(info: OptimizerInfo, options: dict[str, Any]) -> None:
    """Torch refuses them on parameters, which are leaves, so there is nothing to hold still."""
    model = Net()
    optimizer = info.optim_cls(model.parameters(), **copy.deepcopy(options))
    model.training_step(next(iter(batches(1))), 0).backward()  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        optimizer.step()


def test_the_table_covers_the_database() -> None:
    """The floor is what DESIGN counted; a torch that lists fewer has changed under us."""
    names = {p.values[0].optim_cls.__name__ for p in configurations()}
    assert len(configurations()) >= 150
    assert names >= {
        "SGD",
        "Adam",
        "AdamW",
        "NAdam",
        "RAdam",
        "Adagrad",
        "Adadelta",
        "RMSprop",
        "Rprop",
        "Muon",
        "ASGD",
    }


def test_lbfgs_is_refused_by_name_with_the_mend(trainer: Any) -> None:
    model = Net(lambda m: torch.optim.LBFGS(m.parameters()))
    with pytest.raises(UnsupportedError, match=r"optimizer 0 \(LBFGS\).*AdamW, SGD"):
        trainer(AlternatingFreeze("layer1", "layer2", every=EVERY)).fit(model, batches(2))
