"""A preview in Python: it is the run's own record, and the fit after it is bit for bit the fit without it."""

from __future__ import annotations

import operator
import random
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.utilities import CombinedLoader
from rich.console import Console
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from lightning_freeze import (
    Every,
    FreezeScheduler,
    Phase,
    Phases,
    ScheduleError,
    UnsupportedError,
    Until,
    fingerprint,
    preview_run,
)
from lightning_freeze.demos import DigitsData, DigitsGAN, TwoLayerNet
from lightning_freeze.report.plan_table import Forecast
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of
from tests.conftest import Net, batches, make_trainer

BATCHES = 7

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
]


def every() -> FreezeScheduler:
    return FreezeScheduler(Every({"layer1": 3}, of="layer2"))


class Drops(Net):
    """Draws random numbers in each step, and makes a layer in each `setup`."""

    def setup(self, stage: str) -> None:
        self.layer1 = nn.Linear(4, 8, bias=False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(nn.functional.dropout(batch[0]) * random.random()), batch[1])


def shuffled(generator: torch.Generator | None = None) -> DataLoader[Any]:
    return DataLoader(batches(BATCHES).dataset, batch_size=4, shuffle=True, generator=generator)


def gan() -> tuple[Any, FreezeScheduler]:
    torch.manual_seed(0)
    return DigitsGAN(hidden=8), FreezeScheduler(Every({"generator": 3}, of="discriminator"))


def images() -> DataLoader[Any]:
    rows = [(torch.rand(8, 8, generator=torch.Generator().manual_seed(i)), 0) for i in range(28)]
    return DataLoader(rows, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], tuple[Any, FreezeScheduler]], Callable[[], Any], dict[str, Any]]] = {
    "a shuffled loader": (lambda: (Drops(), every()), shuffled, {}),
    "a loader with a generator": (lambda: (Drops(), every()), lambda: shuffled(torch.Generator().manual_seed(1)), {}),
    "half precision": (lambda: (Net(), every()), lambda: batches(BATCHES), {"precision": "bf16-true"}),
    "an end by steps": (lambda: (Net(), every()), lambda: batches(BATCHES), {"max_steps": 11}),
    "manual optimization": (gan, images, {}),
    "a sanity check and accumulation": (
        lambda: (Net(), every()),
        shuffled,
        {"accumulate_grad_batches": 2, "num_sanity_val_steps": 2},
    ),
}


def after_fits(case: str, root: Path, preview: bool) -> Any:
    """Weights, optimizer state and random numbers after a fit and a second one; each perhaps previewed."""
    make, loader, options = CASES[case]
    (model, scheduler), data = make(), loader()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    save = ModelCheckpoint(root, every_n_train_steps=3, save_top_k=-1)
    trainer = make_trainer(root, scheduler, save, max_epochs=2, enable_checkpointing=True, **options)
    planned = []
    for end in (2, 3):
        trainer.fit_loop.max_epochs = end
        if "max_steps" in options:
            trainer.fit_loop.epoch_loop.max_steps = 6 * end - 1  # within an epoch
        if preview:
            before = kept(trainer, model, scheduler)
            planned += preview_run(trainer, model, data).steps
            assert kept(trainer, model, scheduler) == before
        trainer.fit(model, data)
    recorded = steps_of(read_records(*root.rglob("freeze_audit.jsonl")))
    assert not preview or [(step.optimizer, step.trained) for step in planned] == recorded
    files = sorted(path.name for path in root.rglob("*"))
    numbers = torch.rand(3), random.random(), np.random.random()
    weights = dict(model.state_dict()), [optimizer.state_dict() for optimizer in trainer.optimizers]
    ended = weights, numbers, files, scheduler.updates, trainer.global_step
    return tree_map(lambda value: fingerprint(value) if isinstance(value, Tensor) else value, ended)


def kept(trainer: Any, model: Any, scheduler: FreezeScheduler) -> Any:
    """What a preview must leave as it is."""
    bits = {
        name: (id(p), p.dtype, p.detach().sum().item(), p.requires_grad, p.grad) for name, p in model.named_parameters()
    }
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    callbacks = [*map(id, trainer.callbacks)], [*map(id, trainer.loggers)], str(trainer.state)
    loops = trainer.current_epoch, trainer.global_step, trainer.max_epochs, str(trainer.fit_loop.state_dict())
    own = id(scheduler.controller), scheduler.updates, model._trainer, model.training, torch.is_grad_enabled()
    return bits, states, callbacks, loops, own


