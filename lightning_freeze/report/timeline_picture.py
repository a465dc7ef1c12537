"""A run as a picture: what was planned and what trained when, and what moved though it was frozen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_freeze.plan.preview import Step
from lightning_freeze.report.picture import finish
from lightning_freeze.report.plan_picture import draw_plan
from lightning_freeze.report.run_data import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLANNED, _VIOLATION, _COLUMNS = "#00566b", "#d55e00", 1000


def draw_run(path: Path | None, report: RunData) -> Figure:
    """Draw what trained when, as `draw_plan` does a plan: outlined what was planned, marked what moved.

    Raises:
        ImportError: matplotlib, the extra ``plot``, is not installed.
        ValueError: The run has no update.
    """
    steps = [step for step, count in report.steps for _ in range(count)]
    if not steps:
        raise ValueError(f"{report.path} has no update to draw: the run stopped before its first epoch ended.")
    sizes = report.sizes
    each = (Step(s.epoch, 0, s.optimizer, s.updated & frozenset(sizes), place=s.place) for s in steps)
    figure = draw_plan(None, list(each), sizes)
    for row, name in enumerate(sizes):
        _outline(figure.axes[0], row, _spans([name in step.planned for step in steps]), _PLANNED)
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


def _spans(values: Sequence[bool]) -> list[tuple[int, int]]:
    """Where values are true: where that begins, and for how long; of many, in bins, where any is."""
    length = -(-len(values) // _COLUMNS)
    bins = [any(values[begin : begin + length]) for begin in range(0, len(values), length)]
    edges = [min(index * length, len(values)) for index, (a, b) in enumerate(pairwise([False, *bins, False])) if a != b]
    return [(begin, end - begin) for begin, end in zip(edges[::2], edges[1::2], strict=True)]


def _outline(axes: Axes, row: int, spans: Sequence[tuple[int, int]], color: str) -> None:
    axes.broken_barh(spans, (row + 0.08, 0.84), facecolor="none", edgecolor=color, linewidth=1.2)
