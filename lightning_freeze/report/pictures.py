"""A run as a picture: what trains when, how much of the model that is, and what memory it asks for; and a probe as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_freeze.plan.costs import ALL_KEPT, Held, Size, Timeline, over_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from numpy import ndarray

_COLUMNS = 2000  # more than this many updates are drawn in bins
_TRAINED, _FAINT, _NEVER = "#00566b", "#a9d3da", "#eef0f2"
_GRADIENT, _STATE, _INK, _QUIET = "#e69f00", "#9aa5b1", "#333333", "#777777"
_BYTES, _NUMBERS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), ("", "K", "M", "B", "T")

# Inches.
_WIDTH, _PANEL, _GAP, _HEAT = 9.0, 0.95, 0.5, 9.6
_LABEL = 0.155  # the least distance of two rows' labels
_RIGHT = 1.5  # the margin with the two columns of numbers, which end at these points from the axes:
_SHARE, _UPDATES = 43, 100


def human_bytes(number: float) -> str:
    """A number of bytes to three digits, in the unit that suits it.

    Args:
        number: Bytes, not negative.

    Example:
        >>> human_bytes(640), human_bytes(1536), human_bytes(13 * 2**30)
        ('640 B', '1.5 KiB', '13 GiB')
    """
    return _human(number, 1024, _BYTES)


def _human(number: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while round(number) >= base and power < len(units) - 1:
        number /= base
        power += 1
    digits = f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits} {units[power]}".rstrip()


def draw_plan(
    path: Path,
    trained: Sequence[frozenset[str]],
    sizes: Mapping[str, Size],
    *,
    epochs: Sequence[int] = (),
    title: str = "",
    held: Held = ALL_KEPT,
) -> None:
    """Draw what trains when, with the trainable part of the model and the memory over time below it.

    A row is a group, a column an update, a filled cell trains. More than 2,000 updates are drawn in bins of equal
    length: the darker a cell, the larger the share of its updates that train the group; of memory, the most in a bin.

    Args:
        path: The file to write, a PNG or what else its suffix says (``.svg``, ``.pdf``); folders are made.
        trained: The groups that each update trains.
        sizes: Every group's size; groups are drawn in this order, from the top.
        epochs: The updates, counted from 0, with which the epochs after the first begin.
        title: What stands above.
        held: Whose optimizer state takes up memory.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: There is no update, or one trains a group that has no size.
    """
    figure = _figure(trained, sizes, epochs, title, held)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _figure(
    trained: Sequence[frozenset[str]],
    sizes: Mapping[str, Size],
    epochs: Sequence[int] = (),
    title: str = "",
    held: Held = ALL_KEPT,
) -> Figure:
    """The picture; its axes are the rows of groups, the elements, the memory, and the elements' percentage."""
    try:
        import matplotlib  # noqa: F401
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a picture of a plan needs matplotlib, the extra `plot`: pip install 'lightning-freeze[plot]' (in a "
            "checkout: pip install -c constraints.txt -e '.[plot]')."
        ) from error
    if not trained:
        raise ValueError("there is no update to draw: `trained` is empty. Preview at least one.")
    timeline = over_time(trained, sizes, held)
    counts, shares, edges = _shares(trained, sizes)
    row = min(max(0.26, min(0.38, 2.0 / len(sizes))), _HEAT / len(sizes))
    tops = [0.62 if title else 0.3]  # of the three panels, from the top
    tops.append(tops[0] + row * len(sizes) + _GAP)
    tops.append(tops[1] + _PANEL + _GAP)
    height = tops[2] + _PANEL + 0.5
    figure = Figure(figsize=(_WIDTH, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    panels = [figure.add_axes((0.1, 0.1, 0.8, 0.1), label=name) for name in ("groups", "elements", "memory")]
    labels = _draw_groups(panels[0], list(sizes), counts, shares, edges, row)
    _draw_elements(panels[1], timeline.elements, sum(size.elements for size in sizes.values()), edges)
    _draw_memory(panels[2], timeline, edges)
    _draw_epochs(panels, epochs, len(trained))
    binned = f" (a column is a bin of {edges[1]:,})" if edges[1] > 1 else ""
    panels[2].set_xlabel(f"updates made{binned}", color=_INK, fontsize=8.5)
    # The names decide where the axes begin.
    longest = max(label.get_window_extent().width for label in labels) / figure.dpi
    left = max(0.85, longest + 0.2)
    heights = (row * len(sizes), _PANEL, _PANEL)
    for panel, top, high in zip(panels, tops, heights, strict=True):
        place = (left / _WIDTH, 1 - (top + high) / height, 1 - (left + _RIGHT) / _WIDTH, high / height)
        panel.set_position(place)
    if title:
        figure.text(
            0.12 / _WIDTH, 1 - 0.1 / height, title, va="top", fontsize=12.5, fontweight="bold", parse_math=False
        )
    return figure


def _shares(
    trained: Sequence[frozenset[str]], groups: Iterable[str]
) -> tuple[ndarray[Any, Any], ndarray[Any, Any], ndarray[Any, Any]]:
    """Each group's updates; the share of each bin's updates that train it, a row a group; where bins begin and end."""
    import numpy as np

    rows = {group: row for row, group in enumerate(groups)}
    codes: dict[frozenset[str], int] = {}
    coded = np.fromiter((codes.setdefault(t, len(codes)) for t in trained), dtype=np.intp, count=len(trained))
    member = np.zeros((len(rows), len(codes)), dtype=bool)
    for names, code in codes.items():
        member[[rows[name] for name in names], code] = True
    length = -(-len(trained) // _COLUMNS)
    edges = np.append(np.arange(0, len(trained), length), len(trained))
    sums = np.stack([np.add.reduceat(member[row][coded], edges[:-1], dtype=np.int64) for row in range(len(rows))])
    return sums.sum(axis=1), sums / np.diff(edges), edges


def _draw_groups(
    axes: Axes,
    groups: Sequence[str],
    counts: ndarray[Any, Any],
    shares: ndarray[Any, Any],
    edges: ndarray[Any, Any],
    row: float,
) -> list[Text]:
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    total, length = int(edges[-1]), int(edges[1])
    inks = LinearSegmentedColormap.from_list("trained", [_FAINT, _TRAINED])(range(256))
    for index, line in enumerate(shares):  # an image each, so that smoothing where bins outnumber pixels stays in a row
        axes.imshow(
            line[None],
            cmap=ListedColormap([_NEVER, *inks]),  # what trains at all stands out from what does not
            vmin=0,
            vmax=1,
            aspect="auto",
            extent=(0, length * shares.shape[1], index + 1, index),
            interpolation_stage="rgba",
        )
    axes.set_ylim(len(groups), 0)
    axes.set_xlim(0, total)
    axes.hlines(range(1, len(groups)), 0, total, color="white", linewidth=min(1.4, row * 8))
    if total <= 60:
        axes.vlines(range(1, total), 0, len(groups), color="white", linewidth=0.8)
    _bare(axes)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(labelbottom=False)
    axes.set_yticks([])
    size = min(9.0, max(row, _LABEL) * 46)
    beside: dict[str, Any] = {
        "xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": size, "va": "center_baseline",
        "ha": "right", "parse_math": False,
    }  # fmt: skip
    labels: list[Text] = []
    for index in _labelled(groups, row):
        count = int(counts[index])
        color = _INK if count else _QUIET
        labels.append(axes.annotate(_short(groups[index]), (0, index + 0.5), (-6, 0), color=_INK, **beside))
        axes.annotate(_percent(count, total), (1, index + 0.5), (_SHARE, 0), color=color, **beside)
        axes.annotate(f"{count:,}", (1, index + 0.5), (_UPDATES, 0), color=color, **beside)
    above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom", "ha": "right"}
    for x, name in ((_SHARE, "share"), (_UPDATES, "updates")):
        axes.annotate(name, (1, 1), (x, 4), color=_QUIET, fontsize=7.5, **above)
    return labels


def _labelled(groups: Sequence[str], row: float) -> list[int]:
    """The rows whose labels have room: groups of their own first, then every so manyth member of a family."""
    step = int(-(-_LABEL // row))
    families: dict[str, int] = {}
    alone: list[int] = []
    regular: list[int] = []
    for index, group in enumerate(groups):
        family, slash, _ = group.rpartition("/")
        place = families[family] = families.get(family, -1) + 1
        if not slash:
            alone.append(index)
        elif place % step == 0:
            regular.append(index)
    chosen: list[int] = []
    for index in (*alone, *regular):
        if all(abs(index - other) >= step for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _short(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _percent(part: float, total: int) -> str:
    share = 100 * part / (total or 1)
    if 0 < share < 0.5:
        return "<1 %"
    return ">99 %" if 99.5 <= share < 100 else f"{share:.0f} %"


def _draw_elements(axes: Axes, elements: Sequence[int], total: int, edges: ndarray[Any, Any]) -> None:
    import numpy as np

    values = np.asarray(elements, dtype=np.float64)
    starts = edges[:-1]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    mean = np.add.reduceat(values, starts) / np.diff(edges)
    if edges[1] > 1 and (high > low).any():
        axes.fill_between(edges, _closed(low), _closed(high), step="post", color=_FAINT, linewidth=0)
    axes.step(edges, _closed(mean), where="post", color=_TRAINED, linewidth=1.4)
    top = float(high.max()) or 1.0
    _bare(axes)
    _scale(axes, top, 1000, _NUMBERS)
    axes.set_xlim(0, float(edges[-1]))
    axes.tick_params(labelbottom=False)
    most = f"at most {_human(high.max(), 1000, _NUMBERS)} of {_human(total, 1000, _NUMBERS)} ({_percent(high.max(), total)})"
    binned = "; line: mean of a bin, band: its range" if edges[1] > 1 else ""
    _head(axes, "trainable parameters", most + binned)
    percent = axes.twinx()
    percent.set_ylim(0, 100 * axes.get_ylim()[1] / (total or 1))
    percent.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    percent.locator_params(axis="y", nbins=4)
    _bare(percent)
    percent.spines[["left", "bottom"]].set_visible(False)


def _draw_memory(axes: Axes, timeline: Timeline, edges: ndarray[Any, Any]) -> None:
    import numpy as np

    starts = edges[:-1]
    state = np.maximum.reduceat(np.asarray(timeline.state, dtype=np.float64), starts)
    both = np.maximum.reduceat(
        np.asarray(timeline.state, np.float64) + np.asarray(timeline.gradient, np.float64), starts
    )
    axes.fill_between(edges, 0, _closed(state), step="post", color=_STATE, linewidth=0, label="optimizer state")
    axes.fill_between(
        edges,
        _closed(state),
        _closed(both),
        step="post",
        color=_GRADIENT,
        linewidth=0,
        label="gradients of what trains",
    )
    axes.set_xlim(0, float(edges[-1]))
    _bare(axes)
    _scale(axes, float(both.max()) or 1.0, 1024, _BYTES)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", integer=True, nbins=9)
    _head(axes, "memory", f"at most {human_bytes(float(both.max()))}")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=7.5, labelcolor=_INK,
        handlelength=0.9, handleheight=0.9, borderaxespad=0.1, borderpad=0.2, columnspacing=1.2,
    )  # fmt: skip


def _closed(values: ndarray[Any, Any]) -> ndarray[Any, Any]:
    """The last value once more, for the right edge of the last step."""
    import numpy as np

    return np.append(values, values[-1])


def _scale(axes: Axes, top: float, base: int, units: Sequence[str]) -> None:
    """A y axis from 0, with a few ticks that are round in the unit that they are written in."""
    from matplotlib.ticker import MaxNLocator

    power = 0
    while top / base ** (power + 1) >= 1 and power < len(units) - 1:
        power += 1
    unit = base**power
    steps = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], integer=power == 0).tick_values(0, top / unit)
    ticks = [step * unit for step in steps if 0 <= step * unit <= 1.06 * top]
    axes.set_yticks(ticks, [_human(tick, base, units) if tick else "0" for tick in ticks])
    axes.set_ylim(0, 1.06 * top)


def _head(axes: Axes, name: str, said: str) -> None:
    style: dict[str, Any] = {"textcoords": "offset points", "va": "baseline"}
    text = axes.annotate(name, (0, 1), (0, 7), xycoords="axes fraction", fontsize=9, color=_INK, **style)
    axes.annotate(said, (1, 1), (6, 7), xycoords=(text, "axes fraction"), fontsize=7.5, color=_QUIET, **style)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(length=0, colors=_INK, labelsize=8)


def _draw_epochs(panels: Sequence[Axes], epochs: Sequence[int], total: int) -> None:
    """Thin lines where epochs begin, and numbers above those that have room; Lightning counts them from 0."""
    begins = {number: update for number, update in enumerate(epochs, start=1) if update < total}
    step = next(k for power in range(20) for k in (10**power, 2 * 10**power, 5 * 10**power) if len(begins) <= 10 * k)
    labelled: int | None = None
    for number, update in begins.items():
        if number % step and len(begins) > 30:
            continue
        for panel in panels:
            panel.axvline(update, color="#8a8a8a", linewidth=0.6, linestyle=(0, (2, 2)), zorder=3)
        if number % step or (labelled is not None and update - labelled < 0.09 * total):
            continue
        panels[0].annotate(
            str(number) if labelled is not None else f"epoch {number}", (update, 1), (1, 4),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="bottom", fontsize=7.5, color=_QUIET,
        )  # fmt: skip
        labelled = update


# --- the founding table ---------------------------------------------------------------------------------------------

_FATES = {
    "held": "#cfe8dc",
    "state moved": "#fbe8b4",
    "moved": "#f3b9ae",
    "refused": "#cddcf0",
    "raised": "#dccbe8",
    "unknown": _NEVER,
}
_LEGEND = {
    "held": "held, value and state",
    "state moved": "held, its state moved",
    "moved": "moved, in % of how far the trained weight moved",
    "refused": "refused",
    "raised": "crashed",
    "unknown": "not known",
}
_CELL, _ROW = 1.62, 0.29
_LETTERS = 25  # that a cell has room for


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


def draw_founding(
    path: Path, ways: Sequence[str], rows: Sequence[tuple[str, Sequence[Fate]]], *, title: str = ""
) -> None:
    """Draw what optimizers do to a frozen weight: optimizers down, ways of freezing across, a colour and a word in each.

    Args:
        path: The file to write, a PNG or what else its suffix says (``.svg``, ``.pdf``); folders are made.
        ways: The ways of freezing.
        rows: Of each optimizer its name, and what became of the weight by each way; one alone is for all ways.
        title: What stands above.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: There is no row, or one has neither one word nor one for each way.
    """
    figure = _founding_figure(ways, rows, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _founding_figure(ways: Sequence[str], rows: Sequence[tuple[str, Sequence[Fate]]], title: str = "") -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch, Rectangle
    except ImportError as error:
        raise ImportError(
            "a picture of a probe needs matplotlib, the extra `plot`: pip install 'lightning-freeze[plot]' (in a "
            "checkout: pip install -c constraints.txt -e '.[plot]')."
        ) from error
    if not rows:
        raise ValueError("there is no optimizer to draw: `rows` is empty. Probe at least one.")
    for name, fates in rows:
        if len(fates) not in (1, len(ways)):
            raise ValueError(
                f"{name!r} has {len(fates)} words for {len(ways)} ways. Give one for each, or one for all."
            )
    high, wide, top = _ROW * len(rows), _CELL * len(ways), 0.9 if title else 0.6
    figure = Figure(figsize=(_WIDTH, top + high + 0.15), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8), label="founding")
    names = []
    style: dict[str, Any] = {"va": "center_baseline", "fontsize": 8.5, "color": _INK, "parse_math": False}
    for index, (name, fates) in enumerate(rows):
        at = (0, index + 0.5), (-6, 0)
        names.append(axes.annotate(_short(name, 60), *at, textcoords="offset points", ha="right", **style))
        across = len(ways) // len(fates)
        for column, fate in enumerate(fates):
            color = _FATES[fate.kind]
            axes.add_patch(Rectangle((column, index), across, 1, facecolor=color, edgecolor="white", linewidth=1.4))
            word = _short(fate.word, _LETTERS * across)
            axes.text(column + across / 2, index + 0.5, word, ha="center", **style)
    axes.set_xlim(0, len(ways))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks([column + 0.5 for column in range(len(ways))], ways)
    axes.tick_params(length=0, colors=_INK, labelsize=8.5)
    axes.spines[:].set_visible(False)
    # The names decide where the axes begin, and how wide the picture is.
    left = max(name.get_window_extent().width for name in names) / figure.dpi + 0.25
    width, height = left + wide + 0.15, top + high + 0.15
    figure.set_size_inches(width, height)
    axes.set_position((left / width, 0.15 / height, wide / width, high / height))
    kinds = dict.fromkeys(fate.kind for kind in _FATES for _, fates in rows for fate in fates if fate.kind == kind)
    figure.legend(
        handles=[Patch(facecolor=_FATES[kind], label=_LEGEND[kind]) for kind in kinds], loc="upper left",
        bbox_to_anchor=(left / width, 1 - (top - 0.6 + 0.06) / height), ncols=len(kinds), frameon=False, fontsize=8,
        labelcolor=_INK, handlelength=0.9, handleheight=0.9, borderpad=0, borderaxespad=0, columnspacing=1.4,
    )  # fmt: skip
    if title:
        figure.text(0.12 / width, 1 - 0.1 / height, title, va="top", fontsize=12.5, fontweight="bold", parse_math=False)
    return figure
