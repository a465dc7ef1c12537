"""Everything the gate changed is undone: at the end, on an exception, and before validate and test."""

from __future__ import annotations

import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_freeze import AlternatingFreeze, FreezeAudit, FreezeController, Phase, Phases
from lightning_freeze.probe.clone import undisturbed
from tests.conftest import Net, batches
from tests.test_sabotage import Normed, body_frozen


class Fails(pl.Callback):
    """Raises at one hook, and remembers the optimizer."""

    def __init__(self, hook: str, error: BaseException) -> None:
        self.error = error
        setattr(self, hook, self._fail)

    def _fail(self, trainer: Any, *rest: Any) -> None:
        raise self.error


def hooks(optimizer: Any) -> int:
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


class Counts(pl.Callback):
    """The hooks on the optimizer while training."""

    seen: int = 0

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.seen = hooks(trainer.optimizers[0])


@pytest.mark.parametrize("make", [lambda: AlternatingFreeze("layer1", "layer2", every=2), lambda: FreezeAudit()])
def test_nothing_is_left_after_a_fit(make: Any, trainer: Any) -> None:
    model, counts = Net(), Counts()
    fit = trainer(make(), counts)
    fit.fit(model, batches(4))
    assert counts.seen > 0
    assert hooks(fit.optimizers[0]) == 0


HOOKS = [
    "on_train_start",
    "on_train_batch_start",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
]


@pytest.mark.parametrize("hook", HOOKS)
def test_nothing_is_left_after_an_exception(hook: str, trainer: Any) -> None:
    model = Normed()
    scheduler = body_frozen(frozen_modules="eval")
    fit = trainer(scheduler, Fails(hook, RuntimeError("planned")))
    with pytest.raises(RuntimeError, match="planned"):
        fit.fit(model, batches(4))
    assert hooks(fit.optimizers[0]) == 0
    assert all(module.training for module in model.modules())


def test_nothing_is_left_after_an_interrupt(trainer: Any) -> None:
    model = Normed()
    fit = trainer(body_frozen(frozen_modules="eval"), Fails("on_train_batch_end", KeyboardInterrupt()))
    with pytest.raises(SystemExit):
        fit.fit(model, batches(4))
    assert hooks(fit.optimizers[0]) == 0
    assert all(module.training for module in model.modules())


class Evaluated(Normed):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        assert not self.training

    predict_step = test_step


def test_test_and_validate_after_a_fit_see_a_model_as_it_was(trainer: Any) -> None:
    scheduler, model = body_frozen(frozen_modules="eval"), Evaluated()
    fit = trainer(scheduler, limit_test_batches=1)
    fit.fit(model, batches(4), batches(1))
    counts = scheduler.updates
    fit.validate(model, batches(1), verbose=False)
    fit.test(model, batches(1), verbose=False)
    assert scheduler.updates == counts == {"body": 0, "layer1": 4, "layer2": 4}
    assert all(module.training for module in model.modules())
    assert hooks(fit.optimizers[0] if fit.optimizers else model.configure_optimizers()) == 0


def test_validation_within_a_fit_keeps_frozen_modules_in_eval_afterwards(trainer: Any) -> None:
    modes = []

    class Modes(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            modes.append(pl_module.body[1].training)

    trainer(body_frozen(frozen_modules="eval"), Modes(), val_check_interval=2).fit(Normed(), batches(4), batches(1))
    assert modes == [False] * 4


def test_the_progress_bar_shows_the_active_groups_and_forgets_them(trainer: Any) -> None:
    shown = []

    class Bar(pl.callbacks.ProgressBar):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            shown.append(self.get_metrics(trainer, pl_module).get("train"))

    bar = Bar()
    scheduler = AlternatingFreeze("layer1", "layer2", every=2)
    trainer(bar, scheduler, enable_progress_bar=True).fit(Net(), batches(4))
    assert shown == ["fast", "fast+slow"] * 2  # what the coming step trains
    assert "get_metrics" not in vars(bar)


def with_attention() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), layer, nn.Linear(4, 1))


def controller_over(model: nn.Module, optimizer: Any) -> FreezeController:
    turns = Phases([Phase(["0", "1", "2"], updates=2, lr={"0": 0.5}), Phase(["3"], updates=1)], repeat=True)
    controller = FreezeController(model, turns, {name: name for name in "0123"}, frozen_modules="eval")
    controller.attach(optimizer)
    controller.begin()
    return controller


def facts(model: nn.Module, optimizer: Any) -> list[Any]:
    groups = [(id(group), [*map(id, group["params"])], group["lr"]) for group in optimizer.param_groups]
    flags = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()]
    return [groups, *flags, hooks(optimizer), torch.backends.mha.get_fastpath_enabled(), nn.Module.train]


def train(model: nn.Module, optimizer: Any, *controllers: FreezeController) -> None:
    for controller in controllers:
        controller.begin_step()
    optimizer.zero_grad()
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("steps", [1, 3])  # the second is frozen then
def test_controllers_of_one_model_are_detached_in_any_order(first: int, steps: int) -> None:
    model = with_attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = facts(model, optimizer)
    controllers = [controller_over(model, optimizer) for _ in range(2)]
    for _ in range(steps):
        train(model, optimizer, *controllers)
        assert facts(model, optimizer)[0] == before[0], "each step leaves the param groups as they were"
    controllers.pop(first).detach()
    train(model, optimizer, *controllers)
    controllers.pop().detach()
    assert facts(model, optimizer) == before


def test_runs_of_two_threads_leave_nothing_behind() -> None:
    """They begin and end in the same order."""
    models = [with_attention() for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in models]
    before = [*map(facts, models, optimizers)]
    began, ended = threading.Event(), threading.Event()

    def run(number: int) -> None:
        if number:
            began.wait()
        with controller_over(models[number], optimizers[number]) as controller:
            train(models[number], optimizers[number], controller)
            train(models[number], optimizers[number], controller)
            train(models[number], optimizers[number], controller)
            began.set()
            if number:
                ended.wait()
                train(models[number], optimizers[number], controller)
        ended.set()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(run, number) for number in range(2)]:
            done.result()
    assert [*map(facts, models, optimizers)] == before


def test_probes_of_two_threads_restore_what_is_the_process_s() -> None:
    """They begin and end in the same order, unless the second waits for the first."""
    began, inside, ended = threading.Event(), threading.Event(), threading.Event()
    before = [*warnings.filters], random.getstate()

    def first() -> None:
        with undisturbed():
            began.set()
            inside.wait(0.05)
        ended.set()

    def second() -> None:
        began.wait()
        with undisturbed():
            inside.set()
            random.random()
            ended.wait()

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(first), threads.submit(second)]:
            done.result()
    assert ([*warnings.filters], random.getstate()) == before
