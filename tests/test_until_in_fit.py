"""Phases that end by a metric, in fits: wherever and however often the model logs it, resumed, and never logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_freeze import FreezeController, FreezeScheduler, Phase, Phases, ScheduleError, Until
from tests.conftest import Net, batches, make_trainer
from tests.loop import step
from tests.observer import same

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
BATCHES = 2


class Logs(Net):
    """Logs ``x`` as ``values`` say, a value an epoch; data depend on epoch and batch alone."""

    def __init__(self, values: list[float]) -> None:
        super().__init__(lambda model: torch.optim.AdamW(model.parameters(), lr=0.05))
        self.values = values

    @property
    def value(self) -> float:
        return self.values[self.trainer.current_epoch]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        made = torch.Generator().manual_seed(1000 * self.trainer.current_epoch + batch_idx)
        x, y = torch.randn(4, 4, generator=made), torch.randn(4, 3, generator=made)
        return nn.functional.mse_loss(self(x), y)


class InTraining(Logs):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("x", self.value, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class OnStepToo(Logs):
    """A step's value is not the epoch's: 100 in every first batch, and less than nothing in the others."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("x", 100.0 if batch_idx == 0 else 2 * self.value - 100, on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)


class InValidation(Logs):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("x", self.value)


class AtValidationsEnd(Logs):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("x", self.value)


class AtEpochsEnd(Logs):
    """Which Lightning calls after callbacks have heard of the epoch's end."""

    def on_train_epoch_end(self) -> None:
        self.log("x", self.value)


KINDS: list[Any] = [InTraining, OnStepToo, InValidation, AtValidationsEnd, AtEpochsEnd]
THEN_LAYER2 = [Phase(["layer1"], until=Until("x", patience=1)), Phase(["layer2"])]


class Seen(pl.Callback):
    """The layer that trains, by epoch and batch."""

    def __init__(self, scheduler: FreezeScheduler) -> None:
        self.scheduler = scheduler
        self.batches: dict[tuple[int, int], str] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Of the batch that is over: no update ends a phase here.
        self.batches[trainer.current_epoch, batch_idx] = "".join(sorted(self.scheduler.trainable)).replace("layer", "")

    @property
    def epochs(self) -> str:
        """A letter for each epoch: ``112`` is layer1 for two epochs, then layer2."""
        return "".join(layer for (_, batch), layer in sorted(self.batches.items()) if batch == 0)


def fit(
    root: Path,
    kind: Any,
    values: list[float],
    schedule: Any = None,
    *callbacks: Any,
    checkpoint: str | None = None,
    on_schedule_change: Any = "raise",
    loader: Any = None,
    **options: Any,
) -> tuple[Seen, Any]:
    chosen = Phases(schedule or THEN_LAYER2)
    scheduler, model = FreezeScheduler(chosen, on_schedule_change=on_schedule_change), kind(values)
    seen = Seen(scheduler)
    made = {"max_epochs": len(values), "enable_checkpointing": any(isinstance(c, Saver) for c in callbacks), **options}
    trainer = make_trainer(root, scheduler, seen, *callbacks, **made)
    validated = batches(1) if hasattr(kind, "validated") or issubclass(kind, (InValidation, AtValidationsEnd)) else None
    trainer.fit(model, loader or batches(BATCHES), validated, ckpt_path=checkpoint)
    assert scheduler.findings == []
    return seen, {name: value.detach().clone() for name, value in model.state_dict().items()}


Saver = pl.callbacks.ModelCheckpoint


