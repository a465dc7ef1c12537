"""What a fit says while it runs: at its start, each epoch, at its end, after an interruption; and what its callbacks show."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import DummyLogger
from rich.console import Console
from torch import nn

from lightning_freeze import (
    AlternatingFreeze,
    Every,
    FreezeAudit,
    FreezeScheduler,
    InputAudit,
    Phase,
    Phases,
    ScheduleError,
    read_report,
)
from lightning_freeze.report.run_report import RunReport
from lightning_freeze.trainer import seam
from tests.conftest import Net, batches, make_trainer

HALVES = Phases([Phase(["layer1"], updates=7, lr={"layer1": 0.5}), Phase(["layer2"], epochs=2), Phase(["all"])])


def words(text: str) -> str:
    return " ".join(text.split())


class Ends(pl.Callback):
    """Raises after so many steps."""

    def __init__(self, error: BaseException, after: int = 13) -> None:
        self.error, self.after = error, after

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.after:
            raise self.error


def fit(root: Path, *callbacks: Any, model: Any = None, ckpt_path: Any = None, count: int = 5, **options: Any) -> Any:
    made = make_trainer(root, *callbacks, **options)
    made.fit(Net() if model is None else model, batches(count), ckpt_path=ckpt_path)
    return made


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: AlternatingFreeze("layer1", "layer2", every=5, **options),
        lambda **options: AlternatingFreeze("layer1", "layer2", every=5, audit=FreezeAudit(**options)),
        FreezeAudit,
    ],
)
@pytest.mark.parametrize("verbose", [False, True])
def test_verbose_is_all_that_is_said_for_information(make: Any, verbose: bool, tmp_path: Path, caplog: Any) -> None:
    model = Net()
    model.norm = nn.BatchNorm1d(4)
    model.register_forward_pre_hook(lambda module, args: (module.norm(args[0]),))
    model.norm.requires_grad_(False)
    with caplog.at_level("INFO"):
        fit(tmp_path, make(verbose=verbose), model=model)
    ours = [each.message for each in caplog.records if "freeze" in each.message]
    if verbose:
        said = words(" ".join(ours))
        buffers = ["freeze: 3 buffers of frozen modules"] * (
            make is FreezeAudit
        )  # to a schedule they are the user's own
        for part in ("share trains", "freeze, epoch 0: ", *buffers, "violations warnings"):
            assert said.count(part) == 1, part
    else:
        assert [line for line in ours if "are written to" not in line] == []


def test_without_verbose_errors_and_warnings_stay(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="never freezes anything"):
        fit(tmp_path, FreezeScheduler(Phases([Phase(["all"])]), {"a": "layer1"}, verbose=False))
    with pytest.raises(ScheduleError, match="not a group"):
        fit(tmp_path, FreezeScheduler(Every({"a": 2}, of="b"), {"c": "layer1"}, verbose=False))


@pytest.mark.parametrize(
    ("error", "ckpt", "command", "end"),
    [
        (KeyboardInterrupt(), True, False, "trainer.fit(model, ckpt_path='{}')"),
        (KeyError("planned"), True, True, "add to the command: --ckpt_path={}"),
        (KeyError("planned"), False, False, "No checkpoint was saved."),
    ],
)
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_after_an_interruption_stand_the_table_and_how_to_go_on(
    error: BaseException, ckpt: bool, command: bool, end: str, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path if command else tmp_path.parent.parent)
    scheduler = FreezeScheduler(HALVES)
    more = [type("SaveConfigCallback", (pl.Callback,), {})()] * command
    with caplog.at_level("INFO"), pytest.raises((type(error), SystemExit)):
        fit(tmp_path, scheduler, *more, Ends(error), enable_checkpointing=ckpt, max_epochs=4)
    (said,) = [each.message for each in caplog.records if "was interrupted" in each.message]
    table, _, last = said.rpartition("\n")
    assert "layer1 32 7 54% 0 0 layer2 24 6 46% 0 0" in words(table)
    (path,) = map(str, tmp_path.rglob("*.ckpt")) if ckpt else ("",)
    path = path.removeprefix(f"{Path.cwd()}/")
    assert not path.startswith("/")
    assert last.endswith(end.format(path))
    if ckpt:
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(tmp_path, FreezeScheduler(HALVES), ckpt_path=path, enable_checkpointing=True, max_epochs=4)
        assert "lightning-freeze goes on in epoch 2, after 10 updates, phase 2 of 3. Now training: layer2." in words(
            caplog.text
        )


def test_an_error_of_ours_says_itself_how_to_go_on(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("INFO"), pytest.raises(ScheduleError, match="planned"):
        fit(tmp_path, FreezeScheduler(HALVES), Ends(ScheduleError("planned")), max_epochs=4)
    assert "was interrupted" not in caplog.text


@pytest.mark.parametrize("verb", ["how_to_go_on", "say"])
def test_what_fails_after_an_interruption_is_a_note(verb: str, tmp_path: Path, monkeypatch: Any) -> None:
    def fails(*_: Any) -> None:
        if sys.exc_info()[1] is not None:
            raise BrokenPipeError("gone")

    model = Net()
    monkeypatch.setattr(seam, verb, fails)
    with pytest.raises(KeyError, match="planned") as caught:
        fit(tmp_path, FreezeScheduler(HALVES), Ends(KeyError("planned"), 3), model=model)
    assert caught.value.__notes__ == ["freeze: as the run ended: BrokenPipeError: gone"]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rates_and_the_phase_go_to_the_logger(tmp_path: Path) -> None:
    made = fit(tmp_path, FreezeScheduler(HALVES), logger=CSVLogger(str(tmp_path)), max_epochs=4)
    lines = Path(made.logger.log_dir, "metrics.csv").read_text().splitlines()
    named = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert [float(row["freeze/phase"]) for row in named] == [1, 2, 2, 3]
    assert [float(row["freeze/layer1/lr"]) for row in named] == pytest.approx([0.005, 0.01, 0.01, 0.01])
    assert made.callback_metrics["freeze/layer2/lr"] == pytest.approx(0.01)


class Decayed(Net):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


def test_an_epochs_rate_is_the_one_that_it_trained_at(tmp_path: Path) -> None:
    fit(tmp_path, FreezeScheduler(HALVES), model=Decayed(), max_epochs=3)
    assert [counts["lr"]["layer2"] for counts in read_report(tmp_path).counts] == [0.01, 0.005, 0.0025]


@pytest.mark.filterwarnings("ignore:.*got no gradient")
def test_a_schedule_without_phases_logs_none_and_many_rates_are_left_to_the_records(tmp_path: Path) -> None:
    model = Net()
    model.more = nn.ModuleList(nn.Linear(1, 1) for _ in range(40))
    made = fit(tmp_path, FreezeScheduler(Every({"layer1": 2}, of="layer2"), {"m": {"each": "more.*"}}), model=model)
    assert [name for name in made.callback_metrics if name.endswith(("/lr", "/phase"))] == []
    assert "freeze/m/7/updates" in made.callback_metrics


class TensorBoardLogger(DummyLogger):
    """Takes pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Any] = []
        self.experiment_ = type("Writer", (), {"add_image": lambda _, *image, dataformats: self.images.append(image)})()

    @property
    def experiment(self) -> Any:
        return self.experiment_


