"""A forecast is the run's own record before the run: same updates, same ends, same sizes, and nothing of it is left."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_freeze import Every, FreezeScheduler, Phase, Phases, ScheduleError, SelectionError, Until
from lightning_freeze.errors import UnsupportedError
from lightning_freeze.plan.costs import Held, Size
from lightning_freeze.report.plan_table import Forecast
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of
from lightning_freeze.trainer.forecast import Horizon, forecast
from lightning_freeze.trainer.metrics_file import read_metrics
from tests.conftest import Net, batches, make_trainer
from tests.recipes import GAN, data, model_of, scheduler_of

BATCHES = 7


def every() -> FreezeScheduler:
    return FreezeScheduler(Every({"layer1": 3}, of="layer2"))


class Still(Net):
    """A model that must not be asked for a step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("a plan trains nothing")


def foresee(
    root: Path,
    horizon: Horizon | None = None,
    *callbacks: Any,
    model: Any = None,
    loader: Any = None,
    scheduler: FreezeScheduler | None = None,
    checkpoint: Path | None = None,
    **options: Any,
) -> Forecast:
    trainer = make_trainer(root, *callbacks, scheduler or every(), **options)
    model = model or Still()
    loader = loader if loader is not None else batches(BATCHES)
    return forecast(trainer, lambda: trainer.fit(model, loader, ckpt_path=checkpoint), horizon)


def in_epochs(found: Forecast) -> list[int]:
    counted = Counter(step.epoch for step in found.steps)
    return [counted[epoch] for epoch in range(max(counted) + 1)]


def updates(found: Forecast) -> Counter[str]:
    return Counter(group for groups in found.trained for group in groups)


# --- the run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "callbacks"),
    [
        ({"max_epochs": 2}, []),
        ({"max_epochs": 3, "max_steps": 9}, []),
        ({"max_epochs": -1, "max_steps": 9}, []),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, []),
        ({"max_epochs": 3, "limit_train_batches": 4}, []),
        ({"max_epochs": 3, "overfit_batches": 2}, []),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, []),
        ({"max_epochs": 3, "accumulate_grad_batches": 10}, []),
        ({"max_epochs": 3, "max_steps": 4, "accumulate_grad_batches": 2}, []),
        ({"max_epochs": 4}, [GradientAccumulationScheduler({0: 1, 1: 3, 3: 2})]),
    ],
    ids=lambda value: (
        ",".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else str(len(value))
    ),
)
def test_it_is_the_runs_own_record(options: dict[str, Any], callbacks: list[Any], tmp_path: Path) -> None:
    planned = foresee(tmp_path / "plan", None, *callbacks, **options)
    scheduler = every()
    make_trainer(tmp_path, *copy.deepcopy(callbacks), scheduler, **options).fit(Net(), batches(BATCHES))
    recorded = steps_of(read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl"))
    assert [(step.optimizer, step.trained) for step in planned.steps] == recorded
    assert updates(planned) == scheduler.updates
    assert planned.first == 0


def saved_after_five(root: Path) -> Path:
    save = ModelCheckpoint(root, "middle", every_n_train_steps=5)
    make_trainer(root, every(), save, enable_checkpointing=True).fit(Net(), batches(BATCHES))
    return root / "middle.ckpt"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_from_a_checkpoint_it_goes_on_to_the_same_end(tmp_path: Path) -> None:
    path = saved_after_five(tmp_path)
    with pytest.warns(UserWarning, match="checkpoint that ended before the epoch ended"):
        found = foresee(tmp_path / "plan", checkpoint=path, max_epochs=-1, max_steps=11)
    assert (found.first, len(found.steps)) == (5, 6)
    assert ["layer1" in groups for groups in found.trained] == [n % 3 == 0 for n in range(5, 11)]
    assert [step.epoch for step in found.steps] == [0, 0, *[1] * 4]
    with pytest.warns(UserWarning, match="checkpoint that ended before the epoch ended"):
        assert len(foresee(tmp_path / "plan", Horizon(epochs=2), checkpoint=path).steps) == 2 + BATCHES


@pytest.mark.filterwarnings("ignore:.*checkpoint that ended before the epoch ended")
def test_of_a_checkpoints_callbacks_that_are_there_nobody_is_warned(tmp_path: Path) -> None:
    path = saved_after_five(tmp_path)
    save = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=5)
    foresee(tmp_path, None, save, checkpoint=path, enable_checkpointing=True)


