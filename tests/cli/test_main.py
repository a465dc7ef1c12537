"""``lightning-freeze`` runs any configuration, and a stock LightningCLI of either package runs ours."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as pl
import torch
import yaml
from lightning.pytorch.cli import LightningCLI as UnifiedCLI
from lightning.pytorch.demos.boring_classes import BoringModel as UnifiedBoring
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn

from lightning_freeze import AlternatingFreeze, Every, FreezeAudit, FreezeScheduler, Phase, Phases
from lightning_freeze.cli.config import locate
from lightning_freeze.cli.main import main
from lightning_freeze.demos import TwoLayerNet
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of
from lightning_freeze.yaml_file import read

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = [
    # what Lightning says of the machine and of short runs, neither of which is the command line's matter
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    # predicting has no results to keep where a callback asks for none
    pytest.mark.filterwarnings("ignore:`predict` returned None"),
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LightningCLI warns of other arguments than those that it is handed; what is written goes below the test."""
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.chdir(tmp_path)


def few(folder: Path, batches: int = 5) -> list[str]:
    """The options of a short, quiet run."""
    options = {
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": "false",
        "enable_checkpointing": "false",
        "enable_model_summary": "false",
        "logger": "false",
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    options |= {f"limit_{part}_batches": batches for part in ("train", "val", "test", "predict")}
    return [f"--trainer.{key}={value}" for key, value in options.items()]


def config(
    folder: Path, schedule: str, name: str = "run.yaml", callback: str = "lightning_freeze.FreezeScheduler"
) -> str:
    """A configuration of the demo with this schedule; its path."""
    text = f"""
seed_everything: 1
trainer:
  callbacks:
    - class_path: {callback}
      init_args:
        groups: {{slow: layer1, fast: layer2}}
        schedule: {schedule}
model: {{class_path: lightning_freeze.demos.TwoLayerNet}}
data: {{class_path: lightning_freeze.demos.DigitsData}}
"""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def trained(folder: Path) -> list[list[str]]:
    """The groups of every update that a run below this folder recorded."""
    return [sorted(groups) for _, groups in steps_of(read_records(folder / "freeze_runs" / "freeze_audit.jsonl"))]


# --- the four subcommands -------------------------------------------------------------------------------------------


def test_fit_runs_the_schedule(tmp_path: Path) -> None:
    main(["fit", "--config", str(CONFIGS / "alternating.yaml"), *few(tmp_path, 7)])
    both, one = ["weight1", "weight2"], ["weight2"]
    assert trained(tmp_path) == [both, one, one, one, one, both, one]


@pytest.mark.parametrize(
    ("subcommand", "step"), [("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")]
)
def test_other_subcommands_run_and_freeze_nothing(
    subcommand: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    original = getattr(TwoLayerNet, step)

    def watched(self: TwoLayerNet, batch: Any, batch_idx: int) -> Any:
        seen.append(all(parameter.requires_grad for parameter in self.parameters()))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TwoLayerNet, step, watched)
    main([subcommand, "--config", str(CONFIGS / "alternating.yaml"), *few(tmp_path, 2)])
    assert seen == [True, True]
    assert not (tmp_path / "freeze_runs" / "freeze_audit.jsonl").exists()


# --- help and print_config ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], ["fit", "validate", "test", "predict"]),
        (["fit", "--help"], ["--config", "--trainer.callbacks", "--model"]),
        (["fit", "--trainer.callbacks.help=lightning_freeze.FreezeScheduler"], ["schedule", "rest", "frozen_modules"]),
        (["fit", "--model.help=lightning_freeze.demos.TwoLayerNet"], ["--model.hidden", "--model.lr"]),
    ],
)
def test_help(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert [text for text in expected if text not in shown] == []


@pytest.mark.parametrize("name", ["alternating.yaml", "phases.yaml"])
def test_printed_config_is_loadable_and_runs_alike(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(CONFIGS / name), "--print_config"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["class_path"] == "lightning_freeze.demos.TwoLayerNet"
    again = tmp_path / "again"
    again.mkdir()
    if name == "phases.yaml":  # what is printed keeps the schedule's own path, which is read from where it stands
        (again / "in_turn.yaml").write_text((CONFIGS / "in_turn.yaml").read_text())
    (again / "printed.yaml").write_text(printed)
    main(["fit", "--config", str(CONFIGS / name), *few(tmp_path / "first", 7)])
    main(["fit", "--config", str(again / "printed.yaml"), *few(tmp_path / "second", 7)])
    assert trained(tmp_path / "second") == trained(tmp_path / "first")
    assert len(trained(tmp_path / "first")) == 7


# --- ways to write a schedule ---------------------------------------------------------------------------------------

IN_TURN = [["fast"], ["fast"], ["slow"], ["fast"], ["fast"]]
TWO_TO_ONE = "repeat: true\nphases:\n  - {train: [fast], updates: 2}\n  - {train: [slow], updates: 1}\n"


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("{class_path: Every, init_args: {periods: {slow: 3}, of: fast}}", [["fast", "slow"], *[["fast"]] * 2] * 2),
        (
            "{class_path: lightning_freeze.Every, init_args: {periods: {slow: 2}, of: fast}}",
            [["fast", "slow"], ["fast"]] * 3,
        ),
        (
            "{class_path: Phases, init_args: {phases: [{train: [fast], updates: 1}, {train: [all]}]}}",
            [["fast"], *[["fast", "slow"]] * 5],
        ),
        (
            "{phases: [{train: [fast], updates: 2}, {repeat: 2, phases: [{train: [slow], updates: 1}, "
            "{train: [fast], updates: 1}]}]}",
            [["fast"], ["fast"], ["slow"], ["fast"], ["slow"], ["fast"]],
        ),
    ],
    ids=["short", "full", "phases by class", "nested"],
)
def test_ways_to_write_a_schedule(schedule: str, expected: list[list[str]], tmp_path: Path) -> None:
    main(["fit", "--config", config(tmp_path, schedule), *few(tmp_path, 6)])
    assert trained(tmp_path) == expected[:6]


