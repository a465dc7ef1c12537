"""``lightning-freeze probe``: the founding table of any optimizer, as text, JSON and a picture; needs no model."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Collection, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

import torch
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.progress import track
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from lightning_freeze import __version__
from lightning_freeze.cli.probe_table import STEPS, WARM_UP, WAYS, Cell, Recipe, Row, measure
from lightning_freeze.errors import nearest
from lightning_freeze.report.probe_report import Fate, draw_comparison, print_comparison

FOUNDING = (
    Recipe(SGD),
    Recipe(SGD, {"momentum": 0.9}),
    Recipe(SGD, {"weight_decay": 0.01}),
    Recipe(Adam),
    Recipe(AdamW),
    Recipe(RMSprop),
    Recipe(Adagrad),
    Recipe(torch.optim.LBFGS),
)
"""What is measured where nothing is named: the optimizers of ``examples/drift.py``, and LBFGS."""

PACKAGES = (
    "torch.optim",
    "pytorch_optimizer",
    "schedulefree",
    "bitsandbytes.optim",
    "torch_optimizer",
    "optimi",
    "lion_pytorch",
    "prodigyopt",
    "dadaptation",
    "transformers.optimization",
)
"""Where ``--all`` looks, as far as they are installed."""

_TORCH = "torch.optim"
_TRAITS: dict[str, tuple[str, Any]] = {
    "skips_none": ("held without a gradient", True),
    "holds_excluded": ("held when left out of its param group", True),
    "all_none_ok": ("a step without any gradient is fine", True),
    "late_first_step_ok": ("can be frozen from the first step on", True),
    "step_counters": ("clocks of param groups that run on", ()),
    "steps_in_backward": ("steps within backward", False),
    "closure_reentrant": ("calls its closure more than once a step", False),
    "extra_state": ("state elsewhere", ()),
}
"""Trait to its name in words and what it is of torch's own; of many optimizers, only what differs is said."""


class ProbeError(ValueError):
    """What is wrong with the arguments of the command."""


@dataclass(frozen=True)
class Asked:
    """What the command is to do.

    Args:
        recipes: The optimizers.
        steps: Through how many steps the layer is frozen.
        data: Where the JSON goes; None: nowhere; ``-``: to stdout, and nothing else.
        picture: Where the picture goes, if anywhere.
        named: Whether the user has named the optimizer, so that what cannot be built is an error of the command.
    """

    recipes: Sequence[Recipe]
    steps: int
    data: Path | None
    picture: Path | None
    named: bool


def probe(arguments: Sequence[str]) -> None:
    """Run the command.

    Args:
        arguments: Those after ``lightning-freeze probe``.

    Raises:
        SystemExit: An argument is wrong, or the optimizer that was named cannot be built or stepped.
    """
    asked = read_arguments(arguments)
    console = Console()
    watched = Console(stderr=True)
    rows = [
        measure(recipe, asked.steps)
        for recipe in track(asked.recipes, "probing", console=watched, transient=True, disable=not watched.is_terminal)
    ]
    if asked.named and rows[0].why:
        raise SystemExit(f"lightning-freeze probe: error: {rows[0].name} {rows[0].why}. {_AT_HELP}")
    text = json.dumps(as_data(rows, asked.steps), indent=2, allow_nan=False) + "\n"
    if str(asked.data) == "-":
        sys.stdout.write(text)
    else:
        print_comparison(console, _title(asked.steps), WAYS, shown(rows), [_said(row, asked.named) for row in rows])
    if asked.data is not None and str(asked.data) != "-":
        asked.data.write_text(text, encoding="utf-8")
        console.print(f"The numbers are in {asked.data}.", markup=False, highlight=False, soft_wrap=True)
    if asked.picture is not None:
        draw_comparison(asked.picture, WAYS, shown(rows), title=_title(asked.steps))
        if str(asked.data) != "-":
            console.print(f"The picture is in {asked.picture}.", markup=False, highlight=False, soft_wrap=True)


# --- arguments ------------------------------------------------------------------------------------------------------

_AT_HELP = "`lightning-freeze probe --optimizer CLASS --help` lists the arguments of a class."


