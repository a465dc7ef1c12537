"""A run as a picture: what was planned and what trained when, and what moved though it was frozen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_freeze.plan.preview import Step
from lightning_freeze.report.picture import finish
from lightning_freeze.report.plan_picture import draw_plan
from lightning_freeze.report.repeats import bin_width
from lightning_freeze.report.run_data import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLANNED, _VIOLATION = "#00566b", "#d55e00"


def draw_run(path: Path | None, report: RunData) -> Figure:
    """Draw what trained when, as `draw_plan` does a plan: outlined what was planned, marked what moved.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: The run has no update.
    """
    total = report.steps.length
    if not total:
        raise ValueError(f"{report.path} has no update to draw: the run stopped before its first epoch ended.")
    sizes, width = report.sizes, bin_width(total)
    known = frozenset(sizes)
    steps, counts, planned = list[Step](), list[int](), {name: [False] * -(-total // width) for name in sizes}
    for begin, kind, count in report.steps.binned(width):
        steps.append(Step(kind.epoch, 0, kind.optimizer, kind.updated & known, place=kind.place))
        counts.append(count)
        for name in kind.planned & known:
            planned[name][begin // width] = True
    figure = draw_plan(None, steps, sizes, counts=counts)
    for row, (name, bins) in enumerate(planned.items()):
        _outline(figure.axes[0], row, _spans(bins, width, total), _PLANNED)
        _mark(figure.axes[0], row, name, report)
    return finish(figure, path, report.verdict.capitalize(), above=19)


def _mark(axes: Axes, row: int, name: str, report: RunData) -> None:
    """Mark what moved though it was frozen."""
    first = report.runs[0].get("updates_before", 0)
    found = [(each.first_update or 0, each.last_update) for each in report.violations if each.group == name]
    spans = [(begin - first, end - begin) for begin, end in found if end is not None]
    style: dict[str, Any] = {"color": _VIOLATION, "markeredgecolor": "white", "linestyle": "", "zorder": 5}
    axes.plot([begin + length / 2 for begin, length in spans], [row + 0.5] * len(spans), "D", **style)
    _outline(axes, row, spans, _VIOLATION)


def _spans(bins: Sequence[bool], width: int, total: int) -> list[tuple[int, int]]:
    """Where bins are true: the update at which that begins, and for how many."""
    edges = [min(index * width, total) for index, (a, b) in enumerate(pairwise([False, *bins, False])) if a != b]
    return [(begin, end - begin) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _outline(axes: Axes, row: int, spans: Sequence[tuple[int, int]], color: str) -> None:
    axes.broken_barh(spans, (row + 0.08, 0.84), facecolor="none", edgecolor=color, linewidth=1.2)
