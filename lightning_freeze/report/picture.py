"""What the pictures have in common: an empty figure, its title, its file; matplotlib is imported here first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, NEVER = "#333333", "#eef0f2"


def empty_figure(what: str) -> Figure:
    """A white figure, whose size is still to be set.

    Args:
        what: What it is a picture of.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"a picture of a {what} needs matplotlib, the extra `plot`: pip install 'lightning-freeze[plot]' (in a "
            "checkout: pip install -c constraints.txt -e '.[plot]')."
        ) from error
    figure = Figure(dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_title(figure: Figure, title: str) -> None:
    """Write what stands above, once the figure has its size."""
    width, height = figure.get_size_inches()
    place = (0.12 / width, 1 - 0.1 / height)
    figure.text(*place, title, va="top", fontsize=12.5, fontweight="bold", parse_math=False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file, a PNG or what else its suffix says; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def short(name: str, most: int = 36) -> str:
    """A name without its middle, where it is long."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