@pytest.mark.parametrize("case", CASES)
def test_a_fit_after_a_preview_equals_one_without(case: str, tmp_path: Path) -> None:
    without = after_fits(case, tmp_path / "without", preview=False)
    assert after_fits(case, tmp_path / "with", preview=True) == without
    assert without[4] > 0


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """A batch that is really trained in between is seen."""
    trainer, model = make_trainer(tmp_path, every()), Net()
    before = kept(trainer, model, every())
    trainer.fit(model, batches(1))
    assert kept(trainer, model, every()) != before


def test_another_machines_run_is_previewed_here(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, every(), devices=4, strategy="ddp", max_epochs=2)
    found = preview_run(trainer, Net(), batches(BATCHES))
    assert "4 processes share the data: 2 batches each in an epoch." in found.notes
    assert len(found.steps) == 4
    assert type(trainer.strategy).__name__ == "DDPStrategy"


def test_the_other_lightning_package_is_served(tmp_path: Path) -> None:
    class Unified(unified.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("a preview trains nothing")

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 1}
    trainer = unified.Trainer(callbacks=[every()], default_root_dir=tmp_path, **options)
    assert len(preview_run(trainer, Unified(), batches(BATCHES)).steps) == BATCHES


def test_how_far_and_with_which_metrics(tmp_path: Path) -> None:
    phases = Phases([Phase(["layer1"], until=Until("val_loss", patience=1, max_epochs=4)), Phase(["layer2"])])
    trainer = make_trainer(tmp_path, FreezeScheduler(phases), EarlyStopping("val_loss"), max_epochs=-1)
    (tmp_path / "metrics.csv").write_text("epoch,val_loss\n0,1.0\n1,2.0\n")
    for metrics in ({0: {"val_loss": 1.0}, 1: {"val_loss": 2.0}}, tmp_path / "metrics.csv"):
        found = preview_run(trainer, Net(), batches(3), epochs=3, metrics=metrics)
        assert [sorted(step.trained) for step in found.steps] == [["layer1"]] * 6 + [["layer2"]] * 3
        assert [step.place for step in found.steps] == ["phases[0]"] * 6 + ["phases[1]"] * 3
        assert "EarlyStopping may end the run sooner." in found.notes
    assert len(preview_run(trainer, Net(), batches(3), updates=5, batches=2).steps) == 5
    with pytest.raises(ScheduleError, match=r"the run has no end .*in Python updates=N or epochs=N"):
        preview_run(trainer, Net(), batches(3))


def test_accumulation_that_changes_is_the_runs(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, every(), GradientAccumulationScheduler({0: 1, 1: 3}), max_epochs=2)
    assert [step.epoch for step in preview_run(trainer, Net(), batches(6)).steps] == [0] * 6 + [1] * 2


@pytest.mark.filterwarnings("ignore:.*checkpoint that ended before the epoch ended")
def test_from_a_checkpoint_it_goes_on(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=5)
    make_trainer(tmp_path, every(), save, enable_checkpointing=True).fit(Net(), batches(BATCHES))
    trainer = make_trainer(tmp_path, every(), max_epochs=1)
    found = preview_run(trainer, Net(), batches(BATCHES), ckpt_path=tmp_path / "middle.ckpt")
    assert (found.first, len(found.steps)) == (5, 2)
    assert trainer.ckpt_path is None


def test_a_datamodule_is_left_as_it_was(tmp_path: Path) -> None:
    data = DigitsData()
    found = preview_run(make_trainer(tmp_path, every()), TwoLayerNet(), data)
    assert (len(found.steps), data.trainer, vars(data).get("train")) == (23, None, None)


