"""``lightning-freeze plan``: the tables are the run's own numbers, nothing is left behind, and errors say where."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI as UnifiedCLI
from lightning.pytorch.demos.boring_classes import BoringModel as UnifiedBoring
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringModel

from lightning_freeze import FreezeScheduler, Phase, Phases, Pick, Until
from lightning_freeze.cli.main import main
from lightning_freeze.demos import DigitsMixer, TwoLayerNet
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of

CONFIGS = Path(__file__).parents[2] / "configs"
ALTERNATING = str(CONFIGS / "alternating.yaml")
FEW = "--trainer.limit_train_batches=17"

pytestmark = [
    # what Lightning says of the machine and of short runs, neither of which is the command line's matter
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LightningCLI warns of other arguments than those that it is handed; what is written goes below the test."""
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.chdir(tmp_path)


def changed(name: str, *changes: tuple[str, str], to: str = "changed.yaml") -> str:
    """A configuration of ours with some of its text replaced; its path."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path(to).write_text(text, encoding="utf-8")
    return to


def plan(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints."""
    capsys.readouterr()
    main(["plan", *arguments])
    return capsys.readouterr().out


def updates(printed: str) -> dict[str, int]:
    """Group to updates, from the first table."""
    rows = [line.split() for line in printed.partition("trains")[0].splitlines()[4:] if line.strip()]
    return {row[0]: int(row[2].replace(",", "")) for row in rows}


# --- the tables -----------------------------------------------------------------------------------------------------

PRINTED = """\
plan: updates 0 to 33, epochs 0 to 1

  group     elements   updates   share   when
 ───────────────────────────────────────────────────────────────────────────
  weight1      2,048         7     21%   █    █    █    █    █    █    █
  weight2        320        34    100%   ██████████████████████████████████


  trains             updates   from update   epochs   elements   of all   gradients   optimizer state
 ─────────────────────────────────────────────────────────────────────────────────────────────────────
  weight1, weight2         1             0        0      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  4             1        0        320    13.5%    1.25 KiB          18.5 KiB
  weight1, weight2         1             5        0      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  4             6        0        320    13.5%    1.25 KiB          18.5 KiB
  weight1, weight2         1            10        0      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  4            11        0        320    13.5%    1.25 KiB          18.5 KiB
  weight1, weight2         1            15        0      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  4            16      0–1        320    13.5%    1.25 KiB          18.5 KiB
  weight1, weight2         1            20        1      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  4            21        1        320    13.5%    1.25 KiB          18.5 KiB
  weight1, weight2         1            25        1      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  4            26        1        320    13.5%    1.25 KiB          18.5 KiB
  weight1, weight2         1            30        1      2,368   100.0%    9.25 KiB          18.5 KiB
  weight2                  3            31        1        320    13.5%    1.25 KiB          18.5 KiB

34 updates; 31.3% of the elements train on average; gradients of what trains need up to 9.25 KiB, optimizer state 18.5 KiB at the end.
"""


def test_the_printed_numbers_are_the_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*arguments: Any) -> None:
        raise AssertionError("a plan trains nothing")

    with monkeypatch.context() as patched:
        patched.setattr(TwoLayerNet, "training_step", step)
        printed = plan("--config", ALTERNATING, FEW, "--epochs", "2", capsys=capsys)
    assert "\n".join(line.rstrip() for line in printed.splitlines()).startswith(PRINTED.rstrip())
    assert list(Path.cwd().iterdir()) == [], "nothing is left behind"
    assert "Trainer" not in printed, "what Lightning says of a fit is no matter of a plan"

    quiet = ("enable_progress_bar", "enable_checkpointing", "logger")
    main(["fit", "--config", ALTERNATING, FEW, "--trainer.max_epochs=2", *(f"--trainer.{key}=false" for key in quiet)])
    recorded = steps_of(read_records(Path("freeze_runs/freeze_audit.jsonl")))
    assert updates(printed) == Counter(group for _, groups in recorded for group in groups)


def test_a_narrow_screen_cuts_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    printed = plan("--config", ALTERNATING, FEW, "--updates=6", "--batches=4", capsys=capsys)
    assert "plan: updates 0 to 5, epochs 0 to 1" in printed
    assert (
        "  weight1, weight2         1             0        0      2,368   100.0%    9.25 KiB          18.5 KiB"
        in printed
    )
    assert updates(printed) == {"weight1": 2, "weight2": 6}


