"""LightningCLI with commands of our own; the one place that overrides what is private in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_freeze.trainer.seam import LightningArgumentParser, LightningCLI, LightningModule, Trainer


class CommandsCLI(LightningCLI):
    """A LightningCLI over any model, whose commands are Lightning's and those of a subclass.

    Only the parser of the command that the arguments begin with is filled; `--help` needs none.

    Args:
        arguments: Those of the command line.
        lines: Command to its line in ``--help``.
        options: Further arguments of LightningCLI.
    """

    def __init__(self, arguments: Sequence[str], lines: Mapping[str, str], **options: Any) -> None:
        self._lines = lines
        first = arguments[0] if arguments else ""
        self.filled = {first} if first in lines else {*lines}
        if first in ("-h", "--help", "--version"):
            self.filled = set()
        super().__init__(LightningModule, None, subclass_mode_model=True, args=list(arguments), **options)

    def fill(self, name: str, parser: LightningArgumentParser) -> bool:
        """Add the options of one of our commands; whether it takes the arguments of a fit as well."""
        return True

    def run(self, name: str) -> None:
        """Run one of our commands."""

    def fit_model(self) -> None:
        """Fit, with the arguments that one of our commands was given."""
        self.trainer.fit(**self._prepare_subcommand_kwargs(str(self.subcommand)))

    def option_names(self, command: str) -> list[str]:
        """The options of a command."""
        return [f"--{action.dest}" for action in self._subcommand_parsers[command]._actions]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse them without Lightning's warning of arguments that are not the process's."""
        self.config = parser.parse_args(args)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        self._subcommand_parsers = {}
        subcommands = parser.add_subcommands(dest="subcommand")
        for name, line in self._lines.items():
            added = self.init_parser(description=line)
            if name in self.filled:
                self._fill(name, added)
            self._subcommand_parsers[name] = added
            subcommands.add_subcommand(name, added, help=line)
            added.prog = f"{parser.prog} {name}"

    def _fill(self, name: str, parser: LightningArgumentParser) -> None:
        method = name if name in self.subcommands() else "fit"
        if method == name or self.fill(name, parser):
            self._add_arguments(parser)
            skip: set[str | int] = {*self.subcommands()[method]}
            self._subcommand_method_arguments[name] = parser.add_method_arguments(Trainer, method, skip=skip)

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand in self.subcommands():
            super()._run_subcommand(subcommand)
        else:
            self.run(subcommand)
