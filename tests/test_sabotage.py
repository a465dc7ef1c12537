"""Each audit can fail: sabotage of every kind is caught within the epoch, with the right cause; clean runs are silent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_freeze import AlternatingFreeze, FreezeAudit, FreezeScheduler, FreezeViolation, Phase, Phases
from tests.conftest import Net, batches
from tests.observer import Snapshots
from tests.probe.planted_optimizers import DecaysAll

EVERY, STEPS = 4, 8  # layer1 trains at batches 0 and 4


def frozen(batch_idx: int) -> bool:
    return batch_idx % EVERY != 0


class GuardOff(pl.Callback):
    """Switches the step hooks' last moment off, as if a gradient had been filled in after it."""

    def __init__(self, scheduler: FreezeScheduler) -> None:
        self.scheduler = scheduler

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.scheduler._controller is not None
        assert self.scheduler._controller._place.loop is not None
        self.scheduler._controller._place.loop.hooks.last_moment = False


def refill(module: Any) -> None:
    module.layer1.weight.grad = torch.ones_like(module.layer1.weight)


class RefillsInModule(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        refill(self)


class RefillsInCallback(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        refill(pl_module)


@pytest.mark.parametrize("where", ["module", "callback"])
def test_refilled_gradients_are_set_to_none_again_at_the_last_moment(where: str, trainer: Any) -> None:
    scheduler, slow = AlternatingFreeze("layer1", "layer2", every=EVERY), Snapshots("layer1")
    model, extra = (RefillsInModule(), []) if where == "module" else (Net(), [RefillsInCallback()])
    trainer(scheduler, slow, *extra).fit(model, batches(STEPS))
    assert slow.moved() == [not frozen(step) for step in range(STEPS)]
    assert scheduler.findings == []


@pytest.mark.parametrize("where", ["module", "callback"])
def test_and_with_that_moment_switched_off_the_audit_sees_them(where: str, trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=EVERY)
    model, extra = (RefillsInModule(), []) if where == "module" else (Net(), [RefillsInCallback()])
    with pytest.raises(FreezeViolation) as caught:
        trainer(scheduler, *extra, GuardOff(scheduler)).fit(model, batches(STEPS))
    found = caught.value.findings
    assert {(f.kind, f.cause, f.parameter, f.group, f.epoch) for f in found} == {
        ("value", "gradient", "layer1.weight", "slow", 0),
        ("optimizer_state", "gradient", "layer1.weight", "slow", 0),
    }
    assert "had a gradient when its optimizer stepped after update 1" in str(caught.value)
    assert [(f.first_update, f.last_update) for f in found if f.kind == "value"] == [(1, 4)]
    assert "between updates 1 and 4, in epoch 0 (and in 1 later frozen interval)" in str(caught.value)


# --- writes from outside --------------------------------------------------------------------------------------------


class Writes(pl.Callback):
    """Does something to the frozen weight at one batch, by default after its optimizer has stepped."""

    def __init__(self, write: Callable[[Any], None], at: int = 2, hook: str = "on_train_batch_end") -> None:
        self.write, self.at = write, at
        setattr(self, hook, self._act)

    def _act(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if rest[-1] == self.at:
            self.write(pl_module)


def flip_one_bit(module: Any) -> None:
    module.layer1.weight.data.view(torch.int32).view(-1)[5] ^= 1


def swap_two_elements(module: Any) -> None:
    flat = module.layer1.weight.data.view(-1)
    flat[[3, 4]] = flat[[4, 3]]


def load_state_dict(module: Any) -> None:
    module.load_state_dict({name: value + 0.5 for name, value in module.state_dict().items()})


def data_write(module: Any) -> None:
    module.layer1.weight.data = module.layer1.weight.data * 1.5


def in_place(module: Any) -> None:
    with torch.no_grad():
        module.layer1.weight.mul_(1.0001)


@pytest.mark.parametrize("hook", ["on_train_batch_start", "on_train_batch_end"])
@pytest.mark.parametrize("write", [flip_one_bit, swap_two_elements, load_state_dict, data_write, in_place])
def test_writes_from_outside_are_caught(write: Callable[[Any], None], hook: str, trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=EVERY)
    with pytest.raises(FreezeViolation) as caught:
        trainer(scheduler, Writes(write, hook=hook)).fit(Net(), batches(STEPS))
    (found,) = caught.value.findings
    assert (found.audit, found.kind, found.cause, found.parameter) == ("frozen", "value", "outside", "layer1.weight")
    assert (found.first_update, found.last_update, found.epoch) == (1, 4, 0)
    assert "something else wrote to it: a `.data` or in-place write" in found.message


class Special(Net):
    """A frozen weight whose bits matter more than its values."""

    def __init__(self, value: float) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
        self.layer3 = nn.Linear(4, 4, bias=False)
        nn.init.constant_(self.layer3.weight, value)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.layer3.weight.nan_to_num().sum()


def negative_zero(module: Any) -> None:
    module.layer3.weight.data.view(-1)[7] = -0.0


def scale_all(module: Any) -> None:
    module.layer3.weight.data.mul_(0.999)


def multiply_by_one(module: Any) -> None:
    module.layer3.weight.data.mul_(1.0)


@pytest.mark.parametrize(
    ("value", "write", "caught"),
    [(0.0, negative_zero, True), (1.0, scale_all, True), (float("nan"), multiply_by_one, False)],
    ids=["0.0 to -0.0", "ones scaled", "NaN left alone"],
)
def test_bits_not_values(value: float, write: Callable[[Any], None], caught: bool, trainer: Any) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1", "layer2"])]), {"still": "layer3"}, on_finding="warn")
    fit = trainer(scheduler, Writes(write))
    if caught:
        with pytest.warns(UserWarning, match=r"'layer3.weight' \(group 'still', frozen\) moved"):
            fit.fit(Special(value), batches(STEPS))
    else:
        fit.fit(Special(value), batches(STEPS))
    assert [f.cause for f in scheduler.findings] == ["outside"] * caught


class WeightEMA(pl.Callback):
    """Writes an average back over every weight after each batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        for weight in pl_module.parameters():
            weight.data.mul_(0.99)


def test_an_ema_callback_is_caught_and_named(trainer: Any) -> None:
    with pytest.raises(FreezeViolation, match="In this run these write to weights: WeightEMA"):
        trainer(AlternatingFreeze("layer1", "layer2", every=EVERY), WeightEMA()).fit(Net(), batches(STEPS))


def test_an_optimizer_that_ignores_none_is_held_by_excluding_parameters(trainer: Any) -> None:
    model = Net(lambda m: DecaysAll(m.parameters(), lr=0.1))
    scheduler = AlternatingFreeze("layer1", "layer2", every=EVERY)
    trainer(scheduler).fit(model, batches(STEPS))
    assert scheduler.findings == []


def test_an_optimizer_that_ignores_none_is_caught_and_named_where_parameters_are_not_excluded(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_freeze.setup.hold_method", lambda *_, **__: "none")
    model = Net(lambda m: DecaysAll(m.parameters(), lr=0.1))
    with pytest.raises(FreezeViolation) as caught:
        trainer(AlternatingFreeze("layer1", "layer2", every=EVERY)).fit(model, batches(STEPS))
    assert {f.cause for f in caught.value.findings} == {"optimizer"}
    assert "DecaysAll moves a parameter whose gradient is None" in str(caught.value)
    assert "if p.grad is None: continue" in str(caught.value)


class TiedByMemory(Net):
    """layer3 is another Parameter over the memory of layer2."""

    def __init__(self) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
        self.layer3 = nn.Linear(8, 3, bias=False)
        self.layer3.weight = nn.Parameter(self.layer2.weight.data)


def test_a_weight_that_shares_memory_with_one_that_trains(trainer: Any) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1", "layer2"])]), {"still": "layer3"})
    with pytest.raises(FreezeViolation) as caught:
        trainer(scheduler).fit(TiedByMemory(), batches(STEPS))
    assert [f.cause for f in caught.value.findings] == ["tied"]
    assert "shares memory with 'layer2.weight', which trained" in str(caught.value)


class MaxNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 8, max_norm=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(torch.tanh(self.layer1(x)) + self.table(torch.zeros(len(x), dtype=torch.long)))


def test_an_embedding_with_max_norm_is_named(trainer: Any) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1", "layer2"])]), {"still": "table"})
    with pytest.raises(FreezeViolation, match=r"an Embedding with max_norm=0.1, which rescales rows in every forward"):
        trainer(scheduler).fit(MaxNorm(), batches(STEPS))


def test_optimizer_state_that_moves_is_caught(trainer: Any) -> None:
    def write(module: Any) -> None:
        module.trainer.optimizers[0].state[module.layer1.weight]["exp_avg"].mul_(0.5)

    with pytest.raises(FreezeViolation) as caught:
        trainer(AlternatingFreeze("layer1", "layer2", every=EVERY), Writes(write)).fit(Net(), batches(STEPS))
    (found,) = caught.value.findings
    assert (found.kind, found.cause) == ("optimizer_state", "outside")
    assert found.message.startswith("the optimizer state of 'layer1.weight' (group 'slow', frozen) (exp_avg) moved")


# --- buffers --------------------------------------------------------------------------------------------------------


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.body(x))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])


def body_frozen(**options: Any) -> FreezeScheduler:
    return FreezeScheduler(Phases([Phase(["layer1", "layer2"])]), {"body": "body"}, **options)


def test_batch_norm_statistics_of_a_frozen_module_are_noted_once(trainer: Any) -> None:
    scheduler, model = body_frozen(), Normed()
    trainer(scheduler, max_epochs=2).fit(model, batches(STEPS))
    assert model.body[1].running_mean.abs().sum() > 0
    found = {f.parameter: (f.audit, f.severity, f.cause, f.epoch) for f in scheduler.findings}
    assert found == {
        f"body.1.{name}": ("buffers", "info", "statistics", 0)
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert len(scheduler.findings) == 3
    assert "set `frozen_modules: eval`" in scheduler.findings[0].message


def test_eval_holds_statistics_and_dropout_and_gives_the_modes_back(trainer: Any) -> None:
    modes: list[Any] = []

    class Modes(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            modes.append([m.training for m in (pl_module, *pl_module.body, pl_module.layer1)])

    scheduler, model = body_frozen(frozen_modules="eval"), Normed()
    trainer(scheduler, Modes(), max_epochs=2).fit(model, batches(STEPS), batches(2))
    assert model.body[1].running_mean.abs().sum() == 0
    assert modes == [[True, False, False, False, True]] * (2 * STEPS)
    assert scheduler.findings == []
    assert all(module.training for module in model.modules())


def test_a_statistic_that_moves_under_eval_is_an_error(trainer: Any) -> None:
    def write(module: Any) -> None:
        module.body[1].running_mean.add_(1)

    with pytest.raises(FreezeViolation) as caught:
        trainer(body_frozen(frozen_modules="eval"), Writes(write)).fit(Normed(), batches(STEPS))
    (found,) = caught.value.findings
    assert (found.audit, found.severity, found.parameter) == ("buffers", "error", "body.1.running_mean")


# --- what should have moved -----------------------------------------------------------------------------------------


class Dead(Net):
    """layer3 is in the loss or not, trains or not, as asked."""

    def __init__(self, how: str) -> None:
        rate = 0.0 if how == "no rate" else 1e-12 if how == "rounding" else 0.1
        super().__init__(
            lambda m: torch.optim.SGD(
                [
                    {"params": [*m.layer1.parameters(), *m.layer2.parameters()]},
                    {"params": m.layer3.parameters(), "lr": rate},
                ],
                lr=0.1,
            )
        )
        self.how = how
        self.layer3 = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "dead branch":
            return super().forward(x)
        factor = 0.0 if self.how == "zero gradient" else 1.0
        return super().forward(x) + factor * self.layer3(x).sum()


@pytest.mark.filterwarnings("ignore:this schedule never freezes anything")
@pytest.mark.parametrize(
    ("how", "kind", "text"),
    [
        ("dead branch", "no_gradient", "1 of 1 parameters of group 'layer3' got no gradient in epoch 0"),
        ("rounding", "unmoved", "kept every bit in epoch 0, though they had a gradient that was not zero"),
        ("no rate", None, ""),
        ("zero gradient", None, ""),
        ("alive", None, ""),
    ],
)
def test_what_was_planned_to_train_and_did_not_move(how: str, kind: str | None, text: str, trainer: Any) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1", "layer2", "layer3"])]))
    fit = trainer(scheduler)
    if kind is None:
        fit.fit(Dead(how), batches(STEPS))
        assert scheduler.findings == []
        return
    with pytest.warns(UserWarning, match=f"(?s){text}.* More: `lightning-freeze explain {kind}`.$"):
        fit.fit(Dead(how), batches(STEPS))
    assert [(f.audit, f.kind, f.severity, f.group) for f in scheduler.findings] == [
        ("moved", kind, "warning", "layer3")
    ]


# --- when, and what then --------------------------------------------------------------------------------------------


def test_a_violation_saves_the_run_first_and_says_where(trainer: Any, tmp_path: Path) -> None:
    with pytest.raises(FreezeViolation) as caught:
        trainer(AlternatingFreeze("layer1", "layer2", every=EVERY), Writes(in_place)).fit(Net(), batches(STEPS))
    saved = caught.value.checkpoint
    assert saved == str(tmp_path / "freeze-violation-epoch=0-step=8.ckpt")
    assert f"The run was saved to {saved!r}" in str(caught.value)
    assert torch.load(saved, weights_only=True)["global_step"] == STEPS


@pytest.mark.filterwarnings("ignore:'layer1.weight' .group 'slow', frozen. moved:UserWarning")
def test_warn_goes_on(trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=EVERY, on_finding="warn")
    fit = trainer(scheduler, Writes(in_place), max_epochs=3)
    fit.fit(Net(), batches(STEPS))
    assert fit.current_epoch == 3
    assert [f.epoch for f in scheduler.findings] == [0, 1, 2]


@pytest.mark.parametrize(("every", "seen_at"), [(None, 100), (5, 10)])
def test_every_n_updates_finds_it_within_a_long_epoch(every: int | None, seen_at: int, trainer: Any) -> None:
    scheduler = FreezeScheduler(
        Phases([Phase(["layer2"])]), {"still": "layer1"}, audit=FreezeAudit(every_n_updates=every)
    )
    fit = trainer(scheduler, Writes(in_place, at=7))
    with pytest.raises(FreezeViolation):
        fit.fit(Net(), batches(100))
    assert fit.global_step == seen_at


def test_without_an_audit_nothing_is_found(trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=EVERY, audit=False)
    trainer(scheduler, Writes(in_place)).fit(Net(), batches(STEPS))
    assert scheduler.findings == []
    assert scheduler.updates == {"slow": 2, "fast": 8}


def test_a_write_after_the_last_epoch_is_found_at_the_end(trainer: Any) -> None:
    class Late(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            in_place(pl_module)

    scheduler = FreezeScheduler(Phases([Phase(["layer2"])]), {"still": "layer1"})
    with pytest.raises(FreezeViolation):
        trainer(scheduler, Late()).fit(Net(), batches(STEPS))


def test_a_write_right_after_the_groups_own_step_belongs_to_that_step(trainer: Any) -> None:
    """As the clamp of a WGAN does: the frozen interval begins with the next batch."""
    scheduler = AlternatingFreeze("layer1", "layer2", every=EVERY)
    trainer(scheduler, Writes(in_place, at=4)).fit(Net(), batches(STEPS))
    assert scheduler.findings == []
