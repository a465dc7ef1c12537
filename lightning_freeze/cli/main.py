"""``lightning-freeze``: a LightningCLI whose errors name file, line and key.

``lightning-freeze fit --config configs/alternating.yaml`` runs any LightningModule and LightningDataModule that the
file names. Parsing, types, ``--help`` and ``--print_config`` are jsonargparse's; what is checked here, before it, is
what a stock LightningCLI lets pass (a key that stands twice) and what it cannot locate (an error in a schedule).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_freeze import __version__
from lightning_freeze.cli.command import Command, log_levels_restored
from lightning_freeze.cli.config import check_files, locate, near, to_be_written
from lightning_freeze.cli.groups import GroupsCommand
from lightning_freeze.cli.inputs import InputsCommand
from lightning_freeze.cli.plan import PlanCommand
from lightning_freeze.cli.probe import probe
from lightning_freeze.demos import MissingPackageError
from lightning_freeze.errors import ScheduleError, SelectionError, UnsupportedError, nearest
from lightning_freeze.inputs.declarations import DeclarationError
from lightning_freeze.report.findings import FreezeViolation
from lightning_freeze.trainer.input_audit import InputAudit
from lightning_freeze.trainer.seam import LightningArgumentParser, LightningCLI, LightningModule
from lightning_freeze.yaml_file import ConfigError, Place

_OVER_A_FIT: dict[str, type[Command]] = {kind.name: kind for kind in (PlanCommand, GroupsCommand, InputsCommand)}
COMMANDS = {
    **{name: kind.about for name, kind in _OVER_A_FIT.items()},
    "probe": "what any optimizer does to a frozen weight, by every way of freezing (needs no configuration)",
}
_ABOUT = (
    "Lightning's own commands over any model and data that a configuration names (--config FILE), and four more: "
    + "; ".join(f"{name}: {meaning}" for name, meaning in COMMANDS.items())
    + ". Each has a --help."
)
_WHITELIST = re.compile(r".*callbacks\[\d+\]\.init_args\.whitelist")
_OTHERS = ("torch", "pytorch_lightning", "lightning.")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; by default those of the process.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a module in this folder can be named, as under `python -m`
    if arguments[:1] == ["probe"]:  # the one that needs neither model nor Trainer
        return probe(arguments[1:])
    command = _command_of(arguments)
    ours: dict[str, Any] = {}
    if command is not None:
        arguments = command.as_fit
        ours = {"save_config_callback": None, "trainer_defaults": {"callbacks": command.callbacks}}
    if args is None:
        sys.argv = [sys.argv[0], *arguments]
    FreezeCLI.roots = roots = []
    FreezeCLI.command = command
    try:
        roots += check_files(arguments, _whitelist_of(command))
        with log_levels_restored():
            FreezeCLI(
                LightningModule,
                None,  # any LightningDataModule, or none where the model brings its own data
                subclass_mode_model=True,
                parser_class=_Parser,
                parser_kwargs={"version": f"lightning-freeze {__version__}", "description": _ABOUT},
                save_config_kwargs={"overwrite": True},
                args=None if args is None else arguments,
                **ours,
            )
    except Exception as error:
        message = _message(error, command, roots)
        if message is None:
            raise
        raise SystemExit(f"lightning-freeze: {message}") from error


def _command_of(arguments: Sequence[str]) -> Command | None:
    """The command that the arguments give, if it is one of ours that takes the configuration of a fit."""
    kind = _OVER_A_FIT.get(arguments[0]) if arguments else None
    return kind.parse(arguments[1:]) if kind is not None else None


def _message(error: Exception, command: Command | None, roots: Sequence[Place]) -> str | None:
    """What is said of an error that is the user's to correct, with where it comes from; None of any other."""
    if isinstance(error, FreezeViolation):
        return str(error)
    if isinstance(error, ConfigError):
        return f"error: {error}"
    if isinstance(error, ScheduleError) and error.key is None:  # of no configuration's making
        return f"error: {error}"
    if isinstance(error, (ScheduleError, SelectionError, UnsupportedError, DeclarationError)):
        # Found with the model, so where it stands is looked up again.
        return f"error: {locate(str(error), roots) or _at_schedule(command, roots)}{error}"
    missing = _missing_package(error)
    return f"error: {_where_class(missing.kind, roots)}{missing}" if missing is not None else None