def test_a_run_at_its_end_has_nothing_to_plan(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, every())
    trainer.fit(Net(), batches(BATCHES))
    trainer.save_checkpoint(path := tmp_path / "end.ckpt")
    with pytest.raises(ScheduleError, match=r"no epochs left \(max_epochs: 1, epoch: 1\)"):
        foresee(tmp_path, checkpoint=path)


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
@pytest.mark.filterwarnings("ignore:`DataLoader` returned 0 length")
def test_without_batches_there_is_nothing_to_plan(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match="there is nothing to plan: the fit has no training batches"):
        foresee(tmp_path, limit_train_batches=0)


def test_without_a_scheduler_there_is_nothing_to_plan(tmp_path: Path) -> None:
    for callbacks, named in (([], "none"), ([EarlyStopping("x")], "EarlyStopping")):
        trainer = make_trainer(tmp_path, *callbacks)
        with pytest.raises(ScheduleError, match=rf"no freeze scheduler \(callbacks: {named}\).*Add lightning_freeze"):
            forecast(trainer, lambda trainer=trainer: trainer.fit(Still(), batches(2)))


def test_a_wrong_group_is_the_runs_own_error(tmp_path: Path) -> None:
    def scheduler() -> FreezeScheduler:
        return FreezeScheduler(Phases([Phase(["head"])]), {"head": "layr2"})

    with pytest.raises(SelectionError) as planned:
        foresee(tmp_path, scheduler=scheduler())
    with pytest.raises(SelectionError) as run:
        make_trainer(tmp_path, scheduler()).fit(Net(), batches(1))
    assert str(planned.value) == str(run.value)


