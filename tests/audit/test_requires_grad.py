"""`FreezeAudit` without a scheduler: whatever has ``requires_grad=False`` stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn

from lightning_freeze import FreezeAudit, FreezeViolation
from lightning_freeze.audit.requires_grad import RequiresGradWatch
from lightning_freeze.holds.run_context import RunContext
from lightning_freeze.report.records import read_records
from tests.conftest import Net, batches
from tests.test_sabotage import Writes, in_place


def half_frozen(make: Any = None) -> Net:
    model = Net(make)
    model.layer1.requires_grad_(False)
    return model


def test_a_clean_run_is_silent(trainer: Any, tmp_path: Path) -> None:
    audit = FreezeAudit()
    trainer(audit, max_epochs=2).fit(half_frozen(), batches(4))
    assert audit.findings == []
    counts = [
        record for record in read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl") if record["type"] == "counts"
    ]
    assert [record["intervals_in_epoch"] for record in counts] == [1, 1]
    assert [record["total"] for record in counts] == [4, 8]


def test_a_write_is_caught(trainer: Any) -> None:
    with pytest.raises(FreezeViolation) as caught:
        trainer(FreezeAudit(), Writes(in_place)).fit(half_frozen(), batches(4))
    (found,) = caught.value.findings
    assert (found.parameter, found.group, found.cause) == ("layer1.weight", "requires_grad=False", "outside")


def test_a_stale_gradient_moves_what_has_requires_grad_off(trainer: Any) -> None:
    """The leak that this audit is for: an optimizer steps along a gradient that was there before freezing."""

    class Stale(pl.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            pl_module.layer1.weight.grad = torch.ones_like(pl_module.layer1.weight)

    with pytest.raises(FreezeViolation) as caught:
        trainer(FreezeAudit(), Stale()).fit(half_frozen(), batches(4))
    assert {finding.cause for finding in caught.value.findings} == {"gradient"}


class WithBackbone(Net):
    def __init__(self) -> None:
        super().__init__(lambda m: torch.optim.SGD(filter(lambda p: p.requires_grad, m.parameters()), lr=0.1))
        self.backbone = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return super().forward(self.backbone(x))


@pytest.mark.filterwarnings("ignore:.*layer is already frozen")
def test_lightnings_backbone_finetuning_is_audited(trainer: Any) -> None:
    audit, model = FreezeAudit(), WithBackbone()
    before = model.backbone.weight.detach().clone()
    trainer(audit, BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False), max_epochs=3).fit(model, batches(4))
    assert audit.findings == []
    assert not torch.equal(before, model.backbone.weight)


def test_and_caught_where_it_leaks(trainer: Any) -> None:
    def write(module: Any) -> None:
        module.backbone.weight.data.add_(1)

    tune = BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)
    with pytest.raises(FreezeViolation, match=r"'backbone.weight' \(group 'requires_grad=False', frozen\) moved"):
        trainer(FreezeAudit(), tune, Writes(write), max_epochs=3).fit(WithBackbone(), batches(4))


def test_every_n_updates(trainer: Any) -> None:
    fit = trainer(FreezeAudit(every_n_updates=3), Writes(in_place, at=4))
    with pytest.raises(FreezeViolation):
        fit.fit(half_frozen(), batches(50))
    assert fit.global_step == 6


def test_what_was_to_move_and_did_not(trainer: Any) -> None:
    model = Net(lambda m: torch.optim.SGD(m.parameters(), lr=1e-12))
    model.layer1.requires_grad_(False)
    audit = FreezeAudit()
    with pytest.warns(UserWarning, match="1 of 2 parameters of group 'requires_grad=True' kept every bit"):
        trainer(audit).fit(model, batches(4))
    assert [finding.parameter for finding in audit.findings] == ["layer2.weight"]


class Toggles(Net):
    """Its own code freezes and thaws within a batch, after the callbacks' batch start."""

    def __init__(self, where: str) -> None:
        super().__init__(lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
        self.where = where

    def toggle(self, batch_idx: int) -> None:
        self.layer1.requires_grad_(batch_idx % 2 == 0)
        if batch_idx % 2:
            self.layer1.weight.grad = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.where == "hook":
            self.toggle(batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.where == "step":
            self.toggle(batch_idx)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("where", ["hook", "step"])
def test_honest_toggling_is_no_finding(where: str, trainer: Any) -> None:
    audit, model = FreezeAudit(), Toggles(where)
    trainer(audit, max_epochs=2).fit(model, batches(7))
    assert audit.findings == []


@pytest.mark.parametrize("where", ["hook", "step"])
def test_and_a_write_between_two_turns_is_caught(where: str, trainer: Any) -> None:
    with pytest.raises(FreezeViolation, match="layer1.weight"):
        trainer(FreezeAudit(), Writes(in_place, at=3)).fit(Toggles(where), batches(7))


def elsewhere(_: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


@pytest.mark.parametrize("make", [lambda _: None, elsewhere], ids=["none", "of other parameters"])
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_run_without_an_optimizer_of_its_parameters_goes_through(make: Any, trainer: Any) -> None:
    audit = FreezeAudit()
    trainer(audit).fit(half_frozen(make), batches(4))
    assert audit.findings == []


class Critic(Net):
    """Toggles two optimizers, the second over a bias whose gradient is truly zero: plus one and minus one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.bias = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator, critic = self.optimizers()  # type: ignore[misc,attr-defined]
        self.toggle_optimizer(generator)
        loss = self.layer2(self.layer1(batch[0])).mean()
        generator.zero_grad()
        self.manual_backward(loss)
        generator.step()
        self.untoggle_optimizer(generator)
        self.toggle_optimizer(critic)
        hidden = self.layer1(batch[0]).detach()
        loss = (self.layer2(hidden) + self.bias).mean() - (self.layer2(2 * hidden) + self.bias).mean()
        critic.zero_grad()
        self.manual_backward(loss)
        critic.step()
        self.untoggle_optimizer(critic)

    def configure_optimizers(self) -> Any:
        kind = torch.optim.SGD
        return kind(self.layer1.parameters(), lr=0.1), kind([*self.layer2.parameters(), self.bias], lr=0.1)


def test_a_true_zero_under_the_second_optimizer_is_no_finding(trainer: Any) -> None:
    audit = FreezeAudit()
    trainer(audit).fit(Critic(), batches(4))
    assert audit.findings == []


@pytest.mark.parametrize("sabotaged", [False, True], ids=["", "written to"])
def test_the_history_that_lbfgs_keeps_under_a_frozen_parameter_is_not_its_own(sabotaged: bool) -> None:
    """It is the history of all parameters, kept under the first of them; its value is audited as any other."""
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(3, 4)).square().sum()
        loss.backward()
        return loss

    watch = RequiresGradWatch(model, suspects=(), record=lambda record: None)
    watch.attach(optimizer, run=RunContext(model, model))
    watch.begin(0)
    for _ in range(3):
        watch.begin_step(0)
        optimizer.step(closure)  # type: ignore[arg-type]
    if sabotaged:
        model[0].weight.data.add_(1)
    assert list(optimizer.state) == [model[0].weight]
    assert [(finding.kind, finding.parameter) for finding in watch.end_epoch()] == [("value", "0.weight")] * sabotaged
    watch.detach()
