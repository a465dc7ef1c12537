"""`FreezeScheduler` in a Trainer: what it shows, what it refuses, what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor, nn

from lightning_freeze import (
    AlternatingFreeze,
    Every,
    FreezeAudit,
    FreezeScheduler,
    InputAudit,
    Phase,
    Phases,
    ScheduleError,
    SelectionError,
    UnsupportedError,
)
from lightning_freeze.report.records import read_records
from lightning_freeze.trainer.seam import refuse_strategy
from tests.conftest import Net, batches
from tests.observer import Snapshots


def test_the_two_spellings_of_the_founding_case_are_the_same(trainer: Any) -> None:
    one = AlternatingFreeze(slow="layer1", fast="layer2", every=5)
    other = FreezeScheduler(Every({"layer1": 5}, of="layer2"))
    first, second = Net(), Net()
    trainer(one).fit(first, batches(12))
    trainer(other).fit(second, batches(12))
    assert one.updates == {"slow": 3, "fast": 12}
    assert other.updates == {"layer1": 3, "layer2": 12}
    assert torch.equal(first.layer1.weight, second.layer1.weight)


def test_together_false_takes_turns(trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=5, together=False)
    trainer(scheduler).fit(Net(), batches(12))
    assert scheduler.updates == {"slow": 2, "fast": 10}


def test_before_a_fit_there_is_nothing_to_see() -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=5)
    assert (scheduler.updates, scheduler.trainable, scheduler.findings) == ({}, frozenset(), [])


class Asks(Net):
    """Leaves out the forward of what will not train."""

    asked: list[bool]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        (scheduler,) = [c for c in self.trainer.callbacks if isinstance(c, FreezeScheduler)]  # type: ignore[attr-defined]
        self.asked.append(scheduler.will_train("slow"))
        hidden = self.layer1(batch[0])
        hidden = hidden if self.asked[-1] else hidden.detach()
        return nn.functional.mse_loss(self.layer2(torch.tanh(hidden)), batch[1])


def test_will_train_tells_a_training_step_what_comes(trainer: Any) -> None:
    model = Asks()
    model.asked = []
    scheduler = AlternatingFreeze("layer1", "layer2", every=3)
    trainer(scheduler).fit(model, batches(7))
    assert model.asked == [True, False, False, True, False, False, True]
    with pytest.raises(SelectionError, match="no group 'slwo'. Did you mean 'slow'"):
        scheduler.will_train("slwo")


def test_counts_and_findings_go_to_the_logger(trainer: Any, tmp_path: Path) -> None:
    fit = trainer(AlternatingFreeze("layer1", "layer2", every=5), logger=CSVLogger(str(tmp_path)), max_epochs=2)
    fit.fit(Net(), batches(5))
    assert fit.callback_metrics["freeze/slow/updates"] == 2
    assert fit.callback_metrics["freeze/fast/updates"] == 10
    assert fit.callback_metrics["freeze/findings/error"] == 0
    metrics = Path(fit.logger.log_dir, "metrics.csv").read_text()
    assert "freeze/slow/updates" in metrics
    assert (Path(fit.logger.log_dir) / "freeze_audit.jsonl").exists()


class Remote(Logger):
    """A logger without a folder."""

    name, version = "remote", "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("logger", [False, Remote()], ids=["no logger", "no folder"])
def test_records_lie_in_a_folder_of_their_own_without_that_of_a_logger_and_are_appended_to(
    logger: Any, trainer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        for _ in range(2):
            trainer(AlternatingFreeze("layer1", "layer2", every=5), logger=logger).fit(Net(), batches(5))
    said = [message for message in caplog.messages if "records of this run" in message]
    assert said == [f"freeze: the records of this run are written to {tmp_path}/freeze_runs/freeze_audit.jsonl."] * 2
    records = list(read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl"))
    assert [record["type"] for record in records] == ["run", "phase", "counts"] * 2
    assert records[0]["groups"] == {
        "slow": {"parameters": 1, "elements": 32, "bytes": 128, "gradient_bytes": 128, "state_bytes": 2 * 128 + 4},
        "fast": {"parameters": 1, "elements": 24, "bytes": 96, "gradient_bytes": 96, "state_bytes": 2 * 96 + 4},
    }
    assert len({record["run"] for record in records}) == 2
    assert [record["run"] for record in records] == [records[0]["run"]] * 3 + [records[3]["run"]] * 3


@pytest.mark.parametrize("callback", ["scheduler", "audit", "inputs"])
def test_a_folder_in_the_place_of_the_records_is_refused_before_training(
    callback: str, trainer: Any, tmp_path: Path
) -> None:
    (tmp_path / "freeze_runs" / "freeze_audit.jsonl").mkdir(parents=True)
    made = {"audit": FreezeAudit, "inputs": InputAudit}.get(callback, lambda: AlternatingFreeze("layer1", "layer2", 5))
    fit = trainer(made())
    with pytest.raises(ValueError, match="freeze_audit.jsonl is a folder: records of a run are written to"):
        fit.fit(Net(), batches(1))
    assert fit.fit_loop.epoch_loop.batch_progress.total.ready == 0


def test_records_that_can_no_longer_be_written_do_not_end_a_run(trainer: Any, tmp_path: Path) -> None:
    class Replaces(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            (tmp_path / "freeze_runs" / "freeze_audit.jsonl").unlink(missing_ok=True)
            (tmp_path / "freeze_runs" / "freeze_audit.jsonl").symlink_to("/dev/null")

    with pytest.warns(UserWarning, match="no longer written to .*freeze_audit.jsonl is a link.* The run goes on"):
        trainer(AlternatingFreeze("layer1", "layer2", every=5), Replaces()).fit(Net(), batches(1))


class Misplaced(Net):
    """Steps its optimizer once more, in a hook."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        optimizer.step(closure)
        if self.hook == "optimizer_step":
            optimizer.step(closure)

    def on_train_start(self) -> None:
        if self.hook == "on_train_start":
            self(torch.ones(2, 4)).sum().backward()
            self.trainer.optimizers[0].step()


