"""``lightning-freeze report``: a run in the terminal, as one HTML page, or as a picture; needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console

from lightning_freeze.cli.command import check_picture, parse
from lightning_freeze.report.run_report import read_report
from lightning_freeze.report.run_view import lines, run_view
from lightning_freeze.report.table import print_line, print_whole
from lightning_freeze.yaml_file import ConfigError


def add_options(parser: Any) -> None:
    """Add the options of the command."""
    parser.add_argument("path", metavar="RUN", type=Path, help="freeze_audit.jsonl, or a folder: the newest below it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs nothing else")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the timeline (report.png, .svg or .pdf)")
    parser.add_argument("--run", metavar="ID", help="the run, or how its id begins; by default the last of a file")


def report(arguments: Sequence[str]) -> None:
    """Show what a run planned, did and proved, from the records that it left."""
    about: dict[str, Any] = {"description": report.__doc__, "exit_on_error": False, "allow_abbrev": False}
    parser = ArgumentParser(prog="lightning-freeze report", **about)
    add_options(parser)
    asked, console = parse(parser, arguments), Console()
    if asked.html is not None and asked.html.suffix != ".html":
        raise ConfigError(f"--html is {str(asked.html)!r}, but must end in .html. Did you mean {asked.html.stem}.html?")
    if asked.png is not None:
        check_picture("--png", asked.png)
    try:
        found = read_report(asked.path, asked.run)
        for what, path, write in (("page", asked.html, found.to_html), ("picture", asked.png, found.to_png)):
            if path is not None:
                write(path)
                print_line(console, f"The {what} is in {path}.")
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    if asked.html is None and asked.png is None:
        print_whole(console, run_view(found))
        for line in lines(found):
            print_line(console, line)
