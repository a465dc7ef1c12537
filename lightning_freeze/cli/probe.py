"""``lightning-freeze probe``: a comparison of the methods of freezing for any optimizer; needs no model."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import track
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from lightning_freeze import __version__
from lightning_freeze.cli.command import at_least_one, check_picture
from lightning_freeze.cli.parser_errors import in_a_sentence
from lightning_freeze.cli.probe_table import STEPS, WARM_UP, WAYS, Cell, Recipe, Row, measure
from lightning_freeze.errors import did_you_mean
from lightning_freeze.report.probe_report import Fate, draw_comparison, print_comparison
from lightning_freeze.report.table import print_line
from lightning_freeze.yaml_file import ConfigError

# What is measured where nothing is named: the optimizers of `examples/drift.py`, and LBFGS.
DEFAULT_RECIPES = (
    *(Recipe(SGD), Recipe(SGD, {"momentum": 0.9}), Recipe(SGD, {"weight_decay": 0.01})),
    *map(Recipe, (Adam, AdamW, RMSprop, Adagrad, LBFGS)),
)
# Where `--all` looks, as far as they are installed.
PACKAGES = (
    *("torch.optim", "pytorch_optimizer", "schedulefree", "bitsandbytes.optim", "torch_optimizer", "optimi"),
    *("lion_pytorch", "prodigyopt", "dadaptation", "transformers.optimization"),
)
_TORCH = "torch.optim"
_TRAITS: dict[str, tuple[str, Any]] = {
    "skips_none": ("held without a gradient", True),
    "holds_excluded": ("held when excluded from its param group", True),
    "all_none_ok": ("a step without any gradient is fine", True),
    "late_first_step_ok": ("can be frozen from the first step on", True),
    "step_counters": ("step counters of param groups that run on", ()),
    "steps_in_backward": ("steps within backward", False),
    "closure_reentrant": ("calls its closure more than once a step", False),
    "extra_state": ("state elsewhere", ()),
}
"""Trait to its words and torch's own value; of several optimizers, only what differs is said."""


@dataclass(frozen=True)
class Asked:
    """What the command is to do; the JSON goes to `data`, ``-`` being stdout."""

    recipes: Sequence[Recipe]
    steps: int
    data: Path | None
    picture: Path | None
    named: bool


def probe(arguments: Sequence[str]) -> None:
    """Run the command."""
    asked = read_arguments(arguments)
    console, progress = Console(), Console(stderr=True)
    recipes = track(asked.recipes, "probing", console=progress, transient=True, disable=not progress.is_terminal)
    rows = [measure(recipe, asked.steps) for recipe in recipes]
    if asked.named and rows[0].why:
        raise ConfigError(f"--optimizer: {rows[0].name} {rows[0].why}. {_AT_HELP}")
    text = json.dumps(as_data(rows, asked.steps), indent=2, allow_nan=False) + "\n"
    quiet = str(asked.data) == "-"
    if quiet:
        sys.stdout.write(text)
    else:
        print_comparison(console, _title(asked.steps), WAYS, shown(rows), [_said(row, asked.named) for row in rows])
    if asked.data is not None and not quiet:
        asked.data.write_text(text, encoding="utf-8")
        print_line(console, f"The numbers are in {asked.data}.")
    if asked.picture is not None:
        draw_comparison(asked.picture, WAYS, shown(rows), title=_title(asked.steps))
        if not quiet:
            print_line(console, f"The picture is in {asked.picture}.")


# --- arguments ------------------------------------------------------------------------------------------------------

_AT_HELP = "`lightning-freeze probe --optimizer CLASS --help` lists the arguments of a class."


def add_options(parser: ArgumentParser, without: Collection[str] = ("params",)) -> None:
    """Add the options of the command; some arguments of an optimizer are not given on the command line."""
    names = ", ".join(recipe.name for recipe in DEFAULT_RECIPES)
    parser.add_argument("--all", action="store_true", help=f"every installed optimizer of {', '.join(PACKAGES)}")
    parser.add_argument("--steps", type=int, default=STEPS, help="frozen steps to measure")
    parser.add_argument("--json", type=Path, help="write all that was measured to this file; - for stdout alone")
    parser.add_argument("--picture", type=Path, help="draw the table (probe.png, probe.svg, probe.pdf)")
    parser.add_subclass_arguments(
        Optimizer,
        "optimizer",
        skip={*without},
        instantiate=False,
        fail_untyped=False,
        metavar="CLASS",
        help="a class of torch.optim (AdamW), or any other by its path (package.Class); then its arguments, as --lr 0.1 or "
        f"--optimizer.lr 0.1. By default: {names}",
    )


