"""A progress bar over long work: on a terminal alone, and gone at its end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def tracked(things: Sequence[T], what: str) -> Iterable[T]:
    """Things, with a progress bar on the error output; silent in a pipe."""
    console = Console(stderr=True)
    return track(things, what, console=console, transient=True, disable=not console.is_terminal)
