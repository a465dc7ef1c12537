"""What optimizers do to a frozen weight, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightning_freeze.report.picture import INK, NEVER, empty_figure, finish, short
from lightning_freeze.report.table import NONE, new_table, print_line, print_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class _Kind(NamedTuple):
    fill: str  # of its cells in the picture
    text: str  # the colour of its words in the table, if any
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
"""Each optimizer's name, and what became of the weight by each freezing method; a single one is for all methods."""


def print_comparison(
    console: Console, title: str, methods: Sequence[str], rows: Rows, notes: Sequence[Sequence[str]]
) -> None:
    """Print what optimizers do to a frozen weight, and the notes on each."""
    print_whole(console, comparison_table(title, methods, rows))
    for (name, fates), lines in zip(rows, notes, strict=True):
        of = "" if len(rows) == 1 else f"{name}: "
        alone = [fates[0].word] if len(fates) == 1 else []
        for line in (*alone, *lines):
            print_line(console, f"- {of}{line}")


def comparison_table(title: str, methods: Sequence[str], rows: Rows) -> Table:
    """A row for each freezing method of one optimizer, or for each of several optimizers."""
    if len(rows) == 1 and len(rows[0][1]) == len(methods):
        name, fates = rows[0]
        columns = ("frozen by", "the weight", "what changed of its optimizer state")
        table = new_table(f"{escape(name)}: {title}", columns)
        for method, fate in zip(methods, fates, strict=True):
            table.add_row(escape(method), _colored(fate), escape(_clipped(fate.below, 64)) or NONE)
    else:
        table = new_table(title, ("optimizer", *methods))
        for name, fates in rows:
            table.add_row(escape(name), *(map(_cell, fates) if len(fates) == len(methods) else [NONE] * len(methods)))
    if any(fate.kind == "moved" for _, fates in rows for fate in fates):
        table.caption = "a percentage: how far it moved, of how far the weight moved that trained"
    return table


def _cell(fate: Fate) -> str:
    return _colored(fate) + (f"\n[dim]{escape(_clipped(fate.below, _LONGEST))}[/dim]" if fate.below else "")


def _colored(fate: Fate) -> str:
    color = _KINDS[fate.kind].text
    return f"[{color}]{escape(fate.word)}[/{color}]" if color else escape(fate.word)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def draw_comparison(path: Path | None, methods: Sequence[str], rows: Rows, *, title: str = "") -> Figure:
    """Draw what optimizers do to a frozen weight: optimizers down, freezing methods across, colour and word in each.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: There is no row, or one has neither one word nor one for each method.
    """
    figure = empty_figure("probe")
    from matplotlib.patches import Patch

    if not rows:
        raise ValueError("there is no optimizer to draw: `rows` is empty. Probe at least one.")
    figure.set_size_inches(_CELL * len(methods), _ROW * len(rows))
    axes = figure.add_axes((0, 0, 1, 1))  # it fills the figure; `finish` adds what lies around
    _draw_cells(axes, methods, rows)
    drawn = {fate.kind for _, fates in rows for fate in fates}
    handles = [Patch(facecolor=kind.fill, label=kind.legend) for name, kind in _KINDS.items() if name in drawn]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), frameon=False, fontsize=8,
        labelcolor=INK, handlelength=0.9, handleheight=0.9, borderpad=0, borderaxespad=2.6, columnspacing=1.4,
    )  # fmt: skip
    return finish(figure, path, title, above=42)


def _draw_cells(axes: Axes, methods: Sequence[str], rows: Rows) -> None:
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = {"va": "center_baseline", "fontsize": 8.5, "color": INK, "parse_math": False}
    for index, (name, fates) in enumerate(rows):
        if len(fates) not in (1, len(methods)):
            raise ValueError(
                f"{name!r} has {len(fates)} words for {len(methods)} methods. Give one for each, or one for all."
            )
        across = len(methods) // len(fates)
        for column, fate in enumerate(fates):
            color = _KINDS[fate.kind].fill
            axes.add_patch(Rectangle((column, index), across, 1, facecolor=color, edgecolor="white", linewidth=1.4))
            axes.text(column + across / 2, index + 0.5, short(fate.word, _LETTERS * across), ha="center", **style)
    axes.set(xlim=(0, len(methods)), ylim=(len(rows), 0))
    axes.set_yticks([index + 0.5 for index in range(len(rows))], [short(name, 60) for name, _ in rows], **style)
    axes.xaxis.tick_top()
    axes.set_xticks([column + 0.5 for column in range(len(methods))], methods)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.spines[:].set_visible(False)
