"""What the tables have in common: their columns, names, numbers and ranges in few words, and how they are printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import groupby, pairwise

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table

NONE = "–"
_STRIP, _SHORTEST, _SHADES = 40, 12, " ░▒▓█"
_SPARE = ("elements", "gradients", "share")  # the columns that a narrow terminal can do without
BYTES, COUNTS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), ("", "K", "M", "B", "T")


def new_table(title: str | None, names: Sequence[str], right: Sequence[str] = (), wrapped: Sequence[str] = ()) -> Table:
    """A table of these columns; some are aligned right, and only the cells of some are wrapped."""
    columns = [
        Column(escape(n), justify="right" if n in right else "left", no_wrap=n not in wrapped, overflow="fold")
        for n in names
    ]
    return Table(*columns, title=title, box=box.SIMPLE)


@dataclass(frozen=True)
class Strip:
    """When something happens, as a strip of characters; a darker one has more of it."""

    happens: Sequence[float]  # true and false, or shares

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, max(1, min(_STRIP, len(self.happens))))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[str]:
        width = min(_STRIP, len(self.happens), options.max_width)
        edges = [cell * len(self.happens) // width for cell in range(width)] + [len(self.happens)] if width else []
        shares = [sum(self.happens[begin:end]) / (end - begin) for begin, end in pairwise(edges)]
        yield "".join(_SHADES[math.ceil(round(each * (len(_SHADES) - 1), 6))] for each in shares) or NONE


def print_whole(console: Console, table: Table) -> None:
    """Print a table as wide as its names are, so that they can be copied; for a narrow terminal the rest is shortened."""
    measured = partial(Measurement.get, console, console.options.update(max_width=10_000), table)
    if console.is_terminal and measured().maximum > console.width:
        for column in table.columns:
            column.header = str(column.header).replace(" ", "\n")
            column.max_width = _SHORTEST if column.header == "when" else None
        for spare in _SPARE:
            if measured().maximum > console.width:
                table.columns = [column for column in table.columns if column.header != spare]
        for column in table.columns:
            column.max_width = column.max_width and max(_SHORTEST, _SHORTEST + console.width - measured().maximum)
    table.width = measured().maximum
    console.print(table, soft_wrap=True)


def as_text(shown: RenderableType) -> str:
    """What is shown, as wide as the terminal, without colours: for logs, and for progress bars that print it."""
    console = Console(color_system=None, force_jupyter=False)
    with console.capture() as text:
        console.print(shown)
    return "\n".join(line.rstrip() for line in text.get().rstrip().split("\n"))


def as_html(shown: RenderableType) -> str:
    """What is shown, as HTML for notebooks."""
    console = Console(record=True, file=StringIO(), width=120, force_jupyter=False)  # which would display it itself
    console.print(shown)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: 1.2">{code}</pre>')


def print_line(console: Console, line: str, end: str = "\n") -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True, end=end)


def folded(groups: Iterable[str], among: Iterable[str]) -> str:
    """Groups in few words, in the order of all groups: members of a family as ranges.

    Example:
        >>> folded({"layers/0", "layers/1", "head"}, ["layers/0", "layers/1", "layers/2", "head"])
        'head, layers/0–1'
    """
    chosen = set(groups)
    families: dict[str, list[str]] = {}
    for group in among:
        family, _, part = group.partition("/")
        if group in chosen:
            families.setdefault(family, []).append(part)
    return ", ".join(
        family if parts == [""] else f"{family}/{_ranges(parts)}" for family, parts in sorted(families.items())
    )


def _ranges(parts: Sequence[str]) -> str:
    if not all(part.isdigit() for part in parts):
        return ",".join(parts)
    runs = groupby(enumerate(sorted(parts, key=int)), key=lambda each: int(each[1]) - each[0])
    ranges = [[part for _, part in run] for _, run in runs]
    return ",".join(span(each[0], each[-1]) for each in ranges)


def span(first: object, last: object) -> str:
    """A range, or the one thing in it."""
    return f"{first}" if first == last else f"{first}–{last}"


def share(part: float, whole: float, digits: int = 0) -> str:
    """A part as a percentage; a dash where there is no whole."""
    return f"{part / whole:.{digits}%}" if whole else NONE


def human_bytes(number: float) -> str:
    """A number of bytes in a fitting unit.

    Example:
        >>> human_bytes(640), human_bytes(1536), human_bytes(13 * 2**30)
        ('640 B', '1.5 KiB', '13 GiB')
    """
    return human(number, 1024, BYTES)


def human(number: float, base: int, units: Sequence[str]) -> str:
    """A number to three digits in a fitting unit; ``base`` of one make the next."""
    power = 0
    while round(number) >= base and power < len(units) - 1:
        number /= base
        power += 1
    return f"{number:{'.3g' if number < 999.5 else '.0f'}} {units[power]}".rstrip()