# --- how far --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("horizon", "options", "expected"),
    [
        (Horizon(updates=5), {}, [5]),
        (Horizon(updates=10), {"max_epochs": 1}, [7, 3]),  # what is asked for, beyond the run's end too
        (Horizon(epochs=3), {"max_epochs": 1}, [7, 7, 7]),
        (Horizon(epochs=3, updates=10), {}, [7, 3]),
        (Horizon(epochs=1, updates=10), {}, [7]),
        (Horizon(batches=4), {"max_epochs": 2}, [4, 4]),
        (Horizon(batches=4, updates=6), {"accumulate_grad_batches": 3}, [2, 2, 2]),
        (Horizon(epochs=2), {"max_epochs": -1}, [7, 7]),
        (Horizon(updates=9), {"max_epochs": -1}, [7, 2]),
        (Horizon(world=2), {}, [4]),
        (Horizon(world=2, batches=7), {}, [7]),  # given for one process
    ],
)
def test_how_far_it_looks(horizon: Horizon, options: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    assert in_epochs(foresee(tmp_path, horizon, **options)) == expected


def test_a_run_without_an_end_needs_a_limit(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError) as caught:
        foresee(tmp_path, max_epochs=-1)
    assert str(caught.value) == (
        "the run has no end (max_epochs: -1). Say how far to look: --updates N or --epochs N (in Python updates=N or epochs=N)."
    )


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.ones(4), torch.ones(3)


def test_data_without_a_length_needs_one(tmp_path: Path) -> None:
    loader: Any = DataLoader(Endless(), batch_size=2)
    for horizon in (None, Horizon(updates=3)):
        with pytest.raises(
            ScheduleError, match=r"has no length \(an IterableDataset\).*: --batches N \(in Python batches=N\)\."
        ):
            foresee(tmp_path, horizon, loader=loader)
    assert in_epochs(foresee(tmp_path, Horizon(batches=5), loader=loader, max_epochs=2)) == [5, 5]
    assert in_epochs(foresee(tmp_path, loader=loader, max_epochs=2, limit_train_batches=3)) == [3, 3]


@pytest.mark.parametrize(("world", "share"), [(2, 4), (4, 2), (7, 1), (100, 1)])
def test_processes_share_the_data_and_it_says_so(world: int, share: int, tmp_path: Path) -> None:
    found = foresee(tmp_path, Horizon(world=world), max_epochs=2)
    assert in_epochs(found) == [share, share]
    assert f"{world} processes share the data: {share} batches each in an epoch." in found.notes


def test_a_limit_of_batches_is_one_for_each_process(tmp_path: Path) -> None:
    assert in_epochs(foresee(tmp_path, Horizon(world=2), loader=batches(25), limit_train_batches=17)) == [13]


# --- what it leaves alone -------------------------------------------------------------------------------------------


def test_nothing_moves_and_nothing_is_written(tmp_path: Path) -> None:
    model = Still()
    before = copy.deepcopy(model.state_dict())
    scheduler = every()
    found = foresee(
        tmp_path / "plan",
        None,
        EarlyStopping("val_loss", check_on_train_epoch_end=True),
        ModelCheckpoint(every_n_train_steps=1),
        LearningRateMonitor("step"),
        model=model,
        scheduler=scheduler,
        max_epochs=2,
        logger=True,
        enable_checkpointing=True,
        log_every_n_steps=1,
    )
    assert len(found.steps) == 2 * BATCHES
    assert not (tmp_path / "plan").exists()
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert scheduler.updates == {"layer1": 0, "layer2": 0}


def test_weights_do_not_matter(tmp_path: Path) -> None:
    other = Still()
    nn.init.constant_(other.layer1.weight, float("nan"))
    assert foresee(tmp_path, model=other).steps == foresee(tmp_path).steps


class Counting(GAN):
    def __init__(self) -> None:
        super().__init__(hidden=8)
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch_idx)
        return super().training_step(batch, batch_idx)


def test_of_several_optimizers_one_batch_tells_the_order(tmp_path: Path) -> None:
    model = Counting()
    found = foresee(tmp_path, model=model, loader=data(6), scheduler=scheduler_of("gan"))
    assert model.seen == [0]
    assert [step.optimizer for step in found.steps] == [1, 0, 1, 1, 1, 1, 1, 0]
    assert "In every batch the optimizers step in the order seen in the first: [1, 0]." in found.notes


def test_of_several_optimizers_state_is_counted_as_kept(tmp_path: Path) -> None:
    """What leaves with one optimizer's groups does not leave with the other's: so the most that there can be is said."""
    found = foresee(
        tmp_path, model=Counting(), loader=data(6), scheduler=scheduler_of("gan", optimizer_state="offload")
    )
    assert not found.held.leaves
    told = [note for note in found.notes if "optimizer state" in note.lower()]
    assert told == [
        "With several optimizers, optimizer state is counted as kept: `optimizer_state: offload` leaves less of it."
    ]


def test_what_a_user_may_not_have_meant_is_said(tmp_path: Path) -> None:
    phases = Phases([Phase(["layer1"], updates=2)])
    found = foresee(tmp_path, scheduler=FreezeScheduler(phases, {"other": "layer2"}), loader=batches(4))
    assert (
        "The schedule runs out after update 1; its last set stays trainable. To begin again, write `repeat: true`."
        in (found.notes)
    )
    assert "Never trained in these updates: other." in found.notes
    again = Phases([Phase(["layer1"], updates=2), Phase(["layer2"], updates=1)], repeat=True)
    found = foresee(tmp_path, scheduler=FreezeScheduler(again), loader=batches(4))
    assert not any("runs out" in note or "Never" in note for note in found.notes)


def test_what_the_user_moves_is_not_in_the_plan(tmp_path: Path) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1"])]), {"teacher": {"select": "layer2", "by": "user"}})
    with pytest.warns(UserWarning, match="never freezes anything"):
        found = foresee(tmp_path, scheduler=scheduler, loader=batches(2))
    assert "Not in the plan: teacher, by user." in found.notes
    assert [*found.sizes] == ["layer1"]