def test_loaders_that_are_combined_stay_the_users(tmp_path: Path) -> None:
    class Pairs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], batch_idx)

    combined = CombinedLoader({"a": batches(3), "b": batches(5)}, "max_size_cycle")
    before = [*combined.flattened]
    trainer = make_trainer(tmp_path, every())
    assert len(preview_run(trainer, Pairs(), combined).steps) == 5
    assert all(map(operator.is_, combined.flattened, before))
    trainer.fit(Pairs(), combined)
    assert trainer.global_step == 5


def test_without_a_scheduler_the_callbacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"no freeze scheduler \(callbacks: EarlyStopping\), so there is nothing"):
        preview_run(make_trainer(tmp_path, EarlyStopping("x")), Net(), batches(2))


def test_a_model_without_a_copy_is_refused(tmp_path: Path) -> None:
    model = Net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    random.seed(1)
    with pytest.raises(
        UnsupportedError, match=r"Net cannot be copied \(TypeError: .*lock.*\), and a preview needs a copy"
    ):
        preview_run(make_trainer(tmp_path, every()), model, batches(2))
    after = random.random()
    random.seed(1)
    assert after == random.random(), "also after an error"


def test_an_interrupted_preview_restores_random_states(tmp_path: Path) -> None:
    class Interrupted(Net):
        def on_fit_start(self) -> None:
            random.random()
            raise SystemExit  # as Lightning makes of a KeyboardInterrupt

    random.seed(1)
    with pytest.raises(SystemExit):
        preview_run(make_trainer(tmp_path, every()), Interrupted(), batches(2))
    after = random.random()
    random.seed(1)
    assert after == random.random()


class Width(LightningCLI):
    """A user's own command line, with a linked argument."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.link_arguments("data.batch_size", "model.hidden")


def test_an_own_command_line_with_linked_arguments_is_previewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["own_program"])
    scheduler = {
        "class_path": "lightning_freeze.AlternatingFreeze",
        "init_args": {"slow": "layer1", "fast": "layer2", "every": 5},
    }
    quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 1}
    config = {"trainer": {**quiet, "callbacks": [scheduler]}, "data": {"batch_size": 16}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    cli = Width(
        TwoLayerNet, DigitsData, run=False, args=["--config", str(tmp_path / "run.yaml")], save_config_callback=None
    )
    found = preview_run(cli.trainer, cli.model, cli.datamodule)
    assert len(found.steps) == 90  # 1,438 images
    assert found.sizes["slow"].elements == 64 * 16


class Shows(Width):
    def before_fit(self) -> None:
        print(preview_run(self.trainer, self.model, self.datamodule))


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_an_own_command_line_shows_it_before_a_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options = {**dict.fromkeys(quiet, "false"), "max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path}
    callback = {"": "AlternatingFreeze", ".slow": "layer1", ".fast": "layer2", ".every": 5}
    arguments = [f"--trainer.{key}={value}" for key, value in options.items()]
    arguments += [f"--trainer.callbacks{key}={value}" for key, value in callback.items()]
    cli = Shows(TwoLayerNet, DigitsData, args=["fit", *arguments], save_config_callback=None)
    assert "plan: updates 0 to 22, epoch 0" in capsys.readouterr().out
    assert cli.trainer.global_step == 23


# --- how it is shown ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Forecast:
    trainer = make_trainer(tmp_path_factory.mktemp("shown"), every(), max_epochs=2)
    return preview_run(trainer, Net(), batches(BATCHES))


def test_it_is_printed_as_its_tables(found: Forecast) -> None:
    assert repr(found) == "<Forecast of Net: 14 updates of 2 groups>"
    assert "plan: updates 0 to 13, epochs 0 to 1" in str(found)
    assert "  layer1         32         5     36%   █  █  █  █  █" in str(found)
    console = Console(width=120, file=(shown := StringIO()))
    console.print(found)
    assert "14 updates;" in shown.getvalue()


def test_a_notebook_shows_it_once(found: Forecast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "rich.console._is_jupyter", lambda: True
    )  # where rich would display what it prints, with IPython
    assert "plan: updates 0 to 13" in str(found)
    html = found._repr_html_()
    assert html.startswith("<pre")
    assert "plan: updates 0 to 13" in html


def test_it_is_drawn(found: Forecast, tmp_path: Path) -> None:
    found.draw(tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
