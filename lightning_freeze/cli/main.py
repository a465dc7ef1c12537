"""``lightning-freeze``: a LightningCLI with more commands, whose errors name file, line and key.

Parsing, types, ``--help`` and ``--print_config`` are jsonargparse's. Configuration files are read strictly before it,
and where it fails, `explain` looks for the key at fault.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from lightning_freeze.errors import ScheduleError, SelectionError, UnsupportedError
from lightning_freeze.report.findings import FreezeViolation
from lightning_freeze.yaml_file import ConfigError, Place

COMMANDS = {
    "fit": "train a model",
    "validate": "evaluate a model on the validation data",
    "test": "evaluate a model on the test data",
    "predict": "run a model on the prediction data",
    "plan": "show what a fit will train when, before it runs",
    "groups": "suggest groups for a model, as YAML",
    "inputs": "write a whitelist of unused inputs of modules",
    "probe": "measure what optimizers do to a frozen weight",
    "report": "show what a run did, also as a page or a picture",
    "explain": "print the page about a kind of finding",
    "schema": "print a JSON schema of schedules, for editors",
}
_WITHOUT_A_FIT = ("probe", "report", "explain", "schema")  # functions of their modules; need no model


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; by default those of the process.

    Raises:
        SystemExit: 1 for findings, 2 for bad input.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a module in this folder can be named, as under `python -m`
    roots: list[Place] = []
    try:
        if arguments and arguments[0] in _WITHOUT_A_FIT:
            getattr(import_module(f"lightning_freeze.cli.{arguments[0]}"), arguments[0])(arguments[1:])
        else:
            import_module("lightning_freeze.cli.freeze_cli").run(arguments, roots)  # with torch and Lightning
    except Exception as error:
        message = _message(error, roots, arguments)
        if message is None:
            raise
        print(f"lightning-freeze: {message}", file=sys.stderr)
        raise SystemExit(1 if isinstance(error, FreezeViolation) else 2) from error


def _message(error: Exception, roots: Sequence[Place], arguments: Sequence[str]) -> str | None:
    """What to say of an error that is the user's to correct, with its place; None of any other."""
    if isinstance(error, (FreezeViolation, ConfigError)):
        return f"{'error: ' * isinstance(error, ConfigError)}{error}"
    from lightning_freeze.cli.config import locate, where_class
    from lightning_freeze.demos import MissingPackageError
    from lightning_freeze.inputs.declarations import DeclarationError
    from lightning_freeze.trainer.seam import MisconfigurationException

    schedules = (ScheduleError, SelectionError, UnsupportedError, DeclarationError)
    found = _first_of((ConfigError, *schedules, MissingPackageError, MisconfigurationException), error)
    if isinstance(found, MissingPackageError):
        return f"error: {where_class(found.kind, roots)}{found}"
    where = ""
    if isinstance(found, schedules) and getattr(found, "key", "") is not None:
        # Found with the model; `groups` makes no schedule.
        schedule = "" if arguments[0] == "groups" else locate("'schedule'", roots)
        where = locate(str(found), roots, arguments) or schedule
    return None if found is None else f"error: {where}{found}"


def _first_of(kinds: tuple[type[Exception], ...], error: BaseException | None) -> BaseException | None:
    """The first of these kinds in a chain: jsonargparse makes errors of its own of those of a constructor."""
    while error is not None and not isinstance(error, kinds):
        error = error.__cause__ or error.__context__
    return error


if __name__ == "__main__":
    main()
