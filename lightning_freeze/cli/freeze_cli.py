"""The LightningCLI behind the commands that are about a fit; its errors name file, line and key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from lightning_freeze import __version__
from lightning_freeze.cli.command import Command
from lightning_freeze.cli.main import COMMANDS
from lightning_freeze.cli.parser_errors import in_a_sentence
from lightning_freeze.errors import did_you_mean
from lightning_freeze.trainer.cli_seam import CommandsCLI
from lightning_freeze.trainer.seam import MisconfigurationException, log_levels_restored
from lightning_freeze.yaml_file import ConfigError, Place

_OVER_A_FIT = {"plan": "PlanCommand", "groups": "GroupsCommand", "inputs": "InputsCommand"}
_ABOUT = "Run any model and data that a configuration names: lightning-freeze fit --config FILE."


class FreezeCLI(CommandsCLI):
    """Lightning's command line over any model and data class; fills `roots` with the configuration files."""

    def __init__(self, arguments: Sequence[str], roots: list[Place]) -> None:
        self._arguments, self._roots = arguments, roots
        self._command: Command | None = None
        options = {"prog": "lightning-freeze", "version": __version__, "description": _ABOUT, "exit_on_error": False}
        super().__init__(arguments, COMMANDS, parser_kwargs=options, save_config_kwargs={"overwrite": True})

    def fill(self, name: str, parser: Any) -> bool:
        """Add the options of one of our commands."""
        module = import_module(f"lightning_freeze.cli.{name}")
        owner = getattr(module, _OVER_A_FIT[name]) if name in _OVER_A_FIT else module
        owner.add_options(parser)
        return name in _OVER_A_FIT

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Read the files strictly, then parse; where that fails, say where and why in a sentence."""
        if self.filled:
            # It loads the callbacks, whose names it knows.
            from lightning_freeze.cli.config import check_groups, read_files

            self._roots += read_files(args)
            check_groups(self._roots, args)
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise self._in_a_sentence(str(error)) from error

    def _in_a_sentence(self, message: str) -> ConfigError:
        from lightning_freeze.cli.config import explain, placed

        explain(self._roots, self._arguments)
        command = self._arguments[0] if self._arguments else ""
        helped = f"\nlightning-freeze {command} --help lists the options." if command in COMMANDS else ""
        every = f"The commands: {', '.join(COMMANDS)}."
        if wrong := re.search(r"invalid choice: '([^']+)' \(choose from '?fit", message):
            return ConfigError(f"{wrong[1]!r} is not a command.{did_you_mean(wrong[1], COMMANDS)} {every}")
        if early := re.search(r"is not accepted before subcommand '(\w+)'", message):
            return ConfigError(f"--config goes after the command: lightning-freeze {early[1]} --config FILE.")
        if 'expected "subcommand"' in message:
            return ConfigError(f"no command is given. {every}")
        if missing := re.search(r"arguments are required: (?:\w+\.)?(.*)", message):
            fix = f"Write --{missing[1]} package.module.Class, or name a file that says so: --config FILE"
            return ConfigError(f"`{missing[1]}` is missing. {fix} (configs/alternating.yaml shows one).{helped}")
        if empty := re.search(r"argument (?:-\w/)?(--[\w.]+).*: expected one argument", message):
            return ConfigError(f"{empty[1]} has no value. Write {empty[1]} VALUE.{helped}")
        if unknown := re.search(r"unrecognized arguments: (\S+)", message):
            return ConfigError(self._unknown(unknown[1], command) + helped)
        if unknown := re.search(r"does not accept option '([^']+)'", message):
            near = did_you_mean(unknown[1], [name[2:] for name in self.option_names(command)])
            problem = f"{unknown[1]!r} is not an option of {command}.{near}"
            return ConfigError(placed(unknown[1], problem, self._roots, self._arguments) + helped)
        key, problem = in_a_sentence(message)
        return ConfigError(placed(key.removeprefix(f"{command}."), problem, self._roots, self._arguments) + helped)

    def _unknown(self, word: str, command: str) -> str:
        if command not in COMMANDS:
            return f"{word}: an option goes after the command: lightning-freeze fit {word}."
        if not word.startswith("-"):
            config = f" Did you mean --config {word}?" if word.endswith((".yaml", ".yml")) else ""
            return f"{word!r} is neither an option nor its value. Write --KEY VALUE.{config}"
        flag = word.partition("=")[0]
        return f"{flag} is not an option of {command}.{did_you_mean(flag, self.option_names(command))}"

    def before_instantiate_classes(self) -> None:
        """Make the command, which may change the Trainer; find checkpoint and whitelists."""
        given = self.config[self.subcommand]
        if self.subcommand in _OVER_A_FIT:
            kind = getattr(import_module(f"lightning_freeze.cli.{self.subcommand}"), _OVER_A_FIT[self.subcommand])
            self._command = kind(given)
            self._command.configure(given["trainer"])
            self.save_config_callback, self.trainer_defaults = None, {"callbacks": self._command.callbacks}
        _check_checkpoint(given.get("ckpt_path"))
        self._find_whitelists(given["trainer"].get("callbacks") or [])

    def _find_whitelists(self, callbacks: Any) -> None:
        """A whitelist's file is found beside the configuration that names it, as a schedule's is."""
        from lightning_freeze.cli.config import to_be_written

        places = [place for root in self._roots for place in root.walk() if place.key.endswith(".whitelist")]
        found = {str(place.plain()): place.file() for place in places}
        for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
            arguments = callback.get("init_args") or {}
            path = found.get(str(arguments.get("whitelist")))
            if path is not None and callback["class_path"].rpartition(".")[2] == "InputAudit":
                arguments["whitelist"] = None if to_be_written(path, self._written) else str(path.resolve())

    @property
    def _written(self) -> Path | None:
        """The whitelist that `inputs` will write."""
        return getattr(self._command, "out", None)

    def instantiate_classes(self) -> None:
        """Make model, data and Trainer; an error of ours names its key."""
        from lightning_freeze.cli.config import explain, placed

        try:
            super().instantiate_classes()
        except Exception as error:
            explain(self._roots, self._arguments, self._written)
            taught = re.search(r"- (`([\w.]+)` .*)", str(error))  # one of ours in a union error of jsonargparse
            if taught is None:
                raise
            raise ConfigError(placed(taught[2], taught[1], self._roots, self._arguments)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make the Trainer, whose refusals name their argument."""
        from lightning_freeze.cli.config import placed

        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            text = str(error)
            named = [key for key in vars(self.config[self.subcommand]["trainer"]) if re.search(rf"\b{key}\b", text)]
            key = next((key for key in named if f"{key}=" in text), named[0] if named else "")
            raise ConfigError(placed(f"trainer.{key}".strip("."), text, self._roots, self._arguments)) from error

    def run(self, name: str) -> None:
        """Run one of our commands."""
        if self._command is not None:
            self._command.run(self.trainer, self.model, self.fit_model)


def _check_checkpoint(path: Any) -> None:
    if isinstance(path, str) and path.endswith(".ckpt") and "://" not in path and not Path(path).exists():
        others = [str(other) for other in sorted(Path(path).parent.glob("*.ckpt"))]
        raise ConfigError(f"--ckpt_path is {path!r}, which does not exist.{did_you_mean(path, others)} Check the path.")


def run(arguments: Sequence[str], roots: list[Place]) -> None:
    """Run a command; `roots` is filled with the configuration files."""
    with log_levels_restored():
        FreezeCLI(arguments, roots)