@pytest.mark.parametrize("fails", [False, True])
def test_tensorboard_gets_the_timeline(fails: bool, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("matplotlib")
    if fails:
        monkeypatch.setattr(RunReport, "to_png", lambda report: 1 / 0)
    board, scheduler = TensorBoardLogger(), AlternatingFreeze("layer1", "layer2", every=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, scheduler, logger=board)
    drawn = [str(each.message) for each in caught if "timeline" in str(each.message)]
    if fails:
        assert drawn == ["TensorBoard got no timeline of the run: ZeroDivisionError: division by zero"]
    else:
        ((tag, image, step),) = board.images
        assert (drawn, tag, step) == ([], "freeze/timeline", 5)
        height, width, _ = image.shape
        assert min(height, width) > 300
        assert (image[:4] == 1).all()  # a margin: nothing is cut off


class Deep(Net):
    """Most of it in layers of no group."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Linear(30, 30)


@pytest.mark.parametrize(
    ("schedule", "groups", "rest", "warned"),
    [
        (Phases([Phase(["layer1"], updates=1), Phase(["layer2"])]), {}, "train", True),
        (Phases([Phase(["layer1"], updates=1), Phase(["layer2"])]), {}, "freeze", False),
        (Phases([Phase(["layer1"], updates=1), Phase(["layer2"])]), {"deep": "deep"}, "train", False),
        (Phases([Phase([])]), {"a": "layer1"}, "train", False),
        (Every({"layer1": 2}, of="layer2"), {}, "train", False),
    ],
)
def test_phases_that_leave_most_to_the_rest_are_warned_of(
    schedule: Any, groups: Any, rest: Any, warned: bool, tmp_path: Path
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, FreezeScheduler(schedule, groups, rest), model=Deep(), count=2)
    found = [str(each.message) for each in caught if "elements" in str(each.message)]
    text = "94% of the elements that can train are in no group, and train in every phase, by `rest: train`. To freeze them, "
    assert found == [text + "set `rest: freeze`, or name them in a group of their own."] * warned


def test_a_callback_shows_the_same_while_it_runs(tmp_path: Path) -> None:
    class Shows(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            shown.add(repr(audit))

    shown, audit = set[str](), FreezeAudit(100)
    fit(tmp_path, audit, Shows())
    assert {repr(audit), *shown} == {"FreezeAudit(every_n_updates=100)"}


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (FreezeScheduler(Every({"a": 5}, of="b")), "FreezeScheduler(schedule=Every(periods={'a': 5}, of='b'))"),
        (
            FreezeScheduler(Phases([Phase(["a"])]), {"<b>": "[x]"}, "freeze", verbose=False),
            "FreezeScheduler(schedule=Phases([Phase(train=['a'])], repeat=False), groups={'<b>': '[x]'}, rest='freeze', "
            "verbose=False)",
        ),
        (
            AlternatingFreeze("a", ["b"], 5, together=False),
            "AlternatingFreeze(slow='a', fast=['b'], every=5, together=False)",
        ),
        (FreezeAudit(100), "FreezeAudit(every_n_updates=100)"),
        (InputAudit(replay=False), "InputAudit(replay=False)"),
    ],
)
def test_a_callback_shows_what_it_was_given(made: Any, shown: str) -> None:
    assert repr(made) == shown
    assert repr(pickle.loads(pickle.dumps(made))) == repr(copy.deepcopy(made)) == shown
    console = Console(width=300, record=True, file=StringIO())
    console.print(made)
    assert shown in console.export_text()
    assert "<b>" not in made._repr_html_()
    assert "<pre" in made._repr_html_()


def test_after_a_fit_a_callback_shows_its_table_and_findings(tmp_path: Path) -> None:
    scheduler = AlternatingFreeze("layer1", "layer2", every=5)
    fit(tmp_path, scheduler)
    html = words(scheduler._repr_html_())
    assert "AlternatingFreeze(slow=" in html
    assert "1 of 1 frozen intervals held, bit for bit" in html
    assert "findings: 0" in html


@pytest.mark.parametrize("kind", [pl.callbacks.TQDMProgressBar, pl.callbacks.RichProgressBar])
def test_a_progress_bar_loses_nothing_that_is_said(kind: Any, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, AlternatingFreeze("layer1", "layer2", every=5), kind(), enable_progress_bar=True)
    said = words(capsys.readouterr().out + caplog.text)
    for part in ("lightning-freeze begins.", "freeze, epoch 0: slow +1", "1 of 1 frozen intervals held"):
        assert said.count(part) == 1, part


def test_a_model_alone_is_audited_with_a_table_too(tmp_path: Path, caplog: Any) -> None:
    model = Net()
    model.layer1.requires_grad_(False)
    with caplog.at_level("INFO"):
        fit(tmp_path, FreezeAudit(exempt={"layer2": "moved by EMA"}), model=model)
    said = words(caplog.text)
    assert "lightning-freeze audits what has requires_grad=False, and schedules nothing." in said
    assert "requires_grad=False 1 32 100.0% frozen, audited" in said
    assert "- moved by your own code, and not audited: layer2 (user: moved by EMA)." in said


class Ignores(nn.Module):
    """Never uses an input."""

    def forward(self, x: Any, mask: Any) -> Any:
        return x * 1


class Masked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = Ignores()

    def forward(self, x: Any) -> Any:
        return super().forward(self.block(x, x > 0))


@pytest.mark.filterwarnings("ignore:.*never uses it")
def test_the_line_on_inputs_comes_again_only_where_it_changes(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        fit(tmp_path, InputAudit(), model=Masked(), max_epochs=3)
    lines = [each.message for each in caplog.records if "inputs:" in each.message]
    assert [line.partition(":")[0] for line in lines] == ["freeze, epoch 0"]


def test_a_group_may_have_the_name_that_lightning_gives_loaders(tmp_path: Path) -> None:
    scheduler = FreezeScheduler(Every({"dataloader_idx_0": 2}, of="layer2"), {"dataloader_idx_0": "layer1"})
    assert fit(tmp_path, scheduler).callback_metrics["freeze/dataloader_idx_0/updates"] == 3
