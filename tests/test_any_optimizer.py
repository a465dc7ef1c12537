"""Any optimizer in a fit: held, or refused by name before its first step; the bits are compared by an observer of its own."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_freeze import (
    AlternatingFreeze,
    Every,
    FreezeController,
    FreezeScheduler,
    Phase,
    Phases,
    UnsupportedError,
)
from lightning_freeze.holds.param_groups import exclude
from lightning_freeze.plan.schedule import Schedule
from tests.conftest import Net, batches
from tests.observer import Snapshots
from tests.probe.planted_optimizers import (
    WAYS,
    BeginsAtOnce,
    DecaysAll,
    FillsZeros,
    IgnoresClosure,
    IgnoresClosureFillsZeros,
    NeedsSome,
    Wrapper,
)

STEPS = 25
SCHEDULES: dict[str, tuple[Schedule, list[bool]]] = {
    "alternating": (Every({"layer1": 5}, of="layer2"), [step % 5 == 0 for step in range(STEPS)]),
    "cyclic": (
        Phases([Phase(["layer1", "layer2"], updates=2), Phase(["layer2"], updates=20)], repeat=True),
        [step < 2 or (step >= 22 and step < 24) for step in range(STEPS)],
    ),
    "from step 0": (
        Phases([Phase(["layer2"], updates=20), Phase(["layer1", "layer2"])]),
        [step >= 20 for step in range(STEPS)],
    ),
}


def fit(trainer: Any, make: Any, schedule: Schedule) -> Snapshots:
    observer = Snapshots("layer1")
    scheduler = FreezeScheduler(schedule)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*for a whole param group.*|.*could not be probed.*|.*kept every bit.*", UserWarning
        )
        trainer(scheduler, observer, limit_train_batches=STEPS).fit(Net(make), batches(STEPS))
    assert [finding.message for finding in scheduler.findings if finding.severity == "error"] == []
    return observer


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [name for name, (_, way) in WAYS.items() if way != "refused"])
def test_what_is_frozen_keeps_its_bits(name: str, schedule: str, trainer: Any) -> None:
    seen = fit(trainer, WAYS[name][0], SCHEDULES[schedule][0])
    planned = SCHEDULES[schedule][1] if name != "moves nothing" else [False] * STEPS
    assert seen.moved() == planned
    assert not any(moved and not plan for moved, plan in zip(seen.states_moved(), planned, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [name for name, (_, way) in WAYS.items() if way == "refused"])
def test_what_cannot_be_held_is_refused_before_the_first_step(name: str, schedule: str, trainer: Any) -> None:
    steps: list[Optimizer] = []

    def make(model: nn.Module) -> Optimizer:
        optimizer = WAYS[name][0](model)
        optimizer.register_step_pre_hook(lambda *_: steps.append(optimizer))
        return optimizer

    kind = type(WAYS[name][0](Net())).__name__
    with pytest.raises(UnsupportedError, match=rf"optimizer 0 \({kind}\) .*(AdamW|SGD)"):
        fit(trainer, make, SCHEDULES[schedule][0])
    assert steps == []


def test_the_observer_can_fail(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.setup.hold_method", lambda *_, **__: "none")
    observer = Snapshots("layer1")
    schedule, planned = SCHEDULES["alternating"]
    scheduler = FreezeScheduler(schedule, on_finding="warn")
    with pytest.warns(UserWarning, match=r"'layer1\.weight' \(group 'layer1', frozen\)"):
        trainer(scheduler, observer, limit_train_batches=STEPS).fit(Net(WAYS["syncs rarely"][0]), batches(STEPS))
    assert observer.moved() != planned


def test_one_whose_state_is_made_at_once_is_refused_only_where_something_begins_late(trainer: Any) -> None:
    def make(model: nn.Module) -> Optimizer:
        return BeginsAtOnce(model.parameters())

    assert fit(trainer, make, SCHEDULES["alternating"][0]).moved() == SCHEDULES["alternating"][1]
    with pytest.raises(
        UnsupportedError, match=r"later \(layer1\)\. .*KeyError: 'average'.*`\{train: \[all\], updates: 1\}`"
    ):
        fit(trainer, make, SCHEDULES["from step 0"][0])
    mended = Phases([Phase(["layer1", "layer2"], updates=1), *SCHEDULES["from step 0"][0].phases])  # type: ignore[attr-defined]
    assert fit(trainer, make, mended).moved() == [step == 0 or step >= 21 for step in range(STEPS)]


def test_one_that_needs_some_gradient_is_refused_only_where_it_may_find_none(trainer: Any) -> None:
    def make(model: nn.Module) -> Optimizer:
        return NeedsSome(model.parameters())

    assert fit(trainer, make, SCHEDULES["alternating"][0]).moved() == SCHEDULES["alternating"][1]
    turns = Phases([Phase(["layer1"], updates=1), Phase(["layer2"], updates=1)], repeat=True)
    assert fit(trainer, make, turns).moved() == [step % 2 == 0 for step in range(STEPS)]
    model = Net()
    controller = FreezeController(model, Every({"layer1": 5}, of="layer2"))
    with pytest.raises(
        UnsupportedError, match=r"cannot make a step in which nothing trains, and between .* ZeroDivisionError"
    ):
        controller.attach(NeedsSome(model.layer1.parameters()), SGD(model.layer2.parameters(), lr=0.1))


def test_what_is_left_out_is_back_after_the_step_for_schedulers_and_checkpoints(trainer: Any, tmp_path: Any) -> None:
    def make(model: nn.Module) -> Any:
        optimizer = FillsZeros(model.parameters(), lr=0.1)
        return [optimizer], [
            {
                "scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, 40, cycle_momentum=False),
                "interval": "step",
            }
        ]

    class Counts(Snapshots):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *rest)
            held = [len(group["params"]) for group in trainer.optimizers[0].param_groups]
            assert held == [2]

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:  # after 14 updates, layer1 is frozen
                trainer.save_checkpoint(tmp_path / "second.ckpt")

    def run(**options: Any) -> Net:
        model = Net(make)
        fit = trainer(FreezeScheduler(SCHEDULES["alternating"][0]), Counts("layer1"), max_epochs=4)
        fit.fit(model, batches(7), **options)
        return model

    straight = run()
    resumed = run(ckpt_path=tmp_path / "second.ckpt", weights_only=True)
    for (name, one), other in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_factors_on_rates_and_leaving_out_go_together(trainer: Any) -> None:
    def run(make: Any) -> list[bytes]:
        observer = Snapshots("layer1")
        schedule = Phases(
            [Phase(["layer2"], updates=3), Phase(["layer1", "layer2"], updates=3, lr={"layer1": 0.5})], repeat=True
        )
        trainer(FreezeScheduler(schedule), observer, limit_train_batches=12).fit(Net(make), batches(12))
        return observer.values

    def manual_optimization() -> list[bytes]:
        model = Net()
        optimizer = FillsZeros(
            [{"params": model.layer1.parameters(), "lr": 0.05}, {"params": model.layer2.parameters()}]
        )
        values = [model.layer1.weight.detach().numpy().tobytes()]
        for step, batch in enumerate(batches(12)):
            model.zero_grad()
            loss = model.training_step(batch, 0)
            assert loss is not None
            loss.backward()
            restore = exclude(optimizer, {id(model.layer1.weight)} if step % 6 < 3 else set())
            optimizer.step()
            restore()
            values.append(model.layer1.weight.detach().numpy().tobytes())
        return values

    assert run(lambda m: FillsZeros(m.parameters())) == manual_optimization()


def test_a_step_that_fails_puts_back_what_was_left_out(trainer: Any) -> None:
    class Fails(FillsZeros):
        armed = False

        def begin(self, group: dict[str, Any]) -> None:
            if self.armed:
                raise RuntimeError("planned")

    optimizers: list[Fails] = []

    class Model(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            optimizers[0].armed = batch_idx == 2
            return super().training_step(batch, batch_idx)

    def make(model: nn.Module) -> Fails:
        optimizers.append(Fails(model.parameters()))
        return optimizers[0]

    with pytest.raises(RuntimeError, match="planned"):
        trainer(AlternatingFreeze("layer1", "layer2", every=5)).fit(Model(make), batches(4))
    assert [len(group["params"]) for group in optimizers[0].param_groups] == [2]


def test_a_loop_that_survives_a_failed_step_holds_still_afterwards() -> None:
    model = Net()

    class Fails(FillsZeros):
        armed = False

        def begin(self, group: dict[str, Any]) -> None:
            if self.armed:
                self.armed = False
                raise RuntimeError("planned")

    optimizer = Fails(model.parameters())
    controller = FreezeController(model, Every({"layer1": 3}, of="layer2"))
    controller.attach(optimizer)
    controller.begin()
    for number, batch in enumerate(batches(9)):
        optimizer.armed = number == 4
        controller.begin_step()
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        assert loss is not None
        loss.backward()
        try:
            optimizer.step()
        except RuntimeError:
            assert number == 4
    assert controller.end_epoch() == []
    assert controller.updates == {"layer1": 3, "layer2": 8}
    controller.detach()


def test_a_class_that_steps_its_parent_keeps_what_is_frozen_out_to_its_end(trainer: Any) -> None:
    seen = fit(trainer, lambda m: DecaysAll(m.parameters(), lr=0.1), SCHEDULES["alternating"][0])
    assert seen.moved() == SCHEDULES["alternating"][1]


def test_a_wrapper_without_torchs_constructor_is_as_it_was_afterwards(trainer: Any) -> None:
    made: list[Wrapper] = []

    def make(model: nn.Module) -> Wrapper:
        made.append(Wrapper(AdamW(model.parameters(), lr=0.01)))
        return made[0]

    plain = Wrapper.step
    fit(trainer, make, SCHEDULES["alternating"][0])
    assert "step" not in vars(made[0])
    assert Wrapper.step is plain
    other = Wrapper(AdamW(Net().parameters()))  # one of which nobody made anything steps on
    other.step()


def test_the_state_of_a_wrapped_optimizer_is_watched(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writes(Wrapper):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            for state in list(self.optimizer.state.values())[:1]:
                state["exp_avg"].add_(1)
            return loss

    scheduler = AlternatingFreeze("layer1", "layer2", every=5, on_finding="warn")
    monkeypatch.setattr("lightning_freeze.setup.hold_method", lambda *_, **__: "none")
    model = Net(lambda m: Writes(AdamW(m.parameters(), lr=0.01), decays=False))
    with pytest.warns(UserWarning, match=r"optimizer state .*exp_avg"):
        trainer(scheduler, limit_train_batches=9).fit(model, batches(9))


def test_parameters_of_other_modules_in_the_optimizer_are_left_alone(trainer: Any) -> None:
    outside = nn.Linear(2, 2)

    class Model(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            loss = super().training_step(batch, batch_idx)
            assert loss is not None
            return loss + outside(torch.ones(2)).square().sum()

    before = copy.deepcopy(outside.state_dict())
    model = Model(lambda m: FillsZeros([*m.parameters(), *outside.parameters()]))
    seen = Snapshots("layer1")
    outside.requires_grad_(True)
    trainer(FreezeScheduler(SCHEDULES["alternating"][0]), seen, limit_train_batches=STEPS).fit(model, batches(STEPS))
    assert seen.moved() == SCHEDULES["alternating"][1]
    assert not any(torch.equal(before[name], now) for name, now in outside.state_dict().items())


def test_an_unknown_optimizer_is_named_with_the_reason(trainer: Any) -> None:
    with pytest.warns(UserWarning, match=r"optimizer 0 \(Locked\) could not be probed: its `lock` cannot be copied"):
        trainer(AlternatingFreeze("layer1", "layer2", every=5)).fit(Net(WAYS["locked"][0]), batches(2))
    with pytest.raises(UnsupportedError, match="`audit: false` would not show it"):
        trainer(AlternatingFreeze("layer1", "layer2", every=5, audit=False)).fit(Net(WAYS["locked"][0]), batches(2))


def test_what_always_trains_is_not_probed() -> None:
    model = Net()
    controller = FreezeController(model, Every({"layer1": 5}, of="layer2"))
    controller.attach(SGD(model.layer1.parameters(), lr=0.1), SGD(model.layer2.parameters(), lr=0.1))
    assert set(controller.traits) == {0, 1}
    controller.detach()
    alone = FreezeController(model, Every({"layer1": 5}, of="layer2"))
    outside = nn.Linear(2, 2)
    alone.attach(SGD(model.parameters(), lr=0.1), WAYS["own list"][0](Named(outside)))
    assert set(alone.traits) == {0}
    alone.detach()


class Named(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layer1 = self.layer2 = module


@pytest.mark.parametrize("mode", ["reset", "offload"])
def test_the_state_of_a_wrapped_optimizer_is_neither_dropped_nor_moved(mode: Any, trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=5, optimizer_state=mode)
    with pytest.raises(
        UnsupportedError, match=rf"`optimizer_state` is '{mode}', and optimizer 0 \(Wrapper\) wraps another"
    ):
        trainer(scheduler).fit(Net(WAYS["wrapper"][0]), batches(2))


def test_the_closure_finds_the_optimizer_whole(trainer: Any, tmp_path: Any) -> None:
    class Looks(Net):
        rates: list[float] = []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            optimizer = self.optimizers()
            self.rates.append(optimizer.param_groups[1]["lr"])  # type: ignore[union-attr]
            if batch_idx == 2:
                self.trainer.save_checkpoint(tmp_path / "within.ckpt")
            if batch_idx == 3:
                added = {"params": [nn.Parameter(torch.ones(2))]}
                self.trainer.optimizers[0].add_param_group(added)
            return super().training_step(batch, batch_idx)

    made: list[FillsZeros] = []

    def make(model: nn.Module) -> FillsZeros:
        made.append(
            FillsZeros([{"params": model.layer1.parameters()}, {"params": model.layer2.parameters(), "lr": 0.2}])
        )  # type: ignore[union-attr]
        return made[0]

    model = Looks(make)
    seen = Snapshots("layer1")
    trainer(FreezeScheduler(SCHEDULES["alternating"][0]), seen, limit_train_batches=7).fit(model, batches(7))
    assert model.rates == [0.2] * 7
    assert seen.moved() == SCHEDULES["alternating"][1][:7]
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)["optimizer_states"][0]
    assert [len(group["params"]) for group in saved["param_groups"]] == [1, 1]
    assert [len(group["params"]) for group in made[0].param_groups] == [1, 1, 1]


@pytest.mark.parametrize("kind", [IgnoresClosure, IgnoresClosureFillsZeros])
def test_steps_that_never_call_their_closure_count(kind: Any, trainer: Any) -> None:
    class ByHand(Net):
        def __init__(self) -> None:
            super().__init__(lambda m: kind(m.parameters()))
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
            optimizer = self.optimizers()
            optimizer.zero_grad()  # type: ignore[union-attr]
            loss = super().training_step(batch, batch_idx)
            assert loss is not None
            self.manual_backward(loss)
            optimizer.step()  # type: ignore[union-attr]
            return None

    seen = Snapshots("layer1")
    scheduler = FreezeScheduler(SCHEDULES["alternating"][0])
    trainer(scheduler, seen, limit_train_batches=STEPS).fit(ByHand(), batches(STEPS))
    assert seen.moved() == SCHEDULES["alternating"][1]
    assert scheduler.updates == {"layer1": 5, "layer2": STEPS}


def test_hooks_of_before_find_the_optimizer_whole_after_the_step(trainer: Any) -> None:
    found: list[int] = []

    def make(model: nn.Module) -> Optimizer:
        optimizer = FillsZeros(model.parameters())
        optimizer.register_step_post_hook(
            lambda *_: found.append(len(optimizer.state_dict()["param_groups"][0]["params"]))
        )
        return optimizer

    fit(trainer, make, SCHEDULES["alternating"][0])
    assert found == [2] * STEPS