@pytest.mark.parametrize(
    ("hook", "skip", "change", "text"),
    [
        (
            "optimizer_step",
            True,
            "step",
            "after 1 update: it steps again .*Set `skip_backward: false`.*`change: batch`",
        ),
        ("optimizer_step", False, "step", ""),
        ("optimizer_step", True, "batch", ""),
        (
            "on_train_start",
            True,
            "step",
            "after 0 updates: it steps before .*Step in `training_step` or later; `skip_backward: false`",
        ),
        ("on_train_start", False, "batch", "after 0 updates: it steps before .*`skip_backward: false` does not help"),
    ],
)
def test_a_step_where_none_is_expected_works_or_names_its_hook(
    hook: str, skip: Any, change: Any, text: str, trainer: Any
) -> None:
    phases = Phases([Phase(["layer1"], updates=1), Phase(["layer2"], updates=3)], repeat=True, change=change)
    scheduler = FreezeScheduler(phases, skip_backward=skip)
    if text:
        with pytest.raises(RuntimeError, match=rf"optimizer 0 \(\w+\), in `{hook}`, {text}"):
            trainer(scheduler).fit(Misplaced(hook), batches(6))
    else:
        trainer(scheduler).fit(Misplaced(hook), batches(6))
        assert scheduler.updates == ({"layer1": 4, "layer2": 8} if change == "batch" else {"layer1": 3, "layer2": 9})
        assert scheduler.findings == []


