"""Factors on learning rates in fits: bit for bit a plain loop over hand-made param groups, under any scheduler."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler as schedulers

from lightning_freeze import Every, FreezeScheduler, Phase, Phases
from tests.conftest import Net, batches, make_trainer
from tests.observer import same

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
EPOCHS, BATCHES = 2, 8
STEPS = EPOCHS * BATCHES
BOTH = ["layer1", "layer2"]


def schedule() -> Phases:
    return Phases(
        [
            Phase(["layer2"], updates=3, lr={"layer2": 0.5}),
            Phase(BOTH, updates=6, lr={"layer1": 0.1, "layer2": 2}, ramp=3),
            Phase(["layer1"], updates=2),
            Phase(BOTH, lr={"layer1": 0.25}),
        ]
    )


def plan_by_hand() -> list[dict[str, float]]:
    """For each step, the layers that train and their factors."""
    rising = [{"layer1": 0.1 * (k + 1) / 4, "layer2": 2.0} for k in range(3)]
    return [
        *[{"layer2": 0.5}] * 3,
        *rising,
        *[{"layer1": 0.1, "layer2": 2.0}] * 3,
        *[{"layer1": 1.0}] * 2,
        *[{"layer1": 0.25, "layer2": 1.0}] * (STEPS - 11),
    ]


class Wide(Net):
    """Weights and biases, which have param groups of their own; ``x`` is what a plateau is judged by."""

    def __init__(self, make: Callable[..., Any], schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__(make)
        self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 3)
        self.schedule = schedule

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("x", 1.0, on_step=False, on_epoch=True)
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = self.make(groups_of(self, ["layer1", "layer2"]))
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), **how(self.schedule)}}


def groups_of(model: Any, layers: list[str]) -> list[dict[str, Any]]:
    return [
        {"params": [getattr(model, layer).weight for layer in layers]},
        {"params": [getattr(model, layer).bias for layer in layers], "weight_decay": 0.0},
    ]


SCHEDULERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "one cycle": (lambda o: schedulers.OneCycleLR(o, max_lr=0.1, total_steps=STEPS + 1), {"interval": "step"}),
    "warm-up": (lambda o: schedulers.LambdaLR(o, lambda step: min(1.0, (step + 1) / 7)), {"interval": "step"}),
    "cosine, by epochs": (lambda o: schedulers.CosineAnnealingLR(o, T_max=5), {"interval": "epoch"}),
    "plateau": (
        lambda o: schedulers.ReduceLROnPlateau(o, factor=0.3, patience=0),
        {"interval": "epoch", "monitor": "x"},
    ),
}


def how(schedule: Callable[[Any], Any]) -> dict[str, Any]:
    return next(options for made, options in SCHEDULERS.values() if made is schedule)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "AdamW, rate in a tensor": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def manual_optimization(
    make: Callable[..., Any], scheduled: str | None, accumulate: int = 1, clip: float | None = None
) -> tuple[Any, Any, Any]:
    """A plain loop: a param group for each layer, its rate set before each step from those of an optimizer beside it."""
    model = Wide(make)
    shadow = make([{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))]}])
    beside = SCHEDULERS[scheduled][0](shadow) if scheduled is not None else None
    interval = SCHEDULERS[scheduled][1]["interval"] if scheduled is not None else ""
    optimizer = make([group for layer in BOTH for group in groups_of(model, [layer])])
    loaded, step = list(batches(BATCHES * accumulate)), 0
    for _ in range(EPOCHS):
        for index, (x, y) in enumerate(loaded):
            (nn.functional.mse_loss(model(x), y) / accumulate).backward()
            if (index + 1) % accumulate:
                continue
            factors = plan_by_hand()[step]
            step += 1
            for number, group in enumerate(optimizer.param_groups):
                theirs, layer = shadow.param_groups[number % 2], BOTH[number // 2]
                group |= {key: theirs[key] for key in theirs if key in ("momentum", "betas")}
                group["lr"] = theirs["lr"] * factors.get(layer, 1.0)
                if layer not in factors:
                    for parameter in group["params"]:
                        parameter.grad = None
            if clip is not None:
                held = [p for group in groups_of(model, BOTH) for p in group["params"]]  # as Lightning sums the norm
                nn.utils.clip_grad_norm_(held, clip)
            optimizer.step()
            shadow.step()
            optimizer.zero_grad()
            if beside is not None and interval == "step":
                beside.step()
        if beside is not None and interval == "epoch":
            beside.step(*([torch.tensor(1.0)] if scheduled == "plateau" else []))
    return weights(model), shadow, beside


def plain(what: dict[str, Any]) -> dict[str, Any]:
    """What of a scheduler's state can be compared."""
    return {
        key: value for key, value in what.items() if not callable(value) and key not in ("_anneal_func", "lr_lambdas")
    }


def rates_of(optimizer: Any) -> list[dict[str, Any]]:
    keys = ("lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas", "max_momentum")
    return [{key: copy.copy(group[key]) for key in keys if key in group} for group in optimizer.param_groups]