def read_arguments(arguments: Sequence[str]) -> Asked:
    """What the arguments ask for.

    Args:
        arguments: Those after ``lightning-freeze probe``.

    Raises:
        SystemExit: One is wrong, or ``--help`` is among them.
    """
    parser = argparse.ArgumentParser(
        "lightning-freeze probe",
        usage="lightning-freeze probe [--optimizer CLASS [--KEY VALUE ...] | --all] [--steps N] [--json FILE] [--picture FILE]",
        description="Measure what optimizers do to a weight that is to stand still, by every way of freezing: zero "
        "gradients, None, requires_grad=False with a stale gradient, a stale gradient, lr=0, and lightning-freeze. A small "
        f"network trains for {WARM_UP} steps; then one of its two layers is frozen and the other trains on. No model and no "
        "configuration is needed.",
        add_help=False,
        allow_abbrev=False,  # what is not ours is the optimizer's
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this, and the arguments of --optimizer")
    parser.add_argument(
        "--optimizer",
        metavar="CLASS",
        help="a class of torch.optim (AdamW), or any other by its path (package.Class); then its arguments, as --lr 0.1 or "
        "--optimizer.lr 0.1. By default: " + ", ".join(recipe.name for recipe in FOUNDING),
    )
    parser.add_argument(
        "--all", action="store_true", help=f"every optimizer of {', '.join(PACKAGES)}, as far as they are installed"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N", help=f"frozen steps to measure; by default {STEPS}"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all that was measured to this file; - for stdout alone"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the table (probe.png, probe.svg, probe.pdf)")
    given, rest = parser.parse_known_args(arguments)
    own = [action.dest for action in parser._actions]
    try:
        kind = find_class(given.optimizer) if given.optimizer is not None else None
        if given.help:
            parser.print_help()
            if kind is not None:
                print()
                _parser_of(kind).print_help()
            raise SystemExit(0)
        _check(given, rest, own)
        if kind is None:
            recipes = every_recipe() if given.all else FOUNDING
        else:
            title = given.optimizer.removeprefix(f"{_TORCH}.")
            recipes = (Recipe(kind, arguments_of(kind, rest, own), title),)
    except ProbeError as error:
        parser.error(str(error))
    return Asked(recipes, given.steps, given.json, given.picture, named=kind is not None)


def _check(given: argparse.Namespace, rest: Sequence[str], own: Sequence[str]) -> None:
    if given.steps < 1:
        raise ProbeError(f"--steps is {given.steps}, but must be at least 1.")
    if given.optimizer is not None and given.all:
        raise ProbeError(f"--optimizer {given.optimizer} and --all were both given. Leave out one of them.")
    if rest and given.optimizer is None:
        near = _offered([f"--{name}" for name in nearest(_key(rest[0]), own)])
        raise ProbeError(
            f"{rest[0]!r} is no option of the command.{near} An argument of an optimizer goes "
            "with its class: --optimizer AdamW --lr 0.1."
        )
    _check_file("--json", given.json)
    _check_file("--picture", given.picture)
    path = given.picture
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise ProbeError(
            f"--picture is {str(path)!r}, but must end in .png, .svg or .pdf. Nearest: {path.stem or 'probe'}.png."
        )
    if path is not None and find_spec("matplotlib") is None:
        raise ProbeError(
            "--picture needs matplotlib, the extra `plot`: pip install -c constraints.txt -e '.[plot]' in a checkout."
        )


def _check_file(option: str, path: Path | None) -> None:
    if path is None or str(path) == "-" or (path.parent.is_dir() and not path.is_dir()):
        return
    what = "is a folder" if path.is_dir() else f"lies in {str(path.parent)!r}, which is no folder"
    raise ProbeError(f"{option} is {str(path)!r}, which {what}. Name a file in a folder that is there.")


def find_class(path: str) -> type[Optimizer]:
    """The optimizer class of this name.

    Args:
        path: A name in torch.optim, or ``package.Class``.

    Raises:
        ProbeError: There is none.

    Example:
        >>> find_class("AdamW").__module__
        'torch.optim.adamw'
    """
    home, dot, name = path.rpartition(".")
    home = home if dot else _TORCH
    try:
        module = _imported(home)
    except Exception as error:  # whatever a package raises when it is imported
        near = _near(home, [package for package in PACKAGES if _is_installed(package)])
        raise ProbeError(
            f"--optimizer is {path!r}, but {home!r} cannot be imported ({type(error).__name__}: {error}).{near}"
        ) from error
    found = getattr(module, name, None)
    if _is_optimizer(found):
        return found
    what = "has no such optimizer" if found is None else f"has it as no optimizer class: {_what(found)}"
    raise ProbeError(
        f"--optimizer is {path!r}, but {home} {what}.{_near(name, classes_of(home))} Any other class goes by its path: "
        "--optimizer package.Class."
    )


def _is_optimizer(value: object) -> TypeGuard[type[Optimizer]]:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def _imported(package: str) -> ModuleType:
    """A package, whose warnings and greetings are kept back."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        return importlib.import_module(package)


def _what(value: object) -> str:
    if isinstance(value, type):
        return f"{value.__name__}, a class of other things"
    return f"a value of type {type(value).__name__}"


def _near(name: str, among: Iterable[str]) -> str:
    """Offers the names nearest to one, whose case is no matter here."""
    folded = {each.casefold(): each for each in among}
    return _offered([folded[each] for each in nearest(name.casefold(), folded)] or list(folded.values())[:3])


def _offered(names: Sequence[str]) -> str:
    """A sentence that offers names, after a space; nothing where there are none."""
    return f" Nearest: {', '.join(map(repr, names))}." if names else ""


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of what the package is in
        return False


def classes_of(package: str) -> dict[str, type[Optimizer]]:
    """The optimizer classes that a package shows; none where it cannot be imported.

    Args:
        package: Its path.

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
    """Every optimizer of `PACKAGES` that is installed, each class once, with its own hyper-parameters."""
    found: dict[type[Optimizer], Recipe] = {}
    for package in PACKAGES:
        for name, kind in sorted(classes_of(package).items()):
            title = name if package == _TORCH else f"{package.partition('.')[0]}.{name}"
            found.setdefault(kind, Recipe(kind, title=title))
    return tuple(found.values())


def arguments_of(kind: type[Optimizer], given: Sequence[str], own: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of an optimizer's constructor, of the types that it asks for.

    Args:
        kind: The class.
        given: ``--key value`` for each, or ``--optimizer.key value``.
        own: The names of the command's own options, which may have been meant.

    Raises:
        ProbeError: A name or a value is not accepted.

    Example:
        >>> arguments_of(torch.optim.AdamW, ["--lr", "0.1", "--optimizer.betas", "[0.9, 0.95]"])
        {'lr': 0.1, 'betas': (0.9, 0.95)}
    """
    words = [re.sub(r"^--optimizer\.", "--", word) for word in given]
    keys = {_key(word) for word in words if word.startswith("--")}
    parser = _parser_of(kind, set(Recipe(kind).put_in) - keys)  # which need not be given
    known = [
        action.dest
        for action in parser._actions
        if "." not in action.dest and action.dest not in ("help", "print_shtab")
    ]
    try:
        return dict(vars(parser.parse_args(words, defaults=False)))
    except ArgumentError as error:
        raise ProbeError(_taught(kind, " ".join(str(error).split()), known, own)) from error


def _parser_of(kind: type[Optimizer], without: Collection[str] = ()) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"arguments of {kind.__name__}", exit_on_error=False, usage=argparse.SUPPRESS, allow_abbrev=False
    )
    first = next(iter(inspect.signature(kind).parameters))
    parser.add_class_arguments(kind, None, skip={first, "params", *without}, fail_untyped=False)
    return parser


def _taught(kind: type[Optimizer], message: str, known: Sequence[str], own: Sequence[str]) -> str:
    """What jsonargparse says, with the nearest name, or the type."""
    if unknown := re.search(r"unrecognized arguments: (\S+)", message):
        if not unknown[1].startswith("--"):
            return f"{unknown[1]!r} stands alone. An argument of {kind.__name__} is written --key value."
        key = _key(unknown[1])
        near = [name if name in known else f"--{name}" for name in nearest(key, [*known, *own])]
        return f"{kind.__name__} has no argument {key!r}.{_offered(near)} Known: {', '.join(known)}."
    if missing := re.search(r"arguments are required: (.*)", message):
        keys = missing[1].split(", ")
        return f"{kind.__name__} asks for {', '.join(keys)}. Give {' '.join(f'--{key} VALUE' for key in keys)}."
    wrong = re.search(r'Parser key "([\w.]+)"', message)
    types = dict.fromkeys(re.findall(r"Expected an? <class '([\w.]+)'>", message))
    value = re.search(r"(?:Got value|Given value): (.*)$", message)
    if wrong and value and types:
        written = ', written "[0.9, 0.95]"' if types.keys() & {"tuple", "list"} else ""
        return f"--{wrong[1]} is {value[1]!r}, but must be of type {' or '.join(types)}{written}. {_AT_HELP}"
    return f"{message}. {_AT_HELP}"


def _key(word: str) -> str:
    return word.lstrip("-").partition("=")[0].removeprefix("optimizer.")


# --- what is said ---------------------------------------------------------------------------------------------------


def _title(steps: int) -> str:
    return f"what a frozen weight does in {steps} steps, after {WARM_UP} in which everything trained"


def shown(rows: Sequence[Row]) -> list[tuple[str, list[Fate]]]:
    """Rows as they are drawn: of each optimizer its name, and for each way a word; or one word for all of it.

    Args:
        rows: What was measured.
    """
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
    """What is said beneath the table of an optimizer."""
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
    """All that was measured, of builtins alone.

    Args:
        rows: What was measured.
        steps: Through how many steps.
    """
    return {
        "lightning_freeze": __version__,
        "torch": torch.__version__,
        "warm_up": WARM_UP,
        "steps": steps,
        "ways": list(WAYS),
        "optimizers": [{"name": row.name, "why": row.why, **asdict(row)} for row in rows],
    }