# --- wherever it is logged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_phase_ends_when_its_metric_stops_improving(kind: Any, tmp_path: Path) -> None:
    assert fit(tmp_path, kind, [3, 2, 2, 1, 1])[0].epochs == "11122"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 2, 2, 1, 1], "11122"),
        ([3, 4, 5], "112"),
        ([5, 4, 3, 2], "1111"),
        ([3, float("nan"), 1, 1], "1122"),
    ],
)
def test_so_it_does_in_a_plain_loop(values: list[float], expected: str) -> None:
    model, seen = Net(), ""
    optimizer = model.configure_optimizers()
    with FreezeController(model, Phases(THEN_LAYER2)) as controller:
        controller.attach(optimizer)
        controller.begin()
        for value in values:
            step(model, optimizer, controller, next(iter(batches(1))), 0)
            seen += "".join(sorted(controller.trainable)).replace("layer", "")
            controller.metrics.log({"x": value})
            assert controller.end_epoch() == []
    assert seen == expected


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_said_why(kind: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fit(tmp_path, kind, [3, 3, 3])
    said = caplog.text
    line = (
        "freeze, epoch 1: the phase that trains layer1 is over: 'x' (3) has not been better than 3 for 1 epoch. "
        "Now training: layer2."
    )
    assert said.count("is over") == 1
    assert line in said


@pytest.mark.parametrize("kind", [InValidation, AtValidationsEnd])
def test_epochs_without_a_validation_say_nothing(kind: Any, tmp_path: Path) -> None:
    """Validated in the second and the fourth epoch: the second value is no better than the first."""
    assert fit(tmp_path, kind, [9, 3, 9, 3, 0, 0], check_val_every_n_epoch=2)[0].epochs == "111122"
    ends = [Phase(["layer1"], until=Until("x", patience=1, max_epochs=3)), Phase(["layer2"])]
    assert fit(tmp_path, kind, [9, 3, 9, 3, 0, 0], ends, check_val_every_n_epoch=2)[0].epochs == "111222"


class Twice(InValidation):
    """Its first validation in each epoch is worse than any other."""

    def on_validation_epoch_start(self) -> None:
        self.again = not getattr(self, "again", True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("x", self.value if self.again else 100.0 + self.trainer.current_epoch)


def test_of_several_validations_in_an_epoch_the_last_one_counts(tmp_path: Path) -> None:
    seen, _ = fit(tmp_path, Twice, [3, 2, 2, 1], val_check_interval=0.5, num_sanity_val_steps=0, loader=batches(4))
    assert seen.epochs == "1112"


def test_the_sanity_check_is_no_epochs_validation(tmp_path: Path) -> None:
    class Sane(InValidation):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", -1e9 if self.trainer.sanity_checking else self.value)

    assert fit(tmp_path, Sane, [3, 2, 2, 1], num_sanity_val_steps=1)[0].epochs == "1112"


def test_phases_by_metrics_follow_each_other(tmp_path: Path) -> None:
    row = [Phase(["layer1"], until=Until("x", patience=1)), Phase(["layer2"], until=Until("x", "max", patience=1))]
    values = [3, 3, 1, 2, 2, 2, 2]
    assert fit(tmp_path, InTraining, values, [Phases(row, repeat=2)])[0].epochs == "1122211"


def test_a_callbacks_metric_counts_as_well(tmp_path: Path) -> None:
    class Judge(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            module.log("x", module.value)

    scheduler = FreezeScheduler(Phases(THEN_LAYER2))
    seen = Seen(scheduler)
    make_trainer(tmp_path, Judge(), scheduler, seen, max_epochs=4).fit(Logs([3, 2, 2, 1]), batches(BATCHES))
    assert seen.epochs == "1112"


@pytest.mark.filterwarnings("ignore:.*You defined a `validation_step` but have no `val_dataloader`.*")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fast_development_run(kind: Any, tmp_path: Path) -> None:
    assert fit(tmp_path, kind, [3], fast_dev_run=True)[0].epochs == "1"


def test_the_other_lightning_package(tmp_path: Path) -> None:
    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.mse_loss(self.layer2(self.layer1(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Validated(Model):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", [3.0, 2.0, 2.0, 1.0][self.trainer.current_epoch])

    class Late(Model):
        def on_train_epoch_end(self) -> None:
            self.log("x", [3.0, 2.0, 2.0, 1.0][self.trainer.current_epoch])

    class Trace(lightning.Callback):
        seen = ""

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            self.seen += self.now

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            self.now = "".join(sorted(scheduler.trainable))[-1]

    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    for kind in (Validated, Late):
        scheduler, trace = FreezeScheduler(Phases(THEN_LAYER2)), Trace()
        trainer = lightning.Trainer(
            callbacks=[scheduler, trace],
            max_epochs=4,
            default_root_dir=str(tmp_path),
            enable_checkpointing=False,
            enable_model_summary=False,
            **quiet,
        )
        trainer.fit(kind(), batches(BATCHES), batches(1) if kind is Validated else None)
        assert trace.seen == "1112"


# --- resumed ---------------------------------------------------------------------------------------------------------

VALUES: list[float] = [3, 2, 2, 9, 8, 8, 7]
ROW = [
    Phase(["layer1"], until=Until("x", patience=1)),
    Phase(["layer2"], until=Until("x", patience=1), lr={"layer2": 0.1}),
]
RESUMED = [Phases(ROW, repeat=3)]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("kind", [InTraining, InValidation])
def test_resumed_from_the_checkpoints_of_epochs_ends(kind: Any, tmp_path: Path) -> None:
    saver = Saver(dirpath=tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    straight, weights = fit(tmp_path / "straight", kind, VALUES, RESUMED, saver)
    assert straight.epochs == "1112221"
    for epoch in range(len(VALUES) - 1):
        resumed, again = fit(
            tmp_path / "again", kind, VALUES, RESUMED, checkpoint=str(tmp_path / f"epoch={epoch}.ckpt")
        )
        assert resumed.batches == {here: what for here, what in straight.batches.items() if here[0] > epoch}
        assert same(again, weights), epoch


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_resumed_from_the_middle_of_epochs(tmp_path: Path) -> None:
    """Best value and patience come from the checkpoint."""

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    straight, weights = fit(tmp_path / "straight", InTraining, VALUES, RESUMED, Saves())
    for epoch in range(len(VALUES)):
        resumed, again = fit(
            tmp_path / "again", InTraining, VALUES, RESUMED, checkpoint=str(tmp_path / f"{epoch}.ckpt")
        )
        assert resumed.batches == {here: what for here, what in straight.batches.items() if here > (epoch, 0)}
        assert same(again, weights), epoch


# --- never logged ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_that_is_not_logged_stops_the_run_with_what_is(kind: Any, tmp_path: Path) -> None:
    misspelt = [Phase(["layer1"], until=Until("xx", patience=1)), Phase(["layer2"])]
    with pytest.raises(ScheduleError) as caught:
        fit(tmp_path, kind, [3, 2, 2, 1], misspelt)
    text = str(caught.value)
    assert text.startswith(
        "`phases[0].until.metric` is 'xx', but by the end of epoch 0 (update 2) nothing of that name"
    )
    assert "Did you mean 'x' (3)?" in text or kind is OnStepToo
    assert "'x'" in text
    assert "freeze/" not in text
    assert "log it: `self.log('xx', …, on_epoch=True)` in the model's training_step or validation_step." in text
    (saved,) = tmp_path.glob("freeze-stopped-*.ckpt")
    assert f"The run was saved to {str(saved)!r}: go on from there with the corrected schedule" in text
    assert "`on_schedule_change: continue`" in text
    assert caught.value.key == "phases[0].until.metric"


@pytest.mark.parametrize("kind", [InTraining, InValidation])
def test_the_stopped_run_goes_on_under_the_mended_schedule(kind: Any, tmp_path: Path) -> None:
    misspelt = [Phase(["layer1"], until=Until("xx", patience=1)), Phase(["layer2"])]
    with pytest.raises(ScheduleError):
        fit(tmp_path, kind, [3, 2, 2, 1], misspelt)
    (saved,) = tmp_path.glob("freeze-stopped-*.ckpt")
    with pytest.raises(ScheduleError, match="made under another schedule"):
        fit(tmp_path, kind, [3, 2, 2, 1], checkpoint=str(saved))
    with pytest.warns(UserWarning, match="By `on_schedule_change: continue` the run goes on with its counts: layer1 2"):
        seen, _ = fit(tmp_path, kind, [3, 3, 3, 1, 1], checkpoint=str(saved), on_schedule_change="continue")
    # The first epoch's value was heard by nobody: the second's is the first.
    assert seen.epochs == "1122"


@pytest.mark.parametrize("kind", [InTraining, InValidation])
def test_of_a_later_phases_metric_it_is_only_warned(kind: Any, tmp_path: Path) -> None:
    row = [
        Phase(["layer1"], epochs=3),
        Phase(["layer2"], until=Until("y", patience=1)),
        Phase(["layer1"], until=Until("z")),
        Phase(["layer2"]),
    ]
    with (
        pytest.warns(
            UserWarning, match=r"`phases\[1\].until.metric` is 'y'.*The run will stop when that phase has had"
        ),
        pytest.warns(UserWarning, match=r"`phases\[2\].until.metric` is 'z'"),
        pytest.raises(
            ScheduleError, match=r"`phases\[1\].until.metric` is 'y', but by the end of epoch 3 \(update 8\)"
        ),
    ):
        fit(tmp_path, kind, [1, 1, 1, 1, 1], row)


def test_of_each_metric_it_is_warned_once(tmp_path: Path) -> None:
    row = [Phase(["layer1"], epochs=4), Phase(["layer2"], until=Until("y"))]
    with pytest.warns(UserWarning, match="until.metric") as caught:
        fit(tmp_path, InTraining, [1, 1, 1], row)
    assert sum("until.metric" in str(warning.message) for warning in caught) == 1


def test_without_a_validation_so_far_a_metric_may_still_come(tmp_path: Path) -> None:
    """It is validated in the third epoch for the first time, and then ``xx`` is not there."""
    misspelt = [Phase(["layer1"], until=Until("xx")), Phase(["layer2"])]
    with pytest.raises(ScheduleError, match=r"by the end of epoch 2 \(update 6\)"):
        fit(tmp_path, InValidation, [1, 1, 1, 1], misspelt, check_val_every_n_epoch=3)


def test_a_fast_development_run_finds_a_metric_that_is_not_logged(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError) as caught:
        fit(tmp_path, InTraining, [1], [Phase(["layer1"], until=Until("xx")), Phase(["layer2"])], fast_dev_run=True)
    assert "was saved" not in str(caught.value)
    assert list(tmp_path.glob("**/*.ckpt")) == []


# --- another schedule ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_changed_schedule_goes_on_with_best_value_and_patience(tmp_path: Path) -> None:
    """More patience is given in the middle of a phase."""
    saver = Saver(dirpath=tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    patient = [Phase(["layer1"], until=Until("x", patience=2)), Phase(["layer2"])]
    fit(tmp_path, InTraining, [3, 1, 2], patient, saver)
    more = [Phase(["layer1"], until=Until("x", patience=3)), Phase(["layer2"])]
    with pytest.warns(UserWarning, match="By `on_schedule_change: continue` the run goes on with its counts"):
        seen, _ = fit(
            tmp_path,
            InTraining,
            [3, 1, 2, 2, 2, 2],
            more,
            checkpoint=str(tmp_path / "epoch=2.ckpt"),
            on_schedule_change="continue",
        )
    assert seen.epochs == "112"


NONE = -1.0  # not logged in that epoch


class Seldom(InTraining):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (
            Logs.training_step(self, batch, batch_idx)
            if self.value == NONE
            else super().training_step(batch, batch_idx)
        )


class SeldomLate(AtEpochsEnd):
    def on_train_epoch_end(self) -> None:
        if self.value != NONE:
            super().on_train_epoch_end()


def saver(root: Path, at_epoch_end: bool = True) -> Any:
    return Saver(
        dirpath=root,
        save_top_k=-1,
        monitor=None if at_epoch_end else "x",
        filename="{epoch}",
        save_on_train_epoch_end=at_epoch_end,
    )


@pytest.mark.parametrize("kind", [Seldom, SeldomLate])
@pytest.mark.parametrize("saves", [False, True])
def test_an_epoch_that_does_not_log_says_nothing(kind: Any, saves: bool, tmp_path: Path) -> None:
    values = [3, NONE, 2, NONE, 2, NONE, 0]
    assert fit(tmp_path, kind, values, None, *([saver(tmp_path)] if saves else []))[0].epochs == "1111122"


def test_saving_does_not_make_a_late_value_count_twice(tmp_path: Path) -> None:
    assert fit(tmp_path, AtEpochsEnd, [3, 2, 2, 1, 1], None, saver(tmp_path))[0].epochs == "11122"


@pytest.mark.parametrize("saves", [False, True])
def test_a_late_value_is_its_own_epochs(saves: bool, tmp_path: Path) -> None:
    row = [Phase(["layer2"], epochs=1), *THEN_LAYER2]
    seen, _ = fit(tmp_path, AtEpochsEnd, [0, 5, 4, 4, 4], row, *([saver(tmp_path)] if saves else []))
    assert seen.epochs == "21112"


def test_resumed_from_the_checkpoints_of_after_validation(tmp_path: Path) -> None:
    straight, weights = fit(tmp_path / "straight", InValidation, VALUES, RESUMED, saver(tmp_path, False))
    for epoch in range(len(VALUES) - 1):
        resumed, again = fit(
            tmp_path / "again", InValidation, VALUES, RESUMED, checkpoint=str(tmp_path / f"epoch={epoch}.ckpt")
        )
        assert resumed.batches == {here: what for here, what in straight.batches.items() if here[0] > epoch}, epoch
        assert same(again, weights), epoch


def test_resumed_with_a_metric_logged_late(tmp_path: Path) -> None:
    straight, weights = fit(tmp_path / "straight", AtEpochsEnd, VALUES, RESUMED, saver(tmp_path))
    assert straight.epochs == "1112221"
    for epoch in range(len(VALUES) - 1):
        resumed, again = fit(
            tmp_path / "again", AtEpochsEnd, VALUES, RESUMED, checkpoint=str(tmp_path / f"epoch={epoch}.ckpt")
        )
        assert resumed.batches == {here: what for here, what in straight.batches.items() if here[0] > epoch}, epoch
        assert same(again, weights), epoch


@pytest.mark.parametrize("kind", [Seldom, SeldomLate])
def test_resumed_where_epochs_do_not_log(kind: Any, tmp_path: Path) -> None:
    values = [3, NONE, 2, NONE, 1, 0]
    fit(tmp_path / "straight", kind, values, None, saver(tmp_path))
    for epoch in range(len(values) - 1):
        assert fit(tmp_path / "again", kind, values, checkpoint=str(tmp_path / f"epoch={epoch}.ckpt"))[
            0
        ].epochs == "1" * (len(values) - 1 - epoch)


def test_the_stopped_run_of_a_late_metric_goes_on(tmp_path: Path) -> None:
    misspelt = [Phase(["layer1"], until=Until("xx", patience=1)), Phase(["layer2"])]
    with pytest.raises(ScheduleError):
        fit(tmp_path, AtEpochsEnd, [3, 2, 2, 1], misspelt)
    (saved,) = tmp_path.glob("freeze-stopped-*.ckpt")
    with pytest.warns(UserWarning, match="By `on_schedule_change: continue`"):
        seen, _ = fit(tmp_path, AtEpochsEnd, [3, 3, 3, 1, 1], checkpoint=str(saved), on_schedule_change="continue")
    assert seen.epochs == "1122"


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (Until("x", patience=99, max_epochs=3), "122"),
        (Until("x", "max", patience=1), "111"),
    ],
)
def test_continued_under_another_until(after: Until, expected: str, tmp_path: Path) -> None:
    values: list[float] = [9, 8, 7, 6]
    fit(
        tmp_path,
        InTraining,
        values,
        [Phase(["layer1"], until=Until("x", patience=99)), Phase(["layer2"])],
        saver(tmp_path),
    )
    with pytest.warns(UserWarning, match="By `on_schedule_change: continue`"):
        seen, _ = fit(
            tmp_path,
            InTraining,
            [*values, 3, 4, 5],
            [Phase(["layer1"], until=after), Phase(["layer2"])],
            checkpoint=str(tmp_path / "epoch=3.ckpt"),
            on_schedule_change="continue",
        )
    assert seen.epochs == expected


def test_a_later_callbacks_metric_counts_as_well(tmp_path: Path) -> None:
    class Judge(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            module.log("x", module.value)

    scheduler = FreezeScheduler(Phases(THEN_LAYER2))
    seen = Seen(scheduler)
    make_trainer(tmp_path, scheduler, seen, Judge(), max_epochs=4).fit(Logs([3, 2, 2, 1]), batches(BATCHES))
    assert seen.epochs == "1112"
