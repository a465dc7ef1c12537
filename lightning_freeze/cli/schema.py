"""``lightning-freeze schema``: a JSON schema of schedules and configurations, for editors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jsonargparse import ArgumentParser

from lightning_freeze.cli.command import parse


def add_options(parser: Any) -> None:
    """It has none."""


def schema(arguments: Sequence[str]) -> None:
    """Print a JSON schema of schedules and of our part of a configuration, for editors."""
    parse(ArgumentParser(prog="lightning-freeze schema", description=schema.__doc__, exit_on_error=False), arguments)
    print((files("lightning_freeze.cli") / "schedule.schema.json").read_text(encoding="utf-8"), end="")
