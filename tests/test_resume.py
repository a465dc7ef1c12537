"""Interrupted at any step and resumed: the same counts and sets everywhere, the same bits at window boundaries."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_freeze import Every, FreezeScheduler, FreezeViolation, Phase, Phases, ScheduleError, SelectionError
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of
from lightning_freeze.trainer import seam
from tests.conftest import Net, batches, make_trainer
from tests.observer import same

EPOCHS, BATCHES, ACCUMULATE = 2, 20, 2
SCHEDULES: dict[str, Any] = {
    "every": lambda: Every({"layer1": 3}, of="layer2"),
    "phases": lambda: Phases(
        [Phase(["layer1"], updates=2), Phases([Phase(["layer2"], updates=3), Phase(["all"], updates=1)], repeat=2)],
        repeat=True,
    ),
    "epochs": lambda: Phases([Phase(["layer2"], updates=4), Phase(["layer1"], epochs=1), Phase(["all"])]),
}


class SameData(Net):
    """Its data depend on epoch and batch alone, so that a resumed run sees what the straight one saw."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        made = torch.Generator().manual_seed(1000 * self.trainer.current_epoch + batch_idx)
        x, y = torch.randn(4, 4, generator=made), torch.randn(4, 3, generator=made)
        return nn.functional.mse_loss(self(x), y)


class Trace(pl.Callback):
    """What trained at each batch, and every so often a checkpoint."""

    def __init__(self, scheduler: FreezeScheduler, folder: Path | None = None) -> None:
        self.scheduler, self.folder = scheduler, folder
        self.seen: dict[tuple[int, int], Any] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        here = (trainer.current_epoch, batch_idx)
        self.seen[here] = (sorted(self.scheduler.trainable), self.scheduler.updates)
        if self.folder is not None:
            trainer.save_checkpoint(self.folder / f"{here[0]}-{here[1]}.ckpt")


def run(root: Path, schedule: Any, checkpoint: str | None = None, save: bool = False) -> tuple[Any, Trace, Any]:
    scheduler = FreezeScheduler(schedule)
    trace = Trace(scheduler, root if save else None)
    model = SameData()
    fit = make_trainer(root, scheduler, trace, max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATE)
    fit.fit(model, batches(BATCHES), ckpt_path=checkpoint)
    assert scheduler.findings == []
    bits = copy.deepcopy((dict(model.state_dict()), fit.optimizers[0].state_dict()))
    return bits, trace, scheduler


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_resumed_at_every_step_it_goes_on_alike(name: str, tmp_path: Path) -> None:
    bits, straight, scheduler = run(tmp_path, SCHEDULES[name](), save=True)
    assert len(straight.seen) == EPOCHS * BATCHES
    total = sum(count for _, count in steps_of_run(tmp_path).items())
    assert total == EPOCHS * BATCHES // ACCUMULATE
    for here in straight.seen:
        root = tmp_path / "resumed"
        resumed_bits, resumed, again = run(root, SCHEDULES[name](), str(tmp_path / f"{here[0]}-{here[1]}.ckpt"))
        expected = {at: what for at, what in straight.seen.items() if at > here}
        at_boundary = (here[1] + 1) % ACCUMULATE == 0
        if at_boundary:
            assert resumed.seen == expected, here
            assert same(resumed_bits[0], bits[0]), here
            assert same(resumed_bits[1], bits[1]), here
        else:  # Lightning drops the gradients of a half-done window; counts and sets are what they were
            assert resumed.seen == expected, here
        assert again.updates == scheduler.updates, here


def steps_of_run(root: Path) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for step in steps_of(read_records(root / "freeze_runs" / "freeze_audit.jsonl")):
        found[step] = found.get(step, 0) + 1
    return found


def test_a_checkpoint_can_be_read_without_unpickling_code(tmp_path: Path) -> None:
    run(tmp_path, SCHEDULES["every"](), save=True)
    state = torch.load(tmp_path / "1-3.ckpt", weights_only=True)["callbacks"]["lightning_freeze.FreezeScheduler"]
    assert state["position"]["updates"] == {"layer1": 4, "layer2": 12}


