"""``lightning-freeze probe``: what it takes, what it says of what is wrong, and what it writes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from lightning_freeze.cli import command, probe_table
from lightning_freeze.cli import probe as probe_command
from lightning_freeze.cli.main import COMMANDS, main
from lightning_freeze.cli.probe import every_recipe, find_class, read_arguments, shown
from lightning_freeze.cli.probe_table import WAYS, Cell, Recipe, Row

ZOO = """
import torch
print("welcome")


class Slow(torch.optim.SGD):
    def __init__(self, params, rate: float, decays: bool = False, lr: float = 0.1):
        super().__init__(params, lr=lr)


class Stepper(torch.optim.SGD):
    def __init__(self, params, steps: int = 1):
        super().__init__(params)


class Breaks(torch.optim.SGD):
    def step(self, closure=None):
        raise KeyError("exp_avg")


class Other:
    pass


number = 3
"""


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-freeze"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("own_optimizers", None)
    Path("own_optimizers.py").write_text(ZOO)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of arguments that are wrong."""
    with pytest.raises(SystemExit) as ended:
        main(["probe", *arguments])
    assert ended.value.code not in (0, None)
    return f"{ended.value.code} {capsys.readouterr().err}"


# --- what it prints and writes --------------------------------------------------------------------------------------

PRINTED = """\
AdamW(lr=0.1): what a frozen weight does in 20 steps, after 3 in which everything trained
  frozen by             the weight          what changed of its optimizer state
  zero gradients        moved N%            exp_avg, exp_avg_sq, step
  None                  held                –
  requires_grad=False   moved N%            exp_avg, exp_avg_sq, step
  stale gradient        moved N%            exp_avg, exp_avg_sq, step
  lr=0                  held; state moved   exp_avg, exp_avg_sq, step
  lightning-freeze      held: None          –
a percentage: how far it moved, of how far the weight moved that trained
- held without a gradient: yes
- held when excluded from its param group: yes
- a step without any gradient is fine: yes
- can be frozen from the first step on: yes
- step counters of param groups that run on: none
- steps within backward: no
- calls its closure more than once a step: no
- state elsewhere: none
"""


def plain(text: str) -> str:
    """Without rules, blank lines, what ends lines, and the numbers that a machine may round otherwise."""
    lines = [re.sub(r"moved \d+%( *)", r"moved N%\1", line).rstrip() for line in text.splitlines()]
    return "\n".join(re.sub(r"(moved N%) +", r"\1  ", line) for line in lines if line.strip(" ─")) + "\n"


def test_one_optimizer_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", "--optimizer", "AdamW", "--lr", "0.1"])
    assert plain(capsys.readouterr().out) == plain(PRINTED)


def test_json_on_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main(["probe", "--optimizer", "own_optimizers.Slow", "--optimizer.rate", "3", "--steps", "4", "--json", "-"])
    data = json.loads(capsys.readouterr().out)
    assert (data["torch"], data["warm_up"], data["steps"], data["ways"]) == (torch.__version__, 3, 4, list(WAYS))
    (row,) = data["optimizers"]
    assert row["name"] == "own_optimizers.Slow(rate=3.0)"
    assert row["cells"]["None"] == {"outcome": "held", "share": 0.0, "state": [], "says": ""}
    assert row["cells"]["stale gradient"]["share"] > 0.5
    assert row["traits"]["skips_none"] is True
    assert row["traits"]["step_counters"] == []


def test_numbers_and_picture_go_into_files(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    main(["probe", "--optimizer", "SGD", "--steps", "2", "--json", "a.json", "--picture", "a.png"])
    said = capsys.readouterr().out
    assert json.loads(Path("a.json").read_text())["optimizers"][0]["name"] == "SGD"
    assert Path("a.png").stat().st_size > 1000
    assert said.endswith("The numbers are in a.json.\nThe picture is in a.png.\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--json", "new/a.json"], "--json is 'new/a.json', which lies in 'new', which is not a folder."),
        (["--picture", "new/a.png"], "--picture is 'new/a.png', which lies in 'new', which is not a folder."),
        (["--json", "."], "--json is '.', which is a folder."),
    ],
)
def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = measured(monkeypatch)
    with pytest.raises(SystemExit):
        main(["probe", "--optimizer", "SGD", *given])
    assert said in capsys.readouterr().err
    assert asked == []