@pytest.mark.filterwarnings("ignore:.*fast_dev_run.*")
def test_a_fast_dev_run_leaves_nothing_behind(trainer: Any, tmp_path: Path) -> None:
    trainer(AlternatingFreeze("layer1", "layer2", every=5), fast_dev_run=2).fit(Net(), batches(5))
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_is_a_line_and_the_fit_a_table(trainer: Any, capsys: Any, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        trainer(AlternatingFreeze("layer1", "layer2", every=5)).fit(Net(), batches(10))
    assert "freeze, epoch 0: slow +2 (2), fast +10 (10) | 2 frozen intervals compared | no findings" in caplog.text
    start, end = [record.message for record in caplog.records if "lightning-freeze" in record.message]
    assert start.startswith("lightning-freeze begins. Now training: fast, slow.\n")
    assert "2 of 2 frozen intervals held, bit for bit" in end
    assert capsys.readouterr().out == ""


def test_a_schedule_that_runs_out_says_so_once(trainer: Any, caplog: Any) -> None:
    scheduler = FreezeScheduler(Phases([Phase(["layer1"], updates=2), Phase(["layer2"], updates=2)]))
    with caplog.at_level("INFO"):
        trainer(scheduler, max_epochs=2).fit(Net(), batches(6))
    assert caplog.text.count("the schedule has run out after 4 updates; its last set stays trainable: layer2.") == 1
    assert scheduler.updates == {"layer1": 2, "layer2": 10}


# --- refusals -------------------------------------------------------------------------------------------------------


def test_a_parameter_that_no_optimizer_holds(trainer: Any) -> None:
    model = Net(lambda m: torch.optim.SGD(m.layer2.parameters(), lr=0.1))
    with pytest.raises(
        SelectionError, match=r"'layer1.weight' of group 'slow' is in no optimizer.*configure_optimizers"
    ):
        trainer(AlternatingFreeze("layer1", "layer2", every=5)).fit(model, batches(2))


def test_an_unknown_name_in_a_schedule_offers_groups_and_modules(trainer: Any) -> None:
    scheduler = FreezeScheduler(Every({"layer3": 5}, of="fast"), groups={"fast": "layer2"})
    with pytest.raises(
        ScheduleError, match=r"`periods` names 'layer3', which is not a group.*Did you mean 'layer2', 'layer1'"
    ):
        trainer(scheduler).fit(Net(), batches(2))


def test_two_schedulers_in_one_trainer(trainer: Any) -> None:
    pair = [AlternatingFreeze("layer1", "layer2", every=5), FreezeScheduler(Every({"layer1": 5}, of="layer2"))]
    with pytest.raises((ScheduleError, RuntimeError), match=r"freeze schedulers|stateful callback"):
        trainer(*pair).fit(Net(), batches(2))


def test_deepspeed_is_refused() -> None:
    kind = type("DeepSpeedStrategy", (), {})
    with pytest.raises(UnsupportedError, match="DeepSpeed, which keeps gradients of its own.*strategy='ddp'"):
        refuse_strategy(kind())


@pytest.mark.parametrize(("options", "refused"), [({}, False), ({"use_orig_params": False}, True)])
def test_fsdp_without_original_parameters_is_refused(options: Any, refused: bool) -> None:
    strategy = FSDPStrategy(**options)
    if refused:
        with pytest.raises(UnsupportedError, match="use_orig_params=True"):
            refuse_strategy(strategy)
    else:
        refuse_strategy(strategy)


def test_a_refusal_comes_before_training(trainer: Any) -> None:
    class Batches(pl.Callback):
        count = 0

        def on_train_batch_start(self, *rest: Any) -> None:
            self.count += 1

    seen = Batches()
    with pytest.raises(SelectionError):
        trainer(AlternatingFreeze("layer9", "layer2", every=5), seen).fit(Net(), batches(2))
    assert seen.count == 0


BAD_ARGUMENTS = [
    (lambda: AlternatingFreeze("a", "b", every=0), "`every` is 0, but must be a whole number of at least 1"),
    (lambda: AlternatingFreeze("a", "b", every=2.5), "`every` is 2.5.*nearest valid value is 2"),  # type: ignore[arg-type]
    (lambda: FreezeScheduler("Every"), "`schedule` is 'Every', but must be a schedule"),  # type: ignore[arg-type]
    (lambda: FreezeScheduler(Every({"a": 2}), rest="trian"), "`rest` is 'trian'.*Did you mean 'train'"),  # type: ignore[arg-type]
    (lambda: FreezeScheduler(Every({"a": 2}), groups=["a"]), "`groups` is .'a'., but must map"),  # type: ignore[arg-type]
    (lambda: FreezeScheduler(Every({"a": 2}), on_finding="rise"), "`on_finding` is 'rise'.*Did you mean 'raise'"),  # type: ignore[arg-type]
    (
        lambda: FreezeScheduler(Every({"a": 2}), frozen_modules="evla"),
        "`frozen_modules` is 'evla'.*Did you mean 'eval'",
    ),  # type: ignore[arg-type]
    (lambda: FreezeAudit(every_n_updates=0), "`every_n_updates` is 0"),
]


@pytest.mark.parametrize(("make", "text"), BAD_ARGUMENTS)
def test_bad_arguments_teach(make: Any, text: str) -> None:
    with pytest.raises(ScheduleError, match=text):
        make()


# --- models ---------------------------------------------------------------------------------------------------------


class Configured(Net):
    """Its layers are made in ``configure_model``, after ``setup``."""

    def __init__(self) -> None:
        super().__init__()
        del self.layer1, self.layer2

    def configure_model(self) -> None:
        if not hasattr(self, "layer1"):
            self.layer1, self.layer2 = nn.Linear(4, 8, bias=False), nn.Linear(8, 3, bias=False)


def test_modules_made_in_configure_model(trainer: Any) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=2)
    trainer(scheduler).fit(Configured(), batches(4))
    assert scheduler.updates == {"slow": 2, "fast": 4}


