"""What optimizers do to a frozen weight, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.report.picture import INK, NEVER, add_title, empty_figure, save, short
from lightning_freeze.report.table import NONE, print_line, print_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text


class _Kind(NamedTuple):
    fill: str
    """The colour of its cells in the picture."""
    text: str
    """The colour of its words in the table, if any."""
    legend: str


_KINDS = {
    "held": _Kind("#cfe8dc", "green", "held, value and state"),
    "state moved": _Kind("#fbe8b4", "yellow", "held, its state moved"),
    "moved": _Kind("#f3b9ae", "red", "moved, in % of how far the trained weight moved"),
    "refused": _Kind("#cddcf0", "blue", "refused"),
    "raised": _Kind("#dccbe8", "magenta", "crashed"),
    "unknown": _Kind(NEVER, "", "not known"),
}
_CELL, _ROW = 1.62, 0.29  # inches
_LETTERS = 25  # that a cell of the picture has room for
_LONGEST = 26  # letters in the second line of a cell of the table


@dataclass(frozen=True)
class Fate:
    """What became of a frozen weight, as it is drawn.

    Args:
        kind: Of which colour: ``held``, ``state moved``, ``moved``, ``refused``, ``raised`` or ``unknown``.
        word: What stands in the cell.
        below: What stands beneath it: the entries of optimizer state that changed, or why.
    """

    kind: str
    word: str
    below: str = ""


Rows = Sequence[tuple[str, Sequence[Fate]]]
"""Of each optimizer its name, and what became of the weight by each way of freezing; one alone is for all ways."""


# --- the table ------------------------------------------------------------------------------------------------------


def print_comparison(
    console: Console, title: str, ways: Sequence[str], rows: Rows, said: Sequence[Sequence[str]]
) -> None:
    """Print what optimizers do to a frozen weight, and what there is to say of each.

    Args:
        console: Where to.
        title: What stands above.
        ways: The ways of freezing.
        rows: The optimizers.
        said: Lines about each.
    """
    print_whole(console, founding_table(title, ways, rows))
    for (name, fates), lines in zip(rows, said, strict=True):
        of = "" if len(rows) == 1 else f"{name}: "
        alone = [fates[0].word] if len(fates) == 1 else []
        for line in (*alone, *lines):
            print_line(console, f"- {of}{line}")


def founding_table(title: str, ways: Sequence[str], rows: Rows) -> Table:
    """What optimizers do to a frozen weight, and beneath it, to their state of it.

    One optimizer has a row for each way of freezing; of several, each has one row.

    Args:
        title: What stands above.
        ways: The ways of freezing.
        rows: The optimizers.
    """
    if len(rows) == 1 and len(rows[0][1]) == len(ways):
        name, fates = rows[0]
        table = _table(f"{escape(name)}: {title}", ("frozen by", "the weight", "what changed of its optimizer state"))
        for way, fate in zip(ways, fates, strict=True):
            table.add_row(escape(way), _colored(fate), escape(_clipped(fate.below, 64)) or NONE)
    else:
        table = _table(title, ("optimizer", *ways))
        for name, fates in rows:
            table.add_row(escape(name), *(map(_cell, fates) if len(fates) == len(ways) else [NONE] * len(ways)))
    if any(fate.kind == "moved" for _, fates in rows for fate in fates):
        table.caption = "a percentage: how far it moved, of how far the weight moved that trained"
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE)
    for column in columns:
        table.add_column(escape(column), no_wrap=True)
    return table


def _cell(fate: Fate) -> str:
    return _colored(fate) + (f"\n[dim]{escape(_clipped(fate.below, _LONGEST))}[/dim]" if fate.below else "")


def _colored(fate: Fate) -> str:
    color = _KINDS[fate.kind].text
    return f"[{color}]{escape(fate.word)}[/{color}]" if color else escape(fate.word)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- the picture ----------------------------------------------------------------------------------------------------


def draw_comparison(path: Path, ways: Sequence[str], rows: Rows, *, title: str = "") -> None:
    """Draw what optimizers do to a frozen weight: optimizers down, ways of freezing across, a colour and a word in each.

    Args:
        path: The file to write, a PNG or what else its suffix says (``.svg``, ``.pdf``); folders are made.
        ways: The ways of freezing.
        rows: The optimizers.
        title: What stands above.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: There is no row, or one has neither one word nor one for each way.
    """
    save(_figure(ways, rows, title), path)


def _figure(ways: Sequence[str], rows: Rows, title: str = "") -> Figure:
    figure = empty_figure("probe")
    from matplotlib.patches import Patch

    _check(ways, rows)
    high, wide, top = _ROW * len(rows), _CELL * len(ways), 0.9 if title else 0.6
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label="founding")
    names = _draw_cells(axes, ways, rows)
    # The names decide where the axes begin, and how wide the picture is.
    left = max(name.get_window_extent().width for name in names) / figure.dpi + 0.25
    width, height = left + wide + 0.15, top + high + 0.15
    figure.set_size_inches(width, height)
    axes.set_position((left / width, 0.15 / height, wide / width, high / height))
    drawn = {fate.kind for _, fates in rows for fate in fates}
    handles = [Patch(facecolor=kind.fill, label=kind.legend) for name, kind in _KINDS.items() if name in drawn]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(left / width, 1 - (top - 0.6 + 0.06) / height),
        ncols=len(handles), frameon=False, fontsize=8, labelcolor=INK, handlelength=0.9, handleheight=0.9,
        borderpad=0, borderaxespad=0, columnspacing=1.4,
    )  # fmt: skip
    if title:
        add_title(figure, title)
    return figure


def _check(ways: Sequence[str], rows: Rows) -> None:
    if not rows:
        raise ValueError("there is no optimizer to draw: `rows` is empty. Probe at least one.")
    for name, fates in rows:
        if len(fates) not in (1, len(ways)):
            raise ValueError(
                f"{name!r} has {len(fates)} words for {len(ways)} ways. Give one for each, or one for all."
            )


def _draw_cells(axes: Axes, ways: Sequence[str], rows: Rows) -> list[Text]:
    """The cells, and the names of rows and columns; those of the rows are returned."""
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = {"va": "center_baseline", "fontsize": 8.5, "color": INK, "parse_math": False}
    names: list[Text] = []
    for index, (name, fates) in enumerate(rows):
        at = (0, index + 0.5), (-6, 0)
        names.append(axes.annotate(short(name, 60), *at, textcoords="offset points", ha="right", **style))
        across = len(ways) // len(fates)
        for column, fate in enumerate(fates):
            color = _KINDS[fate.kind].fill
            axes.add_patch(Rectangle((column, index), across, 1, facecolor=color, edgecolor="white", linewidth=1.4))
            axes.text(column + across / 2, index + 0.5, short(fate.word, _LETTERS * across), ha="center", **style)
    axes.set_xlim(0, len(ways))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks([column + 0.5 for column in range(len(ways))], ways)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.spines[:].set_visible(False)
    return names
