"""All commands are the LightningCLI's own: listed, offered, completed; and what each mistake is answered."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import lightning.pytorch.cli as unified_cli
import pytest
import pytorch_lightning.cli as lightning_cli
from jsonargparse import ArgumentParser

from lightning_freeze.cli.freeze_cli import FreezeCLI
from lightning_freeze.cli.main import COMMANDS, main
from lightning_freeze.plan.phases import Phases
from lightning_freeze.report.records import read_records
from lightning_freeze.report.steps import steps_of

CONFIGS = Path(__file__).parents[2] / "configs"
ALTERNATING = str(CONFIGS / "alternating.yaml")
MODEL = ("--model=lightning_freeze.demos.TwoLayerNet", "--data=lightning_freeze.demos.DigitsData")
SCHEDULER = ("--trainer.callbacks+=lightning_freeze.FreezeScheduler",)
SHORT = tuple(
    f"--trainer.{option}"
    for option in ("max_epochs=1", "limit_train_batches=5", "limit_val_batches=0", "logger=false", "accelerator=cpu")
) + tuple(f"--trainer.enable_{what}=false" for what in ("checkpointing", "progress_bar", "model_summary"))

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(autouse=True)
def _below_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def shown(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that shows something prints."""
    with pytest.raises(SystemExit, match="0"):
        main(list(arguments))
    return capsys.readouterr().out


def test_help_lists_all_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown("--help", capsys=capsys).splitlines()
    assert len(COMMANDS) > 8
    for name, line in COMMANDS.items():
        assert f"    {name:<20}{line}" in lines


def test_the_version_names_the_program_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("--version", capsys=capsys) == "lightning-freeze 0.1.0\n"


class OnlyParser(Exception):
    """The parser is made."""