def test_short_names_of_callback_and_schedule(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        "{class_path: Every, init_args: {periods: {slow: 3}, of: fast}}",
        callback="FreezeScheduler",
    )
    main(["fit", "--config", path, *few(tmp_path, 4)])
    assert trained(tmp_path) == [["fast", "slow"], ["fast"], ["fast"], ["fast", "slow"]]


def test_schedule_file_is_found_beside_the_config_from_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = config(home, "turns.yaml")
    (home / "turns.yaml").write_text(TWO_TO_ONE)
    assert not Path("turns.yaml").exists()  # the working directory is another
    main(["fit", "--config", path, *few(tmp_path)])
    assert trained(tmp_path) == IN_TURN


def test_schedule_file_in_a_folder_below_the_config(tmp_path: Path) -> None:
    path = config(tmp_path / "home", "schedules/turns.yaml")
    (tmp_path / "home" / "schedules").mkdir()
    (tmp_path / "home" / "schedules" / "turns.yaml").write_text(TWO_TO_ONE)
    main(["fit", f"--config={path}", *few(tmp_path)])
    assert trained(tmp_path) == IN_TURN


def test_schedule_on_the_command_line(tmp_path: Path) -> None:
    main(
        [
            *("fit", "--seed_everything=1", "--model=lightning_freeze.demos.TwoLayerNet"),
            *("--data=lightning_freeze.demos.DigitsData", "--trainer.callbacks+=lightning_freeze.FreezeScheduler"),
            "--trainer.callbacks.groups={slow: layer1, fast: layer2}",
            "--trainer.callbacks.schedule={phases: [{train: [fast], updates: 2}, {train: [slow], updates: 1}], "
            "repeat: true}",
            *few(tmp_path),
        ]
    )
    assert trained(tmp_path) == IN_TURN


