"""Optimizers that exchange weights for averages leave no trace in what is frozen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from lightning_freeze import AlternatingFreeze, FreezeController, FreezeScheduler, FreezeViolation, Phase, Phases
from lightning_freeze.holds.schedule_free import ScheduleFreeGuard
from tests.conftest import Net, batches


class ScheduleFree(SGD):
    """As schedule-free optimizers do it: weights are extrapolated in training, averaged in evaluation."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.training = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        assert self.training
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None or closure is not None:
                    self.state[p].setdefault("z", p.detach().clone())
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["z"].sub_(p.grad, alpha=0.37)
        return loss

    def _lerp(self, weight: float) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], weight)

    def eval(self) -> None:
        if self.training:
            self._lerp(1 - 1 / 0.9)
        self.training = False

    def train(self) -> None:
        if not self.training:
            self._lerp(1 - 0.9)
        self.training = True


class Validated(Net):
    """Exchanges weights around validation, through Lightning's wrapper or without it."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__(lambda m: ScheduleFree(m.parameters()))
        self.wrapped = wrapped
        self.seen: list[Tensor] = []

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.optimizers(use_pl_optimizer=self.wrapped).eval()  # type: ignore[union-attr,call-arg]
            self.seen.append(self.layer1.weight.detach().clone())

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.optimizers(use_pl_optimizer=self.wrapped).train()  # type: ignore[union-attr,call-arg]

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.mse_loss(self(batch[0]), batch[1]))


def schedule() -> Phases:
    return Phases([Phase(["layer1", "layer2"], updates=4), Phase(["layer2"])])


@pytest.mark.parametrize("wrapped", [True, False])
def test_validation_between_epochs_moves_nothing_that_is_frozen(wrapped: bool, trainer: Any) -> None:
    model = Validated(wrapped)
    scheduler = FreezeScheduler(schedule())
    methods = ScheduleFree.eval, ScheduleFree.train
    fit = trainer(scheduler, max_epochs=3, limit_train_batches=6, limit_val_batches=1, num_sanity_val_steps=0)
    fit.fit(model, batches(6), batches(1))
    assert [finding.message for finding in scheduler.findings] == []
    assert not torch.equal(model.seen[0], model.layer1.weight)  # evaluated with the average
    assert (ScheduleFree.eval, ScheduleFree.train) == methods


def test_without_it_the_bits_go(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScheduleFreeGuard, "attach", lambda self: None)
    fit = trainer(
        FreezeScheduler(schedule()), max_epochs=3, limit_train_batches=6, limit_val_batches=1, num_sanity_val_steps=0
    )
    with pytest.raises(FreezeViolation, match=r"layer1\.weight"):
        fit.fit(Validated(True), batches(6), batches(1))


def test_an_audit_in_evaluation_compares_what_was_kept_and_sees_what_is_written() -> None:
    model = Net(lambda m: ScheduleFree(m.parameters()))
    optimizer = model.make(model)
    controller = FreezeController(model, schedule())
    controller.attach(optimizer)
    controller.begin()
    for batch in batches(6):
        controller.begin_step()
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        assert loss is not None
        loss.backward()
        optimizer.step()
    optimizer.eval()
    average = model.layer1.weight.detach().clone()
    assert controller.audit.check() == []
    assert torch.equal(model.layer1.weight, average)
    optimizer.train()
    assert controller.audit.check() == []
    with torch.no_grad():
        model.layer1.weight.add_(1)
    assert [finding.parameter for finding in controller.audit.check()] == ["layer1.weight"]
    controller.detach()


def test_other_optimizers_of_the_class_are_left_alone() -> None:
    mine, other = Net(), Net()
    controller = FreezeController(mine, Phases([Phase(["layer2"])]), rest="freeze")
    optimizer, others = ScheduleFree(mine.parameters()), ScheduleFree(other.parameters())
    controller.attach(optimizer)
    others.state[other.layer1.weight]["z"] = torch.zeros_like(other.layer1.weight)
    before = other.layer1.weight.detach().clone()
    others.eval()
    others.train()
    assert not torch.equal(before, other.layer1.weight)  # rounded, as by itself
    controller.detach()


@pytest.mark.parametrize("count", [10, 11, 15])
def test_a_validation_right_before_a_thaw_leaves_the_last_interval_whole(count: int, trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=5)
    fit = trainer(scheduler, max_epochs=2, limit_train_batches=count, limit_val_batches=1, num_sanity_val_steps=0)
    fit.fit(Validated(True), batches(count), batches(1))
    assert [finding.message for finding in scheduler.findings] == []


@pytest.mark.parametrize("first", [0, 1])
def test_two_at_once_give_the_class_its_methods_back(first: int) -> None:
    methods = ScheduleFree.eval, ScheduleFree.train
    made = []
    for _ in range(2):
        net = Net()
        controller = FreezeController(net, Phases([Phase(["layer2"])]), rest="freeze")
        controller.attach(ScheduleFree(net.parameters()))
        made.append(controller)
    made[first].detach()
    assert ScheduleFree.eval is not methods[0]
    made[1 - first].detach()
    assert (ScheduleFree.eval, ScheduleFree.train) == methods


class TrainsLate(Validated):
    """Goes back to training weights with the first batch, when what freezes has changed."""

    def on_validation_end(self) -> None:
        pass

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.optimizers().train()  # type: ignore[union-attr]


def test_what_freezes_between_evaluation_and_training_keeps_its_bits(trainer: Any) -> None:
    scheduler = FreezeScheduler(
        Phases([Phase(["layer1", "layer2"], epochs=1), Phase(["layer2"], epochs=1)], repeat=True)
    )
    fit = trainer(scheduler, max_epochs=4, limit_train_batches=6, limit_val_batches=1, num_sanity_val_steps=0)
    fit.fit(TrainsLate(True), batches(6), batches(1))
    assert [finding.message for finding in scheduler.findings] == []