def measured(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """What is asked for, none of which is measured."""
    asked: list[Recipe] = []

    def row(recipe: Recipe, steps: int) -> Row:
        asked.append(recipe)
        cells = dict.fromkeys(WAYS, Cell("held", 0.0)) | {"None": Cell("raised", says="KeyError: 'x'")}
        return Row(recipe.name, {}, why="could not be built: E") if "LBFGS" in recipe.name else Row(recipe.name, cells)

    monkeypatch.setattr(probe_command, "measure", row)
    return asked


def test_without_a_name_the_default_ones(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = measured(monkeypatch)
    main(["probe"])
    names = "SGD, SGD(momentum=0.9), SGD(weight_decay=0.01), Adam, AdamW, RMSprop, Adagrad, LBFGS".split(", ")
    assert [recipe.name for recipe in asked] == names
    said = capsys.readouterr().out
    assert "- Adam: None: raised: KeyError: 'x'" in said
    assert "- LBFGS: could not be built: E" in said
    assert "raised KeyError" in said


def test_all_is_every_class_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured(monkeypatch)
    main(["probe", "--all", "--json", "-"])
    kinds = [recipe.kind for recipe in asked]
    torchs = {v for v in vars(torch.optim).values() if isinstance(v, type) and issubclass(v, torch.optim.Optimizer)}
    assert torchs - {torch.optim.Optimizer} <= set(kinds)
    assert len(set(kinds)) == len(kinds)
    assert torch.optim.Optimizer not in kinds


def test_all_looks_into_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.setattr(probe_command, "PACKAGES", ("torch.optim", "own_optimizers", "not_installed"))
    titles = [recipe.title for recipe in every_recipe()]
    assert titles[-3:] == [f"own_optimizers.{name}" for name in ("Breaks", "Slow", "Stepper")]
    assert titles[0] == "ASGD"


# --- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [["--lr", "0.1"], ["--lr=0.1"], ["--optimizer.lr", "0.1"], ["--optimizer.lr=0.1"]])
def test_ways_to_write_an_argument(written: list[str]) -> None:
    (recipe,) = read_arguments(["--optimizer", "AdamW", *written, "--steps=5"]).recipes
    assert recipe == Recipe(torch.optim.AdamW, {"lr": 0.1}, "AdamW")


def test_arguments_have_the_types_of_the_constructor() -> None:
    given = ["--optimizer=AdamW", "--betas", "[0.9, 0.95]", "--foreach", "true", "--eps", "1e-6"]
    (recipe,) = read_arguments(given).recipes
    assert recipe.arguments == {"betas": (0.9, 0.95), "foreach": True, "eps": 1e-6}


def test_an_argument_of_the_commands_own_name_goes_by_the_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path.cwd()))
    asked = read_arguments(["--optimizer", "own_optimizers.Stepper", "--optimizer.steps", "7", "--steps", "3"])
    assert (asked.steps, asked.recipes[0].arguments) == (3, {"steps": 7})


def test_a_class_by_its_path_is_the_same() -> None:
    assert find_class("torch.optim.AdamW") is find_class("AdamW") is torch.optim.AdamW
    assert find_class("torch.optim.adamw.AdamW") is torch.optim.AdamW


