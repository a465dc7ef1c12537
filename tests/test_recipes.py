"""Every recipe of ``configs/``, resumed at every update, and foreseen: the same draws, the same bits, the same record.

That processes with other global seeds draw alike is tested in `tests/plan/test_pick.py`, and under DDP.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_freeze import FreezeController, Phases, ScheduleError
from lightning_freeze.report.plan_table import Forecast
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of
from lightning_freeze.trainer.forecast import Horizon, forecast
from tests.conftest import make_trainer
from tests.loop import step
from tests.observer import same
from tests.recipes import RECIPES, arguments_of, data, model_of, scheduler_of
from tests.test_resume import Trace

EPOCHS, BATCHES = 4, 3  # an odd number, so that an epoch ends with half a window where two batches are accumulated
METRICS = {epoch: {"val_loss": float(epoch // 2)} for epoch in range(EPOCHS)}  # what the models of tests/recipes.py log

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    # a group whose turn is a few updates long may be warned of where its gradients are zeros; none of these tests' matter
    pytest.mark.filterwarnings("ignore:.*and did not move.*"),
]


def accumulates(name: str) -> int:
    """In manual optimization the Trainer accumulates nothing."""
    return 1 if name == "gan" else 2


def fit(name: str, root: Path, checkpoint: Path | None = None, save: bool = False, **options: Any) -> Any:
    scheduler, model = scheduler_of(name), model_of(name)
    trace = Trace(scheduler, root if save else None)
    trainer = make_trainer(root, scheduler, trace, **{"max_epochs": EPOCHS, **options})
    trainer.fit(model, data(BATCHES), data(1), ckpt_path=str(checkpoint) if checkpoint else None)
    assert [finding for finding in scheduler.findings if finding.severity == "error"] == []
    bits = copy.deepcopy((dict(model.state_dict()), {i: o.state_dict() for i, o in enumerate(trainer.optimizers)}))
    return bits, trace.seen, scheduler


def foresee(name: str, root: Path, checkpoint: Path | None = None, **options: Any) -> Forecast:
    trainer = make_trainer(root, scheduler_of(name), **{"max_epochs": EPOCHS, **options})
    model, path = model_of(name), str(checkpoint) if checkpoint else None
    return forecast(
        trainer, lambda: trainer.fit(model, data(BATCHES), data(1), ckpt_path=path), Horizon(metrics=METRICS)
    )


def steps_in(found: Forecast) -> list[tuple[int, frozenset[str]]]:
    return [(step.optimizer, step.trained) for step in found.steps]


class Loop:
    """A recipe in a plain loop, as far as `EPOCHS` and `BATCHES` go; where it is cut it goes on from what was saved there.

    Args:
        name: The recipe.
        saved: What `save` gave, to go on from.
    """

    def __init__(self, name: str, saved: Any = None) -> None:
        self.model = model_of(name)
        self.optimizer = self.model.configure_optimizers()
        self.controller = FreezeController(self.model, **arguments_of(name))
        self.seen: dict[tuple[int, int], Any] = {}
        self.saves: dict[tuple[int, int], Any] = {}
        if saved is not None:
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
        self.controller.attach(self.optimizer, closures=True)
        self.controller.begin(state=saved and saved["controller"])
        self.next: tuple[int, int] = saved["next"] if saved else (0, 0)

    def save(self) -> Any:
        file = io.BytesIO()
        torch.save(self.controller.state_dict(), file)
        file.seek(0)
        tensors = copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        return {"next": self.next, "controller": torch.load(file, weights_only=True), **tensors}

    def run(self, saves: bool = False) -> None:
        with self.controller:
            while self.next[0] < EPOCHS:
                epoch, number = self.next
                self.model.epoch = epoch
                step(self.model, self.optimizer, self.controller, None, number)
                self.seen[self.next] = (sorted(self.controller.trainable), self.controller.updates)
                if number + 1 == BATCHES:
                    self.controller.metrics.log(METRICS[epoch])
                    findings = self.controller.end_epoch()
                    assert [finding for finding in findings if finding.severity == "error"] == []
                self.next = (epoch, number + 1) if number + 1 < BATCHES else (epoch + 1, 0)
                if saves:
                    self.saves[self.next] = self.save()
            assert self.controller.finish() == []


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "gan"])
def test_resumed_at_every_update_it_draws_and_moves_alike(name: str) -> None:
    straight = Loop(name)
    straight.run(saves=True)
    assert len(straight.seen) == EPOCHS * BATCHES
    for here, checkpoint in straight.saves.items():
        again = Loop(name, checkpoint)
        again.run()
        assert again.seen == {at: what for at, what in straight.seen.items() if at >= here}, here
        assert again.controller.updates == straight.controller.updates, here
        assert same(again.model.state_dict(), straight.model.state_dict()), here
        assert same(again.optimizer.state_dict(), straight.optimizer.state_dict()), here


@pytest.mark.parametrize("name", ["gan", "unfreezing_on_plateau"])
def test_resumed_at_every_update_under_a_trainer(name: str, tmp_path: Path) -> None:
    """Manual optimization, and a phase that a metric ends; `tests/test_resume.py` has other schedules."""
    bits, straight, scheduler = fit(name, tmp_path, save=True)
    assert len(straight) == EPOCHS * BATCHES
    for here in straight:
        if name == "unfreezing_on_plateau" and here[1] == BATCHES - 1:
            continue  # Lightning validates no more what such a checkpoint was saved before; below
        checkpoint = tmp_path / f"{here[0]}-{here[1]}.ckpt"
        resumed_bits, resumed, again = fit(name, tmp_path / "resumed", checkpoint)
        assert resumed == {at: what for at, what in straight.items() if at > here}, here
        assert again.updates == scheduler.updates, here
        assert same(resumed_bits[0], bits[0]), here
        assert same(resumed_bits[1], bits[1]), here


def test_a_value_that_a_checkpoint_was_saved_before_is_lost_and_this_is_said(tmp_path: Path) -> None:
    _, straight, _ = fit("unfreezing_on_plateau", tmp_path, save=True)
    with pytest.warns(
        UserWarning, match="after the last batch of epoch 0 and before 'val_loss' was logged, and Lightning"
    ):
        _, resumed, _ = fit("unfreezing_on_plateau", tmp_path / "resumed", tmp_path / f"0-{BATCHES - 1}.ckpt")
    assert resumed[1, 0] == straight[1, 0]


@pytest.mark.parametrize("name", RECIPES)
def test_the_plan_is_the_runs_own_record_update_for_update(name: str, tmp_path: Path) -> None:
    """With accumulation, and again from a checkpoint in the middle of an epoch and of a window, one of an epoch's end."""
    options = {"accumulate_grad_batches": accumulates(name)}
    planned = foresee(name, tmp_path / "plan", **options)
    assert not (tmp_path / "plan" / "freeze_audit.jsonl").exists(), "a run that is only looked at writes nothing"
    fit(name, tmp_path, save=True, **options)
    recorded = steps_of(read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl"))
    assert steps_in(planned) == recorded
    assert len(recorded) >= EPOCHS * BATCHES // accumulates(name)
    for middle in ("1-1", "2-0", "3-0", *(() if name == "unfreezing_on_plateau" else ("2-2",))):
        rest = foresee(name, tmp_path / "plan", tmp_path / f"{middle}.ckpt", **options)
        assert rest.first + len(rest.steps) == len(recorded), middle
        assert steps_in(rest) == recorded[rest.first :], middle
        assert rest.first > 0


@pytest.mark.parametrize("name", RECIPES)
def test_something_trains_and_something_is_frozen_in_every_recipe(name: str, tmp_path: Path) -> None:
    planned = foresee(name, tmp_path, max_epochs=12)
    everything = set(planned.sizes)
    assert all(step.trained for step in planned.steps)
    assert any(step.trained != everything for step in planned.steps)
    assert planned.trained == [step.trained for step in planned.steps]
    assert {step.epoch for step in planned.steps} == {*range(12)}


def test_progressive_freezing_is_undone_at_the_end_and_gradual_unfreezing_arrives(tmp_path: Path) -> None:
    blocks = [f"blocks/{i}" for i in range(8)]
    for name, expected in {
        "progressive_freezing": [{*blocks, "stem", "rest"}] * 2
        + [{*blocks[n:], "rest"} for n in range(1, 9)]
        + [{*blocks, "stem", "rest"}] * 2,
        "gradual_unfreezing": [{*blocks[8 - n :], "head"} for n in range(9)] + [{*blocks, "head", "stem"}] * 3,
    }.items():
        planned = foresee(name, tmp_path, max_epochs=12)
        assert [set(step.trained) for step in planned.steps] == [groups for groups in expected for _ in range(BATCHES)]


def test_a_plan_of_another_seed_is_another(tmp_path: Path) -> None:
    schedule = Phases(scheduler_of("lisa")._schedule.phases, repeat=True, seed=1)  # type: ignore[attr-defined]
    trainer = make_trainer(tmp_path, scheduler_of("lisa", schedule=schedule), max_epochs=EPOCHS)
    other = forecast(trainer, lambda: trainer.fit(model_of("lisa"), data(BATCHES), data(1)))
    assert steps_in(other) != steps_in(foresee("lisa", tmp_path))


# --- a changed schedule ---------------------------------------------------------------------------------------------


def test_a_changed_schedule_is_refused_with_a_readable_difference(tmp_path: Path) -> None:
    fit("lisa", tmp_path, save=True)
    phases = scheduler_of("lisa")._schedule
    changed = Phases([phase.__class__(phase.train, updates=7, pick=phase.pick) for phase in phases.phases], repeat=True)  # type: ignore[attr-defined]
    trainer = make_trainer(tmp_path, scheduler_of("lisa", schedule=changed), max_epochs=EPOCHS)
    with pytest.raises(ScheduleError) as caught:
        trainer.fit(model_of("lisa"), data(BATCHES), data(1), ckpt_path=str(tmp_path / "1-1.ckpt"))
    text = str(caught.value)
    assert "made under another schedule" in text
    assert "-    updates: 5" in text
    assert "+    updates: 7" in text
    assert text.count("\n") < 12
    assert "`on_schedule_change: continue`" in text


def test_a_changed_schedule_goes_on_when_asked_to(tmp_path: Path) -> None:
    """Its counts, and its place: 6 updates were made, of phases of 5 and 1; the second goes on to the 7 of now."""
    fit("lisa", tmp_path, save=True)
    schedule: Any = scheduler_of("lisa")._schedule
    phase = schedule.phases[0]
    changed = Phases([phase.__class__(phase.train, updates=7, pick=phase.pick)], repeat=True)
    scheduler = scheduler_of("lisa", schedule=changed, on_schedule_change="continue")
    trace = Trace(scheduler)
    trainer = make_trainer(tmp_path, scheduler, trace, max_epochs=EPOCHS)
    with pytest.warns(
        UserWarning,
        match="updates: 7[\\s\\S]*the run goes on with its counts: .*ends 6; it goes on at `phases\\[0\\]` .visit 2.",
    ):
        trainer.fit(model_of("lisa"), data(BATCHES), data(1), ckpt_path=str(tmp_path / "1-2.ckpt"))
    assert scheduler.updates["ends"] == EPOCHS * BATCHES
    sets = [what[0] for what in trace.seen.values()]  # after the updates 7, 8, …: what the next one trains
    assert [sets[0]] * 5 == sets[:5]
    assert sets[5] != sets[4], "the second phase ends with its seventh update, the twelfth of all"
