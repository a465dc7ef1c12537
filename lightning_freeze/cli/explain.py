"""``lightning-freeze explain``: the page about a kind of finding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import get_args

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.markdown import Markdown

from lightning_freeze.cli.command import parse
from lightning_freeze.errors import did_you_mean
from lightning_freeze.report.findings import Kind
from lightning_freeze.yaml_file import ConfigError

KINDS: tuple[str, ...] = tuple(kind for part in get_args(Kind) for kind in get_args(part))


def page(kind: str) -> str:
    """The page about a kind of finding, as Markdown."""
    return (files("lightning_freeze.report") / "kinds" / f"{kind}.md").read_text(encoding="utf-8")


def add_options(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("kinds", nargs="*", default=[], metavar="KIND", help=f"kinds of findings: {', '.join(KINDS)}")


def explain(arguments: Sequence[str]) -> None:
    """Print the pages about some kinds of findings; without any, what kinds there are."""
    parser = ArgumentParser(prog="lightning-freeze explain", description=explain.__doc__, exit_on_error=False)
    add_options(parser)
    pages = [_found(kind) for kind in parse(parser, arguments).kinds]
    titles = "\n".join(f"- {page(kind).partition(chr(10))[0].removeprefix('# ')}" for kind in KINDS)
    text = "\n\n---\n\n".join(pages) or f"{titles}\n\n`lightning-freeze explain KIND` prints the page of one."
    Console().print(Markdown(text))


def _found(kind: str) -> str:
    """The page of a kind; an error offers the kinds that have a cause of that name, or the nearest ones."""
    if kind in KINDS:
        return page(kind)
    of_cause = [each for each in KINDS if re.search(rf"^### `{re.escape(kind)}`", page(each), re.MULTILINE)]
    if of_cause:
        raise ConfigError(f"{kind!r} is a cause of {', '.join(of_cause)}: lightning-freeze explain {of_cause[0]}.")
    raise ConfigError(f"{kind!r} is not a kind of finding.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}.")