def test_the_picture_is_the_only_file(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    printed = plan("--config", ALTERNATING, "--updates=6", "--out", "pictures/plan.svg", capsys=capsys)
    assert printed.splitlines()[-1] == "The picture is in pictures/plan.svg."
    assert [path.name for path in Path.cwd().rglob("*")] == ["pictures", "plan.svg"]
    assert "<svg" in Path("pictures/plan.svg").read_text()


HARDWARE = "accelerator: gpu\n  devices: 4\n  strategy: ddp\n  precision: 16-mixed\n  plugins: null"


def test_another_machines_run_is_planned_on_one_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    config = changed("alternating", ("accelerator: cpu", HARDWARE))
    printed = plan("--config", config, "--epochs=1", capsys=capsys)
    batches = 1438 / 64 / 4  # of the digits' 1,797 images, a fifth is kept
    assert updates(printed) == {"weight1": 2, "weight2": 6}
    assert 5 < batches <= 6
    assert "- 4 processes share the data: 6 batches each in an epoch." in printed.splitlines()


def test_devices_of_the_command_line_count_too(capsys: pytest.CaptureFixture[str]) -> None:
    printed = plan("--config", ALTERNATING, "--epochs=1", "--trainer.devices=4", capsys=capsys)
    assert updates(printed) == {"weight1": 2, "weight2": 6}


@pytest.mark.parametrize(
    ("precision", "bytes_an_element"),
    [
        ("bf16-true", 2),
        ("16-true", 2),
    ],
)
def test_half_precision_halves_the_gradients(
    precision: str, bytes_an_element: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed("alternating", ("accelerator: cpu", f"accelerator: gpu\n  precision: {precision}"))
    printed = plan("--config", config, "--updates=1", capsys=capsys)
    assert f"need up to {2368 * bytes_an_element / 1024:.3g} KiB" in printed


def test_a_strategy_that_the_run_refuses_is_refused(refused: Any) -> None:
    config = changed("alternating", ("accelerator: cpu", "accelerator: cpu\n  strategy: deepspeed"))
    assert "DeepSpeed" in refused("plan", "--config", config, "--updates=1")


def test_other_callbacks_do_not_disturb(capsys: pytest.CaptureFixture[str]) -> None:
    others = "".join(
        f"\n    - {{class_path: pytorch_lightning.callbacks.{name}, init_args: {{{arguments}}}}}"
        for name, arguments in (
            ("EarlyStopping", "monitor: nowhere"),
            ("ModelCheckpoint", "every_n_train_steps: 1"),
            ("LearningRateMonitor", ""),
            ("GradientAccumulationScheduler", "scheduling: {1: 2}"),
        )
    )
    config = changed("alternating", ("callbacks:", f"callbacks:{others}"))
    printed = plan("--config", config, FEW, "--epochs=2", capsys=capsys)
    assert updates(printed) == {"weight1": 6, "weight2": 17 + 9}
    assert [path.name for path in Path.cwd().iterdir()] == ["changed.yaml"]


def test_values_of_an_earlier_run_end_phases(capsys: pytest.CaptureFixture[str]) -> None:
    Path("metrics.csv").write_text("epoch,step,val_loss\n0,9,1.0\n1,19,2.0\n2,29,3.0\n3,39,0.5\n4,49,0.5\n5,59,0.5\n")
    common = ("--config", str(CONFIGS / "unfreezing_on_plateau.yaml"), "--batches=10", "--epochs=8")
    printed = plan(*common, "--metrics=metrics.csv", capsys=capsys)
    assert updates(printed) == {"lower": 20, "upper": 50, "head": 80}  # epochs 0–2, 3–5, 6–7
    assert "No values of" not in printed
    printed = plan(*common, capsys=capsys)
    assert updates(printed) == {"lower": 0, "upper": 0, "head": 80}
    assert "- No values of 'val_loss' are given (`metrics`)" in printed


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_from_a_checkpoint_it_shows_how_that_run_would_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", ALTERNATING, FEW, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    (checkpoint,) = Path.cwd().rglob("*.ckpt")
    before = sorted(Path.cwd().rglob("*"))
    printed = plan(
        *("--config", ALTERNATING, FEW, "--trainer.max_epochs=3", "--ckpt_path", str(checkpoint)), capsys=capsys
    )
    assert printed.startswith("plan: updates 17 to 50, epochs 1 to 2\n")
    assert updates(printed) == {"weight1": 7, "weight2": 34}
    assert "  weight1, weight2         1            20        1" in printed
    assert sorted(Path.cwd().rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_state_from_before_the_checkpoint_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    config = changed(
        "phases", ("schedule: in_turn.yaml", "schedule: {phases: [{train: [weight1], epochs: 1}, {train: [weight2]}]}")
    )
    main(["fit", "--config", config, FEW, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    (checkpoint,) = Path.cwd().rglob("*.ckpt")
    printed = plan("--config", config, FEW, "--trainer.max_epochs=2", "--ckpt_path", str(checkpoint), capsys=capsys)
    assert "optimizer state 18.5 KiB at the end" in printed


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--updates", "0"], "--updates is 0, but must be at least 1."),
        (["--epochs=-1"], "--epochs is -1, but must be at least 1."),
        (["--batches", "0"], "--batches is 0, but must be at least 1."),
        (["--out", "a/plan.jpg"], "--out is 'a/plan.jpg', but must end in .png, .svg or .pdf. Did you mean plan.png?"),
        (["--updates", "many"], "--updates is 'many', but must be int."),
    ],
)
def test_bad_arguments(arguments: list[str], said: str, refused: Any) -> None:
    assert refused("plan", "--config", ALTERNATING, *arguments).startswith(f"lightning-freeze: error: {said}\n")


def line_of(path: str, text: str) -> int:
    return next(number for number, line in enumerate(Path(path).read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("name", "changes", "key", "said"),
    [
        (
            "lisa",
            ("count: 2", "count: 20"),
            "phases[0].pick.count",
            "`phases[0].pick.count` is 20, but 'blocks' has 8 groups (blocks/0, blocks/1, blocks/2, blocks/3, …), and a "
            "draw has no group twice. The nearest valid value is 8.",
        ),
        ("lisa", ("family: blocks", "family: block"), "phases[0].pick.family", "Did you mean 'blocks'"),
    ],
    ids=["count", "family"],
)
def test_what_only_the_model_tells_is_located(
    name: str, changes: tuple[str, str], key: str, said: str, refused: Any
) -> None:
    config = changed(name, changes)
    error = refused("plan", "--config", config)
    where = f"{config}, line {line_of(config, 'phases:')}, trainer.callbacks[0].init_args.schedule.{key}: "
    assert error.startswith(f"lightning-freeze: error: {where}`{key}`")
    assert said in error


def test_a_wrong_group_is_told_as_by_fit(refused: Any) -> None:
    config = changed("alternating", ("weight1: layer1", "weight1: layer3"))
    planned = refused("plan", "--config", config)
    assert planned == refused(
        "fit", "--config", config, "--trainer.logger=false", "--trainer.enable_checkpointing=false"
    )
    assert "changed.yaml, line " in planned
    assert "Did you mean " in planned


def test_without_a_scheduler_there_is_nothing_to_plan(refused: Any) -> None:
    said = refused("plan", "--config", ALTERNATING, "--trainer.callbacks=null")
    assert said.rstrip().endswith(
        "the Trainer has no freeze scheduler (callbacks: ModelCheckpoint), so there is nothing to plan. Add "
        "lightning_freeze.FreezeScheduler under `trainer.callbacks`."
    )


def test_sets_that_change_by_batch_are_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    phases = "{change: batch, phases: [{train: [weight1], updates: 2}, {train: [all]}]}"
    path = changed(
        "alternating", ("class_path: Every", phases), ("init_args: {periods: {weight1: 5}, of: weight2}", "")
    )
    assert "- What trains changes only between batches (`change: batch`)." in plan(
        "--config", path, "--updates=2", capsys=capsys
    )


def test_a_config_of_a_command_line_that_fixes_its_class_says_what_to_do(refused: Any) -> None:
    """What a stock LightningCLI(TwoLayerNet, DigitsData) prints: the arguments alone."""
    config = changed("alternating", ("class_path: lightning_freeze.demos.TwoLayerNet", "features: 64"))
    said = refused("plan", "--config", config)
    assert "line 17, model: names no class. Write `class_path: package.module.Class`" in said
    assert "preview_run(cli.trainer, cli.model, cli.datamodule), in Python." in said


def test_a_run_without_an_end_says_how_to_ask(refused: Any) -> None:
    said = refused("plan", "--config", ALTERNATING, "--trainer.max_epochs=-1")
    assert said.rstrip().endswith(
        "the run has no end (max_epochs: -1). Say how far to look: --updates N or --epochs N (in Python updates=N or "
        "epochs=N)."
    )


def test_what_is_not_the_schedules_fault_is_not_located_there(refused: Any) -> None:
    said = refused("plan", "--config", ALTERNATING, "--metrics=none.csv")
    assert said.rstrip() == (
        "lightning-freeze: error: the file of metrics 'none.csv' is not there. It is what Lightning's CSVLogger writes."
    )


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "options"), [("plan", "updates epochs batches metrics out".split()), ("groups", ["out"])]
)
def test_help(command: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lightning-freeze {command} ")
    assert [option for option in options if f"--{option}" not in shown] == []
    assert "--trainer.max_epochs" in shown


def test_an_unknown_option_is_told_as_the_plans(refused: Any) -> None:
    shown = refused("plan", "--config", ALTERNATING, "--updatse=5")
    assert "--updatse is not an option of plan. Did you mean '--updates'?" in shown
    assert "lightning-freeze plan --help" in shown


# --- stock command lines --------------------------------------------------------------------------------------------

FULL = """
seed_everything: 1
trainer:
  logger: false
  callbacks:
    - class_path: lightning_freeze.FreezeScheduler
      init_args:
        groups: {weights: {each: "layer.weight"}, bias: layer.bias}
        schedule:
          class_path: Phases
          init_args:
            seed: 7
            change: batch
            repeat: 2
            phases:
              - {train: [bias], updates: 2, lr: {bias: 0.5}, ramp: 3}
              - {train: [bias], until: {metric: val_loss, patience: 2, max_epochs: 5}}
              - {train: [], updates: 1, pick: {family: weights, order: shuffle, drawn: train}}
              - {train: [all], epochs: 1, lr: {weights: {decay: 0.4}, bias: 1}}
"""
SCHEDULE = Phases(
    [
        Phase(["bias"], updates=2, lr={"bias": 0.5}, ramp=3),
        Phase(["bias"], until=Until("val_loss", patience=2, max_epochs=5)),
        Phase([], updates=1, pick=Pick("weights", order="shuffle")),
        Phase(["all"], epochs=1, lr={"weights": {"decay": 0.4}, "bias": 1}),
    ],
    repeat=2,
    seed=7,
    change="batch",
)


@pytest.mark.parametrize(
    ("kind", "model"),
    [(LightningCLI, BoringModel), (UnifiedCLI, UnifiedBoring)],
    ids=["pytorch_lightning", "lightning.pytorch"],
)
def test_stock_lightning_cli_takes_a_whole_schedule_and_prints_it(
    kind: Any, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def schedule(path: str) -> Any:
        cli = kind(model, args=["--config", path], run=False, save_config_callback=None)
        return next(c for c in cli.trainer.callbacks if isinstance(c, FreezeScheduler))._schedule

    Path("run.yaml").write_text(FULL)
    assert schedule("run.yaml") == SCHEDULE
    capsys.readouterr()
    with pytest.raises(SystemExit):
        kind(model, args=["--config", "run.yaml", "--print_config"], run=False)
    Path("printed.yaml").write_text(capsys.readouterr().out)
    assert "patience: 2" in Path("printed.yaml").read_text()
    assert schedule("printed.yaml") == SCHEDULE
    Path("other.yaml").write_text(FULL.replace("decay: 0.4", "decay: 0.5"))
    assert schedule("other.yaml") != SCHEDULE


def test_plan_prints_the_configuration_of_the_fit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--config", str(CONFIGS / "lisa.yaml"), "--updates=5", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"].endswith(DigitsMixer.__name__)
    (callback,) = printed["trainer"]["callbacks"]
    assert callback["init_args"]["schedule"]["init_args"]["phases"][0]["pick"]["count"] == 2