def parser_for(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> ArgumentParser:
    made: list[ArgumentParser] = []

    def parse(self: FreezeCLI, parser: ArgumentParser, args: Any) -> None:
        made.append(parser)
        raise OnlyParser

    monkeypatch.setattr(FreezeCLI, "parse_arguments", parse)
    with pytest.raises(OnlyParser):
        FreezeCLI(arguments, [])
    return made[0]


def test_completion_knows_every_command_and_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completion walks the parsers, which are all filled where no command is given yet, as under argcomplete."""
    parsers: Any = parser_for(monkeypatch=monkeypatch)._subcommands_action
    assert list(parsers.choices) == list(COMMANDS)
    options = {name: {action.dest for action in parser._actions} for name, parser in parsers.choices.items()}
    assert options["plan"] > {"updates", "epochs", "batches", "metrics", "out", "trainer.max_epochs", "ckpt_path"}
    assert options["groups"] > {"out", "model"}
    assert options["inputs"] > {"out", "batches", "data"}
    assert options["probe"] > {"all", "steps", "json", "picture", "optimizer"}
    assert "trainer.max_epochs" not in options["probe"]
    assert options["fit"] > {"ckpt_path", "trainer.max_epochs", "seed_everything"}


def test_only_the_parser_of_the_given_command_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: Any = parser_for("plan", "--updates=3", monkeypatch=monkeypatch)._subcommands_action
    assert [name for name, parser in parsers.choices.items() if len(parser._actions) > 10] == ["plan"]


@pytest.mark.parametrize("package", [lightning_cli, unified_cli], ids=["pytorch_lightning", "lightning.pytorch"])
def test_what_is_private_in_lightning_is_still_there(package: Any) -> None:
    """`trainer/cli_seam.py` overrides and uses these."""
    of_cli = package.LightningCLI
    assert [*inspect.signature(of_cli._add_subcommands).parameters] == ["self", "parser", "kwargs"]
    assert [*inspect.signature(of_cli._run_subcommand).parameters] == ["self", "subcommand"]
    assert [*inspect.signature(of_cli._prepare_subcommand_kwargs).parameters] == ["self", "subcommand"]
    assert [*inspect.signature(of_cli._add_arguments).parameters] == ["self", "parser"]
    used = inspect.getsource(of_cli)
    for name in ("_subcommand_parsers", "_subcommand_method_arguments", "_add_subcommands(self.parser"):
        assert name in used


# --- configurations that a stock LightningCLI takes


def run(text: str) -> list[list[str]]:
    """The groups of every update of a fit with these callbacks."""
    Path("run.yaml").write_text(text)
    main(["fit", "--config", "run.yaml", *MODEL, *SHORT])
    return [sorted(groups) for _, groups in steps_of(read_records(Path("freeze_runs/freeze_audit.jsonl")))]


ONE = """
trainer:
  callbacks:
    class_path: lightning_freeze.FreezeScheduler
    init_args:
      groups: {slow: layer1, fast: layer2}
      schedule: {phases: [{train: [fast], updates: 3}, {train: [all], lr: {slow: 1e-1}}]}
"""


def test_callbacks_as_one_mapping_and_a_number_without_a_point() -> None:
    assert run(ONE) == [["fast"]] * 3 + [["fast", "slow"]] * 2


def test_one_mapping_is_located(refused: Any) -> None:
    Path("run.yaml").write_text(ONE.replace("updates: 3", "updates: 0"))
    assert "run.yaml, line 7, trainer.callbacks.init_args.schedule.phases[0].updates: `updates` is 0" in refused(
        "fit", "--config", "run.yaml", *MODEL
    )


def test_a_merge_key() -> None:
    text = "base: &base {train: [fast], updates: 1}\n" + ONE.replace(
        "{phases: [{train: [fast], updates: 3}, {train: [all], lr: {slow: 1e-1}}]}",
        "{phases: [&first {train: [fast], updates: 2}, {<<: *first, train: [slow]}, {train: [all]}]}",
    )
    assert run(text.partition("\n")[2]) == [["fast"]] * 2 + [["slow"]] * 2 + [["fast", "slow"]]


def test_a_mistake_beside_a_merge_key_is_located(refused: Any) -> None:
    phases = "[&first {train: [fast], updates: 2}, {<<: *first, updates: 0}, {train: [all]}]"
    Path("run.yaml").write_text(ONE.replace("[{train: [fast], updates: 3}, {train: [all], lr: {slow: 1e-1}}]", phases))
    assert "phases[1].updates: `updates` is 0" in refused("fit", "--config", "run.yaml", *MODEL)


def test_the_schedule_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    init = Phases.__init__

    def counted(self: Phases, *args: Any, **kwargs: Any) -> None:
        built.append("one")
        init(self, *args, **kwargs)

    counted.__signature__ = inspect.signature(init)  # type: ignore[attr-defined]
    counted.__annotations__ = init.__annotations__
    monkeypatch.setattr(Phases, "__init__", counted)
    run(ONE)
    assert built == ["one"]


# --- mistakes on the command line

# name: (arguments, what the answer holds beside the program's name)
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "a mistyped command": (["fitt"], ["'fitt' is not a command. Did you mean 'fit'?", *COMMANDS]),
    "a mistyped command of ours": (["plna"], ["'plna' is not a command. Did you mean 'plan'?", *COMMANDS]),
    "no command": ([], ["no command is given.", *COMMANDS]),
    "an option before the command": (
        ["--trainer.max_epochs=3", "fit"],
        ["--trainer.max_epochs=3: an option goes after the command: lightning-freeze fit --trainer.max_epochs=3."],
    ),
    "a file before the command": (
        ["--config", ALTERNATING, "fit"],
        ["--config goes after the command: lightning-freeze fit --config FILE."],
    ),
    "a word of the schedule's callback beside a file": (
        ["fit", "--config", ALTERNATING, "--trainer.callbacks.init_args.rest", "trainn"],
        ["--trainer.callbacks.init_args.rest: `rest` is 'trainn', but must be one of", "Did you mean 'train'?"],
    ),
    "no model": (["fit"], ["`model` is missing. Write --model package.module.Class", "--config FILE"]),
    "a file without --config": (["fit", ALTERNATING], [f"'{ALTERNATING}' is neither", f"Did you mean --config {ALTERNATING}?"]),
    "--config without a file": (["fit", "--config"], ["--config has no value. Write --config VALUE."]),
    "a mistyped file": (
        ["fit", "--config", f"{CONFIGS}/alternatin.yaml"],
        [f"the file '{CONFIGS}/alternatin.yaml' does not exist. Did you mean (in '{CONFIGS}'): alternating.yaml"],
    ),
    "a mistyped option": (
        ["fit", "--config", ALTERNATING, "--trainer.max_epocs=3"],
        ["--trainer.max_epocs is not an option of fit. Did you mean '--trainer.max_epochs'"],
    ),
    "a word for a number": (
        ["fit", "--config", ALTERNATING, "--trainer.max_epochs=ten"],
        ["--trainer.max_epochs is 'ten', but must be int or null."],
    ),
    "a mistyped word": (
        ["fit", "--config", ALTERNATING, "--trainer.precision=16-mixd"],
        ["--trainer.precision is '16-mixd', but must be", "Did you mean '16-mixed'"],
    ),
    "a mistyped class": (
        ["fit", "--model=lightning_freeze.demos.TwoLayersNet"],
        ["--model: lightning_freeze.demos has no 'TwoLayersNet'. Did you mean 'TwoLayerNet'"],
    ),
    "a mistyped short class": (
        ["fit", *MODEL, "--trainer.callbacks+=FreezeSchedular"],
        ["--trainer.callbacks is 'FreezeSchedular', but must be a class: package.module.Class.", "'FreezeScheduler'"],
    ),
    "a class that is no model": (
        ["fit", "--model=torch.optim.SGD"],
        ["--model is 'torch.optim.SGD', which is not a subclass of pytorch_lightning", ".LightningModule."],
    ),
    "a mistyped argument of the model": (
        ["fit", "--config", ALTERNATING, "--model.hiden=3"],
        ["--model.hiden: 'hiden' is not an argument of TwoLayerNet. Did you mean 'hidden'?"],
    ),
    "a mistyped argument of a callback": (
        ["fit", *MODEL, *SCHEDULER, "--trainer.callbacks.grups={a: layer1}"],
        ["--trainer.callbacks.grups", "is not an argument of FreezeScheduler. Did you mean 'groups'?"],
    ),
    "a key of a schedule": (
        ["fit", *MODEL, *SCHEDULER, "--trainer.callbacks.schedule={phases: [{train: [all], update: 3}]}"],
        ["--trainer.callbacks.schedule.phases[0].update: 'update' is not a key of Phase. Did you mean 'updates'?"],
    ),
    "a value of a schedule": (
        ["fit", *MODEL, *SCHEDULER, "--trainer.callbacks.schedule={phases: [{train: [all], updates: 0}]}"],
        ["--trainer.callbacks.schedule.phases[0].updates: `updates` is 0", "nearest valid value is 1"],
    ),
    "a selector": (
        ["fit", *MODEL, *SCHEDULER, "--trainer.callbacks.groups={a: layer1..bias}", "--trainer.callbacks.schedule=x.yaml"],
        ["--trainer.callbacks.groups.a: ", "'layer1..bias'", "whole names"],
    ),
    "a value of another callback of ours": (
        ["fit", *MODEL, "--trainer.callbacks+=lightning_freeze.InputAudit", "--trainer.callbacks.batches=0"],
        ["--trainer.callbacks.batches: `batches` is 0, but must be a whole number of at least 1"],
    ),
    "an accelerator": (
        ["fit", *MODEL, "--trainer.accelerator=gpuu"],
        ["--trainer.accelerator: ", "accelerator='gpuu'", "Available names are: "],
    ),
    "a checkpoint": (
        ["fit", *MODEL, "--ckpt_path=last.ckpt"],
        ["--ckpt_path is 'last.ckpt', which does not exist. Did you mean 'lasst.ckpt'? Check the path."],
    ),
    "no updates": (["plan", "--config", ALTERNATING, "--updates=0"], ["--updates is 0, but must be at least 1."]),
    "a picture": (
        ["plan", "--config", ALTERNATING, "--out=plan.jpg"],
        ["--out is 'plan.jpg', but must end in .png, .svg or .pdf. Did you mean plan.png?"],
    ),
    "a mistyped option of plan": (
        ["plan", "--config", ALTERNATING, "--updatse=5"],
        ["--updatse is not an option of plan. Did you mean '--updates'?"],
    ),
    "a mistyped optimizer": (
        ["probe", "--optimizer=adamw"],
        ["--optimizer is 'adamw', but torch.optim has no such optimizer. Did you mean 'AdamW'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_place_value_nearest_and_fix(name: str, refused: Any) -> None:
    Path("lasst.ckpt").write_text("")
    arguments, fragments = MISTAKES[name]
    said = refused(*arguments)
    assert said.startswith("lightning-freeze: error: ")
    assert [fragment for fragment in fragments if fragment not in said] == [], said


def test_there_are_enough_mistakes() -> None:
    assert len(MISTAKES) >= 17