def test_a_plan_without_end_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_freeze.trainer.forecast._MOST", 5)
    found = foresee(tmp_path, Horizon(updates=100), loader=batches(4))
    assert len(found.steps) == 5
    assert "The plan is cut after 5 optimizer steps." in found.notes


def test_a_plan_knows_the_rates_of_each_step(tmp_path: Path) -> None:
    row = [Phase(["layer1"], updates=1), Phase(["layer1", "layer2"], lr={"layer1": 0.5}, ramp=1)]
    found = foresee(tmp_path, scheduler=FreezeScheduler(Phases(row)), loader=batches(4))
    assert [step.lr_factors for step in found.steps] == [
        {},
        {"layer1": 0.5, "layer2": 0.5},
        {"layer1": 0.5},
        {"layer1": 0.5},
    ]


class Twice(Net):
    """Steps its one optimizer by hand, twice a batch."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(self(batch[0]).sum())
            optimizer.step()


def test_a_single_optimizer_is_watched_too_where_it_is_stepped_by_hand(tmp_path: Path) -> None:
    assert in_epochs(foresee(tmp_path, model=Twice(), max_epochs=2)) == [14, 14]


class ByHand(GAN):
    """Accumulates by hand: the first batch makes no step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if batch_idx % 2 else None


class Patient(dict[int, dict[str, float]]):
    """Metrics that end a search without end, which asks for them at the end of each imagined epoch."""

    def get(self, key: int, default: Any = None) -> Any:
        assert key < 100, "it goes on for ever"
        return super().get(key, default)


def test_a_first_batch_without_a_step_does_not_hang(tmp_path: Path) -> None:
    horizon = Horizon(updates=4, metrics=Patient({0: {"x": 1.0}}))
    with suppress(ScheduleError):
        foresee(tmp_path, horizon, model=ByHand(hidden=8), loader=data(4), scheduler=scheduler_of("gan"))


def test_max_steps_counts_as_lightning_does(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": -1, "max_steps": 10}
    scheduler = scheduler_of("gan")
    make_trainer(tmp_path, scheduler, **options).fit(model_of("gan"), data(20))
    planned = foresee(tmp_path, model=model_of("gan"), loader=data(20), scheduler=scheduler_of("gan"), **options)
    assert updates(planned) == scheduler.updates


# --- models of all kinds --------------------------------------------------------------------------------------------


class Late(Still):
    def __init__(self) -> None:
        super().__init__()
        del self.layer2

    def configure_model(self) -> None:
        self.layer2 = nn.Linear(8, 3, bias=False)


class OneCycle(Still):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.estimated = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.estimated)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_layers_that_configure_model_makes(tmp_path: Path) -> None:
    assert foresee(tmp_path, model=Late()).sizes == foresee(tmp_path).sizes


def test_a_model_that_asks_how_long_the_run_is(tmp_path: Path) -> None:
    model = OneCycle()
    found = foresee(tmp_path, model=model, max_epochs=3, accumulate_grad_batches=2)
    assert len(found.steps) == model.estimated == 12


class Says(Still):
    def on_fit_start(self) -> None:
        self.logger.log_hyperparams({"a": 1})  # type: ignore[union-attr]


class Asks(Still):
    def on_train_start(self) -> None:
        assert self.trainer.checkpoint_callback is not None


@pytest.mark.parametrize(
    "model",
    [
        Says,
        Asks,
    ],
)
def test_a_model_that_speaks_to_its_trainer(model: type[Still], tmp_path: Path) -> None:
    assert foresee(tmp_path, model=model(), logger=True, enable_checkpointing=True).steps


class Brings(Still):
    def configure_callbacks(self) -> Any:
        return [every()]