def _parser(without: Collection[str] = ("params",)) -> ArgumentParser:
    parser = ArgumentParser(
        prog="lightning-freeze probe",
        description="Measure what optimizers do to a frozen weight, by every method of freezing: zero gradients, None, "
        "requires_grad=False with a stale gradient, a stale gradient, lr=0, and lightning-freeze. A small network trains "
        f"for {WARM_UP} steps; then one of its two layers is frozen and the other trains on.",
        exit_on_error=False,
        allow_abbrev=False,  # what is not ours is the optimizer's
    )
    add_options(parser, without)
    return parser


def read_arguments(arguments: Sequence[str]) -> Asked:
    """What the arguments ask for; ``--lr`` is short for ``--optimizer.lr``.

    Example:
        >>> read_arguments(["--optimizer", "AdamW", "--lr", "0.1", "--optimizer.betas", "[0.9, 0.95]"]).recipes[0].arguments
        {'lr': 0.1, 'betas': (0.9, 0.95)}
    """
    own = {option for action in _parser()._actions for option in action.option_strings}
    words = [word if word.partition("=")[0] in own else _long_form(word) for word in arguments]
    kind, title = _take_class(words, own)
    try:
        asked = _parser(_not_given(kind, words)).parse_args(words, defaults=False)
    except ArgumentError as error:
        raise ConfigError(_taught(str(error), own)) from error
    _check(asked, kind)
    recipes = every_recipe() if asked.get("all") else DEFAULT_RECIPES
    if kind is not None:
        init_args = asked.optimizer.get("init_args")
        recipes = (Recipe(kind, init_args.as_dict() if init_args else {}, title),)
    return Asked(recipes, asked.get("steps", STEPS), asked.get("json"), asked.get("picture"), kind is not None)


def _take_class(words: list[str], own: Collection[str]) -> tuple[type[Optimizer] | None, str]:
    """The class that the words name, by its whole path from here on, and what to call it."""
    at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--optimizer"), None)
    if at is None:
        for word in words:
            if word.startswith("--optimizer.") and word not in own:
                flag = word.partition("=")[0].replace("optimizer.", "")
                raise ConfigError(
                    f"{flag} is not an option of the command.{did_you_mean(flag, own)} An argument of an optimizer goes "
                    "with its class: --optimizer AdamW --lr 0.1."
                )
        return None, ""
    _, equals, value = words[at].partition("=")
    written = value if equals else " ".join(words[at + 1 : at + 2])
    kind = find_class(written)
    path = f"{kind.__module__}.{kind.__qualname__}"
    words[at : at + 1 + (not equals)] = [f"--optimizer={path}"]
    if {"-h", "--help"} & {*words}:
        _parser().print_help()
        print()
        words[:] = [f"--optimizer.help={path}"]
    return kind, written.removeprefix(f"{_TORCH}.")


def _not_given(kind: type[Optimizer] | None, words: Sequence[str]) -> set[str]:
    """The arguments of a class that are put in, or that are the parameters."""
    if kind is None:
        return {"params"}
    given = {word.partition("=")[0].removeprefix("--optimizer.") for word in words}
    return {"params", next(iter(inspect.signature(kind).parameters)), *({*Recipe(kind).put_in} - given)}


def _long_form(word: str) -> str:
    return f"--optimizer.{word[2:]}" if word.startswith("--") and not word.startswith("--optimizer.") else word


def _check(asked: Any, kind: type[Optimizer] | None) -> None:
    at_least_one(asked, "steps")
    if kind is not None and asked.get("all"):
        raise ConfigError(f"--optimizer {kind.__name__} and --all were both given. Leave out one of them.")
    for option in ("json", "picture"):
        path = asked.get(option)
        if path is None or str(path) == "-" or (path.parent.is_dir() and not path.is_dir()):
            continue
        what = "is a folder" if path.is_dir() else f"lies in {str(path.parent)!r}, which is not a folder"
        raise ConfigError(f"--{option} is {str(path)!r}, which {what}. Name a file in a folder that exists.")
    if asked.get("picture") is not None:
        check_picture("--picture", asked.picture)


def _taught(message: str, own: Collection[str]) -> str:
    """An error of the parser, in a sentence."""
    key, problem = in_a_sentence(message)
    flag = f"--{key.removeprefix('optimizer.')}"
    if stray := re.search("unrecognized arguments: (.*)", message):
        meant = f" Did you mean --optimizer {stray[1]}?" if stray[1] in vars(torch.optim) else ""
        return f"{stray[1]!r} is neither an option nor its value. An argument of an optimizer is written --KEY VALUE.{meant}"
    if "is not an argument" in problem and (near := get_close_matches(flag, own, 1, 0.8)):
        problem = problem.partition(".")[0] + f". Did you mean the option {near[0]}?"
    return f"{flag}{' ' if problem.startswith('is ') else ': '}{problem} {_AT_HELP}"