def test_option_of_the_command_line_beats_the_file(tmp_path: Path) -> None:
    path = config(tmp_path, "{class_path: Every, init_args: {periods: {slow: 3}, of: fast}}")
    main(["fit", "--config", path, "--model.hidden=7", *few(tmp_path, 1)])
    run = next(read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl"))
    assert run["groups"]["fast"]["elements"] == 7 * 10


def test_arguments_default_to_those_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(tmp_path, "{phases: [{train: [fast]}]}")
    monkeypatch.setattr(sys, "argv", ["lightning-freeze", "fit", "--config", path, *few(tmp_path, 2)])
    main()
    assert trained(tmp_path) == [["fast"], ["fast"]]


# --- locate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no key 'max_epoch'", "line 1, trainer.max_epoch: "),
        ("`phases[1].train` names 'max_epoch'", "line 2, schedule.phases[1].train: "),
        ('the whole key "trainer.max_epoch" first', "line 1, trainer.max_epoch: "),
        ("nothing of 'that' kind", ""),
        ("max_epoch, but not quoted", ""),
    ],
)
def test_locate(message: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("trainer: {max_epoch: 1}\nschedule: {phases: [{train: [a], updates: 1}, {train: [b]}]}\n")
    assert locate(message, [read(path)]) == (f"{path}, {expected}" if expected else "")


# --- stock command lines of both packages ---------------------------------------------------------------------------


class Small(BoringModel):
    """Two layers of `pytorch_lightning`, and data of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(super().forward(x))


class UnifiedSmall(UnifiedBoring):
    """The same of `lightning.pytorch`."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(super().forward(x))


CALLBACKS = {
    "every": (
        FreezeScheduler,
        "{class_path: lightning_freeze.FreezeScheduler, init_args: {schedule: {class_path: Every, init_args: "
        "{periods: {layer: 3}, of: head}}}}",
        {"layer": 2, "head": 5},
    ),
    "phases": (
        FreezeScheduler,
        "{class_path: lightning_freeze.FreezeScheduler, init_args: {schedule: {phases: [{train: [head], updates: 3}, "
        "{repeat: 1, phases: [{train: [layer], updates: 1}]}, {train: [all]}]}, audit: {every_n_updates: 2}}}",
        {"layer": 2, "head": 4},
    ),
    "a file": (
        FreezeScheduler,
        "{class_path: lightning_freeze.FreezeScheduler, init_args: {schedule: turns.yaml}}",
        {"layer": 1, "head": 4},
    ),
    "alternating": (
        AlternatingFreeze,
        "{class_path: lightning_freeze.AlternatingFreeze, init_args: {slow: layer, fast: [head], every: 2}}",
        {"slow": 3, "fast": 5},
    ),
    "audit": (FreezeAudit, "{class_path: lightning_freeze.FreezeAudit, init_args: {every_n_updates: 2}}", None),
}


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize(
    ("cli_class", "model", "trainer_class"),
    [(LightningCLI, Small, pl.Trainer), (UnifiedCLI, UnifiedSmall, unified.Trainer)],
    ids=["pytorch_lightning", "lightning.pytorch"],
)
def test_stock_lightning_cli(cli_class: Any, model: Any, trainer_class: Any, callback: str, tmp_path: Path) -> None:
    kind, text, expected = CALLBACKS[callback]
    (tmp_path / "turns.yaml").write_text(TWO_TO_ONE.replace("fast", "head").replace("slow", "layer"))
    path = tmp_path / "run.yaml"
    path.write_text(f"seed_everything: 1\ntrainer:\n  callbacks:\n    - {text}\n")
    cli = cli_class(model, args=["fit", "--config", str(path), *few(tmp_path)], save_config_callback=None)
    assert isinstance(cli.trainer, trainer_class)
    assert cli.trainer.global_step == 5
    ours = next(c for c in cli.trainer.callbacks if isinstance(c, (FreezeScheduler, FreezeAudit)))
    assert type(ours) is kind
    if expected is not None:
        assert ours.updates == expected
        assert Counter(g for groups in trained(tmp_path) for g in groups) == expected
    assert [finding for finding in ours.findings if finding.severity == "error"] == []


def test_schedules_arrive_as_typed_values(tmp_path: Path) -> None:
    """Past the command line nothing is a dict: the callback holds the very schedule one would build in Python."""
    elements = "{phases: [{train: [head], updates: 2}, {repeat: 3, phases: [{train: [layer], updates: 1}]}]}"
    path = tmp_path / "run.yaml"
    path.write_text(
        "trainer:\n  callbacks:\n    - class_path: lightning_freeze.FreezeScheduler\n"
        f"      init_args: {{schedule: {elements}}}\n"
    )
    cli = LightningCLI(Small, args=["--config", str(path), *few(tmp_path)], run=False, seed_everything_default=1)
    ours = next(c for c in cli.trainer.callbacks if isinstance(c, FreezeScheduler))
    assert ours._schedule == Phases([Phase(["head"], 2), Phases([Phase(["layer"], 1)], 3)])
    assert ours._schedule != Every({"layer": 3})


def test_a_module_in_the_current_folder_that_brings_its_own_data(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "own_module.py").write_text(
        "from lightning_freeze.demos import DigitsData, TwoLayerNet\n"
        "class Own(TwoLayerNet):\n"
        "    def train_dataloader(self):\n"
        "        data = DigitsData()\n"
        "        data.setup('fit')\n"
        "        return data.train_dataloader()\n"
    )
    (tmp_path / "own.yaml").write_text(
        "trainer:\n  accelerator: cpu\n  limit_train_batches: 7\n  max_epochs: 1\n  logger: false\n"
        "  enable_checkpointing: false\n  enable_progress_bar: false\n  limit_val_batches: 0\n  callbacks:\n"
        "    - class_path: lightning_freeze.AlternatingFreeze\n"
        "      init_args: {slow: layer1, fast: layer2, every: 3}\n"
        "model: {class_path: own_module.Own}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    main(["fit", "--config", "own.yaml"])
    counts = [r for r in read_records(tmp_path / "freeze_runs" / "freeze_audit.jsonl") if r["type"] == "counts"]
    assert counts[-1]["updates"] == {"slow": 3, "fast": 7}