# --- bit for bit -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduled", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fit_is_a_plain_loop_over_param_groups_made_by_hand(optimizer: str, scheduled: str, trainer: Any) -> None:
    """And the scheduler and the optimizer's own groups are afterwards what they are without factors."""
    make = OPTIMIZERS[optimizer]
    expected, shadow, beside = manual_optimization(make, scheduled)
    scheduler, model = FreezeScheduler(schedule()), Wide(make, SCHEDULERS[scheduled][0])
    fit = trainer(scheduler, max_epochs=EPOCHS)
    fit.fit(model, batches(BATCHES))
    assert same(weights(model), expected)
    assert scheduler.findings == []
    assert len(fit.optimizers[0].param_groups) == 2
    assert same(dict(enumerate(rates_of(fit.optimizers[0]))), dict(enumerate(rates_of(shadow))))
    ours = fit.lr_scheduler_configs[0].scheduler
    assert repr(plain(ours.state_dict())) == repr(plain(beside.state_dict()))


def test_without_a_scheduler_too(trainer: Any) -> None:
    model = Wide(OPTIMIZERS["SGD"])
    trainer(FreezeScheduler(schedule()), max_epochs=EPOCHS).fit(model, batches(BATCHES))
    assert same(weights(model), manual_optimization(OPTIMIZERS["SGD"], None)[0])


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_with_accumulation_and_clipping(optimizer: str, trainer: Any) -> None:
    make = OPTIMIZERS[optimizer]
    model = Wide(make, SCHEDULERS["one cycle"][0])
    fit = trainer(FreezeScheduler(schedule()), max_epochs=EPOCHS, accumulate_grad_batches=2, gradient_clip_val=0.05)
    fit.fit(model, batches(2 * BATCHES))
    assert same(weights(model), manual_optimization(make, "one cycle", accumulate=2, clip=0.05)[0])


