"""The picture of a run: what was planned, what was updated, what moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from lightning_freeze import read_report
from tests.report.made_runs import write


def outlines(axes: Any, color: str) -> dict[float, list[tuple[float, float]]]:
    """Row to where the outlines of a color begin and end."""
    found: dict[float, list[tuple[float, float]]] = {}
    for collection in axes.collections:
        if len(collection.get_facecolor()) == 0 and to_hex(collection.get_edgecolor()[0]) == color:
            for path in collection.get_paths():
                (left, low), (right, _) = path.vertices.min(axis=0), path.vertices.max(axis=0)
                found.setdefault(int(low), []).append((float(left), float(right)))
    return found


def test_outlines_are_what_was_planned_and_marks_what_moved(tmp_path: Path) -> None:
    figure = read_report(write("violations", tmp_path)).to_png(tmp_path / "a" / "report.png")
    axes = figure.axes[0]
    assert outlines(axes, "#00566b") == {0: [(4, 8), (10, 12)], 1: [(0, 4), (8, 10), (12, 16)], 2: [(0, 16)]}
    assert outlines(axes, "#d55e00") == {0: [(4, 6)], 1: [(9, 10)]}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["body", "head", "rest"]
    assert axes.get_title(loc="left") == "2 violations: what was planned frozen moved"
    assert (tmp_path / "a" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_an_update_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no update to draw: the run stopped before its first epoch ended"):
        read_report(write("not_yet", tmp_path)).to_png()