def _at_schedule(command: Command | None, roots: Sequence[Place]) -> str:
    """Where the schedule stands, for what is wrong between it and the model; `groups` makes none."""
    return "" if isinstance(command, GroupsCommand) else locate("'schedule'", roots)


def _missing_package(error: BaseException | None) -> MissingPackageError | None:
    """What lies behind an error where a demo lacks a package: jsonargparse makes errors of its own of it."""
    while error is not None and not isinstance(error, MissingPackageError):
        error = error.__cause__ or error.__context__
    return error


def _where_class(name: str, roots: Sequence[Place]) -> str:
    """Where the configuration names a class, as `locate` writes it."""
    for place in (place for root in roots for place in root.walk()):
        if place.key.endswith("class_path") and str(place.plain()).rpartition(".")[2] == name:
            return f"{place.path}, line {place.line}, {place.key}: "
    return ""


class FreezeCLI(LightningCLI):
    """Lightning's own command line over any model and data class."""

    roots: Sequence[Place] = ()
    command: Command | None = None

    def _run_subcommand(self, subcommand: str) -> None:
        """Run Lightning's subcommand, or our own, which fits only as far as it needs."""
        if self.command is None:
            return super()._run_subcommand(subcommand)
        self.command.run(self.trainer, self.model, lambda: super(FreezeCLI, self)._run_subcommand(subcommand))

    def before_instantiate_classes(self) -> None:
        """A whitelist's file is found beside the configuration that names it, as a schedule's is."""
        if self.command is not None:
            self.command.configure(self.config[self.subcommand]["trainer"])
        found = {
            str(at.plain()): at.file() for root in self.roots for at in root.walk() if _WHITELIST.fullmatch(at.key)
        }
        for callback in self.config[self.subcommand].get("trainer.callbacks") or []:
            arguments = callback.get("init_args") or {}
            path = found.get(str(arguments.get("whitelist")))
            if path is not None and callback["class_path"].rpartition(".")[2] == InputAudit.__name__:
                written = not to_be_written(path, _whitelist_of(self.command))
                arguments["whitelist"] = str(path.resolve()) if written else None


def _whitelist_of(command: Command | None) -> Path | None:
    """The whitelist that a command will write."""
    return command.out if isinstance(command, InputsCommand) else None


class _Parser(LightningArgumentParser):
    """Lightning's parser, whose errors name the file and the line of the key at fault where they can."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the message, led by where in the configuration files it comes from."""
        where = locate(message, FreezeCLI.roots)
        for parser in (self, getattr(ex, "subcommand_parser", None)):
            if FreezeCLI.command is not None and parser is not None:
                parser.prog = parser.prog.replace(" fit", f" {FreezeCLI.command.name}")  # what was typed
        super().error(f"{where}{message}{self._fix(message)}", ex)
        raise AssertionError("the parser's own error does not return")

    def print_usage(self, file: Any = None) -> None:
        """One line instead of every option, so that an error stays on the screen."""
        print("usage: lightning-freeze fit|validate|test|predict|plan|groups|inputs --config FILE [options]", file=file)
        print("       lightning-freeze probe [options]", file=file)

    def _fix(self, message: str) -> str:
        """The names nearest to one that is not accepted."""
        if "arguments are required" in message:
            return "\nGive a file that says so: --config FILE. configs/alternating.yaml shows one."
        absent = re.search(r"module '([^']+)' has no attribute '([^']+)'", message)
        command = re.search(r"invalid choice: '([^']+)'", message)
        wrong = re.search(r"not accept option '([^']+)'", message)
        if absent is not None:
            found = vars(sys.modules.get(absent[1], object)).items()
            own = [name for name, value in found if not getattr(value, "__module__", "torch").startswith(_OTHERS)]
            close = nearest(absent[2], own)
        elif command is not None and "predict" in message:
            every = [*("fit", "validate", "test", "predict"), *COMMANDS]
            return f"\nNearest: {near(command[1], every)}. All: {', '.join(every)}."
        elif wrong is not None:
            subcommands = getattr(self, "_subcommands_action", None)
            parsers = [self, *getattr(subcommands, "_name_parser_map", {}).values()]
            close = nearest(wrong[1], [action.dest for parser in parsers for action in parser._actions])
        else:
            return ""
        return f"\nNearest: {', '.join(map(repr, close))}." if close else ""


if __name__ == "__main__":
    main()