def test_a_scheduler_that_the_model_brings(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    assert forecast(trainer, lambda: trainer.fit(Brings(), batches(2))).steps


class Unified(unified.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(4, 8, bias=False), nn.Linear(8, 3, bias=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("a plan trains nothing")

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def test_the_other_lightning_package(tmp_path: Path) -> None:
    trainer: Any = unified.Trainer(
        callbacks=[every()],  # type: ignore[list-item]
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        default_root_dir=str(tmp_path / "plan"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    found = forecast(trainer, lambda: trainer.fit(Unified(), batches(BATCHES)))
    assert found.trained == foresee(tmp_path, max_epochs=2).trained
    assert not (tmp_path / "plan").exists()


# --- memory ---------------------------------------------------------------------------------------------------------

LAYER1, LAYER2 = 4 * 8, 8 * 3


def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: kind(model.parameters(), **options)


@pytest.mark.parametrize(
    ("make", "options", "gradient", "state", "constant"),
    [
        (optimizer(torch.optim.AdamW), {}, 4, 8, 4),  # two averages, and the number of steps
        (optimizer(torch.optim.AdamW, amsgrad=True), {}, 4, 12, 4),
        (optimizer(torch.optim.SGD), {}, 4, 0, 0),
        (optimizer(torch.optim.SGD, momentum=0.9), {}, 4, 4, 0),
        (optimizer(torch.optim.AdamW), {"precision": "bf16-true"}, 2, 4, 4),
        (optimizer(torch.optim.AdamW), {"precision": "bf16-mixed"}, 4, 8, 4),
        (optimizer(torch.optim.AdamW), {"precision": "64-true"}, 8, 16, 4),
    ],
    ids=["AdamW", "amsgrad", "SGD", "momentum", "bf16-true", "bf16-mixed", "64-true"],
)
def test_bytes_are_counted(make: Any, options: Any, gradient: int, state: int, constant: int, tmp_path: Path) -> None:
    found = foresee(tmp_path, model=Still(make), **options)
    assert found.sizes == {
        "layer1": Size(LAYER1, gradient * LAYER1, state * LAYER1 + constant),
        "layer2": Size(LAYER2, gradient * LAYER2, state * LAYER2 + constant),
    }
    assert not any("cannot be said" in note for note in found.notes)


class Third(Still):
    """A layer in no group, whose bias is the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Linear(3, 3)
        self.third.bias.requires_grad_(False)


def test_the_rest_has_a_size_and_trains(tmp_path: Path) -> None:
    found = foresee(tmp_path, model=Third())
    assert found.sizes["rest"] == Size(9, 36, 76)
    assert all("rest" in groups for groups in found.trained)
    frozen = foresee(
        tmp_path, model=Third(), scheduler=FreezeScheduler(Every({"layer1": 3}, of="layer2"), rest="freeze")
    )
    assert not any("rest" in groups for groups in frozen.trained)


class Odd(torch.optim.Optimizer):
    """Keeps a tensor of its own, so that no twin of it is made."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.own = [torch.zeros(3)]


def test_an_optimizer_that_cannot_be_foretold_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"optimizer 0 \(Odd\) could not be probed: NotImplementedError"):
        found = foresee(tmp_path, model=Still(optimizer(Odd)))
    assert [size.state for size in found.sizes.values()] == [0, 0]
    assert "The size of the state of Odd is not known; it is not counted." in found.notes


def test_an_optimizer_that_the_run_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="optimizer 0 \\(LBFGS\\)"):
        foresee(tmp_path, model=Still(optimizer(torch.optim.LBFGS)))


# --- metrics --------------------------------------------------------------------------------------------------------

VALUES = [1.0, 0.5, 0.6, 0.7, 0.4, 0.5, 0.1, 0.2]  # worse twice in epochs 2 and 3, once in 5


class Logs(Net):
    """Logs these values after validation, or in training."""

    name = "val_loss"

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", VALUES[self.current_epoch])


class LogsInTraining(Net):
    name = "train_loss"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", VALUES[self.current_epoch], on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class LogsBoth(LogsInTraining):
    """Lightning's CSVLogger calls the value at an epoch's end ``train_loss_epoch`` then; in the run it is ``train_loss``."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", VALUES[self.current_epoch], on_step=True, on_epoch=True)
        return Net.training_step(self, batch, batch_idx)


def test_what_becomes_of_frozen_gradients_and_state_is_said(tmp_path: Path) -> None:
    row = Phases([Phase(["layer1"], updates=2), Phase(["layer2"], updates=2)], repeat=True)
    plain = foresee(tmp_path, model=Net(), scheduler=FreezeScheduler(row))
    assert plain.held == Held()
    assert not any("backward" in note or "host memory" in note for note in plain.notes)
    done = foresee(
        tmp_path, model=Net(), scheduler=FreezeScheduler(row, skip_backward=False, optimizer_state="offload")
    )
    assert done.held == Held(leaves=True, unless_within=10)
    assert any(
        "backward makes the gradients of all groups (224 B)" in note and "`skip_backward: false`" in note
        for note in done.notes
    )
    assert any("unless they train again within 10 updates" in note for note in done.notes)
    shared = foresee(tmp_path, Horizon(world=2), model=Net(), scheduler=FreezeScheduler(row, optimizer_state="reset"))
    assert shared.held == Held(leaves=True)
    assert any("whether backward is skipped" in note for note in shared.notes)


def until(metric: str) -> FreezeScheduler:
    return FreezeScheduler(
        Phases(
            [
                Phase(["layer1"], until=Until(metric, patience=2)),
                Phase(["layer2"], until=Until(metric, patience=1, max_epochs=3)),
                Phase(["all"]),
            ]
        )
    )


@pytest.mark.parametrize(
    "model",
    [Logs, LogsInTraining, LogsBoth],
)
def test_an_earlier_runs_metrics_end_the_phases_where_that_run_did(model: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(tmp_path, until(model.name), max_epochs=8, logger=logger, log_every_n_steps=1)
    trainer.fit(model(), batches(2), batches(1) if model is Logs else None)
    recorded = steps_of(read_records(Path(logger.log_dir) / "freeze_audit.jsonl"))
    assert [sorted(groups) for _, groups in recorded] == [
        *[["layer1"]] * 8, *[["layer2"]] * 4, *[["layer1", "layer2"]] * 4
    ]  # fmt: skip
    metrics = read_metrics(Path(logger.log_dir) / "metrics.csv")
    found = foresee(tmp_path, Horizon(metrics=metrics), scheduler=until(model.name), loader=batches(2), max_epochs=8)
    assert [(step.optimizer, step.trained) for step in found.steps] == recorded
    assert not any("No values of" in note for note in found.notes)


def test_without_values_a_phase_lasts_its_max_epochs_or_for_good(tmp_path: Path) -> None:
    last = Phase(["layer2"], until=Until("acc", mode="max"))
    phases = Phases([Phase(["layer1"], until=Until("val_loss", max_epochs=3)), last])
    for metrics, missing in (({}, "'acc', 'val_loss'"), ({0: {"val_loss": 1.0}}, "'acc'")):
        found = foresee(
            tmp_path, Horizon(metrics=metrics), scheduler=FreezeScheduler(phases), loader=batches(2), max_epochs=6
        )
        assert [sorted(groups) for groups in found.trained] == [*[["layer1"]] * 6, *[["layer2"]] * 6]
        (note,) = [note for note in found.notes if "waits for them" in note]
        said = f"The metrics given have no {missing}" if metrics else f"No values of {missing} are given (`metrics`)"
        assert note.startswith(f"{said}, so a phase that waits for them")


def test_the_epochs_of_a_forecast_are_marked(tmp_path: Path) -> None:
    found = foresee(tmp_path, max_epochs=3)
    assert [step.epoch for step in found.steps] == [*[0] * 7, *[1] * 7, *[2] * 7]
    assert found.trained == [step.trained for step in found.steps]


def test_these_tests_can_fail(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a plan trains nothing"):
        make_trainer(tmp_path, every()).fit(Still(), batches(1))
    assert isinstance(make_trainer(tmp_path), pl.Trainer)
