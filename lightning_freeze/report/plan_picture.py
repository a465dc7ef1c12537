"""A run as a picture: what trains when, how much of the model that is, and what memory it needs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_freeze.plan.costs import ALL_KEPT, Held, Size, Timeline, over_time
from lightning_freeze.plan.preview import Step
from lightning_freeze.report.picture import INK, NEVER, empty_figure, finish, short
from lightning_freeze.report.repeats import bin_width
from lightning_freeze.report.table import BYTES, COUNTS, human, human_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import ndarray

    Array = ndarray[Any, Any]

_TRAINED, _FAINT, _QUIET = "#00566b", "#a9d3da", "#777777"
_GRADIENT, _STATE = "#e69f00", "#9aa5b1"

# Inches.
_WIDTH, _PANEL, _GAP, _HEAT = 6.4, 0.95, 0.5, 9.6
_LABEL = 0.155  # the least distance of two rows' labels
_RIBBON, _LETTER = 0.16, 0.055  # the height of the phases, the width of a letter in it

_MOST_PHASES = 40  # more of them in a ribbon would only flicker

_SHARE, _UPDATES = 43, 100  # points from the axes to where the two columns of numbers end


def draw_plan(
    path: Path | None,
    steps: Sequence[Step],
    sizes: Mapping[str, Size],
    *,
    title: str = "",
    held: Held = ALL_KEPT,
    counts: Sequence[int] | None = None,
) -> Figure:
    """Draw what trains when, with the trainable part of the model and the memory over time below it.

    A row is a group, a column an update, a filled cell trains, as high as its learning-rate factor; the phases stand above.
    More than 2,000 updates are drawn in bins of equal length: the darker a cell, the larger the share of its updates that
    train the group; of memory, the most in a bin.

    Args:
        path: The file to write, if any; its suffix names the format.
        steps: The optimizer steps to come.
        sizes: Every group's size, in the order of the rows.
        title: The title.
        held: Whose optimizer state takes up memory.
        counts: How many updates each of the steps stands for, none across bins of `bin_width`; by default one.

    Returns:
        The picture; its axes are the rows of groups, the elements, the memory, and the elements' percentage.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: There is no update, or one trains a group that has no size.
    """
    figure = empty_figure("plan")
    if not steps:
        raise ValueError("there is no update to draw: `steps` is empty. Preview at least one.")
    columns = _columns([1] * len(steps) if counts is None else counts)
    total, edges = int(columns.edges[-1]), columns.edges
    epochs = [int(at) for at, (a, b) in zip(columns.begins[1:], pairwise(steps), strict=True) if a.epoch != b.epoch]
    timeline = over_time([step.trained for step in steps], sizes, held)
    updates, shares, rates = _bins(steps, sizes, columns)
    row = min(max(0.26, min(0.38, 2.0 / len(sizes))), _HEAT / len(sizes))
    phases = _phases([step.place for step in steps], columns.begins, total)
    above = _RIBBON / row if phases else 0.0  # in rows
    heights = [row * (len(sizes) + above), _PANEL, _PANEL]
    figure.set_size_inches(_WIDTH, sum(heights) + 2 * _GAP)
    figure.subplots_adjust(0, 0, 1, 1, hspace=3 * _GAP / sum(heights))  # axes fill it; `finish` adds what lies around
    panels = figure.subplots(3, sharex=True, height_ratios=heights)
    panels[0].set_xlim(0, total)
    for panel in panels:
        _bare(panel)
    _draw_groups(panels[0], list(sizes), updates, shares, edges, row)
    scale = _draw_factors(panels[0], rates, edges)
    _draw_phases(panels[0], phases, above, total)
    _draw_key(panels[0], bool(((shares > 0) & (shares < 1)).any()), scale)
    _draw_elements(panels[1], timeline.elements, sum(size.elements for size in sizes.values()), columns)
    _draw_memory(panels[2], timeline, columns)
    _draw_epochs(panels, epochs, total)
    binned = f" (a column is a bin of {edges[1]:,})" if edges[1] > 1 else ""
    panels[2].set_xlabel(f"updates made{binned}", color=INK, fontsize=8.5)
    return finish(figure, path, title, above=19)


@dataclass(frozen=True)
class _Columns:
    """How steps fall into bins of updates."""

    counts: Array  # the updates of each step
    begins: Array  # those before it
    edges: Array  # of the bins, in updates
    first: Array  # the first step of each bin


def _columns(counts: Sequence[int]) -> _Columns:
    import numpy as np

    made = np.asarray(counts, dtype=np.int64)
    ends = made.cumsum()
    total = int(ends[-1])
    edges = np.append(np.arange(0, total, bin_width(total)), total)
    return _Columns(made, ends - made, edges, np.searchsorted(ends - made, edges[:-1]))


def _bins(steps: Sequence[Step], groups: Iterable[str], columns: _Columns) -> tuple[Array, Array, Array]:
    """Each group's updates; a row a group, the share of each bin's updates that train it and its mean learning-rate factor
    in these.
    """
    import numpy as np

    rows = {group: row for row, group in enumerate(groups)}
    codes: dict[Any, int] = {}
    each = ((step.trained, tuple(step.lr_factors.items())) for step in steps)
    coded = np.fromiter((codes.setdefault(code, len(codes)) for code in each), dtype=np.intp, count=len(steps))
    factors = np.zeros((len(rows), len(codes)))
    for (names, changed), code in codes.items():
        factors[[rows[name] for name in names], code] = 1.0
        for name in names & dict(changed).keys():
            factors[rows[name], code] = dict(changed)[name]
    counts, first = columns.counts, columns.first
    sums = np.stack([np.add.reduceat((line > 0)[coded] * counts, first) for line in factors])
    rates = np.stack([np.add.reduceat(line[coded] * counts, first) for line in factors])
    return sums.sum(axis=1), sums / np.diff(columns.edges), rates / np.maximum(sums, 1)


def _draw_groups(axes: Axes, groups: Sequence[str], counts: Array, shares: Array, edges: Array, row: float) -> None:
    from matplotlib.colors import LinearSegmentedColormap, ListedColormap

    total, right = int(edges[-1]), int(edges[1]) * shares.shape[1]
    inks = LinearSegmentedColormap.from_list("trained", [_FAINT, _TRAINED])(range(256))
    colors = ListedColormap([NEVER, *inks])  # what trains at all stands out from what does not
    style: dict[str, Any] = {"cmap": colors, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation_stage": "rgba"}
    for index, line in enumerate(shares):  # an image each, so that smoothing where bins outnumber pixels stays in a row
        axes.imshow(line[None], extent=(0, right, index + 1, index), **style)
    axes.set_ylim(len(groups), 0)
    axes.hlines(range(1, len(groups)), 0, total, color="white", linewidth=min(1.4, row * 8))
    if total <= 60:
        axes.vlines(range(1, total), 0, len(groups), color="white", linewidth=0.8)
    axes.spines[["left", "bottom"]].set_visible(False)
    style = {"fontsize": min(9.0, max(row, _LABEL) * 46), "va": "center_baseline", "parse_math": False}
    rows = _labelled(groups, row)
    axes.set_yticks([index + 0.5 for index in rows], [short(groups[index]) for index in rows], color=INK, **style)
    right_of: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
    for index in rows:
        count = int(counts[index])
        for x, text in ((_SHARE, _percent(count, total)), (_UPDATES, f"{count:,}")):
            axes.annotate(text, (1, index + 0.5), (x, 0), color=INK if count else _QUIET, **right_of, **style)
    for x, name in ((_SHARE, "share"), (_UPDATES, "updates")):
        axes.annotate(name, (1, 0), (x, 4), color=_QUIET, fontsize=7.5, va="bottom", **right_of)


def _draw_factors(axes: Axes, rates: Array, edges: Array) -> list[float]:
    """Cover the rows down to their learning-rate factors, the largest full; returns factors that show the scale."""
    import numpy as np

    top = max(1.0, float(rates.max()))
    for index, line in enumerate(rates):
        if not np.isin(line, (0.0, top)).all():
            high = np.where(line > 0, _height(line / top), 1.0)
            axes.stairs(index + 1 - high, edges, baseline=index, fill=True, color=NEVER, linewidth=0)
    return [top, top / 10, top / 100] if (rates[rates > 0] != 1).any() else []


def _height(factor: Any) -> Any:
    """Of a row, so that a hundredth is still seen."""
    return factor ** (1 / 3)


def _phases(places: Sequence[str], begins: Array, total: int) -> list[tuple[str, int, int]]:
    """Each phase that a run is in with its first update and its end; those above them where they are too many."""
    for level in (places, [place.partition(".")[0] for place in places]):
        changes = [i for i, place in enumerate(level) if i == 0 or place != level[i - 1]]
        if 1 < len(changes) <= _MOST_PHASES:
            ends = [*(int(begins[i]) for i in changes), total]
            return [(level[i], a, b) for i, (a, b) in zip(changes, pairwise(ends), strict=True)]
    return []


def _draw_phases(axes: Axes, phases: Sequence[tuple[str, int, int]], above: float, total: int) -> None:
    """A ribbon of phases above the rows, named where there is room."""
    for number, (place, begin, end) in enumerate(phases):
        shade = ("#dde2e6", "#c5cdd3")[number % 2]
        axes.fill_between([begin, end], -above, -0.2 * above, color=shade, linewidth=0)
        room = _WIDTH * (end - begin) / total / _LETTER
        phase = ".".join(str(int(part) + 1) for part in re.findall(r"\[(\d+)\]", place))  # `phases[1].phases[0]`: 2.1
        names = (f"phase {phase}", phase) if phase else (place,)
        if name := next((name for name in names if len(name) <= room), ""):
            box = {"color": shade, "pad": 0.6}  # over the lines of epochs
            text = axes.text((begin + end) / 2, -0.6 * above, name, color=INK, fontsize=6.5, zorder=4, bbox=box)
            text.set(ha="center", va="center_baseline")
    axes.set_ylim(axes.get_ylim()[0], -above)


def _draw_key(axes: Axes, partly: bool, scale: Sequence[float]) -> None:
    """What the cells mean, in a line below the rows."""
    from matplotlib.offsetbox import AnnotationBbox, DrawingArea, HPacker, TextArea
    from matplotlib.patches import Rectangle

    cells = [("trains", _TRAINED, 1.0), ("in part of the updates", _FAINT, 1.0), ("frozen", NEVER, 1.0)]
    cells = [cell for cell in cells if partly or cell[1] != _FAINT]
    cells += [(f"×{factor:g}", _TRAINED, float(_height(factor / scale[0]))) for factor in scale]
    parts: list[Any] = []
    for name, color, height in cells:
        if name.startswith("×1") and height == 1.0:
            parts.append(TextArea("  height: learning rate", textprops={"fontsize": 7.5, "color": _QUIET}))
        area = DrawingArea(9, 7)
        area.add_artist(Rectangle((0, 0), 9, 7 * height, color=color, linewidth=0))
        parts += [area, TextArea(name, textprops={"fontsize": 7.5, "color": _QUIET})]
    key = HPacker(children=parts, align="bottom", pad=0, sep=4)
    place: dict[str, Any] = {"xycoords": "axes fraction", "boxcoords": "offset points", "box_alignment": (0, 1)}
    axes.add_artist(AnnotationBbox(key, (0, 0), xybox=(0, -5), frameon=False, pad=0, **place))


def _labelled(groups: Sequence[str], row: float) -> list[int]:
    """The rows whose labels have room: groups of their own first, then every n-th member of a family."""
    step = int(-(-_LABEL // row))
    members: Counter[str] = Counter()
    ranked: list[tuple[bool, int]] = []
    for index, group in enumerate(groups):
        family, slash, _ = group.rpartition("/")
        if not slash or members[family] % step == 0:
            ranked.append((bool(slash), index))
        members[family] += 1
    chosen: list[int] = []
    for _, index in sorted(ranked):
        if all(abs(index - other) >= step for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _percent(part: float, total: int) -> str:
    share = 100 * part / (total or 1)
    if 0 < share < 0.5:
        return "<1 %"
    return ">99 %" if 99.5 <= share < 100 else f"{share:.0f} %"


def _draw_elements(axes: Axes, elements: Sequence[int], total: int, columns: _Columns) -> None:
    import numpy as np

    edges, first = columns.edges, columns.first
    values = np.asarray(elements, dtype=np.float64)
    low, high = (reduce.reduceat(values, first) for reduce in (np.minimum, np.maximum))
    if (high > low).any():
        axes.stairs(high, edges, baseline=low, fill=True, color=_FAINT)
    mean = np.add.reduceat(values * columns.counts, first) / np.diff(edges)
    axes.stairs(mean, edges, baseline=None, color=_TRAINED, linewidth=1.4)
    most = float(high.max())
    _scale(axes, most or 1.0, 1000, COUNTS)
    note = f"at most {human(most, 1000, COUNTS)} of {human(total, 1000, COUNTS)} ({_percent(most, total)})"
    binned = "; line: mean of a bin, band: its range" if edges[1] > 1 else ""
    _head(axes, "trainable parameters", note + binned)
    percent = axes.twinx()
    percent.set_ylim(0, 100 * axes.get_ylim()[1] / (total or 1))
    percent.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    percent.locator_params(axis="y", nbins=4)
    _bare(percent)
    percent.spines[["left", "bottom"]].set_visible(False)


def _draw_memory(axes: Axes, timeline: Timeline, columns: _Columns) -> None:
    import numpy as np

    edges = columns.edges
    state, gradient = (np.asarray(values, dtype=np.float64) for values in (timeline.state, timeline.gradient))
    lower, upper = (np.maximum.reduceat(values, columns.first) for values in (state, state + gradient))
    axes.stairs(lower, edges, fill=True, color=_STATE, label="optimizer state")
    axes.stairs(upper, edges, baseline=lower, fill=True, color=_GRADIENT, label="gradients of what trains")
    _scale(axes, float(upper.max()) or 1.0, 1024, BYTES)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", integer=True, nbins=9)
    _head(axes, "memory", f"at most {human_bytes(float(upper.max()))}")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=7.5, labelcolor=INK,
        handlelength=0.9, handleheight=0.9, borderaxespad=0.1, borderpad=0.2, columnspacing=1.2,
    )  # fmt: skip


def _scale(axes: Axes, top: float, base: int, units: Sequence[str]) -> None:
    """A y axis from 0, with a few ticks that are round in the unit that they are written in."""
    from matplotlib.ticker import MaxNLocator

    power = 0
    while top / base ** (power + 1) >= 1 and power < len(units) - 1:
        power += 1
    unit = base**power
    steps = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10], integer=power == 0).tick_values(0, top / unit)
    ticks = [step * unit for step in steps if 0 <= step * unit <= 1.06 * top]
    axes.set_yticks(ticks, [human(tick, base, units) if tick else "0" for tick in ticks])
    axes.set_ylim(0, 1.06 * top)


def _head(axes: Axes, name: str, note: str) -> None:
    style: dict[str, Any] = {"textcoords": "offset points", "va": "baseline"}
    text = axes.annotate(name, (0, 1), (0, 7), xycoords="axes fraction", fontsize=9, color=INK, **style)
    axes.annotate(note, (1, 1), (6, 7), xycoords=(text, "axes fraction"), fontsize=7.5, color=_QUIET, **style)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(length=0, colors=INK, labelsize=8)


def _draw_epochs(panels: Sequence[Axes], epochs: Sequence[int], total: int) -> None:
    """Thin lines where epochs begin, and numbers above those that have room; Lightning counts them from 0."""
    from matplotlib.ticker import MaxNLocator

    begins = {number: update for number, update in enumerate(epochs, start=1) if update < total}
    rounded = MaxNLocator(10, steps=[1, 2, 5, 10], integer=True).tick_values(0, len(begins))
    last = -total  # where the last number stands
    for number, update in begins.items():
        if len(begins) > 30 and number not in rounded:
            continue
        for panel in panels:
            panel.axvline(update, color="#8a8a8a", linewidth=0.6, linestyle=(0, (2, 2)), zorder=3)
        if number in rounded and update - last >= 0.09 * total:
            panels[0].annotate(
                str(number) if last >= 0 else f"epoch {number}", (update, 1), (1, 4),
                xycoords=("data", "axes fraction"), textcoords="offset points", va="bottom", fontsize=7.5, color=_QUIET,
            )  # fmt: skip
            last = update