class Compiled(Net):
    """A layer compiled in place carries ``_orig_mod`` in its names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = torch.compile(self.layer1, backend="eager")  # type: ignore[assignment]


def test_compiled_names_are_as_the_user_wrote_them(trainer: Any) -> None:
    scheduler, model = AlternatingFreeze("layer1.weight", "layer2", every=2), Compiled()
    assert "layer1._orig_mod.weight" in dict(model.named_parameters())
    trainer(scheduler).fit(model, batches(4))
    assert scheduler.updates == {"slow": 2, "fast": 4}


def test_the_users_own_frozen_parameters_are_said_once_and_left_alone(trainer: Any, caplog: Any) -> None:
    model = Net()
    model.own = nn.Linear(2, 2)
    model.own.requires_grad_(False)
    scheduler = AlternatingFreeze("layer1", "layer2", every=2, rest="error")
    with caplog.at_level("INFO"):
        trainer(scheduler).fit(model, batches(4))
    assert caplog.text.count("2 parameters found with requires_grad=False (own.weight, own.bias)") == 1
    assert scheduler.updates == {"slow": 2, "fast": 4}


@pytest.mark.filterwarnings("ignore:this schedule never freezes anything")
@pytest.mark.parametrize(("rest", "moves"), [("train", True), ("freeze", False)])
def test_rest_trains_always_or_never(rest: Any, moves: bool, trainer: Any) -> None:
    model = Net()
    before = model.layer2.weight.detach().clone()
    scheduler = FreezeScheduler(Phases([Phase(["layer1"])]), rest=rest)
    trainer(scheduler).fit(model, batches(4))
    assert torch.equal(before, model.layer2.weight) is not moves
    assert scheduler.updates == ({"layer1": 4, "rest": 4} if moves else {"layer1": 4})
    assert scheduler.findings == []


# --- the other Lightning --------------------------------------------------------------------------------------------


class UnifiedNet(unified.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer2(self.layer1(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


def test_the_callbacks_work_in_lightning_pytorch(tmp_path: Path) -> None:
    scheduler, audit = AlternatingFreeze("layer1", "layer2", every=3), FreezeAudit()
    fit = unified.Trainer(
        callbacks=[scheduler, audit],
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=str(tmp_path),
    )
    fit.fit(UnifiedNet(), batches(6))
    assert scheduler.updates == {"slow": 4, "fast": 12}
    assert scheduler.findings == audit.findings == []
    assert isinstance(scheduler, unified.Callback)
    assert isinstance(scheduler, pl.Callback)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
def test_precisions(precision: Any, trainer: Any) -> None:
    scheduler, slow = AlternatingFreeze("layer1", "layer2", every=3), Snapshots("layer1")
    # One update in bfloat16 must be larger than its rounding.
    model = Net(lambda m: torch.optim.SGD(m.parameters(), lr=1.0, momentum=0.9))
    trainer(scheduler, slow, precision=precision).fit(model, batches(7))
    assert slow.moved() == [step % 3 == 0 for step in range(7)]
    assert scheduler.findings == []


def one_cycle(optimizer: Any) -> Any:
    return {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20), "interval": "step"}


def plateau(optimizer: Any) -> Any:
    return {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0), "monitor": "loss"}


class Scheduled(Net):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)  # type: ignore[arg-type]
        return loss


@pytest.mark.parametrize("rate", [one_cycle, plateau])
def test_learning_rate_schedulers_tick_on(rate: Any, trainer: Any) -> None:
    def make(model: nn.Module) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": rate(optimizer)}

    scheduler, slow = AlternatingFreeze("layer1", "layer2", every=4), Snapshots("layer1")
    trainer(scheduler, slow, max_epochs=2).fit(Scheduled(make), batches(8))
    assert slow.moved() == [step % 4 == 0 for step in range(16)]
    assert scheduler.findings == []


def test_the_rest_outside_of_every_optimizer_need_not_move(trainer: Any) -> None:
    model = Net(lambda m: torch.optim.AdamW([m.layer1.weight, m.layer2.weight]))
    model.layer3 = nn.Linear(4, 4)
    model.forward = lambda x: Net.forward(model, model.layer3(x))  # type: ignore[method-assign]
    model.layer4 = nn.Linear(2, 2)
    scheduler = FreezeScheduler(Every({"layer1": 2}, of="layer2"))
    trainer(scheduler).fit(model, batches(4))
    assert scheduler.findings == []


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        (Phases([Phase(["layer1"], epochs=1), Phase(["all"])]), {}, True),  # `train: [layer1]` is not "only layer1"
        (Phases([Phase(["layer1"], epochs=1), Phase(["all"])]), {"rest": "freeze"}, False),
        (Phases([Phase(["layer1"], epochs=1), Phase(["layer1", "layer2"])]), {}, False),
        (Every({"layer1": 1}, of="layer2"), {}, True),
        (Every({"layer1": 2}, of="layer2"), {}, False),
    ],
)
def test_a_schedule_that_freezes_nothing_is_warned_about(schedule: Any, options: Any, said: bool, trainer: Any) -> None:
    fit = trainer(FreezeScheduler(schedule, **options), max_epochs=2)
    if said:
        with pytest.warns(
            UserWarning, match="this schedule never freezes anything: .*Name what is to be frozen as a group of its own"
        ):
            fit.fit(Net(), batches(2))
    else:
        fit.fit(Net(), batches(2))


def test_a_group_misspelt_in_the_schedule_is_not_a_second_group(trainer: Any) -> None:
    scheduler = FreezeScheduler(Every({"layer1": 2}, of="fast"), groups={"layer_1": "layer1", "fast": "layer2"})
    with pytest.raises(
        ScheduleError, match=r"names 'layer1', which is not a group, and 'layer_1' holds the same parameters"
    ):
        trainer(scheduler).fit(Net(), batches(2))
