"""What the tables have in common: names, numbers and ranges in few words, and how they are printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

NONE = "–"


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as its names are, so that they can be copied."""
    table.width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.print(table, soft_wrap=True)


def print_line(console: Console, line: str, end: str = "\n") -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True, end=end)


def folded(groups: Iterable[str], among: Iterable[str]) -> str:
    """Groups in a few words: the members of a family in one, rows of them as a range.

    Args:
        groups: The groups to name.
        among: All groups, in order.

    Example:
        >>> folded({"layers/0", "layers/1", "head"}, ["layers/0", "layers/1", "layers/2", "head"])
        'head, layers/0–1'
    """
    chosen = set(groups)
    families: dict[str, list[str]] = {}
    for group in among:
        family, slash, part = group.partition("/")
        if group in chosen:
            families.setdefault(family if slash else group, []).append(part)
    return ", ".join(
        family if parts == [""] else f"{family}/{_ranges(parts)}" for family, parts in sorted(families.items())
    )


def _ranges(parts: Sequence[str]) -> str:
    if not all(part.isdigit() for part in parts):
        return ",".join(parts)
    rows: list[list[str]] = []
    for part in sorted(parts, key=int):
        if rows and int(rows[-1][-1]) == int(part) - 1:
            rows[-1].append(part)
        else:
            rows.append([part])
    return ",".join(span(row[0], row[-1]) for row in rows)


def span(first: object, last: object) -> str:
    """A range, or the one thing in it."""
    return f"{first}" if first == last else f"{first}–{last}"


def share(part: float, whole: float, digits: int = 0) -> str:
    """A part as a percentage; a dash where there is no whole."""
    return f"{part / whole:.{digits}%}" if whole else NONE


def counted(number: int, what: str) -> str:
    """So many of a thing."""
    return f"{number:,} {what}{'s' * (number != 1)}"