WRONG = {
    "case": (["--optimizer", "adamw"], "--optimizer is 'adamw', but torch.optim has no such optimizer. Did you mean 'AdamW'"),
    "case of all": (["--optimizer", "sgd"], "Did you mean 'SGD'"),
    "path": (["--optimizer", "own_optimizers.Slaw"], "own_optimizers has no such optimizer. Did you mean 'Slow'? Any other"),
    "no optimizer": (["--optimizer", "own_optimizers.Other"], "own_optimizers has it as the class Other, not as an optimizer"),
    "a number": (["--optimizer", "own_optimizers.number"], "has it as a value of type int, not as an optimizer class"),
    "module": (["--optimizer", "torch.optin.AdamW"], "'torch.optin' cannot be imported (ModuleNotFoundError: No module"),
    "nearest module": (["--optimizer", "torch.optin.AdamW"], "Did you mean 'torch.optim'?"),
    "key": (["--optimizer", "AdamW", "--lrr", "1"], "--lrr: 'lrr' is not an argument of AdamW. Did you mean 'lr'? Its arguments:"),
    "long key": (["--optimizer", "AdamW", "--optimizer.beta=1"], "'beta' is not an argument of AdamW. Did you mean 'betas'"),
    "our option": (["--optimizer", "AdamW", "--pictur", "a.png"], "not an argument of AdamW. Did you mean the option --picture?"),
    "type": (["--optimizer", "AdamW", "--lr", "abc"], "--lr is 'abc', but must be float"),
    "tuple": (["--optimizer", "AdamW", "--betas", "3"], "--betas is '3', but must be tuple. A sequence is written \"[0.9, 0.95]\"."),
    "bool": (["--optimizer", "SGD", "--nesterov", "maybe"], "--nesterov is 'maybe', but must be bool."),
    "where to look": (["--optimizer", "SGD", "--nesterov", "maybe"], "`lightning-freeze probe --optimizer CLASS --help`"),
    "a bare class": (["AdamW"], "'AdamW' is neither an option nor its value. An argument of an optimizer is written --KEY VALUE. Did you mean --optimizer AdamW?"),
    "stray": (["--optimizer", "AdamW", "stray"], "'stray' is neither an option nor its value. An argument of an optimizer is"),
    "asked for": (["--optimizer", "own_optimizers.Slow"], "--rate is missing: Slow has no default for it."),
    "no class": (["--lr", "0.1"], "--lr is not an option of the command"),
    "mistyped": (["--al"], "--al is not an option of the command. Did you mean '--all'"),
    "both": (["--optimizer", "AdamW", "--all"], "--optimizer AdamW and --all were both given. Leave out one of them."),
    "steps": (["--steps", "0"], "--steps is 0, but must be at least 1."),
    "no number": (["--steps", "few"], "--steps is 'few', but must be int."),
    "suffix": (["--picture", "a.txt"], "--picture is 'a.txt', but must end in .png, .svg or .pdf. Did you mean a.png?"),
    "value": (["--optimizer", "SGD", "--lr", "-1"], "SGD(lr=-1.0) could not be built: ValueError: Invalid learning rate: -1"),
    "step": (["--optimizer", "own_optimizers.Breaks"], "Breaks could not be stepped: KeyError: 'exp_avg'."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors_teach(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = WRONG[name]
    assert said in refused(capsys, *arguments)


def test_a_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = command.find_spec
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    said = "--picture needs matplotlib, the extra `plot`: pip install -c constraints.txt -e '.[plot]' in a checkout."
    assert said in refused(capsys, "--picture", "a.png")


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], [f"{name} {meaning}" for name, meaning in COMMANDS.items()]),
        (["probe", "--help"], ["--optimizer", "--all", "--json", "--picture", "--steps", "pytorch_optimizer"]),
        (["probe", "--optimizer", "SGD", "--help"], ["--all", "--optimizer.momentum", "--optimizer.nesterov"]),
    ],
)
def test_help(arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code in (0, None)
    assert [text for text in expected if text not in shown] == []


def test_a_mistyped_command_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prob"])
    assert "Did you mean 'probe'?" in capsys.readouterr().err


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "word", "below"),
    [
        (Cell("moved", 0.374, ("a", "b")), "moved 37%", "a, b"),
        (Cell("moved", 0.0042), "moved 0.4%", ""),
        (Cell("moved", 1e-9), "moved <0.1%", ""),
        (Cell("moved", None, (), "by what is no number"), "moved", ""),
        (Cell("held", 0.0, (), "excluded"), "held: excluded", ""),
        (Cell("state moved", 0.0, ("step",)), "held; state moved", "step"),
        (Cell("raised", says="KeyError: 'x'"), "raised KeyError", "'x'"),
        (Cell("raised", says="NotImplementedError"), "raised NotImplementedError", ""),
        (Cell("refused", says="optimizer 0 is LBFGS"), "refused", "see below"),
        (Cell("unknown", says="no `lr`"), "not known", "no `lr`"),
    ],
)
def test_words(cell: Cell, word: str, below: str) -> None:
    ((_, fates),) = shown([Row("SGD", dict.fromkeys(WAYS, cell))])
    assert [(fate.kind, fate.word, fate.below) for fate in fates] == [(cell.outcome, word, below)] * len(WAYS)


def test_the_command_prints_what_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A measurement that is spoilt is seen in what is printed: nothing of it is known beforehand."""
    monkeypatch.setattr(probe_table, "same", lambda one, other: True)
    monkeypatch.setattr(probe_table, "changed", lambda one, other: [])
    main(["probe", "--optimizer", "AdamW", "--steps", "2"])
    assert "moved" not in capsys.readouterr().out.partition("frozen by")[2].partition("a percentage")[0]