class ByHand(Wide):
    """Manual optimization, with or without a closure."""

    closure = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(self(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        if self.closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("closure", [False, True])
def test_in_manual_optimization(closure: bool, trainer: Any) -> None:
    model = ByHand(OPTIMIZERS["AdamW"], SCHEDULERS["one cycle"][0])
    model.closure = closure
    trainer(FreezeScheduler(schedule()), max_epochs=EPOCHS).fit(model, batches(BATCHES))
    assert same(weights(model), manual_optimization(OPTIMIZERS["AdamW"], "one cycle")[0])


# --- undone, and resumed ---------------------------------------------------------------------------------------------


class Rates(torch.optim.SGD):
    """Notes the rates of each step: layer to rate, of what has a gradient."""

    def __init__(self, model: Any, lr: float = 0.125) -> None:
        super().__init__(model.parameters(), lr=lr)
        self.layers = {id(model.layer1.weight): "layer1", id(model.layer2.weight): "layer2"}
        self.seen: list[dict[str, float]] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        held = [(self.layers[id(p)], group["lr"], p) for group in self.param_groups for p in group["params"]]
        self.seen.append({layer: lr for layer, lr, p in held if p.grad is not None})
        super().step()
        return loss


def test_a_factor_is_undone_when_its_phase_ends(trainer: Any) -> None:
    model = Net(Rates)
    row = [Phase(BOTH, epochs=1, lr={"layer1": 0.5}), Phase(BOTH, updates=1), Phase(["layer1"], lr={"layer1": 4})]
    fit = trainer(FreezeScheduler(Phases(row)), max_epochs=2)
    fit.fit(model, batches(3))
    half, full = {"layer1": 0.0625, "layer2": 0.125}, {"layer1": 0.125, "layer2": 0.125}
    assert fit.optimizers[0].seen == [half, half, half, full, {"layer1": 0.5}, {"layer1": 0.5}]
    assert [group["lr"] for group in fit.optimizers[0].param_groups] == [0.125]


def test_a_users_own_hook_sets_the_rate_that_is_multiplied(trainer: Any) -> None:
    class SetsIt(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert len(optimizer.param_groups) == 1
            optimizer.param_groups[0]["lr"] = 1.0 / (1 + self.trainer.global_step)

    model = SetsIt(Rates)
    fit = trainer(FreezeScheduler(Phases([Phase(BOTH, lr={"layer1": 0.25})]), rest="freeze"), max_epochs=1)
    fit.fit(model, batches(4))
    expected = [{"layer1": 0.25 / (1 + step), "layer2": 1 / (1 + step)} for step in range(4)]
    assert fit.optimizers[0].seen == expected


def test_a_monitor_of_rates_sees_the_schedulers(tmp_path: Path) -> None:
    logger = pl.loggers.CSVLogger(tmp_path)
    model = Wide(OPTIMIZERS["SGD"], SCHEDULERS["warm-up"][0])
    monitor = pl.callbacks.LearningRateMonitor(logging_interval="step", log_momentum=True)
    fit = make_trainer(tmp_path, FreezeScheduler(schedule()), monitor, logger=logger, log_every_n_steps=1)
    fit.fit(model, batches(5))
    assert list(monitor.lrs) == ["lr-SGD/pg1", "lr-SGD/pg2"]
    assert monitor.lrs["lr-SGD/pg1"] == pytest.approx([0.1 * min(1, (step + 1) / 7) for step in range(5)])


class SameData(Wide):
    """Its data depend on epoch and batch alone, so that a resumed run sees what the straight one saw."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        made = torch.Generator().manual_seed(1000 * self.trainer.current_epoch + batch_idx)
        return super().training_step([torch.randn(4, 4, generator=made), torch.randn(4, 3, generator=made)], batch_idx)


def resumed(root: Path, scheduled: str, checkpoint: str | None, save: bool = False) -> Any:
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if save:
                trainer.save_checkpoint(root / f"{trainer.global_step}.ckpt")

    model = SameData(OPTIMIZERS["AdamW"], SCHEDULERS[scheduled][0])
    fit = make_trainer(root, FreezeScheduler(schedule()), Saves(), max_epochs=EPOCHS)
    fit.fit(model, batches(BATCHES), ckpt_path=checkpoint)
    return {"weights": weights(model), "optimizer": copy.deepcopy(fit.optimizers[0].state_dict()["state"])}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_resumed_in_the_middle_of_phases_the_bits_are_the_same(tmp_path: Path) -> None:
    """In a phase with factors, in the middle of its ramp, after it, and in the last phase."""
    straight = resumed(tmp_path, "one cycle", None, save=True)
    for step in (2, 4, 5, 7, 10, 13):
        again = resumed(tmp_path / "again", "one cycle", str(tmp_path / f"{step}.ckpt"))
        assert same(again, straight), step


@pytest.mark.filterwarnings(
    "ignore:.*could not be probed. RuntimeError. planned:UserWarning"
)  # each of its twins fails, too
def test_a_step_that_fails_leaves_the_users_param_groups(trainer: Any) -> None:
    class Breaks(Rates):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            raise RuntimeError("planned")

    row = Phases([Phase(BOTH, updates=9, lr={"layer1": 0.5}), Phase(["layer2"])])
    fit, model = trainer(FreezeScheduler(row)), Net(Breaks)
    with pytest.raises(RuntimeError, match="planned"):
        fit.fit(model, batches(2))
    assert len(fit.optimizers[0].param_groups) == 1
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.125


def test_every_has_no_factors(trainer: Any) -> None:
    fit = trainer(FreezeScheduler(Every({"layer1": 2}, of="layer2")))
    fit.fit(Net(Rates), batches(4))
    assert fit.optimizers[0].seen == [{"layer1": 0.125, "layer2": 0.125}, {"layer2": 0.125}] * 2


# --- a peer ----------------------------------------------------------------------------------------------------------


class Backbone(Net):
    """As Lightning's BackboneFinetuning wants it: an attribute ``backbone``, frozen by it from the start."""

    def __init__(self, scheduled: str) -> None:
        super().__init__()
        self.backbone, self.scheduled = self.layer1, scheduled

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
        scheduler = SCHEDULERS[self.scheduled][0](optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **SCHEDULERS[self.scheduled][1]}}


@pytest.mark.parametrize(("scheduled", "error"), [("one cycle", KeyError), ("warm-up", (ValueError, IndexError))])
def test_where_param_groups_are_added_for_good_schedulers_fail_and_ours_do_not(
    scheduled: str, error: Any, trainer: Any
) -> None:
    """What Lightning's own BackboneFinetuning does; the day it no longer fails, `holds/param_groups.py` need not say so."""
    peer = pl.callbacks.BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0, verbose=False)
    with pytest.raises(error):
        trainer(peer, max_epochs=EPOCHS).fit(Backbone(scheduled), batches(BATCHES))
    row = Phases([Phase(["layer2"], epochs=1), Phase(BOTH, lr={"layer1": 0.1}, ramp=3)])
    trainer(FreezeScheduler(row), max_epochs=EPOCHS).fit(Backbone(scheduled), batches(BATCHES))


@pytest.mark.parametrize("first", [{"lr": {"layer1": 0.5}}, {"lr": {"layer1": 0.5, "layer2": 2}}])
def test_a_factor_does_not_come_back_by_a_resume(first: Any, tmp_path: Path) -> None:
    both = ["layer1", "layer2"]

    def rates(checkpoint: str | None) -> Any:
        row = Phases([Phase(both, epochs=1, **first), Phase(both)])
        saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, filename="{epoch}")
        savers = [] if checkpoint else [saver]
        trainer = make_trainer(
            tmp_path, FreezeScheduler(row), *savers, max_epochs=2, enable_checkpointing=not checkpoint
        )
        trainer.fit(Net(Rates), batches(1), ckpt_path=checkpoint)
        return trainer.optimizers[0].seen

    assert rates(None)[-1] == {"layer1": 0.125, "layer2": 0.125}
    assert rates(str(tmp_path / "epoch=0.ckpt")) == [{"layer1": 0.125, "layer2": 0.125}]
