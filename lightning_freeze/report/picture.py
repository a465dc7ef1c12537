"""What the pictures have in common: an empty figure and its file; matplotlib is imported here first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, NEVER = "#333333", "#eef0f2"


def empty_figure(what: str) -> Figure:
    """A white figure for a picture of something.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"a picture of a {what} needs matplotlib, the extra `plot`: pip install 'lightning-freeze[plot]' (in a "
            "checkout: pip install -c constraints.txt -e '.[plot]')."
        ) from error
    return Figure(dpi=160, facecolor="white")


def finish(figure: Figure, path: Path | None, title: str, above: float) -> Figure:
    """Write a title so many points above the first axes, and the picture, with all that lies around axes, to a file."""
    figure.axes[0].set_title(title, loc="left", pad=above, fontsize=12.5, fontweight="bold", parse_math=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight", pad_inches=0.12)
        if path.suffix == ".png":  # a quarter of the bytes
            from PIL import Image

            Image.open(path).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(path, optimize=True)
    return figure


def short(name: str, most: int = 36) -> str:
    """A name without its middle, where it is long."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"