def find_class(path: str) -> type[Optimizer]:
    """The optimizer class of a name in torch.optim, or of ``package.Class``.

    Example:
        >>> find_class("AdamW").__module__
        'torch.optim.adamw'
    """
    package, dot, name = path.rpartition(".")
    package = package if dot else _TORCH
    try:
        module = _imported(package)
    except Exception as error:  # whatever a package raises when it is imported
        near = did_you_mean(package, [each for each in PACKAGES if _is_installed(each)], 3)
        raise ConfigError(
            f"--optimizer is {path!r}, but {package!r} cannot be imported ({type(error).__name__}: {error}).{near}"
        ) from error
    found = getattr(module, name, None)
    if _is_optimizer(found):
        return found
    what = "has no such optimizer" if found is None else f"has it as {_kind_of(found)}, not as an optimizer class"
    raise ConfigError(
        f"--optimizer is {path!r}, but {package} {what}.{did_you_mean(name, classes_of(package), 3)} Any other class goes by "
        "its path: --optimizer package.Class."
    )


def _is_optimizer(value: object) -> TypeGuard[type[Optimizer]]:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def _imported(package: str) -> ModuleType:
    """A package, imported without its warnings and greetings."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(package)


def _kind_of(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a value of type {type(value).__name__}"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of what the package is in
        return False


def classes_of(package: str) -> dict[str, type[Optimizer]]:
    """The optimizer classes of a package; none where it cannot be imported.

    Example:
        >>> "AdamW" in classes_of("torch.optim"), classes_of("no_such_package")
        (True, {})
    """
    try:
        module = _imported(package)
    except Exception:  # not installed, or not on this machine
        return {}
    return {name: value for name, value in vars(module).items() if _is_optimizer(value)}


def every_recipe() -> tuple[Recipe, ...]:
    """Every installed optimizer of `PACKAGES`, each class once, with its own hyper-parameters."""
    found: dict[type[Optimizer], Recipe] = {}
    for package in PACKAGES:
        for name, kind in sorted(classes_of(package).items()):
            title = name if package == _TORCH else f"{package.partition('.')[0]}.{name}"
            found.setdefault(kind, Recipe(kind, title=title))
    return tuple(found.values())


# --- what is said ---------------------------------------------------------------------------------------------------


def _title(steps: int) -> str:
    return f"what a frozen weight does in {steps} steps, after {WARM_UP} in which everything trained"


def shown(rows: Sequence[Row]) -> list[tuple[str, list[Fate]]]:
    """Rows as they are drawn: a name, and a word for each method, or one for all."""
    return [
        (row.name, [Fate("unknown", row.why)] if row.why else [_fate(row.cells[way]) for way in WAYS]) for row in rows
    ]


def _fate(cell: Cell) -> Fate:
    entries = ", ".join(cell.state)
    if cell.outcome == "moved":
        return Fate("moved", f"moved {_percent(cell.share)}".rstrip(), entries)
    if cell.outcome in ("held", "state moved"):
        word = "held" if cell.outcome == "held" else "held; state moved"
        return Fate(cell.outcome, word + (f": {cell.says}" if cell.says else ""), entries)
    if cell.outcome == "raised":
        kind, _, message = cell.says.partition(": ")
        return Fate("raised", f"raised {kind}", message)
    if cell.outcome == "refused":
        return Fate("refused", "refused", "see below")
    return Fate("unknown", "not known", cell.says)


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" if share >= 0.001 else "<0.1%"


def _said(row: Row, at_length: bool) -> list[str]:
    """The sentences beneath the table of an optimizer."""
    said = [
        f"{way}: {cell.outcome}: {cell.says}"
        for way, cell in row.cells.items()
        if cell.says and cell.outcome in ("refused", "raised", "moved")
    ]
    if row.traits is None:
        return said
    if row.traits.why:
        return [*said, f"the probe learnt no more: {row.traits.why}"]
    for name, (words, usual) in _TRAITS.items():
        value = getattr(row.traits, name)
        if at_length or value not in (usual, None):
            reason = f" ({row.traits.reasons[name]})" if name in row.traits.reasons else ""
            said.append(f"{words}: {_word(value)}{reason}")
    return said


def _word(trait: bool | tuple[str, ...] | None) -> str:
    if isinstance(trait, tuple):
        return ", ".join(trait) or "none"
    return "not known" if trait is None else "yes" if trait else "no"


def as_data(rows: Sequence[Row], steps: int) -> dict[str, Any]:
    """All that was measured, as builtins."""
    return {
        "lightning_freeze": __version__,
        "torch": torch.__version__,
        "warm_up": WARM_UP,
        "steps": steps,
        "ways": list(WAYS),
        "optimizers": [{"name": row.name, "why": row.why, **asdict(row)} for row in rows],
    }