def test_a_checkpoint_of_another_schedule_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path, SCHEDULES["every"](), save=True)
    with pytest.raises(ScheduleError) as caught:
        run(tmp_path / "other", Every({"layer1": 4}, of="layer2"), str(tmp_path / "0-5.ckpt"))
    text = str(caught.value)
    assert "made under another schedule" in text
    assert "-  periods: {layer1: 3}" in text
    assert "+  periods: {layer1: 4}" in text


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_without_our_state_starts_anew_with_a_warning(tmp_path: Path) -> None:
    model = SameData()
    fit = make_trainer(tmp_path, max_epochs=1)
    fit.fit(model, batches(4))
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(
        UserWarning,
        match=r"plain.ckpt' holds no state of a freeze scheduler, so the schedule starts from its first step",
    ):
        _, trace, scheduler = run(tmp_path, SCHEDULES["every"](), str(tmp_path / "plain.ckpt"))
    assert scheduler.updates == {"layer1": 4, "layer2": 10}
    assert min(trace.seen) == (1, 0)


class Twice(Net):
    """Is fitted twice, with its optimizer kept or made again, in automatic or manual optimization."""

    def __init__(self, keeps: bool, automatic: bool) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.keeps, self.kept = keeps, None

    def configure_optimizers(self) -> Any:
        if self.kept is None or not self.keeps:
            self.kept = super().configure_optimizers()
        return self.kept

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        return optimizer.step()


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("keeps", [True, False], ids=["same optimizer", "new optimizer"])
@pytest.mark.parametrize(
    ("same_trainer", "counts", "said"),
    [
        (True, (3, 8), "freeze: the fit goes on after this Trainer's last one, which made 4 updates."),
        (False, (2, 4), "freeze: the Trainer is another than that of the last fit, so the schedule begins again."),
    ],
)
def test_a_second_fit_goes_on_under_the_same_trainer(
    same_trainer: bool, counts: Any, said: str, keeps: bool, automatic: bool, trainer: Any, monkeypatch: Any
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(seam, "say", lambda trainer, text: lines.append(text))
    scheduler, model = FreezeScheduler(SCHEDULES["every"]()), Twice(keeps, automatic)
    first = trainer(scheduler, max_epochs=1)
    first.fit(model, batches(4))
    assert not any("Trainer" in line for line in lines)
    second = first if same_trainer else trainer(scheduler, max_epochs=1)
    second.fit_loop.max_epochs = second.current_epoch + 1
    second.fit(model, batches(4))
    assert second.current_epoch == 1 + same_trainer
    assert tuple(scheduler.updates.values()) == counts
    assert [line for line in lines if "Trainer" in line] == [said]
    assert scheduler.findings == []


def test_a_fit_that_was_refused_keeps_the_place_of_the_one_before(trainer: Any, monkeypatch: Any) -> None:
    scheduler, model = FreezeScheduler(SCHEDULES["every"]()), Twice(True, True)
    run = trainer(scheduler, max_epochs=1)
    run.fit(model, batches(4))
    run.fit_loop.max_epochs = 2
    with monkeypatch.context() as patch:
        patch.setattr(
            model, "configure_optimizers", lambda: torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        )
        with pytest.raises(SelectionError, match="is in no optimizer"):
            run.fit(model, batches(4))
    run.fit(model, batches(4))
    assert tuple(scheduler.updates.values()) == (3, 8)
    assert scheduler.findings == []


KILLED = """
import sys, time
import pytorch_lightning as pl
sys.path.insert(0, {here!r})
from tests.test_resume import *

class Slow(pl.Callback):
    def on_train_batch_end(self, trainer, *rest):
        print(trainer.global_step, flush=True)
        time.sleep(0.05)

scheduler = FreezeScheduler(SCHEDULES["every"]())
saver = pl.callbacks.ModelCheckpoint(dirpath={root!r}, save_last=True, every_n_train_steps=3, save_top_k=0)
fit = make_trainer({root!r}, scheduler, saver, Slow(), max_epochs=EPOCHS, accumulate_grad_batches=ACCUMULATE,
                   enable_checkpointing=True)
fit.fit(SameData(), batches(BATCHES))
"""


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.slow
def test_killed_and_resumed_from_the_last_checkpoint(tmp_path: Path) -> None:
    bits, _, scheduler = run(tmp_path / "straight", SCHEDULES["every"]())
    here = str(Path(__file__).resolve().parents[1])
    code = KILLED.format(here=here, root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=here)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "14":  # in the second epoch
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    resumed_bits, _, again = run(tmp_path, SCHEDULES["every"](), str(tmp_path / "last.ckpt"))
    assert again.updates == scheduler.updates
    assert same(resumed_bits[0], bits[0])
    assert same(resumed_bits[1], bits[1])
    assert (
        len(steps_of(read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl"))) == EPOCHS * BATCHES // ACCUMULATE
    )


class Validated(SameData):
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("loss", nn.functional.mse_loss(self(batch[0]), batch[1]))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("at_epoch_end", [True, False], ids=["saved at epoch's end", "saved after validation"])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resumed_from_the_checkpoints_that_lightning_saves(name: str, at_epoch_end: bool, tmp_path: Path) -> None:
    """At an epoch's end, after our own part of it, and after validation, before it."""

    def fit(root: Path, epochs: int, checkpoint: str | None = None) -> Any:
        scheduler, model = FreezeScheduler(SCHEDULES[name]()), Validated()
        trace = Trace(scheduler)
        saver = pl.callbacks.ModelCheckpoint(dirpath=root, save_last=True, save_on_train_epoch_end=at_epoch_end)
        trainer = make_trainer(root, scheduler, trace, saver, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, batches(5), batches(2), ckpt_path=checkpoint)
        return dict(model.state_dict()), scheduler.updates, trace.seen

    bits, counts, seen = fit(tmp_path / "straight", 4)
    fit(tmp_path / "first", 2)
    resumed_bits, resumed_counts, resumed = fit(tmp_path / "second", 4, str(tmp_path / "first" / "last.ckpt"))
    assert resumed_counts == counts
    assert resumed == {at: what for at, what in seen.items() if at[0] >= 2}
    assert same(resumed_bits, bits)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:this schedule never freezes anything")
@pytest.mark.parametrize(("before", "after"), [("freeze", "train"), ("train", "freeze")])
def test_another_rest_is_refused(before: Any, after: Any, tmp_path: Path) -> None:
    def fit(rest: Any, checkpoint: str | None) -> Any:
        scheduler = FreezeScheduler(Phases([Phase(["layer2"])]), rest=rest)
        trainer = make_trainer(tmp_path, scheduler, max_epochs=2 if checkpoint else 1)
        trainer.fit(SameData(), batches(4), ckpt_path=checkpoint)
        return trainer

    fit(before, None).save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ScheduleError, match="made under another `rest`"):
        fit(after, str(tmp_path / "one.ckpt"))


def test_a_fit_with_nothing_left_to_do_keeps_the_state(tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: str | None) -> tuple[Any, FreezeScheduler]:
        scheduler = FreezeScheduler(SCHEDULES["every"]())
        trainer = make_trainer(tmp_path, scheduler, max_epochs=epochs)
        trainer.fit(SameData(), batches(4), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "now.ckpt")
        return trainer, scheduler

    fit(2, None)
    _, scheduler = fit(2, str(tmp_path / "now.ckpt"))
    assert scheduler.updates == {"layer1": 3, "layer2": 8}
    _, scheduler = fit(3, str(tmp_path / "now.ckpt"))
    assert scheduler.updates == {"layer1": 4, "layer2": 12}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_what_a_checkpoints_own_comparison_found_is_not_lost(tmp_path: Path) -> None:
    class SavesAndStops(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if rest[-1] == 2:
                module.layer1.weight.data.add_(1)
            if rest[-1] == 3:
                trainer.save_checkpoint(tmp_path / "moved.ckpt")
                raise RuntimeError("planned")

    def scheduler() -> FreezeScheduler:
        return FreezeScheduler(Phases([Phase(["layer2"])]), {"still": "layer1"})

    with pytest.raises(RuntimeError, match="planned"):
        make_trainer(tmp_path, scheduler(), SavesAndStops()).fit(SameData(), batches(8))
    with pytest.raises(FreezeViolation, match="'layer1.weight' .group 'still', frozen. moved"):
        make_trainer(tmp_path, scheduler()).fit(SameData(), batches(8), ckpt_path=str(tmp_path / "moved.ckpt"))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_optimizer_state_is_watched_after_a_resume_too(tmp_path: Path) -> None:
    """Restoring gives an optimizer another dict for its state."""

    class Decays(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if rest[-1] == 11:
                trainer.optimizers[0].state[module.layer1.weight]["exp_avg"].mul_(0.5)

    run(tmp_path, SCHEDULES["every"](), save=True)
    scheduler = FreezeScheduler(SCHEDULES["every"]())
    trainer = make_trainer(tmp_path, scheduler, Decays(), max_epochs=1, accumulate_grad_batches=ACCUMULATE)
    with pytest.raises(FreezeViolation, match=r"optimizer state of 'layer1.weight' .* \(exp_avg\) moved"):
        trainer.fit(SameData(), batches(BATCHES), ckpt_path=str(tmp_path / "0-5.ckpt"))
